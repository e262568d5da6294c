"""ConvTranspose of a given output size."""

from __future__ import annotations

from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ConvTranspose

from tbn_tvm.frontend.onnx.operands import fixed


def conv_transpose(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
    """TVM's converter, told the padding that gives the output its size.

    Raises
    ------
    ValueError
        Where ONNX and its run times divide the padding differently, and where there is more to
        add behind than the kernel's stride.
    """
    if "output_shape" in attrs:
        attrs = {**attrs, **_padding(inputs, attrs)}
        for name in ("output_shape", "auto_pad"):
            attrs.pop(name, None)
    return ConvTranspose.get_converter(opset)(bb, inputs, attrs, ({}, {}))


def _padding(inputs, attrs: dict) -> dict:
    extents, kernel = (value.ty.shape.values[2:] for value in inputs[:2])
    rank = len(extents)
    wanted = list(attrs["output_shape"])
    strides, dilations = (list(attrs.get(n, [1] * rank)) for n in ("strides", "dilations"))
    behind = list(attrs.get("output_padding", [0] * rank))
    if len(wanted) != rank:
        raise ValueError(f"output_shape {wanted}: expected {rank} sizes, those of the image alone")
    halves = []
    for i in range(rank):
        last = (fixed(extents[i], f"axis {i + 2}") - 1) * strides[i]
        reached = last + (int(kernel[i]) - 1) * dilations[i] + 1
        total = reached + behind[i] - wanted[i]
        if total > 0 and total % 2:
            raise ValueError(
                f"output_shape {wanted} needs an odd padding of {total} on axis {i + 2}, which "
                "ONNX's run times divide differently: give pads"
            )
        if total < 0:
            behind[i] -= total
            if behind[i] >= strides[i]:
                raise ValueError(
                    f"output_shape {wanted} is {behind[i]} more on axis {i + 2} than the kernel "
                    f"reaches: expected less than its stride of {strides[i]}"
                )
        halves.append(max(total, 0) // 2)
    return {"pads": halves * 2, "output_padding": behind}
