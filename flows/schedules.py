"""The three flows as Prefect knows them, each a thin wrapper, and the process that serves them with their cron lines.

Stages become task runs; reports become artifacts in the Prefect UI, and our log lines its logs. Prefect keeps no
results of ours: a finished stage lies on disk under its fingerprint, which also survives a SIGKILL.
"""

import hashlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from prefect import flow, task
from prefect import serve as serve_deployments
from prefect._vendor.croniter import croniter  # type: ignore[attr-defined]  # Prefect's scheduler uses it.
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import get_settings_context
from prefect.exceptions import MissingContextError
from prefect.logging.handlers import APILogHandler
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings
from prefect.states import Completed
from prefect.tasks import Task
from rich.console import Console

from flows import reindex as reindexing
from flows import report as reporting
from flows import retrain as chain
from flows import runner
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.config import SourceConfig
from pipeline.errors import ConfigError, InputError, RelevanceError
from pipeline.evaluation import report as reports

log = logging.getLogger(__name__)

RETRIES = 2
RETRY_DELAY_S = 60


def _worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Not what a person must change first: the same recipe gives the same error."""
    try:
        state.result()
    except InputError:
        return False
    except Exception:
        return True
    return False


def as_task(name: str, stage: Callable[[], Artifact]) -> Artifact:
    """Runs a stage as a Prefect task run of this name; a `runner.Execute`."""

    @task(
        name=name,
        task_run_name=name,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAY_S,
        retry_condition_fn=_worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run() -> Artifact:
        return runner.directly(name, stage)

    return run()


@flow(name="retrain", persist_result=False)
def retrain(recipe: Path, overrides: list[str], workspace: Path, promote: bool = True) -> chain.RetrainResult:
    """Trains, judges and, if the gate agrees, promotes; see `chain.retrain`.

    A release that the gate refused ends as a completed run of the state Refused: nothing failed, and a retry would
    refuse it again, but an automation or a person can tell it from a release that is live.
    """
    with _logs_in_prefect():
        settings = recipes.load(recipe, overrides)
        outcome = chain.retrain(settings, workspace, promote=promote, execute=as_task)
        label = label_of(workspace, settings.name)
        _show_report(outcome.report, label)
        create_markdown_artifact(
            key=f"gate-{label}",
            markdown=f"**{'live' if outcome.live else 'not live'}** {outcome.release.fingerprint[:12]}\n\n"
            + "\n".join(f"* {reason}" for reason in outcome.reasons),
        )
    if promote and not outcome.live:
        # Prefect ends the run in this state, and gives the caller its data.
        return Completed(name="Refused", message="; ".join(outcome.reasons), data=outcome)  # type: ignore[return-value]
    return outcome


@flow(name="report", persist_result=False)
def report(judgments: str, workspace: Path, release: str = "live", baseline: str = "", recipe: str = "") -> Artifact:
    """Judges a release; see `flows.report`. The recipe's name only tells artifacts in the UI apart."""
    with _logs_in_prefect():
        source = SourceConfig(path=judgments)
        artifact: Artifact = reporting.report(source, workspace, release=release, baseline=baseline, execute=as_task)
        _show_report(artifact, label_of(workspace, recipe))
    return artifact


@flow(name="reindex", persist_result=False)
def reindex(
    documents: list[str], workspace: Path, release: str = "live", full: bool = False, recipe: str = ""
) -> dict[str, Any]:
    """Embeds what changed and makes the new index live; see `flows.reindex`. For the recipe's name, see `report`."""
    with _logs_in_prefect():
        figures: dict[str, Any] = reindexing.reindex(documents, workspace, release=release, full=full, execute=as_task)
        create_table_artifact(
            key=f"reindex-{label_of(workspace, recipe)}", table=[figures], description="The new index"
        )
    return figures


