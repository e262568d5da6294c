"""The checks of this folder can fail: kernels with one mistake in them are rejected.

What the emulated runs check is everything that is emitted as C++: index arithmetic, layouts,
guards, barriers and waits, and that fragments, descriptors, tensor maps and swizzles fit one
another as the PTX ISA defines them. What they cannot check:

- the text of inline assembly, which the emulator replaces by the same functions in C++. That it
  assembles is in ``test_nvcc.py``; that it does what it says, only a GPU shows;
- registers of ``wgmma`` that are overwritten while products are in flight: a CPU's products read
  them at once. ``wgmma_wait`` and the two turns of operands in ``dense_wgmma`` rest on reading;
- a warp that overtakes another by a whole turn of a loop: emulated warps take turns at every
  collective. The barriers listed in :data:`UNSEEN` guard against nothing else.
"""

import dataclasses
import re
from functools import partial

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cuda import (
    KERNELS,
    conv_mma,
    dense_mma,
    dense_wgmma,
    fragments,
    intrinsics,
)
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.testing import cuda_emulator
from tbn_tvm.testing.cuda_emulator import Emulated, Options, execution
from tbn_tvm.testing.products import convolution, dense

pytestmark = pytest.mark.skipif(cuda_emulator.compiler() is None, reason="needs g++")

ORDERS = [
    Options(),
    Options(order="reverse", early_copies=True),
    Options(order="shuffled", seed=1),
]

BLOCK = {"rows": 64, "samples": 64, "warps_m": 2, "warps_n": 2, "stages": 2}
PATCH = {"rows": 64, "tile_h": 4, "tile_w": 16, "warps_m": 2, "warps_n": 4, "channels": 16}
FEW = ("dense_mma", dense(48, 776, 2, 5), None)
MANY = ("dense_mma", dense(128, 264, 2, 70), (BLOCK,))
HOPPER = ("dense_wgmma", dense(256, 584, 2, 40), None)
CONV = ("conv_mma", convolution(64, 40, (3, 3), (9, 16), 1, 1, padding=(1, 1)), (PATCH,))
CASES = {
    "dense_mma, few": FEW,
    "dense_mma, many": MANY,
    "dense_wgmma": HOPPER,
    "dense_simt, few": ("dense_simt", dense(48, 1702, 2, 5, "float32"), None),
    "dense_simt, many": ("dense_simt", dense(64, 176, 2, 40, "float32"), None),
    "dense_segments": ("dense_segments", dense(7, 300, 6, 2, "float32"), None),
    "conv_mma": CONV,
    "conv_simt": (
        "conv_simt",
        convolution(36, 72, (3, 3), (9, 9), 2, 1, "float32", padding=(1, 1)),
        None,
    ),
}
TENSOR_CORES = ["dense_mma, few", "dense_mma, many", "dense_wgmma", "conv_mma"]

UNSEEN = {
    # Each thread reads what it wrote itself.
    "dense_mma, few": {1},
    # Products of the last stage, before its memory is written again.
    "dense_mma, many": {1},
    "conv_mma": {0, 2},
}
"""Barriers, numbered in the source, without which every emulated order of events is right."""


def passes(case, words=None):
    """Whether a kernel gives right numbers in every order of events."""
    kernel, problem, configs = case
    function, own_words = problem.function(KERNELS[kernel], configs)
    emulated = Emulated(function)
    try:
        for options in ORDERS:
            run = partial(emulated, options=options)
            problem.check(run, own_words if words is None else words, problem.workload.batch)
    except (AssertionError, RuntimeError):  # wrong numbers, or what a GPU would not do
        return False
    return True


def words_of(case):
    kernel, problem, configs = case
    return problem.function(KERNELS[kernel], configs)[1]


def test_one_sign_in_one_word():
    """What all else rests on: the error that is allowed is smaller than any sign."""
    for case in CASES.values():
        words = words_of(case)
        wrong = words.copy()
        wrong.reshape(-1)[0] ^= 1 << 5
        assert passes(case, words)
        assert not passes(case, wrong)


@pytest.mark.parametrize("name", CASES)
def test_two_bits_of_every_word_in_each_others_place(name):
    words = words_of(CASES[name])
    differ = (words >> 3 ^ words >> 4) & 1
    assert not passes(CASES[name], words ^ (differ << 3 | differ << 4))


