"""Import of exported PyTorch programs into Relax."""

from __future__ import annotations

import torch
import tvm
from torch import fx
from torch.export import ExportedProgram
from tvm import relax
from tvm import tirx as tir
from tvm.relax.frontend.torch import from_exported_program as import_exported_program

import tbn_tvm.nn.ops  # noqa: F401  (registers the operators a saved program refers to)
from tbn_tvm import op
from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.antialiasing import ANTIALIASED
from tbn_tvm.frontend.element_wise import ELEMENT_WISE
from tbn_tvm.frontend.extremes import extreme, place_of_extreme
from tbn_tvm.frontend.grid_sample import METHODS, PADDINGS, grid_sample
from tbn_tvm.frontend.group_norm import (
    group_norm,
    instance_norm,
    layer_norm,
    standardised_by,
)
from tbn_tvm.frontend.indexing import INDEXING
from tbn_tvm.frontend.pooling import adaptive_max_pool, max_pool
from tbn_tvm.frontend.promotion import promote_types
from tbn_tvm.frontend.torch_recurrent import OPERATORS, RECURRENT
from tbn_tvm.frontend.torch_scans import SCANS
from tbn_tvm.frontend.torch_scatter import SCATTERS
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
        _decomposed(program),
        keep_params_as_input=False,
        run_ep_decomposition=False,
        custom_convert_map={
            "_native_batch_norm_legit.no_stats": _batch_statistics,
            "adaptive_max_pool2d.default": adaptive_max_pool,
            "adaptive_max_pool3d.default": adaptive_max_pool,
            "addmm.default": _addmm,
            "amax.default": _extremes(greatest=True),
            "amin.default": _extremes(greatest=False),
            "argmax.default": _index_of_extreme(greatest=True),
            "argmin.default": _index_of_extreme(greatest=False),
            "bmm.default": _product,
            "conv1d.default": _float_conv,
            "conv2d.default": _float_conv,
            "convolution.default": _float_conv,
            "elu.default": _elu,
            "empty.memory_format": _empty,
            "grid_sampler_2d.default": _grid_sampler,
            "grid_sampler_3d.default": _grid_sampler,
            "instance_norm.default": _instance_norm,
            "layer_norm.default": _layer_norm,
            "linear.default": _float_linear,
            "matmul.default": _product,
            "max_pool2d_with_indices.default": max_pool,
            "max_pool3d_with_indices.default": max_pool,
            "max.default": _extremes(greatest=True),
            "max.dim": _extreme_and_index(greatest=True),
            "min.default": _extremes(greatest=False),
            "min.dim": _extreme_and_index(greatest=False),
            "mm.default": _product,
            "native_group_norm.default": _group_norm,
            "native_layer_norm.default": _layer_norm,
            "select.int": _select,
            "tbn_tiled_linear.default": _linear,
            "tbn_tiled_conv1d.default": _conv1d,
            "tbn_tiled_conv2d.default": _conv2d,
            "view.default": _reshape,
            **{name: _summed(convert) for name, convert in _SUMS.items()},
            **dict.fromkeys(_RANDOM, _refuse_random),
            **ANTIALIASED,
            **ELEMENT_WISE,
            **INDEXING,
            **RECURRENT,
            **SCANS,
            **SCATTERS,
        },
    )
    return NormaliseIndices()(mod)


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program in core operators, and in those that are clumsier in core operators."""
    table = torch.export.default_decompositions()
    # In core operators it gathers at indices that are computed at every run; it is two slices.
    table.pop(torch.ops.aten.roll.default, None)
    # In core operators it repeats its scale for each instance, of which there may be any number.
    table.pop(torch.ops.aten.instance_norm.default, None)
    for operator in OPERATORS:
        table.pop(operator, None)
    return promote_types(program.run_decompositions(table))


_RANDOM = (
    "bernoulli.default",
    "bernoulli.p",
    "native_dropout.default",
    "rand.default",
    "rand_like.default",
    "randn.default",
    "randn_like.default",
)
"""Of which TVM's importer draws some once, and takes others for nothing."""


def _refuse_random(node: fx.Node, _importer) -> relax.Var:
    raise FormatError(
        f"the model draws random numbers ({node.target.__name__.split('.')[0]}): export it in eval "
        "mode, and make noise an input"
    )


_HALVES = ("float16", "bfloat16")


