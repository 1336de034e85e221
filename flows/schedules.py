"""The process that serves the Prefect flows with the cron lines of a recipe."""

import json
import logging
import os
import shlex
import signal
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from prefect import serve as serve_deployments
from prefect._vendor.croniter import croniter  # type: ignore[attr-defined]  # Prefect's scheduler uses it.
from prefect.client.orchestration import get_client
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType

from flows import prefect_flows, sources
from pipeline import recipe as recipes
from pipeline.command_line import typed
from pipeline.config import Recipe, SourceConfig
from pipeline.errors import ConfigError, RelevanceError, SchemaError
from pipeline.text import counted

log = logging.getLogger(__name__)


def serve(
    recipe: Path,
    overrides: list[str],
    workspace: Path,
    *,
    judgments: str,
    documents: list[str],
    columns: Mapping[str, str] = sources.NO_COLUMNS,
) -> None:
    """Serves the flows that have a cron line and the data that they need; returns when stopped.

    Schedules are not paused at the end, as another process may serve the same ones. Runs that come due while nobody
    serves them wait on the Prefect server as late.

    Args:
        columns: the map of the tables of documents; see `sources.of_documents`.

    Raises:
        ConfigError: no flow has a cron line and its data, a line or the time zone is invalid, columns without
            documents, or the settings name no Prefect server.
        MissingError, SchemaError: data that a flow would read is not there, see `sources.refuse_absent`.
        RelevanceError: the Prefect server does not answer.
    """
    settings = recipes.load(recipe, overrides)
    workspace = workspace.resolve()
    parameters = _parameters(
        recipe, overrides, workspace, settings, judgments=judgments, documents=documents, columns=columns
    )
    flows: tuple[Any, ...] = (prefect_flows.retrain, prefect_flows.report, prefect_flows.reindex)
    cron_lines = {flow.name: getattr(settings.schedule, flow.name) for flow in flows}
    scheduled = [
        (flow, _schedule(flow.name, cron_lines[flow.name], settings.schedule.timezone))
        for flow in flows
        if flow.name in parameters and cron_lines[flow.name]
    ]
    if not scheduled:
        raise ConfigError(f"{recipe}: no cron line in [schedule], so there is nothing to serve; set schedule.retrain")
    # Prefect runs each flow as `python -m prefect.…`, which would import a team's own `flows/` from this folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    # A shell starts background processes with SIGINT ignored, and Python leaves that as it is.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    check_server()
    _refuse_absent_data(parameters, settings)
    label = prefect_flows.label_of(workspace, settings.name)
    # Beside the form of changes, which has no values of the recipe.
    description = f"Recipe {settings.name}, with all defaults:\n\n```toml\n{recipes.to_toml(settings)}```\n"
    deployments = [
        flow.to_deployment(
            name=f"{flow.name}-{label}",
            parameters=parameters[flow.name],
            description=description,
            schedule=schedule,
            # By default, Prefect loads the flow from a file whose path is relative to this folder.
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for flow, schedule in scheduled
    ]
    serve_deployments(*deployments, pause_on_shutdown=False)


def _parameters(
    recipe: Path,
    overrides: list[str],
    workspace: Path,
    settings: Recipe,
    *,
    judgments: str,
    documents: list[str],
    columns: Mapping[str, str] = sources.NO_COLUMNS,
) -> dict[str, dict[str, Any]]:
    """The parameters of each flow that has its data, by the flow's name; paths mean the same from any folder."""
    common = {"workspace": workspace, "recipe": settings.name}
    parameters: dict[str, dict[str, Any]] = {
        "retrain": {
            "recipe": recipe.resolve(),
            "overrides": overrides,
            "workspace": workspace,
            "working_folder": Path.cwd(),
        }
    }
    if judgments:
        parameters["report"] = {"judgments": sources.absolute(judgments), **common}
    else:
        command = typed(f"schedule {shlex.quote(str(recipe))} --judgments FILE", workspace)
        log.warning("the flow report is not served: it needs judged queries, as in `%s`", command)
    if documents:
        parameters["reindex"] = {"documents": [sources.absolute(path) for path in documents], **common}
        parameters["reindex"] |= {"columns": dict(columns)} if columns else {}
    elif columns:
        raise ConfigError("--columns: maps the tables of --documents, and none are named")
    elif any("://" in source.path for source in settings.data.sources):
        # Prefect keeps the recipe's path, and no address of a database.
        own = [*overrides, f"data.root={json.dumps(str(Path(settings.data.root).resolve()))}"]
        parameters["reindex"] = {"documents": [str(recipe.resolve())], "overrides": own, **common}
    else:
        command = typed(f"schedule {shlex.quote(str(recipe))} --documents FILE", workspace)
        log.warning(
            "the flow reindex is not served: it needs documents, as in `%s`, or a recipe with a database in its data",
            command,
        )
    return parameters


def _refuse_absent_data(parameters: Mapping[str, Mapping[str, Any]], settings: Recipe) -> None:
    """Raises the errors that the flows would end with at their first run: a file, a table or a column is not there.

    Args:
        parameters: the parameters of each flow that is served.
        settings: the recipe of the retraining.
    """
    for source in settings.data.sources:
        sources.refuse_absent(source, Path(settings.data.root))
    judged = _judged(parameters["report"]["judgments"]) if "report" in parameters else ()
    reindex = parameters.get("reindex", {"documents": ()})
    documents = sources.of_documents(
        reindex["documents"],
        columns=reindex.get("columns", sources.NO_COLUMNS),
        overrides=reindex.get("overrides", ()),
    )
    for source in (*judged, *documents):
        sources.refuse_absent(source, Path())


def _judged(judgments: str) -> tuple[SourceConfig, ...]:
    try:
        return sources.of_judgments(judgments)
    except SchemaError as error:
        raise SchemaError(
            f"{error}\n  a schedule has --columns for its --documents alone: write judgments with their map into a "
            "recipe, as one more source, and name this: --judgments RECIPE"
        ) from error


def check_server() -> None:
    """Checks that there is a Prefect server.

    Raises:
        ConfigError: the settings name none.
        RelevanceError: it does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError(
            "no Prefect server is named, and the temporary one that Prefect starts without a name begins no run by a "
            "cron line; start one with `prefect server start`, and set PREFECT_API_URL=http://127.0.0.1:4200/api in "
            "the environment or the Prefect profile"
        )
    with get_client(sync_client=True) as client:
        fault = client.api_healthcheck()
    if fault is not None:
        raise RelevanceError(
            f"the Prefect server at {url} does not answer ({type(fault).__name__}: {fault}); start it with "
            "`prefect server start`, or change PREFECT_API_URL in the environment or the Prefect profile"
        )


def _schedule(name: str, cron: str, timezone: str) -> Schedule:
    """The schedule of a cron line, which must have five fields and come due some day.

    Raises:
        ConfigError: the line or the time zone is invalid; the message names the flow.
    """
    try:
        if len(cron.split()) != 5:  # Six would count seconds, seven years.
            raise ValueError(f"{counted(len(cron.split()), 'field')} in place of five")
        schedule = Cron(cron, timezone=timezone)
        croniter(cron, datetime.now(ZoneInfo(timezone))).get_next(datetime)  # type: ignore[no-untyped-call]
    except (ValueError, ZoneInfoNotFoundError) as error:
        raise ConfigError(
            f"schedule.{name} is '{cron}' in time zone '{timezone}': {error}; write five cron fields and a name such "
            "as Europe/Berlin"
        ) from error
    return schedule
