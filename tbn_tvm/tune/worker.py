"""What runs in the processes that build and run candidates.

A candidate crosses over as a *specification*: a module of one empty function that names kernel,
workload and configurations. The template itself is only instantiated in a worker, so whatever
goes wrong there ends that worker and not the tuner.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from tvm import sym
from tvm import tirx as tir

from tbn_tvm.schedules.kernel import Kernel
from tbn_tvm.schedules.rules import Workload
from tbn_tvm.tiling import pack_bits

SPECIFICATION = "tbn.specification"
_SHAPES, _WORDS = "arguments.json", "words.npy"
_PR_SET_PDEATHSIG = 1


def specification(kernel: str, workload: Workload, configs, samples) -> tvm.IRModule:
    """A candidate as a module.

    Parameters
    ----------
    kernel : str
        Name of the kernel.
    workload : Workload
        What is computed.
    configs : sequence of dict
        One a regime of the kernel.
    samples : sequence of int
        Values that a symbolic number of samples is measured with.
    """
    content = {
        "kernel": kernel,
        "workload": workload.to_dict(),
        "features": sorted(workload.features),
        "configs": [dict(config) for config in configs],
        "samples": list(samples),
    }
    empty = tir.PrimFunc([], tir.Evaluate(tir.IntImm("int32", 0)))
    attributes = {"global_symbol": "main", SPECIFICATION: json.dumps(content, sort_keys=True)}
    return tvm.IRModule({"main": empty.with_attrs(attributes)})


def specified(mod: tvm.IRModule) -> tuple[str, Workload, tuple[dict, ...], list[int]]:
    """The inverse of :func:`specification`."""
    content = json.loads(str(mod["main"].attrs[SPECIFICATION]))
    workload = Workload.from_dict(content["workload"], frozenset(content["features"]))
    return content["kernel"], workload, tuple(content["configs"]), content["samples"]


# -- building --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """What :class:`Build` makes: the library, dtypes and shapes of its arguments for each number
    of samples, its weights, and CUDA machine code by reference."""

    library: object
    shapes: list
    words: np.ndarray
    code: dict[str, bytes]


class Build:
    """MetaSchedule's ``f_build``: from a specification to :class:`Made`.

    Parameters
    ----------
    kernels : dict of str to Kernel
        The target family's.
    ahead : bool
        Compile CUDA source here; otherwise it is compiled where the module is loaded.
    """

    def __init__(self, kernels: dict[str, Kernel], ahead: bool) -> None:
        self.kernels = kernels
        self.ahead = ahead

    def __call__(self, mod: tvm.IRModule, target: tvm.target.Target, _params) -> Made:
        name, workload, configs, samples = specified(mod)
        kernel = self.kernels[name]
        # Weights have to be real: some kernels read offsets from them.
        bits = np.random.default_rng(0).integers(0, 2, workload.product.geometry.q).astype(bool)
        words = kernel.layout(pack_bits(bits), workload, configs)
        func = kernel.prim_func(workload, configs)
        shapes = [_shapes(func.params, count) for count in samples]
        mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        if not (self.ahead and target.kind.name == "cuda"):
            # Where there is a GPU too, CUDA stays source: that of the machine that runs it counts.
            os.environ["TVM_COMPILE_FORCE_FALLBACK"] = "1"
            return Made(tvm.compile(mod, target=target), shapes, words, {})
        from tbn_tvm import cuda

        with cuda.taking_source() as sources:
            library = tvm.compile(mod, target=target)
        arch = str(target.attrs["arch"])
        code = {key: cuda.compile_source(source, arch) for key, source in sources.items()}
        return Made(library, shapes, words, code)


class Export:
    """MetaSchedule's ``f_export``: writes what :class:`Build` returns below a folder.

    Parameters
    ----------
    folder : Path
        For artifacts.
    linked : bool
        Link here, once; otherwise the machine that runs an artifact does, which may be another.
    """

    def __init__(self, folder: Path, linked: bool) -> None:
        self.folder, self.linked = Path(folder), linked

    def __call__(self, made: Made) -> str:
        from tvm.support.tar import tar

        folder = self.folder / f"{uuid.uuid4().int >> 66:x}"
        folder.mkdir()
        for reference, binary in made.code.items():
            (self.folder / f"{reference}.fatbin").write_bytes(binary)
        (folder / _SHAPES).write_text(json.dumps(made.shapes))
        np.save(folder / _WORDS, made.words)
        path = folder / f"{folder.name}.{'so' if self.linked else 'tar'}"
        made.library.export_library(str(path), fcompile=None if self.linked else tar)
        return str(path)


def arguments_of(artifact: str) -> list[list[tuple[str, list[int]]]]:
    """Dtype and shape of each argument of the kernel, for each number of samples."""
    return json.loads((Path(artifact).parent / _SHAPES).read_text())


def arguments_info(artifact: str) -> list[list[tuple[str, list[int]]]]:
    """What :class:`Allocate` understands: the same, and an empty tensor that names the artifact.

    MetaSchedule's runners tell nothing else of a candidate to the process that runs it.
    """
    name = ("uint8", [0, int(Path(artifact).parent.name, 16)])
    return [[*arguments, name] for arguments in arguments_of(artifact)]


def _shapes(buffers, samples: int) -> list[tuple[str, list[int]]]:
    """Dtype and shape of each buffer, the symbolic extent being so many samples."""
    known = sym.Analyzer()
    for symbol in {e for buffer in buffers for e in buffer.shape if isinstance(e, tir.Var)}:
        known.bind(symbol, tir.IntImm(str(symbol.ty.dtype), samples))
    return [
        (str(buffer.dtype), [int(known.simplify(extent)) for extent in buffer.shape])
        for buffer in buffers
    ]


# -- running ---------------------------------------------------------------------------------


class Prepare:
    """Initialises a worker, so that a bad candidate harms nobody else.

    Parameters
    ----------
    folder : Path
        Of artifacts.
    memory : int or None
        Bytes that an allocation may not bring the process beyond.
    device_code : bool
        Whether libraries refer to device code in the folder.
    """

    def __init__(self, folder: Path, memory: int | None, device_code: bool = False) -> None:
        self.folder = Path(folder)
        self.memory = memory
        self.device_code = device_code

    def __call__(self) -> None:
        # The tuner decides what an interrupt ends, and a tuner that is killed takes us along.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        if self.memory is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (self.memory, self.memory))
        if not os.environ.get("TBN_TVM_TRACEBACK"):
            # What compilers and crashing candidates print would tear the progress display.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)

        if self.device_code:
            from tbn_tvm import cuda

            # For as long as the process lives.
            self._giving = cuda.giving_code(_DeviceCode(self.folder))
            self._giving.__enter__()


class _DeviceCode(Mapping):
    """What :class:`Export` wrote, by reference."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, reference: str) -> bytes:
        return (self.folder / f"{reference}.fatbin").read_bytes()

    def __iter__(self):
        return (path.stem for path in self.folder.glob("*.fatbin"))

    def __len__(self) -> int:
        return len(list(iter(self)))


