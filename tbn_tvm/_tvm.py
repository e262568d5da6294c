"""TVM, imported once its version and that of its FFI package are known to work together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import metadata

from tbn_tvm.errors import TbnError, ToolError

TVM_VERSION = "0.27.0.post1"
FFI_VERSION = "0.1.14.post1"
MEND = f'pip install "apache-tvm=={TVM_VERSION}" "apache-tvm-ffi=={FFI_VERSION}"'


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def pair_problem(tvm_version: str | None, ffi_version: str | None) -> str | None:
    """What is wrong with a pair of TVM and FFI versions, or None where nothing is.

    pip alone picks a newer FFI with which tuning and serialisation crash the process, so the
    pair is checked before TVM is imported.
    """
    if tvm_version is None or ffi_version is None:
        missing = "apache-tvm" if tvm_version is None else "apache-tvm-ffi"
        return f"{missing} is not installed; run: {MEND}"
    if not tvm_version.startswith("0.27."):
        return f"apache-tvm {tvm_version} is installed, 0.27 is needed; run: {MEND}"
    if ffi_version != FFI_VERSION:
        return (
            f"apache-tvm {tvm_version} does not work with apache-tvm-ffi {ffi_version} (it "
            f"crashes); run: {MEND}"
        )
    return None


def check_pair() -> None:
    """Refuse a wrong pair of TVM and FFI.

    Raises
    ------
    ToolError
        With the command that mends it.
    """
    problem = pair_problem(installed("apache-tvm"), installed("apache-tvm-ffi"))
    if problem:
        raise ToolError(problem)


@contextlib.contextmanager
def told_as_ours(what: str) -> Iterator[None]:
    """Turn what TVM raises, which is of any kind and many lines, into an error of ours.

    Raises
    ------
    TbnError
        ``what``, and the line of TVM's message that says most.
    """
    try:
        yield
    except TbnError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise TbnError(f"{what}: {lines[0] if lines else type(error).__name__}") from error
