"""What the GPU benchmark measures: layers, batches and the kernels that compute them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from tbn_tvm.errors import UsageError

SHAPES = ((4096, 4096), (1024, 1024), (4096, 11008))
"""Outputs and inputs of dense layers."""

FACTORS = (2, 4, 8, 16)
BATCHES = (1, 8, 64, 512, 4096)
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Batches of the one layer that is measured at every power of two."""

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Case:
    """A layer at a batch.

    Attributes
    ----------
    m, n : int
        Outputs and inputs of a dense layer; channels out and in of a convolution.
    p, batch : int
        Compression factor; samples.
    dtype : str
        Of activations, and of the rival's weights.
    side : int or None
        Height and width of a convolution's square input; None for a dense layer.
    taps : int
        Height and width of its window, with as much padding as keeps the input's extents.
    kernel : str or None
        The kernel; None leaves it to records and rules.
    target : float or None
        How many times faster than the rival the project wants to be.
    """

    m: int
    n: int
    p: int
    batch: int
    dtype: str = "float16"
    side: int | None = None
    taps: int = 3
    kernel: str | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        columns = self.n if self.side is None else self.n * self.taps**2
        if self.m * columns % self.p:
            raise UsageError(f"p = {self.p} does not divide the {self.m} x {columns} weights")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r}: expected {', '.join(DTYPES)}")

    @property
    def key(self) -> str:
        """Names the case."""
        layer = f"{self.m}x{self.n}"
        if self.side is not None:
            layer += f" conv {self.taps}x{self.taps} on {self.side}x{self.side}"
        kernel = f" {self.kernel}" if self.kernel else ""
        return f"{layer} p={self.p} batch={self.batch} {self.dtype}{kernel}"

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    def workload(self, features: frozenset[str]):
        """What kernels are asked for: no bias, one alpha a use of the tile."""
        from tbn_tvm.schedules.reference import Product, Window
        from tbn_tvm.schedules.rules import DENSE, Workload
        from tbn_tvm.tiling import Geometry

        if self.side is None:
            product = Product(Geometry(self.m, self.n, self.m * self.n // self.p), self.p)
            return Workload(DENSE, product, self.batch, self.dtype, features)
        columns = self.n * self.taps**2
        return Workload(
            "relax.tbn.tiled_conv2d",
            Product(Geometry(self.m, columns, self.m * columns // self.p), self.p),
            self.batch,
            self.dtype,
            features,
            Window((self.taps,) * 2, (1, 1), (self.taps // 2,) * 4, (1, 1)),
            (self.side, self.side),
        )

    def with_kernel(self, kernel: str) -> Case:
        """The same by another kernel, with no target of its own."""
        return replace(self, kernel=kernel, target=None)


HEADLINES = (
    Case(4096, 4096, 4, 1, target=2.0),
    Case(16384, 16384, 4, 1, target=15.0),
    Case(4096, 4096, 4, 4096, target=2.5),
    Case(4096, 4096, 8, 4096, target=4.0),
    Case(256, 256, 4, 32, side=56, target=1.5),
)
"""The cases the project has set itself targets for."""

_DENSE_KERNELS = ("dense_wgmma", "dense_mma", "dense_simt")


def comparisons() -> Iterator[Case]:
    """Headlines by other kernels than the rules', and in bfloat16 and float32."""
    for case in (*HEADLINES[:3], Case(4096, 4096, 4, 64)):
        yield from map(case.with_kernel, _DENSE_KERNELS)
    for case in HEADLINES:
        yield replace(case, dtype="bfloat16", target=None)
    for batch in (1, 64):
        yield Case(4096, 4096, 4, batch, "float32")


def convolutions(factors: Sequence[int] = FACTORS) -> Iterator[Case]:
    """Windows of 3 x 3: the headline's layer at each p, and those of ResNets."""
    for p in factors:
        yield Case(256, 256, p, 32, side=56)
    for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
        for batch in (1, 32):
            yield Case(channels, channels, 4, batch, side=side)


def table(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    factors: Sequence[int] = FACTORS,
    batches: Sequence[int] = BATCHES,
    dtype: str = "float16",
) -> Iterator[Case]:
    """Dense layers: every shape with every p that divides its outputs, at every batch."""
    for m, n in shapes:
        for p in factors:
            if m % p == 0:
                for batch in batches:
                    yield Case(m, n, p, batch, dtype)


def everything() -> list[Case]:
    """All of the above, what matters most first, each once."""
    curve = (Case(4096, 4096, 4, batch) for batch in CURVE)
    cases = [*HEADLINES, *convolutions((4,)), *comparisons(), *curve, *table(), *convolutions()]
    found: dict[str, Case] = {}
    for case in cases:
        found.setdefault(case.key, case)
    return list(found.values())


def small() -> list[Case]:
    """A few small layers, for trying the benchmark itself."""
    return [
        Case(256, 128, 4, 1, target=1.0),
        Case(256, 128, 4, 64),
        Case(256, 128, 4, 64, kernel="dense_simt"),
        Case(32, 32, 4, 2, side=8),
    ]
