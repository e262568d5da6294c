"""An exported PyTorch program as an ONNX model whose tiled layers are calls of functions.

PyTorch's own exporter translates the graph; our operators reach it as ONNX nodes already. What it
leaves in the model about the machine that wrote it (stack traces, numbered names) is taken out, so
that a program always gives the same bytes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tbn_tvm import __version__
from tbn_tvm.errors import TbnError, ToolError, UsageError
from tbn_tvm.export._walk import drop_unused_weights, graphs_of, tiled_nodes
from tbn_tvm.export.functions import CONV, DOMAIN, FIRST_OPSET, LINEAR, VERSION, tiled_function
from tbn_tvm.export.older_opsets import lower_to_opset
from tbn_tvm.loading import first_line, quiet

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto
    from torch.export import ExportedProgram

_PYTORCH_FIRST_OPSET = 18
"""The oldest that PyTorch's exporter writes by itself."""

_FIRST_IR_VERSION = 8
"""The first version of the file format that has functions."""


def build_model(program: ExportedProgram, opset: int) -> ModelProto:
    """Translate a program.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        Its frozen tiled layers become nodes of the domain ``org.tbn_tvm``, called after the
        layer; tile and alphas become initialisers. Inputs keep their names, outputs are called
        ``output``, or ``output_0`` and so on; the one symbolic first axis of inputs is called
        ``batch``.
    opset : int
        Version of ONNX's operators, at least 17.

    Returns
    -------
    onnx.ModelProto
        With the functions that it uses, weights within.

    Raises
    ------
    UsageError
        For an opset that cannot be written.
    TbnError
        For an operation that ONNX does not have.
    """
    if opset < FIRST_OPSET:
        raise UsageError(f"opset {opset}: expected {FIRST_OPSET} or newer")
    model = _translate(program, max(opset, _PYTORCH_FIRST_OPSET))
    _drop_remarks(model.graph)
    _name_layers(model.graph)
    for node in tiled_nodes(model.graph):
        _check_constants(node, model.graph)
    drop_unused_weights(model.graph)
    _name_outputs(model.graph)
    _name_batch(model.graph)
    lower_to_opset(model, opset)
    _describe(model, opset)
    return model


def _translate(program: ExportedProgram, opset: int) -> ModelProto:
    import torch

    try:
        with quiet():
            exported = torch.onnx.export(
                program.run_decompositions(_symbolic_forms()),
                dynamo=True,
                opset_version=opset,
                verbose=False,
            )
            model = exported.model_proto
    except ToolError:
        raise
    except Exception as error:  # the exporter raises many kinds for what it does not know
        raise TbnError(f"the model cannot be written as ONNX: {_reason(error)}") from None
    # Where a version cannot be reached, the exporter logs it and stays at another.
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if written != opset:
        raise UsageError(
            f"opset {opset}: the installed PyTorch and onnxscript cannot write it for this model; "
            f"choose another, {written} for example"
        )
    return model


