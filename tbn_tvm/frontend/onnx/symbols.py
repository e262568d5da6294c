"""Free dimensions: one identifier for each size that may differ."""

from __future__ import annotations

import re
from collections.abc import Iterator

from onnx import ValueInfoProto

BATCH = "batch"


def name_free_axes(inputs: list[ValueInfoProto]) -> list[ValueInfoProto]:
    """Copies of a model's inputs whose free axes all have a name that is an identifier.

    Named axes keep their names where these are identifiers, else get the nearest one: a name such
    as ``2*n`` is one name and no formula. First axes without a name are the batch, which inputs
    share; other axes without a name are each of a size of their own.
    """
    taken: dict[str, str] = {}

    def identifier(name: str) -> str:
        if name not in taken:
            cleaned = re.sub(r"\W", "_", name, flags=re.ASCII)
            cleaned = cleaned if cleaned and not cleaned[0].isdigit() else f"n_{cleaned}"
            taken[name] = _unused(cleaned, set(taken.values()))
        return taken[name]

    copies = []
    for value in inputs:
        copy = ValueInfoProto()
        copy.CopyFrom(value)
        copies.append(copy)
    for _axis, extent in _free(copies):
        if extent.dim_param:
            extent.dim_param = identifier(extent.dim_param)
    leading = {extent.dim_param for axis, extent in _free(copies) if not axis and extent.dim_param}
    batch = leading.pop() if len(leading) == 1 else _unused(BATCH, set(taken.values()))
    used = {*taken.values(), batch}
    for axis, extent in _free(copies):
        if not extent.dim_param:
            extent.dim_param = batch if axis == 0 else _unused("free", used)
            used.add(extent.dim_param)
    return copies


def without_free_axes(outputs: list[ValueInfoProto]) -> list[ValueInfoProto]:
    """Copies of a model's outputs that claim only the sizes that are numbers.

    Names of free axes in outputs are comments: what they are follows from the inputs.
    """
    copies = []
    for value in outputs:
        copy = ValueInfoProto()
        copy.CopyFrom(value)
        for _axis, extent in _free([copy]):
            extent.Clear()
        copies.append(copy)
    return copies


def _free(values: list[ValueInfoProto]) -> Iterator[tuple[int, object]]:
    for value in values:
        for axis, extent in enumerate(value.type.tensor_type.shape.dim):
            if not extent.HasField("dim_value"):
                yield axis, extent


def _unused(name: str, taken: set[str]) -> str:
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found
