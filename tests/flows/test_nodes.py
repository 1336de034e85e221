"""A retraining by torchrun over two nodes: refused where they differ, ended together, resumed, published once."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from flows.cli import command as commands
from flows.cli import torchrun
from pipeline.errors import InputError
from pipeline.releases import Releases
from pipeline.training.loop.peers import RESUME
from tests import forked, nodes

READ = "parquet, 150 documents"
"""Part of a log line of the stage that reads the data."""


def retrain(recipe: Path, world: Path, workspace: Path, *options: str) -> list[str | Path]:
    """The arguments of a retraining of the tiny world."""
    return ["retrain", recipe, "--set", f"data.root={world}", "--workspace", workspace, *options]


def test_nodes_that_differ_are_refused_by_name(tiny_world: Path, tmp_path: Path) -> None:
    recipe, changed = tiny_world / "tiny.toml", tmp_path / "tiny.toml"
    changed.write_text(recipe.read_text().replace("layers = 1", "layers = 2"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    start = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    start += ["--local-addr", "127.0.0.1", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "-m", "flows.cli"]
    given = (
        retrain(recipe, tiny_world, tmp_path / "w"),
        retrain(changed, tiny_world, tmp_path / "x", "--no-promote"),
    )
    environment = {**os.environ, "PYTHONPATH": str(forked.ROOT), "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(list(map(str, [*start, *arguments])), stderr=subprocess.PIPE, env=environment, text=True)
        for arguments in given
    ]
    try:
        texts = [agent.communicate(timeout=nodes.WAIT_S)[1] for agent in agents]
    finally:
        for agent in agents:
            if agent.poll() is None:
                nodes.kill(agent.pid)
    assert all(agent.returncode for agent in agents)
    for text in texts:
        assert re.search(r"relevance: process 1 on \S+ differs from process 0", text), text
        assert re.search(r"the recipe's ranker.layers is [12], not [12]", text)
        assert re.search(r"the workspace is \S+[wx], which is not the folder of process 0, not \S+[wx]", text)
        assert re.search(r"the command is .*no_promote.*, not .*no_promote", text)
    assert not [*tmp_path.glob("[wx]/*"), *tmp_path.glob("[wx]/.*")]


def test_commands_that_train_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.app  # Which has all commands.
    torchrun.require_training("serve")
    assert isinstance(torchrun.watched(), nullcontext), "one process is run as without torchrun"
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    torchrun.require_training("retrain")
    with pytest.raises(InputError, match="torchrun starts demo, retrain, ablate, study; start `relevance serve` with"):
        torchrun.require_training("serve")


def test_a_killed_process_ends_all_by_name_and_the_next_start_goes_on(tiny_world: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    long = ("--set", "teacher.loop.epochs=40", "--set", "teacher.loop.checkpoint_s=0")
    arguments = [retrain(tiny_world / "tiny.toml", tiny_world, workspace, *long)] * 2

    agents = nodes.start(nodes.command, arguments, tmp_path / "first")
    end = time.monotonic() + nodes.WAIT_S
    while not list(workspace.glob("artifacts/teacher/*.checkpoint/step-*.safetensors")):
        assert time.monotonic() < end, nodes.logs(tmp_path / "first")
        time.sleep(0.02)
    (process,) = nodes.workers(agents[0].pid)
    os.kill(process, signal.SIGKILL)
    assert all(nodes.finish(agents))
    leader, survivor = nodes.logs(tmp_path / "first")
    assert READ in leader
    assert READ not in survivor
    assert re.search(
        r"relevance: (process 0 on \S+ has given no sign of life|torchrun's store at \S+ has not answered) for ",
        survivor,
    ), survivor
    assert RESUME in survivor

    assert nodes.finish(nodes.start(nodes.command, arguments, tmp_path / "last")) == [0, 0], nodes.logs(
        tmp_path / "last"
    )
    leader, follower = nodes.logs(tmp_path / "last")
    assert re.search(r"going on from step \d+", leader)
    assert not re.search(r"^\d\d:\d\d:\d\d  ", follower, re.MULTILINE), "process 1 ran a stage"
    live = Releases(workspace).live()
    assert live is not None
    assert Releases(workspace).ids() == [live.release]
    assert not list(workspace.glob("artifacts/*/*.checkpoint"))
