"""Host code and kernel source of a module for a GPU target, made without the GPU."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field

import tvm
import tvm_ffi
from tvm import tirx as tir

DYNAMIC_SHARED = "tirx.use_dyn_shared_memory"
AXES = tuple(f"{kind}.{axis}" for kind in ("blockIdx", "threadIdx") for axis in "xyz")
_WORKSPACES = ("tirx.TVMBackendAllocWorkspace", "tirx.TVMBackendFreeWorkspace")


@dataclass(frozen=True)
class Kernel:
    """How the host calls a kernel.

    Attributes
    ----------
    name : str
        Of the kernel in the source.
    parameters : tuple of str
        dtype of each parameter, ``"handle"`` for pointers.
    launch : tuple of str
        What the arguments after the parameters are: axes of the grid and the block, and perhaps
        :data:`DYNAMIC_SHARED`.
    """

    name: str
    parameters: tuple[str, ...]
    launch: tuple[str, ...]

    def split(self, values: tuple) -> tuple[list, list[int], int]:
        """Parameters, six extents (grid x, y, z, block x, y, z) and bytes of shared memory."""
        arguments = list(values[: len(self.parameters)])
        named = dict(zip(self.launch, values[len(self.parameters) :], strict=True))
        shared = int(named.pop(DYNAMIC_SHARED, 0))
        unknown = set(named) - set(AXES)
        if unknown:
            raise NotImplementedError(f"kernel {self.name} is launched with {sorted(unknown)}")
        return arguments, [int(named.get(axis, 1)) for axis in AXES], shared


@dataclass(frozen=True)
class Lowered:
    """A module for a GPU, in its two halves.

    Attributes
    ----------
    host : tvm.runtime.Module
        The functions a user calls; their kernels are packed functions still to be found.
    source : str
        The kernels.
    kernels : dict of str to Kernel
        By name.
    entries : tuple of str
        Names of the host functions.
    """

    host: tvm.runtime.Module
    source: str
    kernels: dict[str, Kernel] = field(default_factory=dict)
    entries: tuple[str, ...] = ()

    def entry(self, name: str | None) -> str:
        """The host function meant: the only one, unless a name is given."""
        if name is None and len(self.entries) == 1:
            return self.entries[0]
        if name not in self.entries:
            raise ValueError(f"entry must be one of {sorted(self.entries)}, not {name}")
        return name


def lower(mod: tir.PrimFunc | tvm.IRModule, target: dict | tvm.target.Target) -> Lowered:
    """Do what ``tvm.tirx.build`` does, short of compiling and loading the kernels."""
    host_mod, device_mods = _split(mod, target)
    build = importlib.import_module("tvm.tirx.build")
    sources, kernels = [], {}
    for device_target, device_mod in device_mods.items():
        sources.append(build.codegen_build(device_mod, device_target).inspect_source())
        for variable, func in device_mod.functions.items():
            if "tirx.kernel_launch_params" not in func.attrs:
                continue
            name = str(func.attrs.get("global_symbol", variable.name_hint))
            kernels[name] = Kernel(
                name,
                tuple(_dtype(parameter) for parameter in func.params),
                tuple(str(tag) for tag in func.attrs["tirx.kernel_launch_params"]),
            )
    host = build.codegen_build(host_mod, tvm.target.Target("llvm"))
    entries = tuple(
        str(variable.name_hint)
        for variable, func in host_mod.functions.items()
        if int(func.attrs.get("calling_conv", 0)) == 1
    )
    return Lowered(host, "\n".join(sources), kernels, entries)


def _dtype(parameter: tir.Var) -> str:
    return "handle" if isinstance(parameter.ty, tvm.ir.PointerType) else str(parameter.ty.dtype)


def _split(mod, target):
    """Host and device modules, after the passes of both."""
    build = importlib.import_module("tvm.tirx.build")
    if isinstance(mod, tir.PrimFunc):
        name = mod.attrs.get("global_symbol", "main") if mod.attrs else "main"
        mod = tvm.IRModule({str(name): mod.with_attr("global_symbol", str(name))})
    target = tvm.target.Target(target).with_host("llvm")
    pipeline, finalize_host, finalize_device = tir.get_default_tir_pipeline(target)
    with target:
        lowered = pipeline(tir.transform.BindTarget(target)(mod))
        host_mod, device_mods = build.split_host_device_mods(lowered)
        return _workspaces_on_host(finalize_host()(host_mod)), {
            device_target: finalize_device()(device_mod)
            for device_target, device_mod in device_mods.items()
        }


def _workspaces_on_host(mod: tvm.IRModule) -> tvm.IRModule:
    """Memory that passes from kernel to kernel comes from the CPU's pool, not the GPU's."""
    cpu = tvm.cpu()
    device = (tir.IntImm("int32", cpu.dlpack_device_type()), tir.IntImm("int32", cpu.index))

    def moved(call: tvm.ir.Call) -> tvm.ir.Call:
        if getattr(call.op, "name", None) not in _WORKSPACES:
            return call
        return tvm.ir.Call(call.op, [*device, *call.args[2:]], attrs=call.attrs, ret_ty=call.ty)

    functions = {
        variable: func.with_body(tvm_ffi.structural_map(func.body, [(tvm.ir.Call, moved)]))
        for variable, func in mod.functions.items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)
