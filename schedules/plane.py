"""A convolution along one axis or two, seen as one along two."""

from __future__ import annotations

from dataclasses import dataclass

from tbn_tvm.schedules.rules import Workload


@dataclass(frozen=True)
class Plane:
    """Extents of a convolution, a pair each; with one axis the height is 1.

    Parameters
    ----------
    workload : Workload
        A convolution of known extents.
    """

    workload: Workload

    @staticmethod
    def _pair(values, missing: int = 1) -> tuple[int, int]:
        values = tuple(int(value) for value in values)
        return values if len(values) == 2 else (missing, *values)

    @property
    def kernel(self) -> tuple[int, int]:
        """Taps."""
        return self._pair(self.workload.window.kernel)

    @property
    def strides(self) -> tuple[int, int]:
        """Steps."""
        return self._pair(self.workload.window.strides)

    @property
    def dilation(self) -> tuple[int, int]:
        """Spacing of taps."""
        return self._pair(self.workload.window.dilation)

    @property
    def before(self) -> tuple[int, int]:
        """Zeros above and to the left."""
        padding = self.workload.window.padding
        return self._pair(padding[: len(padding) // 2], missing=0)

    @property
    def inputs(self) -> tuple[int, int]:
        """Extents of the input."""
        return self._pair(self.workload.extents)

    @property
    def outputs(self) -> tuple[int, int]:
        """Extents of the output."""
        return self._pair(self.workload.out_extents)