def _matmul(importer, x: relax.Expr, y: relax.Expr) -> relax.Var:
    """The product in the inputs' dtype, 16-bit floats summed in float32.

    TVM's converters make every product float32, which fits no operator that follows.
    """
    emit, dtype = importer.block_builder.emit, str(x.ty.dtype)
    if dtype not in _HALVES:
        return emit(relax.op.matmul(x, y, out_dtype=dtype))
    return emit(relax.op.astype(emit(relax.op.matmul(x, y, out_dtype="float32")), dtype))


def _product(node: fx.Node, importer) -> relax.Var:
    return _matmul(importer, *importer.retrieve_args(node)[:2])


def _float_linear(node: fx.Node, importer) -> relax.Var:
    x, weight, *bias = importer.retrieve_args(node)
    emit = importer.block_builder.emit
    result = _matmul(importer, x, emit(relax.op.permute_dims(weight)))
    return emit(relax.op.add(result, bias[0])) if bias and bias[0] is not None else result


def _float_conv(node: fx.Node, importer) -> relax.Var:
    """TVM's own conversion, its float32 sums brought back to the inputs' dtype."""
    convert = {"conv1d": importer._conv1d, "conv2d": importer._conv2d}.get(
        node.target.__name__.split(".")[0], importer._convolution
    )
    if str(importer.env[node.args[0]].ty.dtype) not in _HALVES:
        return convert(node)
    return _in_float32(convert, node, importer, [2])


def _layer_norm(node: fx.Node, importer) -> relax.Var:
    """TVM's own conversion, in float32 where TVM's kernel does not know the dtype; float64 is
    computed as such."""
    if str(importer.env[node.args[0]].ty.dtype) == "float64":
        x, shape, *given = importer.retrieve_args(node)
        scale, shift, epsilon = (*given, *(None, None, 1e-5)[len(given) :])[:3]
        return layer_norm(importer.block_builder.emit, x, scale, shift, len(shape), epsilon)
    native = node.target.__name__.startswith("native")
    convert = importer._native_layer_norm if native else importer._layer_norm
    if str(importer.env[node.args[0]].ty.dtype) != "bfloat16":
        return convert(node)
    return _in_float32(convert, node, importer, [0, 2, 3])


