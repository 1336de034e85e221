"""The flows as Prefect runs them, against a server of its own in a private home."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.config import GateConfig
from tests.flows.conftest import Trained
from tests.shadows import add_shadows

ROOT = Path(__file__).parents[2]
SCRIPT = """
import asyncio, json, os, sys
from pathlib import Path
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.testing.utilities import prefect_test_harness
from flows import prefect_flows

recipe, world, workspace, documents = map(Path, sys.argv[1:])
async def records():
    async with get_client() as client:
        names = {flow.id: flow.name for flow in await client.read_flows()}
        states = [(names[run.flow_id], run.state.name, run.state.type.value) for run in await client.read_flow_runs()]
        tasks = [(run.name, run.state.name, run.run_count) for run in await client.read_task_runs()]
        artifacts = [(item.key, len(item.data)) for item in await client.read_artifacts() if item.key]
        logs = [line for line in await client.read_logs() if line.name.startswith(("pipeline", "index", "flows"))]
        return {"flows": states, "tasks": tasks, "artifacts": artifacts, "logs": len(logs)}

async def form():
    # Types in a section of the deployment's form, and what the server says to runs with these changes.
    parameters = {"recipe": recipe, "overrides": [], "workspace": workspace}
    deployment = await prefect_flows.retrain.to_deployment(name="form", parameters=parameters)
    number = await deployment.apply()
    answers = []
    async with get_client() as client:
        schema = (await client.read_deployment(number)).parameter_openapi_schema["properties"]["changes"]
        types = {name: value["type"] for name, value in schema["properties"]["gate"]["properties"].items()}
        for changes in ({"gate": {"margin": 0.1}}, {}, {"gate": {"margins": 0.1}}, {"gate": {"margin": "none"}}):
            try:
                run = await client.create_flow_run_from_deployment(number, parameters={"changes": changes})
                answers.append(run.parameters["changes"])
            except PrefectHTTPStatusError as error:
                answers.append(error.response.json()["detail"])
    return types, answers

with prefect_test_harness(server_startup_timeout=120):
    result = prefect_flows.retrain(recipe, [f"data.root={world}"], workspace)
    different = [f"data.root={world.name}", "evaluation.bootstrap=202"]
    changes = {"evaluation": {"bootstrap": 201, "cutoff": None}, "gate": {"min_queries": 100000}}
    refused = prefect_flows.retrain(recipe, different, workspace, working_folder=world.parent, changes=changes)
    try:
        prefect_flows.retrain(recipe, [], workspace, changes={"gate": {"margins": 0.1}})
    except Exception as error:
        hint = str(error)
    types, answers = asyncio.run(form())
    prefect_flows.report(str(world / "tiny"), workspace)
    reindexed = prefect_flows.reindex([str(documents)], workspace)
    try:
        prefect_flows.reindex(["/nonexistent"], workspace)
    except Exception as error:
        failure = type(error).__name__
    seen = asyncio.run(records())
releases = {"release": result.release.fingerprint, "refused": refused.release.fingerprint, "live": refused.live}
evaluation = refused.release.manifest.config["evaluation"]
form = {"hint": hint, "types": types, "answers": answers, "evaluation": evaluation}
print(json.dumps({**releases, **form, "reindexed": reindexed, "failure": failure, "folder": os.getcwd(), **seen}))
"""


def _environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a process that shares nothing with the user's own Prefect."""
    own = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own, **variables}


