"""The flows as Prefect runs them, against a server of its own in a private home."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import Trained

SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from flows import schedules

recipe, world, workspace, documents = map(Path, sys.argv[1:])
overrides = [f"data.root={world}"]

async def records():
    async with get_client() as client:
        flows = {run.flow_id: run.state.name for run in await client.read_flow_runs()}
        names = {flow.id: flow.name for flow in await client.read_flows()}
        tasks = [(run.name, run.state.name, run.run_count) for run in await client.read_task_runs()]
        artifacts = [item.key for item in await client.read_artifacts()]
        return {"flows": {names[key]: state for key, state in flows.items()}, "tasks": tasks, "artifacts": artifacts}

with prefect_test_harness(server_startup_timeout=120):
    outcome = schedules.retrain(recipe, overrides, workspace)
    schedules.report(str(world / "tiny"), workspace)
    made = schedules.reindex([str(documents)], workspace)
    try:
        schedules.reindex(["/nonexistent"], workspace)
    except Exception as error:
        failed = type(error).__name__
    found = asyncio.run(records())
print(json.dumps({"release": outcome.release.fingerprint, "reindexed": made, "failed": failed, **found}))
"""


def test_flows_leave_runs_tasks_and_artifacts(copied: Trained, tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    arguments = [copied.world / "tiny.toml", copied.world, copied.workspace, copied.world / "tiny"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["release"] == copied.outcome.release.fingerprint
    assert found["reindexed"]["embedded"] == 0
    assert found["failed"] == "MissingError"
    assert {"retrain", "report", "reindex"} <= set(found["flows"])
    ran = {name for name, state, _ in found["tasks"] if state == "Completed"}
    assert {"data", "teacher", "ranker", "document vectors", "release"} <= ran
    failed = [count for name, state, count in found["tasks"] if state == "Failed"]
    assert failed == [1], "wrong input is not tried again"
    assert {"gate", "ndcg", "report", "reindex"} <= set(found["artifacts"])


def _schedule(trained: Trained, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "schedule", str(trained.world / "tiny.toml")]
    command += ["--workspace", str(trained.workspace), *options]
    environ = {**os.environ, "PREFECT_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environ)


def test_nothing_to_serve_is_an_error(copied: Trained, tmp_path: Path) -> None:
    done = _schedule(copied, tmp_path, "--set", 'schedule.retrain=""')
    assert done.returncode == 2
    assert "no cron line" in done.stderr


@pytest.mark.parametrize("line", ["not a cron", "61 * * * *"])
def test_impossible_cron_line_is_told(copied: Trained, tmp_path: Path, line: str) -> None:
    done = _schedule(copied, tmp_path, "--set", f'schedule.retrain="{line}"')
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr
