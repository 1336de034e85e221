"""The flows as Prefect runs them, against a server of its own in a private home."""

import json
import os
import re
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
        items = await client.read_artifacts()
        artifacts = [item.key for item in items if item.key]
        logs = [line for line in await client.read_logs() if line.name.startswith(("pipeline", "index", "flows"))]
        shown = max(len(item.data) for item in items if (item.key or "").startswith("report-"))
        ui = {"logs": len(logs), "report_chars": shown}
        states = {names[key]: state for key, state in flows.items()}
        return ui | {"flows": states, "tasks": tasks, "artifacts": artifacts}

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
    kinds = {key.split("-")[0] for key in found["artifacts"]}
    assert kinds == {"gate", "ndcg", "report", "reindex"}
    assert found["flows"]["retrain"] in ("Completed", "Refused")
    assert found["logs"] > 0, "our log lines reach Prefect"
    assert found["report_chars"] > 200, "the report stands in the UI"


def _schedule(trained: Trained, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "schedule", str(trained.world / "tiny.toml")]
    command += ["--workspace", str(trained.workspace), *options]
    environ = {**os.environ, "PREFECT_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environ)


def test_nothing_to_serve_is_an_error(copied: Trained, tmp_path: Path) -> None:
    done = _schedule(copied, tmp_path, "--set", 'schedule.retrain=""')
    assert done.returncode == 2
    assert "no cron line" in done.stderr


@pytest.mark.parametrize("line", ["not a cron", "61 * * * *", "0 0 31 2 *", "0 0 * * * *", "* * * * * * *", "@daily"])
def test_impossible_cron_line_is_told(copied: Trained, tmp_path: Path, line: str) -> None:
    done = _schedule(copied, tmp_path, "--set", f'schedule.retrain="{line}"')
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_is_one_message(copied: Trained, tmp_path: Path) -> None:
    home = tmp_path / "prefect"
    home.mkdir()
    # A profile's setting counts as the environment's does.
    profile = 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    (home / "profiles.toml").write_text(profile, encoding="utf-8")
    done = _schedule(copied, home, "--set", 'schedule.retrain="0 2 * * 0"')
    assert done.returncode == 1
    assert "http://127.0.0.1:9/api does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 10


def test_names_differ_between_recipes_and_workspaces(tmp_path: Path) -> None:
    from flows import schedules

    labels = {schedules.label_of(tmp_path / folder, recipe) for folder in ("a", "b") for recipe in ("r", "s", "")}
    assert len(labels) == 6
    assert all(re.fullmatch("[a-z0-9-]+", label) for label in labels)


def test_sources_are_absolute_in_a_deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flows import schedules

    monkeypatch.chdir(tmp_path)
    assert schedules.absolute("data") == str(tmp_path / "data")
    assert schedules.absolute("sqlite:///shop.db") == f"sqlite:///{tmp_path}/shop.db"
    assert schedules.absolute("sqlite:////var/shop.db") == "sqlite:////var/shop.db"
    assert schedules.absolute("postgresql://host/shop") == "postgresql://host/shop"