def _symbolic_forms() -> dict:
    """For each of our operators what to put in its place: a node of ours in ONNX's terms."""
    import torch

    from tbn_tvm.nn import ops

    symbolic = getattr(getattr(torch.onnx, "ops", None), "symbolic", None)
    if symbolic is None:
        raise ToolError(
            f"PyTorch {torch.__version__} is installed: exporting to ONNX takes 2.8 or newer"
        )

    def linear(x, tile, alpha, bias, out_features, p):
        return symbolic(
            f"{DOMAIN}::{LINEAR}",
            [x, tile, alpha, bias],
            {"shape": [out_features, int(x.shape[-1])], "p": p},
            dtype=x.dtype,
            shape=[*x.shape[:-1], out_features],
            version=VERSION,
        )

    def conv(x, tile, alpha, bias, out_channels, kernel, stride, padding, dilation, groups, p):
        return symbolic(
            f"{DOMAIN}::{CONV}",
            [x, tile, alpha, bias],
            {
                "shape": [out_channels, int(x.shape[1]) // groups, *kernel],
                "p": p,
                "strides": list(stride),
                "pads": [*padding, *padding],
                "dilations": list(dilation),
                "group": groups,
            },
            dtype=x.dtype,
            shape=ops.conv_output_shape(x, out_channels, kernel, stride, padding, dilation),
            version=VERSION,
        )

    return {
        torch.ops.tbn.tbn_tiled_linear.default: linear,
        torch.ops.tbn.tbn_tiled_conv1d.default: conv,
        torch.ops.tbn.tbn_tiled_conv2d.default: conv,
    }


def _reason(error: BaseException) -> str:
    """The innermost cause, which the exporter wraps in advice on itself."""
    where = ""
    while error.__cause__ is not None:
        node = re.search(r"target=([\w.:]+)", str(error))
        where = f" (at {node[1]})" if node else where
        error = error.__cause__
    return first_line(error) + where


def _drop_remarks(graph: GraphProto) -> None:
    """What the exporter notes about its own insides, but for layers' names, which are read next."""
    for inner in graphs_of(graph):
        weights = {tensor.name for tensor in inner.initializer}
        kept = [info for info in inner.value_info if info.name not in weights]
        del inner.value_info[:], inner.metadata_props[:]
        inner.value_info.extend(kept)
        for part in (*inner.input, *inner.output, *inner.value_info, *inner.initializer):
            del part.metadata_props[:]
            part.doc_string = ""


def _name_layers(graph: GraphProto) -> None:
    """Call tiled nodes after their layers, and drop all nodes' remarks."""
    taken: set[str] = set()
    for inner in graphs_of(graph):
        for node in inner.node:
            if node.domain == DOMAIN:
                # Two layers whose bits are the same share an initialiser, of the one's name.
                name = _layer_name(node) or node.input[1].removesuffix("tile").rstrip(".")
                name = name or node.op_type
                number = 1
                while name in taken:
                    number += 1
                    name = f"{name.rpartition('#')[0] or name}#{number}"
                taken.add(name)
                node.name = name
            del node.metadata_props[:]
            node.doc_string = ""


def _layer_name(node: NodeProto) -> str:
    """The qualified name of the module that a node comes from; empty where it is not told."""
    scopes = [p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
    # A list of names as Python prints it, from the model's ('') to the node's own.
    names = re.findall(r"'([^']*)'", scopes[0]) if scopes else []
    return names[-2] if len(names) > 1 else ""


def _check_constants(node: NodeProto, graph: GraphProto) -> None:
    """See that bits and alphas are stored, and alphas in float32, whatever the model's dtype."""
    from onnx import TensorProto, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    if not all(name in weights for name in node.input[1:3]):
        raise TbnError(
            f"layer {node.name!r}: its tile or its alphas are computed from other values; freeze "
            "the model (tbn_tvm.nn.freeze) before torch.export.export"
        )
    alpha = weights[node.input[2]]
    if alpha.data_type == TensorProto.FLOAT:
        return
    # Under another name: other nodes may use the same values in their own dtype.
    name = f"{alpha.name}.float32"
    if name not in weights:
        exact = numpy_helper.to_array(alpha).astype("float32")
        graph.initializer.append(numpy_helper.from_array(exact, name))
    node.input[2] = name


def _name_outputs(graph: GraphProto) -> None:
    """Call outputs what compiled models call them."""
    inputs = {value.name for value in graph.input}
    single = len(graph.output) == 1
    names = ["output" if single else f"output_{i}" for i in range(len(graph.output))]
    wanted = {}
    for value, name in zip(graph.output, names, strict=True):
        while name in inputs:
            name = f"{name}_"
        wanted[value.name] = name
    # Values inside that happen to have one of these names make way.
    renamed = {name: f"{name}.inner" for name in wanted.values() if name not in wanted}
    renamed.update(wanted)
    for inner in graphs_of(graph):
        for part in (*inner.input, *inner.output, *inner.value_info, *inner.initializer):
            part.name = renamed.get(part.name, part.name)
        for node in inner.node:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]


def _name_batch(graph: GraphProto) -> None:
    """Call the one symbolic dimension ``batch`` where it is the first axis of an input."""
    shapes = [value.type.tensor_type.shape.dim for value in graph.input]
    symbols = {dim.dim_param for shape in shapes for dim in shape if dim.dim_param}
    if len(symbols) != 1 or not any(shape and shape[0].dim_param in symbols for shape in shapes):
        return
    word = re.compile(rf"\b{re.escape(symbols.pop())}\b")
    for inner in graphs_of(graph):
        for value in (*inner.input, *inner.output, *inner.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = word.sub("batch", dim.dim_param)


def _describe(model: ModelProto, opset: int) -> None:
    """Add the functions in use, versions, and who wrote this."""
    from onnx import helper

    used = {node.op_type for node in tiled_nodes(model.graph)}
    model.functions.extend(tiled_function(name, opset) for name in (LINEAR, CONV) if name in used)
    others = [e for e in model.opset_import if e.domain not in ("", DOMAIN)]
    imports = [helper.make_opsetid("", opset)]
    del model.opset_import[:]
    model.opset_import.extend(
        [*imports, *([helper.make_opsetid(DOMAIN, VERSION)] if used else []), *others]
    )
    # No newer than what is used, so that older run times read the file.
    model.ir_version = max(helper.find_min_ir_version_for(imports), _FIRST_IR_VERSION)
    model.producer_name, model.producer_version = "tbn-tvm", __version__
    model.graph.name = "main"
    model.doc_string = (
        f"Tiled layers are functions of the domain {DOMAIN} that hold bits and alphas; their "
        "bodies are standard ONNX (Tiled Bit Networks, arXiv:2407.12075)."
        if used
        else ""
    )
    helper.set_model_props(model, {f"{DOMAIN}.version": __version__})
