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
from pathlib import Path

import numpy as np
import tvm
from tvm import sym
from tvm import tirx as tir

from tbn_tvm.schedules.kernel import Kernel
from tbn_tvm.schedules.rules import Workload
from tbn_tvm.tiling import pack_bits

SPECIFICATION = "tbn.specification"
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


class Build:
    """MetaSchedule's ``f_build``: from a specification to a module and its arguments' shapes.

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

    def __call__(self, mod: tvm.IRModule, target: tvm.target.Target, _params):
        name, workload, configs, samples = specified(mod)
        func = self.kernels[name].prim_func(workload, configs)
        shapes = [_shapes(func.params, count) for count in samples]
        mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        if not (self.ahead and target.kind.name == "cuda"):
            # Where there is a GPU too, CUDA stays source: that of the machine that runs it counts.
            os.environ["TVM_COMPILE_FORCE_FALLBACK"] = "1"
            return tvm.compile(mod, target=target), shapes, {}
        from tbn_tvm import cuda

        with cuda.taking_source() as sources:
            built = tvm.compile(mod, target=target)
        arch = str(target.attrs["arch"])
        code = {key: cuda.compile_source(source, arch) for key, source in sources.items()}
        return built, shapes, code


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

    def __call__(self, built) -> str:
        from tvm.support.tar import tar

        module, shapes, code = built
        made = self.folder / uuid.uuid4().hex
        made.mkdir()
        for reference, binary in code.items():
            (self.folder / f"{reference}.fatbin").write_bytes(binary)
        (made / "arguments.json").write_text(json.dumps(shapes))
        path = made / f"{made.name}.{'so' if self.linked else 'tar'}"
        module.export_library(str(path), fcompile=None if self.linked else tar)
        return str(path)


def arguments_of(artifact: str) -> list[list[tuple[str, list[int]]]]:
    """Dtype and shape of each argument, for each number of samples."""
    return json.loads((Path(artifact).parent / "arguments.json").read_text())


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


def outputs(kernel: Kernel, mod: tvm.IRModule, artifact: str, device: str, rpc, path: str) -> None:
    """Run a candidate once on random data, the same for every configuration, and keep its outputs.

    Parameters
    ----------
    kernel : Kernel
        The one that the specification names.
    mod : tvm.IRModule
        Its specification.
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

    _, workload, configs, _ = specified(mod)
    if rpc is None:
        library, place = tvm.runtime.load_module(artifact), tvm.runtime.device(device, 0)
    else:
        session = rpc.connect_server()
        library = default_upload_module(session, artifact, Path(artifact).name)
        place = session.device(device, 0)
    arguments = arguments_of(artifact)[0]
    data = random_data(kernel, workload, configs, arguments)
    tensors = []
    for (dtype, shape), array in zip(arguments, data, strict=True):
        tensor = tvm.runtime.empty(shape, dtype, place)
        if array is not None:
            tensor.copyfrom(array)
        tensors.append(tensor)
    library["main"](*tensors)
    result = tensors[-1].numpy().astype(np.float32)
    np.save(path, result if kernel.writes_outputs else result[:, : workload.product.unique_rows])


def random_data(kernel: Kernel, workload: Workload, configs, arguments) -> list:
    """Arrays for a kernel's arguments, in order; None for the outputs."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 2, workload.product.geometry.q, np.uint8).astype(bool)
    arrays: list = []
    for index, (dtype, shape) in enumerate(arguments[:-1]):
        if index == 1:
            arrays.append(kernel.layout(pack_bits(bits), workload, configs))
        else:
            values = np.random.default_rng(index + 1).standard_normal(shape, np.float32)
            arrays.append(values.astype(_numpy_dtype(dtype)))
    return [*arrays, None]


def _numpy_dtype(name: str):
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(name)
