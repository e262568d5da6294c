"""Import of exported PyTorch programs into Relax."""

from __future__ import annotations

import tvm
from torch import fx
from torch.export import ExportedProgram
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program as import_exported_program

import tbn_tvm.nn.ops  # noqa: F401  (registers the operators a saved program refers to)
from tbn_tvm import op
from tbn_tvm.relay_passes import NormaliseIndices


def from_exported_program(program: ExportedProgram) -> tvm.IRModule:
    """Import an exported program; frozen tiled layers become ``relax.tbn`` operators.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        Weights become constants. Dynamic dimensions become symbolic.

    Returns
    -------
    tvm.IRModule
        With ``main`` taking the program's user inputs, by name, and returning its outputs.
    """
    mod = import_exported_program(
        program,
        keep_params_as_input=False,
        custom_convert_map={
            "addmm.default": _addmm,
            "elu.default": _elu,
            "tbn_tiled_linear.default": _linear,
            "tbn_tiled_conv1d.default": _conv1d,
            "tbn_tiled_conv2d.default": _conv2d,
        },
    )
    return NormaliseIndices()(mod)


def _addmm(node: fx.Node, importer) -> relax.Var:
    """``beta * bias + alpha * (x @ y)`` in the inputs' dtype; TVM's converter makes it float32."""
    bias, x, y = importer.retrieve_args(node)[:3]
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    dtype = str(x.ty.dtype)
    emit = importer.block_builder.emit
    result = emit(relax.op.matmul(x, y, out_dtype=dtype))
    if alpha != 1:
        result = emit(relax.op.multiply(result, relax.const(alpha, dtype)))
    if beta == 0:
        return result
    if beta != 1:
        bias = emit(relax.op.multiply(bias, relax.const(beta, dtype)))
    return emit(relax.op.add(result, bias))


def _elu(node: fx.Node, importer) -> relax.Var:
    """``scale * (x if x > 0 else alpha * (exp(input_scale * x) - 1))``, which SELU is a case of;
    TVM's converter knows alpha only."""
    x, *given = importer.retrieve_args(node)
    defaults = {"alpha": 1.0, "scale": 1.0, "input_scale": 1.0, **node.kwargs}
    alpha, scale, input_scale = (*given, *list(defaults.values())[len(given) : 3])
    emit, dtype = importer.block_builder.emit, str(x.ty.dtype)

    def constant(value):
        return relax.const(float(value), dtype)

    below = emit(relax.op.minimum(x, constant(0)))
    below = emit(relax.op.exp(emit(relax.op.multiply(below, constant(input_scale)))))
    below = emit(relax.op.multiply(emit(relax.op.subtract(below, constant(1))), constant(alpha)))
    result = emit(relax.op.add(emit(relax.op.nn.relu(x)), below))
    return result if scale == 1 else emit(relax.op.multiply(result, constant(scale)))


def _linear(node: fx.Node, importer) -> relax.Var:
    x, tile, alpha, bias, out_features, p = importer.retrieve_args(node)
    return importer.block_builder.emit(
        op.tiled_dense(x, tile, alpha, bias, out_features=out_features, p=p)
    )


def _conv(node: fx.Node, importer, build) -> relax.Var:
    x, tile, alpha, bias, channels, kernel, strides, padding, dilation, groups, p = (
        importer.retrieve_args(node)
    )
    return importer.block_builder.emit(
        build(
            x,
            tile,
            alpha,
            bias,
            out_channels=channels,
            kernel_size=list(kernel),
            strides=list(strides),
            padding=list(padding),
            dilation=list(dilation),
            groups=groups,
            p=p,
        )
    )


def _conv1d(node: fx.Node, importer) -> relax.Var:
    return _conv(node, importer, op.tiled_conv1d)


def _conv2d(node: fx.Node, importer) -> relax.Var:
    return _conv(node, importer, op.tiled_conv2d)
