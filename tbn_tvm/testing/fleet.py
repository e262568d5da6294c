"""Several models in one firmware: an emulated board tries them all at the price of one start."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tbn_tvm.compiler import versions
from tbn_tvm.micro import Session
from tbn_tvm.micro.lower import Lowered
from tbn_tvm.micro.project import Project, support_files
from tbn_tvm.signature import Signature, TensorSpec
from tbn_tvm.targets import Board

NAME = "fleet"

_SOURCE = """#include "tbn_model.h"

#include <stddef.h>

{includes}

const uint8_t tbn_model_digest[8] = {{ 0 }};
const char tbn_model_name[] = "{name}";

uint32_t tbn_model_inputs(void)
{{
  return {inputs}u;
}}

uint32_t tbn_model_outputs(void)
{{
  return {outputs}u;
}}

uint8_t *tbn_model_input(uint32_t index, uint32_t *size)
{{
  switch (index) {{
{input_cases}
    default: return NULL;
  }}
}}

const uint8_t *tbn_model_output(uint32_t index, uint32_t *size)
{{
  switch (index) {{
{output_cases}
    default: return NULL;
  }}
}}

/* A function of its own, as the bound of the stack is looked up under its name. */
__attribute__((noinline)) static void {name}_run(void)
{{
{calls}
}}

void tbn_model_run(void)
{{
  {name}_run();
}}
"""


def fleet_project(members: list[Lowered], board: Board) -> Project:
    """A project whose run is one of each member, all with names of their own.

    Parameters
    ----------
    members : list of Lowered
        Models of different names.
    board : Board
        What for.
    """
    files = support_files(board)
    for member in members:
        _, sources = member.sources()
        for suffix in ("c", "h"):
            files[f"{member.model.name}.{suffix}"] = sources[
                f"{member.model.name}.{suffix}"
            ].encode()
    ends = {
        end: tuple(
            TensorSpec(f"{member.model.name}_{spec.name}", spec.shape, spec.dtype)
            for member in members
            for spec in getattr(member.signature, end)
        )
        for end in ("inputs", "outputs")
    }
    files["tbn_model.c"] = _SOURCE.format(
        name=NAME,
        includes="\n".join(f'#include "{m.model.name}.h"' for m in members),
        inputs=len(ends["inputs"]),
        outputs=len(ends["outputs"]),
        input_cases=_cases(members, "input", "uint8_t"),
        output_cases=_cases(members, "output", "const uint8_t"),
        calls="\n".join(f"  {m.model.name}_run();" for m in members),
    ).encode()
    return Project(
        name=NAME,
        board=board,
        signature=Signature(**ends),
        layers=[],
        memory={},
        digest=bytes(32).hex(),
        versions=versions(),
        files=files,
    )


def _cases(members: list[Lowered], end: str, kind: str) -> str:
    lines = []
    for member in members:
        for spec in getattr(member.signature, f"{end}s"):
            place = f"({kind} *){member.model.name}_{end}_{spec.name}()"
            lines.append(f"    case {len(lines)}u: *size = {spec.nbytes}u; return {place};")
    return "\n".join(lines)


def run_fleet(
    members: list[Lowered], inputs: list[list[np.ndarray]], board: Board, folder: Path
) -> list[list[np.ndarray]]:
    """Build the firmware, start it, and run every member once.

    Parameters
    ----------
    members : list of Lowered
        Models of different names.
    inputs : list of list of numpy.ndarray
        A member's inputs as the device holds them.
    board : Board
        Which to emulate.
    folder : Path
        Gets the project.

    Returns
    -------
    list of list of numpy.ndarray
        A member's outputs, likewise.
    """
    project = fleet_project(members, board)
    with Session(project.save(folder)) as session:
        results = session.run(*(array for arrays in inputs for array in arrays))
    results = iter(results if isinstance(results, tuple) else (results,))
    return [[next(results) for _ in member.signature.outputs] for member in members]
