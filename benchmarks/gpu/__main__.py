"""Checks, tunes and times the GPU kernels in one go: ``python benchmarks/gpu OUT``.

Needs a GPU, PyTorch with CUDA, TVM (``PYTHONPATH`` or installed), nvcc and g++; the package itself
need not be installed. Every stage is a process with a budget; one that hangs or dies costs no other
its results, which are in ``OUT/results.json`` from the first stage on. ``--dry-run`` does all that
needs no GPU: builds every kernel, runs small products on the CUDA emulator, prints the plan.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import report  # noqa: E402
import supervise  # noqa: E402
from tree import environment, make_tree  # noqa: E402

ROOT = HERE.parents[1]

BUDGETS = {
    "info": 60,
    "tests": 60,
    "check": 75,
    "headlines": 45,
    "vit": 50,
    "tune": 130,
    "bench": 130,
    "rivals": 60,
}
"""Seconds of each stage, at most, in their order. ``build`` runs beside the first ones."""

DRY = ("info", "check", "build", "tune")
_SILENCE = 45.0
"""A stage that prints nothing for so long is taken to hang."""

_RIVALS = ("gemlite", "torchao")


class Run:
    """One run of the benchmark."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out = Path(args.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = Path(args.work or tempfile.mkdtemp(prefix="tbn_gpu_")).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        for old in self.work.glob("*.jsonl"):  # journals of another run
            old.unlink()
        self.env = environment(make_tree(ROOT, self.work / "tree"))
        self.began = time.monotonic()
        self.ends = self.began + args.minutes * 60
        self.stages: dict[str, dict] = {}
        self.log = (self.out / "log.txt").open("w")
        self.background: subprocess.Popen | None = None
        self.about = {
            "commit": args.commit or _commit(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "dry_run": args.dry_run,
            "host": {"cores": os.cpu_count(), "cpu": _cpu(), "driver": _driver(), "nvcc": _nvcc()},
            "command": " ".join(sys.argv[1:]),
        }
        self._written = 0.0

    def tell(self, line: str) -> None:
        """To the screen and the log; results are written now and then."""
        stamp = f"{time.monotonic() - self.began:6.1f} "
        print(stamp + line, flush=True)
        self.log.write(stamp + line + "\n")
        self.log.flush()
        if time.monotonic() - self._written > 10:
            self.write()

    def write(self) -> dict:
        """Put down what there is."""
        self._written = time.monotonic()
        found = report.collect(self.work, self.about, self.stages)
        report.write(self.out / "results.json", json.dumps(found, indent=1) + "\n")
        records = self.work / "records"
        if records.is_dir():
            with tarfile.open(self.out / "records.tar.gz", "w:gz") as tar:
                tar.add(records, "records")
        return found

    def command(self, name: str, left: float) -> list[str]:
        """Of a stage."""
        # What is under way when time is up needs a moment, and so does a record.
        seconds = max(5.0, left - (25 if name == "tune" else 6))
        command = [sys.executable, "-m", "tbn_tvm.bench.cuda_stage", name]
        command += ["--out", str(self.work), "--kernels", str(self.work / "kernels")]
        command += ["--seconds", f"{seconds:.0f}"]
        if self.args.workers:
            command += ["--workers", str(self.args.workers)]
        return (
            command
            + (["--small"] if self.args.small else [])
            + (["--dry-run"] if self.args.dry_run else [])
        )

    def stage(self, name: str, seconds: float, silence: float = _SILENCE) -> str:
        """Run a stage within its budget and the whole's."""
        left = self.ends - time.monotonic() - 4
        budget = min(seconds, left)
        begun = time.monotonic()
        state = {"status": "running", "seconds": 0.0}
        self.stages[name] = state
        self.tell(f"== {name}: at most {max(budget, 0):.0f} s")
        try:
            if name == "tests":
                state["status"] = self.tests(budget)
            elif name == "rivals":
                state["status"] = self.rivals(budget)
            else:
                state["status"] = supervise.stage(
                    lambda left: self.command(name, left),
                    self.env,
                    self.work,
                    budget,
                    silence,
                    self.tell,
                    self.work / f"{name}.jsonl",
                )
        except Exception as error:  # of this script: the other stages go on
            state["status"] = f"{type(error).__name__}: {error}"
        state["seconds"] = round(time.monotonic() - begun, 1)
        self.tell(f"== {name}: {state['status']} after {state['seconds']:.0f} s")
        self.write()
        return state["status"]

    def tests(self, seconds: float) -> str:
        """The repository's tests marked ``gpu``."""
        files = sorted(
            str(path)
            for path in (ROOT / "tests").rglob("test_*.py")
            if re.search(r"mark\.gpu\b", path.read_text())
        )
        if not files:
            return "none are marked"
        # PyTorch before TVM: it loads the CUDA libraries that TVM looks for.
        start = "import torch; torch.cuda.is_available(); import pytest, sys; "
        start += "sys.exit(pytest.main(sys.argv[1:]))"
        command = [sys.executable, "-c", start, "-m", "gpu", "-p", "no:cacheprovider"]
        command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-v", "-rf"]
        command += ["--continue-on-collection-errors", "--tb=short"]
        command += [f"--junitxml={self.out / 'gpu-tests.xml'}", *files]
        return supervise.stage(
            lambda _left: command, self.env, self.work, seconds, seconds, self.tell
        )

    def rivals(self, seconds: float) -> str:
        """Low-bit kernels of others, each with an interpreter of its own."""
        told = []
        for name in _RIVALS:
            python = getattr(self.args, f"{name}_python") or sys.executable
            probe = subprocess.run(
                [python, "-c", f"import {name}"], env=self.env, cwd=self.work, capture_output=True
            )
            if probe.returncode:
                self.tell(f"   {name}: not installed for {python}; not measured")
                told.append(f"{name} not installed")
                continue
            command = [python, str(HERE.parent / "rivals" / f"{name}_rival.py")]
            command += ["--out", str(self.work / "rivals.jsonl")]
            status = supervise.stage(
                lambda _left, command=command: command,
                self.env,
                self.work,
                seconds / len(_RIVALS),
                seconds,
                self.tell,
            )
            told.append(f"{name} {status}")
        return ", ".join(told)

    def start_building(self) -> None:
        """Compile beside the first stages what later ones measure."""
        self.background_log = (self.work / "build.log").open("w")
        self.background = subprocess.Popen(
            self.command("build", 300),
            env=self.env,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=self.background_log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.stages["build"] = {"status": "beside the others", "seconds": 0.0}

    def wait_for_vit(self, seconds: float) -> None:
        """The ViT is compiled in the background; measure it only then."""
        ends = min(self.ends, time.monotonic() + seconds)
        while time.monotonic() < ends and self.background and self.background.poll() is None:
            if (self.work / "vit.json").is_file():
                return
            time.sleep(1)

    def everything(self) -> int:
        """All stages; 0 where something was measured, or a dry run was whole."""
        wanted = self.args.stages or [*BUDGETS, *(["build"] if self.args.dry_run else [])]
        if self.args.dry_run:
            names = [name for name in DRY if name in wanted]
        else:
            names = [name for name in BUDGETS if name in wanted]
        try:
            for name in names:
                if name == "vit":
                    self.wait_for_vit(30)
                slow = self.args.dry_run or name == "info"
                budget = 1e6 if self.args.dry_run else BUDGETS[name]
                # The tables take what is left over, but for rivals that were asked for.
                asked = any(getattr(self.args, f"{rival}_python") for rival in _RIVALS)
                if name == names[-1] or (name == "bench" and not asked):
                    budget = max(budget, self.ends - time.monotonic())
                status = self.stage(name, budget, 300 if slow else _SILENCE)
                if name == "info" and status != "done":
                    self.tell("nothing can be measured here; see above")
                    return 1
                if name == "info" and not self.args.dry_run:
                    self.start_building()
        finally:
            self.close()
        found = self.write()
        if "bench" in names:
            self.plot()
        table = _plan(found) if self.args.dry_run else report.tables(found)
        report.write(self.out / "table.txt", table + "\n")
        print(table, flush=True)
        failed = any(stage["failed"] for stage in found["stages"].values())
        whole = all(stage["status"] == "done" for stage in found["stages"].values())
        if self.args.dry_run:
            return int(failed or not whole)
        return int(not any(stage["done"] for n, stage in found["stages"].items() if n != "info"))

    def plot(self) -> None:
        """Speed-up against batch, where Matplotlib is installed."""
        script = (
            "import json, sys; from tbn_tvm.bench import cuda_plot; "
            "found = json.load(open(sys.argv[1])); "
            "cuda_plot.draw(cuda_plot.points_of(found['stages']['bench']['results']), "
            "sys.argv[2], found.get('machine', {}).get('gpu') or '')"
        )
        files = [str(self.out / "results.json"), str(self.out / "speed-up.png")]
        command = [sys.executable, "-c", script, *files]
        done = subprocess.run(command, env=self.env, cwd=self.work, capture_output=True, text=True)
        if done.returncode:
            self.tell(f"   no plot: {(done.stderr.strip().splitlines() or ['?'])[-1]}")

    def close(self) -> None:
        """End what still runs, and remove the scratch folder unless it was asked for."""
        if self.background is not None:
            supervise.end(self.background)
        self.write()
        if not self.args.work:
            shutil.rmtree(self.work / "kernels", ignore_errors=True)


def _plan(found: dict) -> str:
    """What a run on a GPU would do."""
    stages = found["stages"]
    lines = ["", "what was tried without a GPU"]
    for name, stage in stages.items():
        lines.append(
            f"  {name:8} {stage['status']:12} {stage['done']} done, {len(stage['failed'])} failed"
        )
        lines += [f"    {entry['key']}: {entry['error']}" for entry in stage["failed"]]
    built = stages.get("build", {}).get("results", [])
    spilling = [
        f"    {row['key']}: {worst} bytes"
        for row in built
        if (worst := max((r["spill_stores"] for r in row.get("resources", {}).values()), default=0))
    ]
    if spilling:
        lines += ["  kernels that spill registers:", *spilling]
    kernels = [row for row in built if "seconds" in row]
    compiling = sum(row["seconds"] for row in kernels)
    lines += [
        "",
        "what a run on a GPU would do",
        f"  build {len(kernels)} kernels for the tables ({compiling:.0f} core seconds here) and "
        "those the search asks for",
        f"  stages, at most: {', '.join(f'{n} {s} s' for n, s in BUDGETS.items())}",
    ]
    return "\n".join(lines)


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return done.stdout.strip() or None


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip() or None


def _nvcc() -> str | None:
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        return None
    text = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    return next((line for line in text.splitlines() if "release" in line), text).strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main(argv: list[str] | None = None) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("out", metavar="OUT", help="folder for results, made where missing")
    parser.add_argument("--commit", help="what is measured; git is asked where it is not given")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it (default 9)")
    parser.add_argument("--stages", nargs="+", choices=[*BUDGETS, "build"], help="only these")
    parser.add_argument("--work", metavar="DIR", help="keep journals and built kernels here")
    parser.add_argument("--workers", type=int, help="processes that build; one a core by default")
    parser.add_argument("--small", action="store_true", help="a few small layers only")
    parser.add_argument("--dry-run", action="store_true", help="all that needs no GPU")
    for name in _RIVALS:
        parser.add_argument(f"--{name}-python", metavar="PYTHON", help=f"interpreter with {name}")
    args = parser.parse_args(argv)
    if args.dry_run:
        args.minutes = max(args.minutes, 60.0)
    return Run(args).everything()


if __name__ == "__main__":
    sys.exit(main())
