"""The flows retrain, report and reindex as Prefect runs them, each a thin wrapper around a function of `flows`.

Stages become task runs; reports become artifacts in the Prefect UI, and our log lines its logs. Prefect stores no
results of ours: a finished stage lies on disk under its fingerprint, which also survives a SIGKILL.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar
from uuid import uuid4

from prefect import Flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import MissingContextError
from prefect.logging.handlers import APILogHandler
from prefect.states import Completed
from prefect.tasks import Task
from pydantic import WithJsonSchema

from flows import reindex as reindexing
from flows import report as reporting
from flows import retrain as retraining
from flows import runner, sources
from pipeline import recipe as recipes
from pipeline import recipe_schema, regular_files, terminal
from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError, InputError, RelevanceError
from pipeline.evaluation import report_card
from pipeline.secrets import hide_passwords, hide_passwords_in_logs, holds_password
from pipeline.temporary import temporary_file

P = ParamSpec("P")
R = TypeVar("R")

RecipeChanges = Annotated[dict[str, Any], WithJsonSchema(recipe_schema.form())]
"""Values laid over a recipe; Prefect shows its sections as a form with their types and descriptions."""
NO_CHANGES: RecipeChanges = {}

RETRIES = 2
"""Retries of a stage that failed for a reason which may pass."""
RETRY_DELAY_S = 60
"""Seconds before each retry."""


def _worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task may succeed when it runs again; wrong input stays wrong."""
    try:
        state.result()
    except InputError:
        return False
    except Exception:
        return True
    return False


def as_task(name: str, stage: Callable[[], Artifact]) -> Artifact:
    """Runs a stage as a Prefect task run of this name, which is what a `Runner` takes as `execute`."""

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
        with _no_passwords_in_errors():
            return runner.directly(name, stage)

    return run()


class PasswordFreeFlow(Flow[P, R]):
    """A flow that refuses parameters with passwords, as Prefect keeps parameters in its database and shows them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the flow.

        Raises:
            ConfigError: a password stands in a parameter.
        """
        _refuse_passwords([args, kwargs])
        return super().__call__(*args, **kwargs)

    def to_deployment(self, name: str, *, parameters: dict[str, Any], **options: Any) -> RunnerDeployment:  # type: ignore[override]
        """A deployment of the flow with these parameters.

        Raises:
            ConfigError: a password stands in a parameter.
        """
        _refuse_passwords(parameters)
        return super().to_deployment(name, parameters=parameters, **options)  # type: ignore[return-value]


def password_free_flow(name: str) -> Callable[[Callable[P, R]], PasswordFreeFlow[P, R]]:
    """Decorates a function as the flow of this name."""

    def decorate(function: Callable[P, R]) -> PasswordFreeFlow[P, R]:
        return PasswordFreeFlow(function, name=name, persist_result=False)

    return decorate


def _refuse_passwords(value: Any) -> None:
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            _refuse_passwords(item)
    elif isinstance(value, str | Path) and holds_password(str(value)):
        raise ConfigError(
            f"{hide_passwords(str(value))}: Prefect would keep this password in its database and show it; write "
            "${NAME} in its place, and set the environment variable NAME where the flow runs"
        )


@contextmanager
def _no_passwords_in_errors() -> Iterator[None]:
    """Hides passwords in errors of libraries, whose text Prefect keeps as the state of the run."""
    try:
        yield
    except RelevanceError:
        raise
    except Exception as error:
        if holds_password(str(error)):
            raise RelevanceError(f"{type(error).__name__}: {error}") from None
        raise


@password_free_flow("retrain")
def retrain(
    recipe: Path,
    overrides: list[str],
    workspace: Path,
    promote: bool = True,
    working_folder: Path | None = None,
    changes: RecipeChanges = NO_CHANGES,
) -> retraining.RetrainResult:
    """Trains, judges and, if the gate agrees, promotes; see `flows.retrain.retrain`.

    A release that the gate refuses ends the run in the completed state Refused. Nothing failed, and a retry would be
    refused again, but people and automations can tell the run from one whose release is live.

    Args:
        working_folder: the folder that relative paths in the recipe and its overrides start from; None for the
            process's own.
        changes: values laid over the recipe and its overrides, section by section; the others stay as they are.
    """
    with _logs_in_prefect(), contextlib.chdir(working_folder or "."):
        settings = recipes.load(recipe, overrides, changes)
        outcome = retraining.retrain(settings, workspace, promote=promote, execute=as_task)
        label = label_of(workspace, settings.name)
        _show_report(outcome.report, label)
        create_markdown_artifact(
            key=f"gate-{label}",
            markdown=f"**{outcome.verdict}**\n\n" + "\n".join(f"* {warning}" for warning in outcome.gate.warnings),
        )
    if promote and not outcome.live:
        # Prefect ends the run in this state, and gives the caller its data.
        return Completed(name="Refused", message="; ".join(outcome.reasons), data=outcome)  # type: ignore[return-value]
    return outcome


