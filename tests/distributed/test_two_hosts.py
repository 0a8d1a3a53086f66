"""Two hosts: two network namespaces of this machine, joined by a virtual cable, with one process on each.

Needs the right to make them (root); skipped where that is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest
import torch

from tests.helpers import warm
from tests.helpers.processes import ENVIRONMENT

ADDRESSES = ("10.231.7.1", "10.231.7.2")


def _ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts():
    """Two namespaces, each with an end of a cable."""
    names = [f"adapters-pl-{os.getpid()}-{i}" for i in range(2)]
    ends = [f"apl{os.getpid() % 100000}{i}" for i in range(2)]
    try:
        if shutil.which("ip") is None or any(_ip("netns", "add", name).returncode for name in names):
            pytest.skip("network namespaces cannot be made here (iproute2 and root are needed)")
        if _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1]).returncode:
            pytest.skip("no virtual network cable can be made here")
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            for words in (
                ("link", "set", end, "netns", name),
                ("-n", name, "addr", "add", f"{address}/24", "dev", end),
                ("-n", name, "link", "set", end, "up"),
                ("-n", name, "link", "set", "lo", "up"),
            ):
                done = _ip(*words)
                assert done.returncode == 0, done.stderr
        yield list(zip(names, ends, strict=True))
    finally:
        for name in names:
            _ip("netns", "del", name)


def start(host, node, folder, *arguments, port):
    """One node's process: the command line in its namespace."""
    name, end = host
    environment = {
        **ENVIRONMENT,
        "HF_HUB_OFFLINE": "1",
        "MASTER_ADDR": ADDRESSES[0],
        "MASTER_PORT": str(port),
        "NODE_RANK": str(node),
        "LOCAL_RANK": "0",
        "GLOO_SOCKET_IFNAME": end,
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    words = [sys.executable, "-m", "adapters_pl", *arguments]
    return warm.Process(words, cwd=folder, env=environment, network=name, **pipes)


@contextmanager
def job(hosts, folder, *arguments, port):
    """The same command on both nodes; whatever is left of it at the end is killed."""
    started = [start(host, node, folder, *arguments, port=port) for node, host in enumerate(hosts)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def command(base, rows, strategy, *more):
    words = ["fit", "--model.base", str(base), "--data", "InstructionJSON", "--data.path", str(rows)]
    words += ["--data.val_size", "0", "--adapter", "LoRA", "--adapter.rank", "4", "--adapter.dropout", "0"]
    words += ["--optimizer", "SGD", "--optimizer.lr", "0.05", "--trainer.accumulate_grad_batches", "2"]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    return [*words, *strategy, *more]


def nodes(strategy):
    return ["--trainer.strategy", strategy, "--trainer.num_nodes", "2", "--trainer.devices", "1"]


def state_of(folder):
    checkpoint = torch.load(folder / "runs/lora-1/checkpoints/last.ckpt", weights_only=True)
    return checkpoint["state_dict"], checkpoint["global_step"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twenty-one rows, a third of them with a long response."""
    path = tmp_path_factory.mktemp("rows") / "uneven.json"
    path.write_text(json.dumps([_row(a) for a in range(21)]))
    return path


def _row(a):
    output = "well, " * (14 * (a % 3 == 0)) + f"it is {2 * a}."
    return {"instruction": f"What is {a} plus {a}?", "output": output, "answer": str(2 * a)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, make_base, rows):
    """What one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    words = command(make_base(), rows, [], "--data.batch_size", "4", "--trainer.max_epochs", "4")
    done = warm.run([sys.executable, "-m", "adapters_pl", *words], cwd=folder, env=ENVIRONMENT, timeout=240)
    assert done.returncode == 0
    return state_of(folder)


@pytest.mark.parametrize(("strategy", "port"), [("ddp", 29611), ("fsdp", 29612)])
def test_two_hosts_train_like_one_process(tmp_path, hosts, make_base, rows, alone, strategy, port):
    words = command(make_base(), rows, nodes(strategy), "--data.batch_size", "2", "--trainer.max_epochs", "4")
    with job(hosts, tmp_path, *words, port=port) as started:
        outputs = [process.communicate(timeout=240)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], outputs
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["lora-1"]
    state, steps = state_of(tmp_path)
    assert steps == alone[1] == 4 * 3
    for name, value in alone[0].items():
        torch.testing.assert_close(state[name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(("strategy", "port"), [("ddp", 29613), ("fsdp", 29614)])
def test_a_killed_node_ends_the_other_and_the_job_resumes(
    tmp_path,
    hosts,
    make_base,
    rows,
    alone,
    strategy,
    port,
):
    common = command(make_base(), rows, nodes(strategy), "--data.batch_size", "2")
    checkpoint = tmp_path / "runs/lora-1/checkpoints/last.ckpt"
    with job(hosts, tmp_path, *common, "--trainer.max_epochs", "400", port=port) as (first, second):
        deadline = time.monotonic() + 200
        while not checkpoint.is_file():  # killed once there is something to resume from
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
        second.send_signal(signal.SIGKILL)
        output = first.communicate(timeout=120)[0]
        assert first.returncode not in (0, None)
    assert "another process of this job" in output, output[-2000:]
    assert "Traceback" not in output
    steps = torch.load(checkpoint, weights_only=True)["global_step"]
    again = ["fit", "--ckpt_path", "last", *nodes(strategy), "--trainer.max_epochs", str(steps // 3 + 2)]
    with job(hosts, tmp_path, *again, "--trainer.enable_progress_bar", "false", port=port + 10) as started:
        outputs = [process.communicate(timeout=240)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], outputs
    assert json.loads((tmp_path / "runs/lora-1/environment.json").read_text())
    assert state_of(tmp_path)[1] == (steps // 3 + 2) * 3


def test_a_network_that_falls_silent_ends_both_within_the_timeout(tmp_path, hosts, make_base, rows):
    """Packets are dropped: no connection is closed, and nobody is told. One silence ends a job of each strategy."""
    strategies = {
        "lightning.pytorch.strategies.DDPStrategy": 29615,
        "adapters_pl.training.strategies.FullyShardedStrategy": 29616,
    }
    checkpoints, started = [], []
    with ExitStack() as jobs:
        for strategy, port in strategies.items():
            folder = tmp_path / str(port)
            folder.mkdir()
            checkpoints.append(folder / "runs/lora-1/checkpoints/last.ckpt")
            words = command(make_base(), rows, nodes(strategy), "--trainer.strategy.timeout", "0:00:10")
            words += ["--data.batch_size", "2", "--trainer.max_epochs", "4000"]
            started += jobs.enter_context(job(hosts, folder, *words, port=port))
        deadline = time.monotonic() + 200
        while not all(checkpoint.is_file() for checkpoint in checkpoints):
            assert time.monotonic() < deadline
            ended = [process for process in started if process.poll() is not None]
            assert not ended, ended[0].communicate()[0]
            time.sleep(0.05)
        try:
            _silence(hosts, "replace")
            outputs = [process.communicate(timeout=90)[0] for process in started]
        finally:
            _silence(hosts, "del")
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 1, output
        assert "another process of this job" in output, output[-2000:]
        assert "Traceback" not in output
    assert all(torch.load(checkpoint, weights_only=True)["global_step"] > 0 for checkpoint in checkpoints)


def _silence(hosts, action):
    """Send every packet for the other host to nobody (``replace``), or to it again (``del``)."""
    for (name, end), address in zip(hosts, reversed(ADDRESSES), strict=True):
        nobody = ["lladdr", "02:00:00:00:00:99", "nud", "permanent"] if action == "replace" else []
        done = _ip("-n", name, "neigh", action, address, *nobody, "dev", end)
        assert done.returncode == 0, done.stderr
