"""Processes of ``torchrun``: how they join, and how they leave."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# One step as the training loop does it; then the names of the threads that are left.
_PROCESS = """
import os
from pathlib import Path

import torch

from tbn_tvm.training.distributed import processes

with processes("cpu") as group:
    model = group.wrap(torch.nn.Linear(3, 2))
    model(torch.ones(4, 3)).sum().backward()
    group.copy_buffers(model)
    group.wait()
    rank = group.rank
    del model
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
Path(f"left.{rank}").write_text("\\n".join(names))
"""


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc"
)
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that does may abort the process: it asks for the interpreter when that is gone."""
    script = tmp_path / "process.py"
    script.write_text(_PROCESS)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        names = (tmp_path / f"left.{rank}").read_text().split("\n")
        assert not [name for name in names if "gloo" in name]
