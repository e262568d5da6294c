"""A fleet: candidates run on the servers of TVM's own RPC tracker."""

import re
import socket
import subprocess
import sys
import time

import pytest

from tbn_tvm.cli.main import main

KEY = "test-fleet"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def at(port) -> tuple[str, ...]:
    return "--port", str(port), "--port-end", str(port + 1)


@pytest.fixture
def start(tmp_path):
    """Starts one of TVM's programs with its output in a file, and ends it after the test."""
    running = []

    def started(module, name, *arguments):
        log = tmp_path / f"{name}.log"
        with log.open("w") as file:
            command = [sys.executable, "-m", module, "--host", "127.0.0.1", *arguments]
            running.append(
                subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=tmp_path)
            )
        return log

    yield started
    import psutil

    for process in running:
        children = psutil.Process(process.pid).children(recursive=True)
        for one in (process, *children):
            one.kill()
        process.wait()


def wait_for(log, words) -> None:
    deadline = time.monotonic() + 120
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_two_servers_share_the_candidates_of_a_run(model, target, start, capsys):
    port, ports = free_port(), [free_port(), free_port()]
    address = f"127.0.0.1:{port}"
    wait_for(start("tvm.exec.rpc_tracker", "tracker", *at(port)), f"bind to {address}")
    fleet = "--tracker", address, "--key", KEY
    run = ["tune", model, "--target", target, "--batch", "3", "--trials", "6", "--timeout", "20"]
    run += ["--records", "records", *fleet]
    assert main(run) == 1
    assert f"no server; start servers with: python -m tvm.exec.rpc_server --tracker {address}" in (
        capsys.readouterr().err
    )

    logs = [
        start(
            "tvm.exec.rpc_server", f"server{p}", "--port", str(p), "--port-end", str(p + 1), *fleet
        )
        for p in ports
    ]
    for log, own in zip(logs, ports, strict=True):
        wait_for(log, f"bind to 127.0.0.1:{own}")
    deadline = time.monotonic() + 60
    while (status := main(run)) == 1 and time.monotonic() < deadline:
        time.sleep(0.5)  # until the tracker has heard of a server
    assert status == 0
    out = capsys.readouterr().out
    assert "6 configurations measured" in out and "failed" not in out
    for log in logs:
        assert len(re.findall("load_module", log.read_text())) > 1
