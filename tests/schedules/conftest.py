"""Runs kernels for boards on this machine, as the C that boards get."""

import ctypes
import subprocess

import pytest

from tbn_tvm.micro.kernels import c_type, lower_kernel

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fsanitize=undefined")
HEAD = """
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#define TBN_RESTRICT restrict

static inline void tbn_store_pair(uint16_t *to, uint32_t pair)
{
  memcpy(to, &pair, 4u);
}

static inline void tbn_put_pair(uint16_t *to, uint32_t pair)
{
  memcpy(to, &pair, 4u);
}

static inline uint32_t tbn_load_pair(const uint16_t *from)
{
  uint32_t pair;
  memcpy(&pair, from, 4u);
  return pair;
}
"""


@pytest.fixture(scope="session")
def run_c_kernel(tmp_path_factory):
    """A function that runs a PrimFunc on arrays, the last of which it writes."""
    folder = tmp_path_factory.mktemp("kernels")
    built = []

    def run(func, *arrays):
        kernel = lower_kernel(func, "kernel")
        declarations = ", ".join(p.declaration for p in kernel.parameters)
        scratch = kernel.parameters[len(arrays) :]
        sizes = [nbytes for nbytes, _ in kernel.scratch]
        statics = "".join(
            f"static uint64_t scratch{i}[{-(-size // 8)}];\n" for i, size in enumerate(sizes)
        )
        operands = kernel.parameters[: len(arrays)]
        passed = [
            *(f"({c_type(p.dtype)} *)operands[{i}]" for i, p in enumerate(operands)),
            *(f"({c_type(p.dtype)} *)scratch{i}" for i, p in enumerate(scratch)),
        ]
        text = (
            f"{HEAD}{statics}static void kernel({declarations})\n{{\n{kernel.body}}}\n"
            f"void run(void **operands)\n{{\n  kernel({', '.join(passed)});\n}}\n"
        )
        library = folder / f"kernel{len(built)}.so"
        built.append(library)
        command = ["gcc", *FLAGS, "-fno-sanitize-recover=all", "-shared", "-fPIC", "-x", "c", "-"]
        subprocess.run([*command, "-o", library, "-lm"], input=text.encode(), check=True)
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        ctypes.CDLL(str(library)).run(pointers)

    return run