def test_flows_leave_runs_tasks_and_artifacts(copied: Trained, tmp_path: Path) -> None:
    environ = _environment(tmp_path / "prefect", PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="90")
    arguments = [copied.world / "tiny.toml", copied.world, copied.workspace, copied.world / "tiny"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environ,
        cwd=tmp_path,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    assert seen["release"] == copied.outcome.release.fingerprint
    assert seen["folder"] == str(tmp_path), "the process has its own folder again"
    assert seen["reindexed"]["embedded"] == 0
    assert seen["failure"] == "MissingError"
    retrainings = sorted((state, kind) for name, state, kind in seen["flows"] if name == "retrain")
    ended = [("Completed", "COMPLETED"), ("Failed", "FAILED"), ("Refused", "COMPLETED")]
    assert retrainings == [*ended, ("Scheduled", "SCHEDULED"), ("Scheduled", "SCHEDULED")]
    _assert_form(seen)
    assert seen["refused"] != seen["release"]
    assert not seen["live"]
    assert {"retrain", "report", "reindex"} <= {name for name, _, _ in seen["flows"]}
    ran = {name for name, state, _ in seen["tasks"] if state == "Completed"}
    assert {"data", "teacher", "ranker", "document vectors", "release"} <= ran
    failed = [count for name, state, count in seen["tasks"] if state == "Failed"]
    assert failed == [1], "wrong input is not tried again"
    kinds = {key.split("-")[0] for key, _ in seen["artifacts"]}
    assert kinds == {"gate", "ndcg", "report", "reindex"}
    assert seen["logs"] > 0, "our log lines reach Prefect"
    report_characters = [size for key, size in seen["artifacts"] if key.startswith("report-")]
    assert max(report_characters) > 200, "the report stands in the UI"


def _assert_form(seen: dict[str, Any]) -> None:
    """A deployment's form shows the sections of a recipe; a value given there reaches the run, a wrong one does not."""
    assert {field.name for field in dataclasses.fields(GateConfig)} == set(seen["types"])
    assert (seen["types"]["margin"], seen["types"]["min_queries"]) == ("number", "integer")
    assert (seen["evaluation"]["bootstrap"], seen["evaluation"]["cutoff"]) == (201, 10)
    taken, untouched, unknown, wrong = seen["answers"]
    assert (taken, untouched) == ({"gate": {"margin": 0.1}}, {})
    assert "'margins' is not one of ['margin', " in unknown
    assert "changes.gate.margin" in wrong
    assert "unknown key gate.margins; did you mean gate.margin?" in seen["hint"]


def _until(condition: Callable[[], Any], *processes: subprocess.Popen[bytes]) -> Any:
    """The first true value of a condition, while these processes live."""
    until = time.monotonic() + 600
    while time.monotonic() < until:
        assert all(process.poll() is None for process in processes), "a process ended"
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError("the condition never became true")


@contextmanager
def _process(*command: str, environ: dict[str, str], log: Path, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that gets SIGTERM at the end, and SIGKILL when it does not obey."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=output, cwd=cwd)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=60).status_code == 200
    except httpx.HTTPError:
        return False


def test_stopping_one_scheduler_leaves_the_schedules_of_others(copied: Trained, tmp_path: Path) -> None:
    """Three schedulers on one Prefect server: two of one recipe, started from different folders, and one of another.

    Both folders hold files that are called as our packages are; importing one would end the scheduler.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environ = _environment(tmp_path / "prefect", PREFECT_API_URL=url)
    other = tmp_path / "other.toml"
    other.write_text((copied.world / "tiny.toml").read_text(encoding="utf-8").replace('"tiny"', '"other"', 1))

    def deployments() -> dict[str, Any]:
        return {item["name"]: item for item in httpx.post(f"{url}/deployments/filter", json={}, timeout=300).json()}

    with ExitStack() as stack:
        command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        server = stack.enter_context(_process(*command, environ=environ, log=tmp_path / "server.log", cwd=tmp_path))
        _until(lambda: _is_healthy(url), server)
        schedulers = []
        for number, recipe in enumerate([copied.world / "tiny.toml", copied.world / "tiny.toml", other]):
            folder = tmp_path / str(number)
            folder.mkdir()
            command = [sys.executable, "-P", "-m", "flows.cli", "schedule", str(recipe)]
            command += ["--workspace", str(copied.workspace), "--set", f"data.root={copied.world}"]
            schedulers.append(
                stack.enter_context(
                    _process(*command, environ=environ, log=tmp_path / f"{number}.log", cwd=add_shadows(folder))
                )
            )
        logs = [tmp_path / f"{number}.log" for number in range(3)]
        _until(lambda: all("being served" in log.read_text() for log in logs), server, *schedulers)
        before = deployments()
        assert len(before) == 2, "schedulers of one recipe and workspace share a deployment"
        assert all("[ranker]\n" in deployment["description"] for deployment in before.values())
        for stopped in (2, 0):
            schedulers[stopped].send_signal(signal.SIGINT)
            schedulers[stopped].wait(300)
            after = deployments()
            assert set(after) == set(before)
            for deployment in after.values():
                assert not deployment["paused"]
                assert [schedule["active"] for schedule in deployment["schedules"]] == [True]
                assert deployment["entrypoint"] == "flows.prefect_flows.retrain"
        assert schedulers[1].poll() is None


def _schedule(trained: Trained, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "schedule", str(trained.world / "tiny.toml")]
    command += ["--workspace", str(trained.workspace), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=_environment(home))


def test_nothing_to_serve_is_an_error(copied: Trained, tmp_path: Path) -> None:
    done = _schedule(copied, tmp_path, "--set", 'schedule.retrain=""')
    assert done.returncode == 2
    assert "no cron line" in done.stderr


@pytest.mark.parametrize("line", ["not a cron", "61 * * * *", "0 0 31 2 *", "0 0 * * * *", "* * * * * * *", "@daily"])
def test_an_impossible_cron_line_is_refused(copied: Trained, tmp_path: Path, line: str) -> None:
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


def test_a_schedule_without_a_server_is_refused_as_nothing_would_ever_run(copied: Trained, tmp_path: Path) -> None:
    """The server that Prefect starts by itself has no scheduler."""
    done = _schedule(copied, tmp_path / "prefect", "--set", 'schedule.retrain="* * * * *"')
    assert done.returncode == 2
    assert "start one with `prefect server start`, and set PREFECT_API_URL=http://127.0.0.1:4200/api" in done.stderr


def test_names_differ_between_recipes_and_workspaces(tmp_path: Path) -> None:
    from flows import prefect_flows

    labels = {prefect_flows.label_of(tmp_path / folder, recipe) for folder in ("a", "b") for recipe in ("r", "s", "")}
    assert len(labels) == 6
    assert all(re.fullmatch("[a-z0-9-]+", label) for label in labels)


def test_names_differ_between_machines_and_stay_after_a_restart(tmp_path: Path) -> None:
    """Two machines whose workspaces have one path differ by the id that each workspace keeps."""
    from flows import prefect_flows

    here = prefect_flows.label_of(tmp_path / "workspace", "recipe")
    assert prefect_flows.label_of(tmp_path / "workspace", "recipe") == here
    (tmp_path / "workspace").rename(tmp_path / "moved away")
    assert prefect_flows.label_of(tmp_path / "workspace", "recipe") != here


def test_sources_are_absolute_in_a_deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flows import sources

    monkeypatch.chdir(tmp_path)
    assert sources.absolute("data") == str(tmp_path / "data")
    assert sources.absolute("sqlite:///shop.db") == f"sqlite:///{tmp_path}/shop.db"
    assert sources.absolute("sqlite:////var/shop.db") == "sqlite:////var/shop.db"
    assert sources.absolute("postgresql://host/shop") == "postgresql://host/shop"
