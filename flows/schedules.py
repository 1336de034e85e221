"""The three flows as Prefect knows them, each a thin wrapper, and the process that serves them with their cron lines.

Stages become task runs; reports become artifacts in the Prefect UI. Prefect keeps no results of ours: a
stage that is finished lies on disk under its fingerprint, which also survives a SIGKILL.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow, task
from prefect import serve as serve_deployments
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.schedules import Cron, Schedule
from prefect.tasks import Task

from flows import reindex as reindexing
from flows import report as reporting
from flows import retrain as chain
from flows import runner
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError, InputError

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
    """Trains, judges and, if the gate agrees, promotes; see `chain.retrain`."""
    outcome = chain.retrain(recipes.load(recipe, overrides), workspace, promote=promote, execute=as_task)
    _show_report(outcome.report)
    create_markdown_artifact(
        key="gate",
        markdown=f"**{'live' if outcome.live else 'not live'}** {outcome.release.fingerprint[:12]}\n\n"
        + "\n".join(f"* {reason}" for reason in outcome.reasons),
    )
    return outcome


@flow(name="report", persist_result=False)
def report(judgments: str, workspace: Path, release: str = "live", baseline: str = "") -> Artifact:
    """Judges a release; see `flows.report`."""
    made: Artifact = reporting.report(judgments, workspace, release=release, baseline=baseline, execute=as_task)
    _show_report(made)
    return made


@flow(name="reindex", persist_result=False)
def reindex(documents: list[str], workspace: Path, release: str = "live", full: bool = False) -> dict[str, Any]:
    """Embeds what changed and makes the new index live; see `flows.reindex`."""
    made: dict[str, Any] = reindexing.reindex(documents, workspace, release=release, full=full, execute=as_task)
    create_table_artifact(key="reindex", table=[made], description="The new index")
    return made


def _show_report(made: Artifact) -> None:
    found = json.loads(made.file("report.json").read_text(encoding="utf-8"))
    create_table_artifact(key="ndcg", table=reporting.rows(found), description="Systems by nDCG")
    create_link_artifact(key="report", link=made.file("report.html").resolve().as_uri(), link_text="HTML report")


def serve(recipe: Path, overrides: list[str], workspace: Path, *, judgments: str, documents: list[str]) -> None:
    """Serves the flows that have a cron line and what they need; returns when stopped.

    Raises:
        ConfigError: no flow has a cron line and what it needs, or a line or the time zone is not one.
    """
    lines = recipes.load(recipe, overrides).schedule
    workspace = workspace.resolve()
    wanted: list[tuple[Any, str, dict[str, Any]]] = [
        (retrain, lines.retrain, {"recipe": recipe.resolve(), "overrides": overrides, "workspace": workspace})
    ]
    if judgments:
        wanted.append((report, lines.report, {"judgments": judgments, "workspace": workspace}))
    if documents:
        wanted.append((reindex, lines.reindex, {"documents": documents, "workspace": workspace}))
    for name, given, option in (("report", judgments, "--judgments"), ("reindex", documents, "--documents")):
        if not given:
            log.warning("the flow %s is not served: it needs %s", name, option)
    deployments = [
        entry.to_deployment(
            name=f"{entry.name}-scheduled", parameters=parameters, schedule=_schedule(entry.name, cron, lines.timezone)
        )
        for entry, cron, parameters in wanted
        if cron
    ]
    if not deployments:
        raise ConfigError(f"{recipe}: no cron line in [schedule], so there is nothing to serve; set schedule.retrain")
    serve_deployments(*deployments)


def _schedule(name: str, cron: str, timezone: str) -> Schedule:
    try:
        ZoneInfo(timezone)
        return Cron(cron, timezone=timezone)
    except (ValueError, ZoneInfoNotFoundError) as error:
        raise ConfigError(
            f"schedule.{name} is '{cron}' in time zone '{timezone}': {error}; write five cron fields and a name such "
            "as Europe/Berlin"
        ) from error