@password_free_flow("report")
def report(judgments: str, workspace: Path, release: str = "live", baseline: str = "", recipe: str = "") -> Artifact:
    """Judges a release; see `flows.report`. The recipe's name only distinguishes artifacts in the UI."""
    with _logs_in_prefect():
        judged, rules = sources.of_judgments(judgments), sources.rules_of(judgments)
        artifact: Artifact = reporting.report(
            judged, workspace, release=release, baseline=baseline, rules=rules, execute=as_task
        )
        _show_report(artifact, label_of(workspace, recipe))
    return artifact


@password_free_flow("reindex")
def reindex(
    documents: list[str],
    workspace: Path,
    release: str = "live",
    full: bool = False,
    recipe: str = "",
    overrides: list[str] | None = None,
    columns: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Embeds what changed and makes the new index live; see `flows.reindex`.

    Args:
        recipe: the recipe's name, which only distinguishes artifacts in the UI.
        overrides: values laid over a recipe among `documents`, as --set does.
        columns: the map of tables that stand in no recipe; None maps each by the names of its columns.
    """
    with _logs_in_prefect():
        chosen = sources.of_documents(documents, columns=columns or {}, overrides=overrides or [])
        figures: dict[str, Any] = reindexing.reindex(
            chosen,
            workspace,
            release=release,
            full=full,
            compute=sources.compute_of(documents, overrides or []),
            execute=as_task,
        )
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
    """Sends our log lines to the logs of the run; neither they nor an error hold a password."""
    hide_passwords_in_logs()
    handler = RunLogs(logging.INFO)
    loggers = [logging.getLogger(name) for name in ("pipeline", "index", "flows", "serving")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        with _no_passwords_in_errors():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def _show_report(artifact: Artifact, label: str) -> None:
    """Shows a report in full in the UI; a browser opens no file of this machine, so there is no link to the page."""
    report_json = json.loads(artifact.file("report.json").read_text(encoding="utf-8"))
    create_table_artifact(key=f"ndcg-{label}", table=reporting.rows(report_json), description="Systems by nDCG")
    console = terminal.plain_console(file=io.StringIO(), record=True, width=120)
    console.print(report_card.card(report_json))
    markdown = (
        f"```\n{console.export_text()}\n```\n\nThe page with plots and examples: `{artifact.file('report.html')}`"
    )
    create_markdown_artifact(key=f"report-{label}", markdown=markdown, description="Report")


def label_of(workspace: Path, recipe: str = "") -> str:
    """A name for artifacts and deployments that differs between recipes and between workspaces on one Prefect server.

    Workspaces of two machines may have the same path. Host names would tell them apart, but a container has a new one
    after each start, and the schedules of its old name would stay on the server. So each workspace has an id.
    """
    folder = workspace.resolve()
    digest = hashlib.sha256(f"{recipe} {folder} {workspace_id(folder)}".encode()).hexdigest()[:8]
    words = re.sub("[^a-z0-9]+", "-", f"{recipe}-{folder.name}".lower()).strip("-")
    return f"{words[:60]}-{digest}".strip("-")


def workspace_id(workspace: Path) -> str:
    """The id that a workspace keeps in its file `workspace-id`, which the first call writes."""
    path = workspace / "workspace-id"
    if not path.exists():
        workspace.mkdir(parents=True, exist_ok=True)
        with temporary_file(path) as temporary:
            temporary.write_text(f"{uuid4()}\n", encoding="utf-8")
            with contextlib.suppress(FileExistsError):  # Another process was faster.
                os.link(temporary, path)
    return regular_files.read(path).decode().strip()
