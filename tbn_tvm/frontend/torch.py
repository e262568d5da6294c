"""Import of exported PyTorch programs into Relax."""

from __future__ import annotations

import tvm
from torch import fx
from torch.export import ExportedProgram
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program as import_exported_program

import tbn_tvm.nn.ops  # noqa: F401  (registers the operators a saved program refers to)
from tbn_tvm import op


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
    return import_exported_program(
        program,
        keep_params_as_input=False,
        custom_convert_map={
            "tbn_tiled_linear.default": _linear,
            "tbn_tiled_conv1d.default": _conv1d,
            "tbn_tiled_conv2d.default": _conv2d,
        },
    )


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