@pytest.mark.parametrize("name", ["dense_mma, few", "dense_mma, many", "dense_wgmma"])
def test_columns_in_the_other_order(name):
    kernel, problem, _ = CASES[name]
    orders = {fragments.NATURAL, fragments.NEIGHBOURS}
    (other,) = orders - {KERNELS[kernel].order}
    (signs,) = sign_rows(problem.tile, problem.workload.product)
    assert not passes(CASES[name], fragments.fragment_words(signs, other))


def test_filters_channel_by_channel():
    _, problem, _ = CONV
    workload = problem.workload
    signs = sign_rows(problem.tile, workload.product)
    tap_major = conv_mma.patch_columns(signs, workload, PATCH["channels"])
    padded = np.zeros_like(tap_major)
    padded[..., : signs.shape[-1]] = signs
    assert not passes(CONV, fragments.fragment_words(padded))


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_signs_shifted_by_one(monkeypatch, name):
    def off_by_one(word, pair, dtype):
        return intrinsics.decoded(word, pair + 1, dtype)

    for module in (dense_mma, dense_wgmma, conv_mma):
        monkeypatch.setattr(module, "decoded", off_by_one)
    assert not passes(CASES[name])


@pytest.mark.parametrize("operand", ["rows", "columns"])
@pytest.mark.parametrize("name", ["dense_mma, few", "dense_mma, many", "conv_mma"])
def test_operand_registers_in_another_order(monkeypatch, name, operand):
    def exchanged(dtype, acc, a, b):
        if operand == "rows":
            a = [a[0], a[2], a[1], a[3]]
        else:
            b = [b[1], b[0]]
        intrinsics.mma(dtype, acc, a, b)

    for module in (dense_mma, conv_mma):
        monkeypatch.setattr(module, "mma", exchanged)
    assert not passes(CASES[name])


@pytest.mark.parametrize(
    ("name", "module", "call"),
    [
        ("dense_mma, many", dense_mma, "cp_async_wait"),
        ("dense_mma, many", dense_mma, "cp_async_commit"),
        ("dense_wgmma", dense_wgmma, "mbarrier_wait"),
        ("dense_wgmma", dense_wgmma, "mbarrier_arrive"),
        ("dense_wgmma", dense_wgmma, "mbarrier_init"),
        ("dense_wgmma", dense_wgmma, "wgmma_fence"),
        ("dense_wgmma", dense_wgmma, "wgmma_commit"),
        ("dense_wgmma", dense_wgmma, "wgmma_wait"),
    ],
)
def test_a_missing_step_of_a_pipeline(monkeypatch, name, module, call):
    monkeypatch.setattr(module, call, lambda *_: None)
    assert not passes(CASES[name])


def test_one_copy_too_many_in_flight(monkeypatch):
    def late(pending):
        intrinsics.cp_async_wait(pending + 1)

    monkeypatch.setattr(dense_mma, "cp_async_wait", late)
    assert not passes(MANY)


def test_the_other_parity(monkeypatch):
    def other(barrier, parity):
        intrinsics.mbarrier_wait(barrier, T.bitwise_xor(parity, T.uint32(1)))

    monkeypatch.setattr(dense_wgmma, "mbarrier_wait", other)
    assert not passes(HOPPER)


@pytest.mark.parametrize("wrong", ["stride", "swizzle"])
def test_a_wrong_descriptor(monkeypatch, wrong):
    def descriptor(shared, leading, stride, swizzle):
        if wrong == "stride":
            return intrinsics.smem_descriptor(shared, leading, stride // 2, swizzle)
        return intrinsics.smem_descriptor(shared, leading, stride, 0)

    monkeypatch.setattr(dense_wgmma, "smem_descriptor", descriptor)
    assert not passes(HOPPER)


@pytest.mark.parametrize("name", CASES)
def test_a_missing_barrier(monkeypatch, name):
    """One after the other, in the source: TVM would put some back."""
    lower = execution.lower
    kernel, problem, configs = CASES[name]
    function, _ = problem.function(KERNELS[kernel], configs)
    source = lower(function, execution.SM90).source
    places = [found.span() for found in re.finditer(r"__syncthreads\(\)", source)]
    assert places
    for number, (start, stop) in enumerate(places):
        if number in UNSEEN.get(name, ()):
            continue
        changed = f"{source[:start]}(void)0{source[stop:]}"
        with monkeypatch.context() as patch:
            patch.setattr(
                execution,
                "lower",
                lambda *given, changed=changed: dataclasses.replace(lower(*given), source=changed),
            )
            assert not passes(CASES[name]), f"barrier {number} of {len(places)}"
