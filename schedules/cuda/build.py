"""Words for writing kernels with TVM's IR builder."""

from __future__ import annotations

import contextlib

from tvm.script.ir_builder import tirx as T


def store(buffer, value, *indices) -> None:
    """``buffer[indices] = value``."""
    T.buffer_store(buffer, value, list(indices))


@contextlib.contextmanager
def when(condition):
    """A block that runs where a condition holds."""
    with T.If(condition), T.Then():
        yield


def barrier() -> None:
    """``__syncthreads``."""
    T.evaluate(T.tvm_storage_sync("shared"))


def ceil_div(a, b: int):
    """The quotient rounded up."""
    return (a + (b - 1)) // b


@contextlib.contextmanager
def grid(threads: int, **extents):
    """A launch of blocks of ``threads``; yields the block's indices, then the thread's.

    Parameters
    ----------
    threads : int
        In a block.
    **extents : int or Expr
        ``x``, ``y`` and ``z`` extents of the grid, those that are used.
    """
    with contextlib.ExitStack() as stack:
        indices = [
            stack.enter_context(T.thread_binding(0, extent, f"blockIdx.{axis}"))
            for axis, extent in extents.items()
        ]
        indices.append(stack.enter_context(T.thread_binding(0, threads, "threadIdx.x")))
        yield indices


def flat_view(buffer, shape):
    """The same memory with another shape."""
    return T.decl_buffer(shape, str(buffer.dtype), data=buffer.data)
