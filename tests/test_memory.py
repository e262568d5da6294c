"""The planned and the measured use of memory."""

import subprocess
import sys

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tbn_tvm.memory import plan_memory
from tbn_tvm.signature import Signature, TensorSpec

PAGE = 4096


@I.ir_module
class Planned:
    """Three storages, of which the second is free again when the third is taken."""

    @T.prim_func(private=True, s_tir=True)
    def scratching(x: T.Buffer((2048,), "float32"), y: T.Buffer((2048,), "float32")):
        kept = T.sblock_alloc_buffer((100,), "float32")
        shared = T.sblock_alloc_buffer((100,), "float32", scope="shared")
        for i in range(100):
            with T.sblock("kept"):
                v = T.axis.spatial(100, i)
                kept[v] = x[v]
        for i in range(100):
            with T.sblock("shared"):
                v = T.axis.spatial(100, i)
                shared[v] = kept[v]
        for i in range(100):
            with T.sblock("y"):
                v = T.axis.spatial(100, i)
                y[v] = shared[v]

    @R.function(pure=False)
    def main(x: R.Tensor((2048,), "float32")) -> R.Tensor((2048,), "float32"):
        cls = Planned
        first = R.memory.alloc_storage(R.shape([8192]), R.prim_value(0), "global", "float32")
        a = R.memory.alloc_tensor(first, R.prim_value(0), R.shape([2048]), "float32")
        cls.scratching(x, a)
        second = R.memory.alloc_storage(R.shape([8192]), R.prim_value(0), "global", "float32")
        b = R.memory.alloc_tensor(second, R.prim_value(0), R.shape([2048]), "float32")
        cls.scratching(a, b)
        c = R.builtin.alloc_tensor(R.shape([2048]), R.dtype("float32"), R.prim_value(0))
        cls.scratching(b, c)
        return c


def signature(*shape) -> Signature:
    return Signature((TensorSpec("x", shape, "float32"),), ())


def test_a_freed_block_is_taken_again():
    plan = plan_memory(Planned, [np.zeros(10, np.uint8)], signature(2048), batch=1)
    assert (plan.weights, plan.inputs) == (10, 8192)
    # The first is free when the third asks for as many pages.
    assert plan.activations == 2 * 2 * PAGE
    assert plan.workspace == 400
    assert plan.peak == 10 + 8192 + 4 * PAGE + 400


def test_a_captured_graph_keeps_its_blocks():
    plan = plan_memory(Planned, [], signature(2048), batch=1, keep_all=True)
    assert plan.activations == 3 * 2 * PAGE


@I.ir_module
class Free:
    """A storage as large as the batch."""

    @R.function(pure=False)
    def main(x: R.Tensor(("batch", 1024), "float32")) -> R.Tensor(("batch", 1024), "float32"):
        batch = T.int64()
        y = R.builtin.alloc_tensor(R.shape([batch, 1024]), R.dtype("float32"), R.prim_value(0))
        return y


@pytest.mark.parametrize("batch", [1, 7])
def test_free_extents_are_taken_to_be_the_batch(batch):
    plan = plan_memory(Free, [], signature("batch", 1024), batch=batch)
    assert (plan.inputs, plan.activations) == (batch * PAGE, batch * PAGE)
    assert plan.to_dict()["batch"] == batch


TAKING = """
import numpy as np
import tvm
from tbn_tvm.meter import MemoryMeter

meter = MemoryMeter(tvm.cpu())
assert meter.peak == 0
held = np.ones(512 << 20, np.uint8)
assert meter.sample() > 256 << 20
del held
assert meter.sample() > 256 << 20, "a peak stays"
"""


def test_memory_taken_is_measured():
    # In a process of its own: what other tests give back in between would count against it.
    done = subprocess.run([sys.executable, "-c", TAKING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
