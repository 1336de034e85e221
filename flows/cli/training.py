"""Commands around training: demo, init, retrain, ablate, study, export, schedule and stages."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.built_in_recipes import RECIPES, UNNAMED
from flows.cli import surroundings
from flows.cli.options import (
    DEFAULT_WORKSPACE,
    Columns,
    Json,
    Labels,
    Recipe,
    Set,
    WrittenWorkspace,
    console,
    existing,
    show,
)
from flows.cli.torchrun import training_command
from pipeline.command_line import typed
from pipeline.errors import ConfigError, GateError

if TYPE_CHECKING:
    from pipeline import config

app = typer.Typer()


@app.command()
@training_command
def demo(
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Trains, indexes and judges a release from this machine's Python documentation.

    After installation it takes about six minutes on two quiet cores, ten to twenty on busy ones.
    """
    from pipeline import recipe as recipes

    loaded = recipes.load(RECIPES / "demo.toml", overrides or [])
    from flows import demo as flow
    from flows import summary

    card = flow.run(loaded, workspace)
    show(card, as_json, summary.render(card, workspace))


@app.command()
def init(
    data: Annotated[
        str,
        typer.Argument(
            help="Folder, file or SQLAlchemy URL of documents, queries and grades; or a recipe of several.",
            callback=surroundings.check_data,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Recipe file to write; recipe.toml is named after the data, another after its file.")
    ] = Path(UNNAMED),
    columns: Columns = "",
    labels: Labels = "",
    as_json: Json = False,
) -> None:
    """Looks at data and machine, and writes a recipe that fits both, with the reason beside each choice."""
    from dataclasses import asdict

    from flows import init as flow
    from pipeline.data.formats import option_text
    from pipeline.secrets import without_passwords

    seen, text = flow.write(data, out, option_text.parse_columns(columns), option_text.parse_labels(labels))
    if as_json:
        show(without_passwords({"recipe": str(out), **asdict(seen)}), as_json)
    else:
        print(f"{text}\nwritten: {out}; next: {typed(f'retrain {shlex.quote(str(out))}')}")


@app.command()
@training_command
def retrain(
    recipe: Recipe,
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    overrides: Set = None,
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Publish without going live.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only read the data and check all that can be told before training.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Trains, distils, exports, indexes and judges; publishes a release and promotes it if the gate agrees."""
    loaded = _with_data(recipe, overrides)
    from flows import retrain as flow
    from flows import summary

    if check:
        from flows import runner, training

        checked = training.check(loaded, runner.Runner(workspace))
        show({"checked": checked}, as_json, "\n".join(map(_marked, checked)))
        return
    if _has_prefect_server():
        surroundings.check_prefect_home()
        from flows import prefect_flows, schedules

        schedules.check_server()
        outcome = prefect_flows.retrain(Path(recipe), overrides or [], workspace, promote=not no_promote)
    else:
        outcome = flow.retrain(loaded, workspace, promote=not no_promote)
    card = summary.make(outcome, workspace)
    show(card, as_json, summary.render(card, workspace))
    if not outcome.live and not no_promote:
        state = "the live release stays" if card["live_release"] else "no release is live"
        why = "; ".join(outcome.reasons) if as_json else "the reasons stand above"
        raise GateError(f"the gate said no, {state}: {why}")


@app.command()
@training_command
def ablate(
    recipe: Recipe,
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Trains students over a grid of loss sets and seeds, tests their differences and says which losses earn a place.

    The grid is the recipe's section ablation: --set 'ablation.sets=["hard", "soft+margin", "all"]'.
    """
    loaded = _with_data(recipe, overrides)
    from flows import ablate as flow
    from pipeline.evaluation import ablation_table

    artifact = flow.ablate(loaded, workspace)
    results = flow.read(artifact)
    show(results, as_json, ablation_table.card(results))
    if not as_json:
        console().print(f"table: {artifact.path / 'table.md'}")


@app.command()
@training_command
def study(
    recipe: Recipe,
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    overrides: Set = None,
    list_ways: Annotated[
        bool, typer.Option("--list", help="Only list the known methods, and which cannot apply to this recipe.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Trains the ranker in many compressed forms and says what each keeps, what it costs and which are worth it.

    The forms are the recipe's section study: --set 'study.methods=["depth-2", "tinybert"]' --set study.seeds=3.
    """
    from pipeline import recipe as recipes

    loaded = recipes.load(Path(recipe), overrides or []) if list_ways else _with_data(recipe, overrides)
    from flows import study as flow
    from flows import study_plan
    from pipeline.evaluation import study_table

    if list_ways:
        methods = study_plan.catalogue(loaded)
        width = max(len(method["name"]) for method in methods) + 2
        lines = [
            f"{method['name']:<{width}}{method['refused'] and 'cannot apply: '}{method['refused'] or method['summary']}"
            for method in methods
        ]
        show(methods, as_json, "\n".join(lines))
        return
    artifact = flow.study(loaded, workspace)
    results = flow.read(artifact)
    show(results, as_json, study_table.card(results))
    if not as_json:
        drawn = "; fronts: speed.svg and bytes.svg beside it" if (artifact.path / "speed.svg").exists() else ""
        console().print(f"table: {artifact.path / 'table.md'}{drawn}")


@app.command()
def export(
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    release: Annotated[
        str, typer.Option(help="Release whose models are exported: live, previous, or its first digits.")
    ] = "live",
    model: Annotated[
        Path | None, typer.Option(help="Folder of a ranker, teacher or encoder artifact, instead of a release's.")
    ] = None,
    precisions: Annotated[
        str, typer.Option(help="Precisions, such as fp16,int8,w8; those of the recipe when empty.")
    ] = "",
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Exports trained models again and reports the cost and gain of each precision; releases nothing."""
    from flows import export as flow

    if model is not None and release != "live":
        raise ConfigError("--release: the model of --model is exported in its place; give one of the two")
    names = [name.strip() for name in precisions.split(",") if name.strip()]
    results = flow.export(
        existing(workspace) if model is None else workspace,
        release=release,
        model=model,
        precisions=names,
        overrides=overrides or [],
    )
    show(results, as_json, flow.render(results))


@app.command()
def schedule(
    recipe: Annotated[
        str, typer.Argument(help="Recipe whose cron lines are served.", callback=surroundings.resolve_recipe)
    ],
    judgments: Annotated[str, typer.Option(help="Judged queries of the scheduled report.")] = "",
    documents: Annotated[
        list[str] | None, typer.Option(help="Documents of the scheduled re-index; may be repeated.")
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="KEY=COLUMN,…",
            help="Columns of the tables of --documents: doc_id, title, text; another key keeps a column to filter by. "
            "Judgments that need a map stand in a recipe: --judgments RECIPE.",
        ),
    ] = "",
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    overrides: Set = None,
) -> None:
    """Serves the flows retrain, report and reindex to Prefect with the recipe's cron lines, until stopped.

    Retraining needs the recipe alone, the report --judgments, re-indexing --documents or a recipe with a database:
    relevance schedule recipe.toml --judgments judged.csv --documents documents.parquet
    """
    surroundings.check_prefect_home()
    from flows import schedules
    from pipeline.data.formats import option_text

    schedules.serve(
        Path(recipe),
        overrides or [],
        workspace,
        judgments=judgments,
        documents=documents or [],
        columns=option_text.parse_columns(columns),
    )


@app.command()
def stages(
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print the picture that flows/README.md shows.")] = False,
    as_json: Json = False,
) -> None:
    """Prints the graph of the stages: each kind of artifact, its inputs, the module that makes it and its section."""
    from flows import stages as contracts

    if mermaid:
        print(contracts.mermaid())
        return
    entries = contracts.graph()
    show(contracts.plain(entries), as_json, contracts.table(entries))


def _marked(line: str) -> str:
    return f"! {line}" if line.startswith("warning") else f"✓ {line}"


def _has_prefect_server() -> bool:
    """Whether a Prefect server is configured; without one the flows run as plain calls, with no server to start."""
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH", surroundings.prefect_home() / "profiles.toml"))
    if os.environ.get("PREFECT_API_URL") or not profiles.exists():
        return bool(os.environ.get("PREFECT_API_URL"))
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


def _with_data(recipe: str, overrides: Sequence[str] | None) -> "config.Recipe":
    """A recipe whose data is there: this is told before libraries are loaded that take seconds.

    Raises:
        InputError: the recipe cannot be read, or the files of one of its sources are not there.
    """
    from pipeline import recipe as recipes

    loaded = recipes.load(Path(recipe), overrides or [])
    from pipeline.data import sources

    sources.check_found(loaded.data.sources, Path(loaded.data.root))
    return loaded