_SUMS = {
    "_log_softmax.default": "_log_softmax",
    "_softmax.default": "_softmax",
    "cumsum.default": "_cumsum",
    "linalg_vector_norm.default": "_norm",
    "mean.default": "_mean",
    "mean.dim": "_mean",
    "sum.default": "_sum",
    "sum.dim_IntList": "_sum",
    "var.correction": "_var",
    **{f"_adaptive_avg_pool{n}d.default": f"_adaptive_avg_pool{n}d" for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d.default": f"_adaptive_avg_pool{n}d" for n in (1, 2, 3)},
    **{f"avg_pool{n}d.default": f"_avg_pool{n}d" for n in (1, 2, 3)},
}
"""TVM's conversions of operators that add up many numbers, by the operator."""


def _summed(name: str):
    """TVM's own conversion of a reduction, which sums 16-bit floats as such: theirs overflow."""

    def convert(node: fx.Node, importer) -> relax.Var:
        own = getattr(importer, name)
        if str(importer.env[node.args[0]].ty.dtype) not in _HALVES or node.kwargs.get("dtype"):
            return own(node)
        return _in_float32(own, node, importer, [0])

    return convert


def _in_float32(convert, node: fx.Node, importer, positions: list[int]) -> relax.Var:
    """A conversion with some arguments cast to float32, its result cast to the input's dtype."""
    emit, dtype = importer.block_builder.emit, str(importer.env[node.args[0]].ty.dtype)
    nodes = [node.args[i] for i in positions if len(node.args) > i]
    before = {arg: importer.env[arg] for arg in nodes if isinstance(arg, fx.Node)}
    for arg, value in before.items():
        importer.env[arg] = emit(relax.op.astype(value, "float32"))
    try:
        result = convert(node)
    finally:
        importer.env.update(before)
    return emit(relax.op.astype(result, dtype))


def _reshape(node: fx.Node, importer) -> relax.Var:
    """TVM's converter compares free sizes in a way that fails where they are computed."""
    x, shape = importer.retrieve_args(node)[:2]
    return importer.block_builder.emit(relax.op.reshape(x, shape))


def _empty(node: fx.Node, importer) -> relax.Var:
    """Zeros; TVM's converter takes no free sizes."""
    shape = importer.retrieve_args(node)[0]
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    return importer.block_builder.emit(relax.op.zeros(shape, dtype))


def _select(node: fx.Node, importer) -> relax.Var:
    """``x[:, index]`` as a slice, which fuses; TVM's converter makes it a gather."""
    x, axis, index = importer.retrieve_args(node)[:3]
    axis = axis % x.ty.ndim
    extent = x.ty.shape.values[axis]
    if not isinstance(index, int) or (index < 0 and not isinstance(extent, tir.IntImm)):
        return importer._select(node)
    index = index if index >= 0 else index + int(extent)
    emit = importer.block_builder.emit
    return emit(
        relax.op.squeeze(emit(relax.op.strided_slice(x, [axis], [index], [index + 1])), [axis])
    )


def _extremes(greatest: bool):
    """``amax`` and ``amin``: over some axes, over all where none is named."""

    def convert(node: fx.Node, importer) -> relax.Var:
        x, axes, keepdims = _reduction_arguments(node, importer)
        axes = [axes] if isinstance(axes, int) else axes or None
        return extreme(importer.block_builder, x, axes, keepdims, greatest=greatest)

    return convert


def _index_of_extreme(greatest: bool):
    """``argmax`` and ``argmin``: along an axis, or of all elements."""

    def convert(node: fx.Node, importer) -> relax.Var:
        x, axis, keepdims = _reduction_arguments(node, importer)
        return place_of_extreme(importer.block_builder, x, axis, keepdims, greatest=greatest)

    return convert


def _extreme_and_index(greatest: bool):
    """``max`` and ``min`` along an axis, with the first index of each.

    TVM's converter sorts for it, which needs a run-time library and takes longer; of these two
    reductions the one whose result nobody uses goes away.
    """

    def convert(node: fx.Node, importer) -> relax.Var:
        x, axis, keepdims = _reduction_arguments(node, importer)
        bb = importer.block_builder
        found = extreme(bb, x, [axis], keepdims, greatest=greatest)
        place = place_of_extreme(bb, x, axis, keepdims, greatest=greatest)
        return bb.emit(relax.Tuple([found, place]))

    return convert


def _reduction_arguments(node: fx.Node, importer) -> tuple[relax.Var, object, bool]:
    x, *given = importer.retrieve_args(node)
    named = {"dim": None, "keepdim": False, **node.kwargs}
    axes, keepdims = (*given, *[named[name] for name in ("dim", "keepdim")[len(given) :]])
    return x, axes, keepdims


def _addmm(node: fx.Node, importer) -> relax.Var:
    """``beta * bias + alpha * (x @ y)`` in the inputs' dtype."""
    bias, x, y = importer.retrieve_args(node)[:3]
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    dtype = str(x.ty.dtype)
    emit = importer.block_builder.emit
    result = _matmul(importer, x, y)
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


def _grid_sampler(node: fx.Node, importer) -> relax.Var:
    """TVM's converter passes the grid on as it is, whose axes its operator has in another order."""
    x, grid, method, padding, align_corners = importer.retrieve_args(node)
    emit = importer.block_builder.emit
    return grid_sample(emit, x, grid, METHODS[method], PADDINGS[padding], align_corners)


def _group_norm(node: fx.Node, importer) -> relax.Var:
    """With or without a scale and a shift; TVM's converter fails where these are left out."""
    x, scale, shift, _batch, _channels, _size, groups, epsilon = importer.retrieve_args(node)
    emit = importer.block_builder.emit
    return emit(relax.Tuple([group_norm(emit, x, scale, shift, groups, epsilon)]))


def _instance_norm(node: fx.Node, importer) -> relax.Var:
    """By the statistics of each instance, or by those of training where these were kept."""
    x, scale, shift, mean, variance, own, _momentum, epsilon, _cudnn = importer.retrieve_args(node)
    emit, axes = importer.block_builder.emit, list(range(2, x.ty.ndim))
    if own:
        return instance_norm(emit, x, scale, shift, axes, epsilon)
    return standardised_by(emit, x, mean, variance, scale, shift, epsilon)


def _batch_statistics(node: fx.Node, importer) -> relax.Var:
    """Over all axes but that of the channels, which are those of all instances in a row."""
    x, scale, shift, _training, _momentum, epsilon = importer.retrieve_args(node)
    emit, axes = importer.block_builder.emit, [0, *range(2, x.ty.ndim)]
    return emit(relax.Tuple([instance_norm(emit, x, scale, shift, axes, epsilon)]))


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
