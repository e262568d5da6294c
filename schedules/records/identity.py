"""What a target is to a tuning record, and under which name records of it are kept."""

from __future__ import annotations

import hashlib
import json

import tvm
from tvm.target import codegen

from tbn_tvm.schedules.rules import CORE, RAM, Workload


def identity(target: tvm.target.Target) -> dict:
    """What of a target a measured time depends on.

    A record of one identity serves no other: neither a newer chip nor more threads keep the best
    configuration what it was.

    Parameters
    ----------
    target : tvm.target.Target
        A CPU's thread count is its attribute ``num-cores``, or that of TVM's run time here. It
        counts by classes, the powers of two. Bare metal is known by its core and its features.

    Returns
    -------
    dict
        JSON's types only.
    """
    kind = target.kind.name
    if kind == "c":
        keys = {str(key) for key in target.keys} - {"cpu"}
        core = next((key.removeprefix(CORE) for key in keys if key.startswith(CORE)), "any")
        # How much RAM there is decides whether a kernel fits, not how fast it is.
        features = sorted(key for key in keys if not key.startswith((CORE, RAM)))
        return {"kind": kind, "arch": core, "features": features}
    if kind != "llvm":
        return {"kind": kind, "arch": str(target.attrs.get("arch", ""))}
    triple = str(target.attrs.get("mtriple") or codegen.llvm_get_system_triple())
    threads = int(target.attrs.get("num-cores") or 0) or tvm.runtime.num_threads()
    return {
        "kind": kind,
        "arch": triple.partition("-")[0],
        "mcpu": str(target.attrs.get("mcpu") or "generic"),
        "mattr": sorted(str(feature) for feature in target.attrs.get("mattr") or ()),
        "threads": thread_class(threads),
    }


def thread_class(threads: int) -> int:
    """The power of two that a number of threads counts as: the next one."""
    return 1 << max(threads - 1, 0).bit_length()


def folder_name(found: dict) -> str:
    """The folder of an identity's records; ``llvm-x86_64-znver5-2t`` for one."""
    if found["kind"] != "llvm":
        return f"{found['kind']}-{found['arch']}"
    features = "".join(found["mattr"]).replace("+", "_")
    return f"llvm-{found['arch']}-{found['mcpu']}{features}-{found['threads']}t"


def address(workload: Workload, found: dict) -> str:
    """The name of a workload's record: a hash of it and of the target's identity."""
    return digest({"workload": workload.to_dict(), "target": found})[:32]


def digest(value: dict) -> str:
    """SHA-256 of a value of JSON's types, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