class Allocate:
    """MetaSchedule's ``f_alloc_argument``: the candidate's own weights, anything for the rest.

    Parameters
    ----------
    folder : Path
        Of artifacts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __call__(self, *arguments) -> list[list]:
        *session, device, infos, _repeat = arguments
        *infos, (_, _, (_, name)) = infos
        fill = "tvm.contrib.random.random_fill_for_measure"
        fill = session[0].get_function(fill) if session else tvm.get_global_func(fill)
        tensors = []
        for index, (_, dtype, shape) in enumerate(infos):
            tensor = tvm.runtime.empty(shape, dtype, device)
            if index == 1:
                tensor.copyfrom(np.load(self.folder / f"{name:x}" / _WORDS))
            else:
                fill(tensor)
            tensors.append(tensor)
        return [tensors]


def outputs(rows: int | None, artifact: str, device: str, rpc, path: str) -> None:
    """Run a candidate once on random data, the same for every configuration, and keep its outputs.

    Parameters
    ----------
    rows : int or None
        How many of the rows it computes are meant; None for all that it writes.
    artifact : str
        What :class:`Export` wrote.
    device : str
        TVM's name of the device type.
    rpc : RPCConfig or None
        Where to run; here by default.
    path : str
        A ``.npy`` file to write.
    """
    from tvm.s_tir.meta_schedule.runner.rpc_runner import default_upload_module

    if rpc is None:
        library, place = tvm.runtime.load_module(artifact), tvm.runtime.device(device, 0)
    else:
        session = rpc.connect_server()
        library = default_upload_module(session, artifact, Path(artifact).name)
        place = session.device(device, 0)
    *inputs, result = arguments_of(artifact)[0]
    tensors = []
    for index, (dtype, shape) in enumerate(inputs):
        if index == 1:
            array = np.load(Path(artifact).parent / _WORDS)
        else:
            array = np.random.default_rng(index).standard_normal(shape, np.float32)
            array = array.astype(_numpy_dtype(dtype))
        tensors.append(tvm.runtime.empty(shape, dtype, place))
        tensors[-1].copyfrom(array)
    dtype, shape = result
    tensors.append(tvm.runtime.empty(shape, dtype, place))
    library["main"](*tensors)
    found = tensors[-1].numpy().astype(np.float32)
    np.save(path, found if rows is None else found[:, :rows])


def _numpy_dtype(name: str):
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(name)
