"""Builds the kernels that are to be measured, several at a time, each in a process of its own.

Nothing here needs a GPU. Code generation takes seconds a kernel and nvcc as long again; what was
built is kept in a folder and is not built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

from tbn_tvm.bench.cuda_cases import Case
from tbn_tvm.errors import ToolError, UsageError
from tbn_tvm.schedules.rules import Workload

ENTRY = "main"

_BUILD_SECONDS = 120
_LEAN = "TVM_FFI_DISABLE_TORCH_C_DLPACK"
"""With this in the environment a process that only builds does not import PyTorch."""


@dataclass(frozen=True)
class Request:
    """A kernel with configurations for a workload, on an architecture.

    ``sources`` says who chose each configuration: ``rules``, ``shipped`` or ``user`` and a file.
    """

    kernel: str
    workload: Workload
    configs: tuple[dict[str, int], ...]
    arch: str
    sources: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A hash of all that decides about the code."""
        from tbn_tvm.schedules.cuda import KERNELS

        content = {
            "kernel": self.kernel,
            "version": KERNELS[self.kernel].version,
            "workload": self.workload.to_dict(),
            "features": sorted(self.workload.features),
            "configs": [dict(sorted(config.items())) for config in self.configs],
            "arch": self.arch,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def with_config(self, config: Mapping[str, int]) -> Request:
        """The same with another configuration of its one regime."""
        return replace(self, configs=(dict(config),), sources=("search",))


@dataclass(frozen=True)
class Built:
    """A library on disk.

    Attributes
    ----------
    request : Request
        What it was built from.
    library : Path
        It refers to device code in the same folder.
    seconds : float
        What building took, or once took.
    resources : dict
        For each kernel in it what ptxas says (registers, spills, ...), where that was asked for.
    """

    request: Request
    library: Path
    seconds: float
    resources: dict


def target_of(arch: str):
    """TVM's target of an architecture, ``sm_90a`` for one."""
    import tvm

    return tvm.target.Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})


def full_arch(arch: str) -> str:
    """The architecture with its own instructions: those of Hopper have to be asked for."""
    return "sm_90a" if arch == "sm_90" else arch


def request_of(case: Case, arch: str, records=None) -> Request:
    """The kernel and configurations that records and rules give a case.

    Parameters
    ----------
    case : Case
        What is measured; its ``kernel``, if it names one, is used whatever records say.
    arch : str
        Architecture.
    records : tbn_tvm.schedules.records.Records, optional
        Measured configurations.

    Raises
    ------
    UsageError
        Where no kernel covers the case.
    """
    from tbn_tvm.relay_passes.lower_tiled_products import choice_of
    from tbn_tvm.schedules.families import family_of

    family = family_of(target_of(arch))
    if case.kernel is not None:
        rules = tuple(rule for rule in family.rules if rule.kernel == case.kernel)
        family = replace(family, rules=rules)
    choice = choice_of(case.workload(family.features), family, records)
    if choice is None:
        raise UsageError(f"{case.key}: {case.kernel or 'no kernel'} does not cover it on {arch}")
    configs = tuple(dict(config) for config in choice.configs)
    return Request(choice.kernel.name, choice.workload, configs, arch, choice.sources)


def build(request: Request, folder: str, inspect: bool = False) -> Built:
    """Build a kernel, unless it is in the folder already.

    Parameters
    ----------
    request : Request
        What to build.
    folder : str
        Where it is kept.
    inspect : bool
        Have nvcc tell what resources the kernel takes.

    Raises
    ------
    ToolError
        Where nvcc or the linker refuses.
    """
    import tvm

    from tbn_tvm import cuda
    from tbn_tvm.schedules.cuda import KERNELS

    library = Path(folder) / f"{request.key}.so"
    note = library.with_suffix(".json")
    if note.is_file():
        kept = json.loads(note.read_text())
        if kept["resources"] or not inspect:
            return Built(request, library, kept["seconds"], kept["resources"])
    start = time.perf_counter()
    func = KERNELS[request.kernel].prim_func(request.workload, request.configs)
    mod = tvm.IRModule({ENTRY: func.with_attr("global_symbol", ENTRY)})
    with cuda.taking_source() as sources:
        built = tvm.compile(mod, target=target_of(request.arch))
    resources: dict = {}
    for reference, source in sources.items():
        code = Path(folder) / f"{reference}.fatbin"
        if inspect:
            binary, resources = _inspected(source, request.arch)
        elif code.is_file():
            continue
        else:
            binary = cuda.compile_source(source, request.arch)
        _write(code, binary)
    partial = library.with_name(f".{os.getpid()}-{library.name}")
    try:
        built.export_library(str(partial))
    except Exception as error:
        raise ToolError(f"{request.kernel}: the library could not be linked: {error}") from None
    os.replace(partial, library)
    seconds = time.perf_counter() - start
    _write(note, json.dumps({"seconds": seconds, "resources": resources}).encode())
    return Built(request, library, seconds, resources)


def _inspected(source: str, arch: str) -> tuple[bytes, dict]:
    from dataclasses import asdict

    from tbn_tvm.testing.nvcc import CompileError, compile_cuda

    try:
        compiled = compile_cuda(source, arch)
    except CompileError as error:
        raise ToolError(str(error)) from None
    return compiled.cubin, {name: asdict(report) for name, report in compiled.kernels.items()}


def _write(path: Path, content: bytes) -> None:
    # Two processes may build the same: each file appears whole.
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    partial.write_bytes(content)
    os.replace(partial, path)


class Builder:
    """Builds in worker processes; a crash or a compiler that hangs is that kernel's failure.

    Parameters
    ----------
    folder : Path
        Where built kernels are kept.
    workers : int, optional
        Processes; one a core by default.
    inspect : bool
        See :func:`build`.
    """

    def __init__(self, folder: Path, workers: int | None = None, inspect: bool = False) -> None:
        from tvm.support.popen_pool import PopenPoolExecutor

        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.inspect = inspect
        self.workers = workers or os.cpu_count() or 1
        self._lean = os.environ.get(_LEAN)
        os.environ[_LEAN] = "1"
        self._pool = PopenPoolExecutor(self.workers, _BUILD_SECONDS)
        self._pending: list[Future] = []

    def submit(self, request: Request) -> Future[Built]:
        """Start building; the future raises what the build raised."""
        self._pending.append(self._pool.submit(build, request, str(self.folder), self.inspect))
        return self._pending[-1]

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *_exception) -> None:
        # What is still queued would start new processes after the pool has ended its own.
        for future in self._pending:
            future.cancel()
        self._pool.shutdown(wait=False)
        if self._lean is None:
            os.environ.pop(_LEAN, None)
        else:
            os.environ[_LEAN] = self._lean


class Loader:
    """Loads built kernels in this process, for as long as it is entered."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).resolve()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Loader:
        from tbn_tvm import cuda

        self._stack.enter_context(cuda.giving_code(_Folder(self.folder)))
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def load(self, built: Built) -> Callable:
        """The function of a library: ``(x, words, alpha, y)``, TVM's or DLPack's tensors."""
        import tvm

        return tvm.runtime.load_module(str(built.library))[ENTRY]


class _Folder(Mapping):
    """Device code in a folder, by reference."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, reference: str) -> bytes:
        try:
            return (self.folder / f"{reference}.fatbin").read_bytes()
        except OSError:
            raise KeyError(reference) from None

    def __iter__(self):
        return (path.stem for path in self.folder.glob("*.fatbin"))

    def __len__(self) -> int:
        return sum(1 for _ in self)
