"""What the runners of low-bit rivals share: operands, check, and the benchmark's way of timing.

A runner is started with the interpreter of an environment in which its rival is installed; of this
project it needs the checkout alone, and no TVM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

# Last: whatever is installed goes before the checkout.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from tbn_tvm.bench.cuda_timing import Replay, copies_for, measure, rotated, warm_up

CASES = [(4096, 4096, batch) for batch in (1, 8, 64, 512, 4096)] + [(16384, 16384, 1)]
"""Outputs, inputs and samples: as in the benchmark's table and headlines."""

TOLERANCE = 2e-2


def weights(m: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Signs (bool) and a scale a row (float32) of a binary layer, which any bit width can hold."""
    generator = torch.Generator("cuda").manual_seed(0)
    signs = torch.randint(0, 2, (m, n), device="cuda", generator=generator).bool()
    scales = torch.rand(m, 1, device="cuda", generator=generator) + 0.5
    return signs, scales


def main(name: str, dtype: torch.dtype, bits: int, make: Callable) -> int:
    """Measure a rival.

    Parameters
    ----------
    name : str
        With its version.
    dtype : torch.dtype
        Of activations.
    bits : int
        Of its weights.
    make : callable
        ``(signs, scales) -> (call, nbytes)``: a layer that maps activations to outputs, and the
        bytes of its weights. It is called once for each copy.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", help="append results to this file, a JSON line each")
    args = parser.parse_args()
    warm_up()
    for m, n, batch in CASES:
        key = f"{name} {bits} bits {m}x{n} batch={batch}"
        try:
            entry = {"state": "done", "data": _measured(key, m, n, batch, dtype, make)}
            print(entry["data"]["told"], flush=True)
        except Exception as error:  # whatever a rival raises costs one row
            entry = {"state": "failed", "error": f"{type(error).__name__}: {error}"[:300]}
            print(f"{key}: {entry['error']}", flush=True)
        if args.out:
            with open(args.out, "a") as file:
                file.write(json.dumps({"key": key, **entry}) + "\n")
    return 0


@torch.inference_mode()
def _measured(key: str, m: int, n: int, batch: int, dtype: torch.dtype, make: Callable) -> dict:
    signs, scales = weights(m, n)
    first, nbytes = make(signs, scales)
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    copies = min(copies_for(nbytes + (m + n) * batch * dtype.itemsize, l2), 64)
    layers = [first, *(make(signs, scales)[0] for _ in range(copies - 1))]
    x = torch.empty(batch, n, dtype=dtype, device="cuda")
    xs = rotated(x, copies, torch.Tensor.normal_)
    dense = torch.where(signs, scales, -scales).double()
    expected = xs[0].double() @ dense.t()
    error = float((first(xs[0]).double() - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise AssertionError(f"outputs are off by {error:.1e}: not timed")
    calls = [lambda layer=layer, x=x: layer(x) for layer, x in zip(layers, xs, strict=True)]
    replay = Replay(calls, copies * nbytes > l2, contextlib.nullcontext)
    (time,) = measure([replay])
    return {
        **time.to_dict(),
        "m": m,
        "n": n,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "weight_bytes": nbytes,
        "error": error,
        "told": f"{key}: {time.median * 1e6:.2f} us{'' if replay.cold else ' (in cache)'}",
    }