class RunLogs(APILogHandler):
    """Prefect's log handler, which drops lines of threads that belong to no run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], MissingContextError):
            super().handleError(record)


@contextmanager
def _logs_in_prefect() -> Iterator[None]:
    """Sends our log lines to the logs of the run."""
    handler = RunLogs(logging.INFO)
    loggers = [logging.getLogger(name) for name in ("pipeline", "index", "flows", "serving")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def label_of(workspace: Path, recipe: str = "") -> str:
    """A name for artifacts and deployments that differs between recipes and workspaces on one Prefect server."""
    folder = workspace.resolve()
    number = hashlib.sha256(f"{recipe} {folder}".encode()).hexdigest()[:8]
    words = re.sub("[^a-z0-9]+", "-", f"{recipe}-{folder.name}".lower()).strip("-")
    return f"{words[:60]}-{number}".strip("-")


def _show_report(artifact: Artifact, label: str) -> None:
    """Shows a report in full in the UI; a browser opens no file of this machine, so there is no link to the page."""
    report_json = json.loads(artifact.file("report.json").read_text(encoding="utf-8"))
    create_table_artifact(key=f"ndcg-{label}", table=reporting.rows(report_json), description="Systems by nDCG")
    console = Console(file=io.StringIO(), record=True, width=120)
    console.print(reports.card(report_json))
    markdown = (
        f"```\n{console.export_text()}\n```\n\nThe page with plots and examples: `{artifact.file('report.html')}`"
    )
    create_markdown_artifact(key=f"report-{label}", markdown=markdown, description="Report")


def serve(recipe: Path, overrides: list[str], workspace: Path, *, judgments: str, documents: list[str]) -> None:
    """Serves the flows that have a cron line and what they need; returns when stopped.

    Schedules are not paused at the end, as another process may serve the same ones. Runs that come due while nobody
    serves them wait on the Prefect server as late.

    Raises:
        ConfigError: no flow has a cron line and what it needs, or a line or the time zone is not one.
        RelevanceError: the Prefect server does not answer.
    """
    settings = recipes.load(recipe, overrides)
    lines = settings.schedule
    workspace = workspace.resolve()
    root = f"data.root={json.dumps(str(Path(settings.data.root).resolve()))}"
    common = {"workspace": workspace, "recipe": settings.name}
    wanted: list[tuple[Any, str, dict[str, Any]]] = [
        (retrain, lines.retrain,
         {"recipe": recipe.resolve(), "overrides": [*overrides, root], "workspace": workspace})
    ]  # fmt: skip
    if judgments:
        wanted.append((report, lines.report, {"judgments": absolute(judgments), **common}))
    if documents:
        wanted.append((reindex, lines.reindex, {"documents": [absolute(path) for path in documents], **common}))
    for name, given, option in (("report", judgments, "--judgments"), ("reindex", documents, "--documents")):
        if not given:
            log.warning("the flow %s is not served: it needs %s", name, option)
    schedules = [
        (entry, parameters, _schedule(entry.name, cron, lines.timezone)) for entry, cron, parameters in wanted if cron
    ]
    if not schedules:
        raise ConfigError(f"{recipe}: no cron line in [schedule], so there is nothing to serve; set schedule.retrain")
    with _patient_start():
        check_server()
        label = label_of(workspace, settings.name)
        deployments = [
            entry.to_deployment(name=f"{entry.name}-{label}", parameters=parameters, schedule=schedule)
            for entry, parameters, schedule in schedules
        ]
        serve_deployments(*deployments, pause_on_shutdown=False)


def absolute(source: str) -> str:
    """A source of data that means the same from any working folder."""
    sqlite = re.fullmatch(r"(sqlite[^:]*:///)([^/:].*)", source)  # A file name; a fourth slash begins an absolute one.
    if sqlite:
        return sqlite[1] + str(Path(sqlite[2]).resolve())
    return source if "://" in source else str(Path(source).resolve())


@contextmanager
def _patient_start() -> Iterator[None]:
    """Gives a server that Prefect starts for us 90 s, unless the environment or the profile says how long."""
    context = get_settings_context()
    setting = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
    if setting in context.profile.settings or setting.name in os.environ:
        yield
    else:
        with temporary_settings({setting: 90}):
            yield


def check_server() -> None:
    """Raises RelevanceError when the settings name a Prefect server and it does not answer."""
    url = PREFECT_API_URL.value()
    if not url:
        return
    with get_client(sync_client=True) as client:
        fault = client.api_healthcheck()
    if fault is not None:
        raise RelevanceError(
            f"the Prefect server at {url} does not answer ({type(fault).__name__}: {fault}); start it with "
            "`prefect server start`, or change PREFECT_API_URL in the environment or the Prefect profile"
        )


def _schedule(name: str, cron: str, timezone: str) -> Schedule:
    """A cron line of five fields that comes due some day.

    Raises:
        ConfigError: the line or the time zone is none; the message names the flow.
    """
    try:
        if len(cron.split()) != 5:  # Six would count seconds, seven years.
            raise ValueError(f"{len(cron.split())} fields in place of five")
        schedule = Cron(cron, timezone=timezone)
        croniter(cron, datetime.now(ZoneInfo(timezone))).get_next(datetime)  # type: ignore[no-untyped-call]
    except (ValueError, ZoneInfoNotFoundError) as error:
        raise ConfigError(
            f"schedule.{name} is '{cron}' in time zone '{timezone}': {error}; write five cron fields and a name such "
            "as Europe/Berlin"
        ) from error
    return schedule
