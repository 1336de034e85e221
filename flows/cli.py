"""The command `relevance`. Parses, calls one function, prints; exit codes are those of `pipeline.errors`.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import difflib
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import ConfigError, GateError, InputError, MissingError, RelevanceError
from pipeline.text import read_text, split_lines

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

RECIPES = Path(__file__).with_name("recipes")

app = typer.Typer(
    help="Trains, distils, indexes, judges and serves relevance models for search.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
releases_app = typer.Typer(help="Lists releases and moves the live pointer.", no_args_is_help=True)
recipe_app = typer.Typer(help="Lists, resolves and describes recipes.", no_args_is_help=True)
data_app = typer.Typer(help="Checks, converts and splits judged data.", no_args_is_help=True)
app.add_typer(releases_app, name="releases")
app.add_typer(recipe_app, name="recipe")
app.add_typer(data_app, name="data")

Workspace = Annotated[
    Path, typer.Option(envvar="RELEVANCE_WORKSPACE", help="Folder of artifacts, releases and caches.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Overrides a value of the recipe; may be repeated.")
]
Columns = Annotated[
    str, typer.Option(help="A table's columns: query=search_term,title=name,grade=relevance; see the recipe's keys.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for a machine.")]
DEFAULT_WORKSPACE = Path("workspace")


def main() -> None:
    """Runs the command and turns an error of this package into one message and its exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    for noisy in ("httpx", "bm25s", "faiss", "faiss.loader", "transformers", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _beside_others(int(os.environ.get("LOCAL_RANK", "0")))
        else:
            app()
    except RelevanceError as error:
        print(f"relevance: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        print(f"relevance: {error}; look at the path, its permissions and the free space", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("relevance: stopped; start the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


def _beside_others(local_rank: int) -> None:
    """Under torchrun: the first process runs the command, the others take part in its trainings."""
    from pipeline.training.loop import distributed, loop

    distributed.join(local_rank)
    if distributed.process():
        distributed.follow(loop.follow)
        return
    try:
        app()
    except SystemExit as end:
        if not end.code:  # Where the command fails the others are not told: torchrun ends them, wherever they wait.
            distributed.leave()
        raise


def _show(value: Any, as_json: bool, rendered: "RenderableType | None" = None) -> None:
    if as_json:
        print(json.dumps(value, ensure_ascii=False, indent=1))
    else:
        _console().print(rendered if rendered is not None else value)


def _has_prefect_server() -> bool:
    """Whether a Prefect server is configured; without one the flows run as plain calls, with no server to start."""
    home = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    if os.environ.get("PREFECT_API_URL") or not profiles.exists():
        return bool(os.environ.get("PREFECT_API_URL"))
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


def _console() -> "Console":
    from rich.console import Console

    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"relevance {version('search-relevance')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # The callback prints and ends; nothing is left to do here.
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Trains, distils, indexes, judges and serves relevance models for search."""


def existing(workspace: Path) -> Path:
    """A workspace that is there.

    Raises:
        MissingError: it is not; names the nearest folder beside it that is one.
    """
    if workspace.is_dir():
        return workspace
    beside = workspace.parent if workspace.parent.is_dir() else Path()
    known = [
        path.name for path in beside.iterdir() if any((path / part).is_dir() for part in ("releases", "artifacts"))
    ]
    near = difflib.get_close_matches(workspace.name, known, n=1)
    hint = f"did you mean {beside / near[0]}?" if near else "`relevance demo` and `relevance retrain` make one"
    raise MissingError(f"{workspace}: there is no such workspace; {hint}")


def recipe_names() -> list[str]:
    """The names of the built-in recipes."""
    return sorted(file.stem for file in RECIPES.glob("*.toml"))


def recipe_path(name: str) -> Path:
    """A recipe file: a path, or the name of one that is built in.

    Raises:
        MissingError: neither; lists the built-in ones.
    """
    path = Path(name)
    built_in = RECIPES / f"{name}.toml"
    if path.suffix != ".toml" and built_in.is_file():
        return built_in
    if not path.is_file():
        known = recipe_names()
        near = difflib.get_close_matches(path.stem, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"built in are: {', '.join(known)}"
        raise MissingError(f"{name}: no such recipe file; {hint}")
    return path


@app.command()
def demo(
    workspace: Workspace = DEFAULT_WORKSPACE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Trains, indexes and judges a release from this machine's Python documentation, in about ten minutes."""
    from flows import retrain as chain
    from flows import summary
    from pipeline import recipe as recipes

    recipe = recipes.load(RECIPES / "demo.toml", overrides or [])
    outcome = chain.retrain(recipe, workspace)
    made = summary.make(outcome, workspace)
    _show(made, as_json, summary.render(made, workspace))


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="Folder, file or SQLAlchemy URL of your documents, queries and grades.")],
    out: Annotated[Path, typer.Option(help="Recipe file to write.")] = Path("recipe.toml"),
    columns: Annotated[
        str, typer.Option(help="A table's columns: query=search_term,title=name,grade=relevance; guessed if not given.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Looks at data and machine, and writes a recipe that fits both, with the reason beside each choice."""
    from dataclasses import asdict

    from flows import init as flow
    from pipeline.data import convert

    seen, text = flow.write(data, out, convert.parse_columns(columns) if columns else None)
    if as_json:
        _show({"recipe": str(out), **asdict(seen)}, as_json)
    else:
        print(f"{text}\nwritten: {out}; next: relevance retrain {out}")


@app.command()
def retrain(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or a built-in recipe such as demo or homedepot.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    overrides: Set = None,
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Publish without going live.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only read the data and check all that can be told before training.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Trains, distils, exports, indexes and judges; publishes a release and promotes it if the gate agrees."""
    from flows import retrain as chain
    from flows import summary
    from pipeline import recipe as recipes

    path = recipe_path(recipe)
    if check:
        from flows import runner, training

        checked = training.check(recipes.load(path, overrides or []), runner.Runner(workspace))
        _show({"checked": checked}, as_json, "\n".join(f"✓ {line}" for line in checked))
        return
    if _has_prefect_server():
        from flows import prefect_flows, schedules

        schedules.check_server()
        outcome = prefect_flows.retrain(path, overrides or [], workspace, promote=not no_promote)
    else:
        outcome = chain.retrain(recipes.load(path, overrides or []), workspace, promote=not no_promote)
    made = summary.make(outcome, workspace)
    _show(made, as_json, summary.render(made, workspace))
    if not outcome.live and not no_promote:
        state = "the live release stays" if made["live_release"] else "no release is live"
        raise GateError(f"the gate said no, {state}: {'; '.join(outcome.reasons)}")


@app.command()
def report(
    judgments: Annotated[str, typer.Option(help="Folder of judged queries, in any format that is read.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    format: Annotated[str, typer.Option(help="How the judgments are written; auto looks at the files.")] = "auto",
    columns: Columns = "",
    all_queries: Annotated[
        bool, typer.Option("--all", help="Judge all queries, not only those the release's recipe keeps from training.")
    ] = False,
    release: Annotated[str, typer.Option(help="live, previous, or the first digits of a release.")] = "live",
    run: Annotated[
        str, typer.Option(metavar="FILE[:SYSTEM]", help="Judge this run file (TREC text or Parquet) instead.")
    ] = "",
    baseline: Annotated[str, typer.Option(help="A release to compare with.")] = "",
    clicks: Annotated[bool, typer.Option("--clicks", help="Count judgments that were made from clicks too.")] = False,
    baseline_run: Annotated[
        str, typer.Option(metavar="FILE[:SYSTEM]", help="A run file to compare the one of --run with.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Copy the report into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Judges a release, or a run file, on judged queries: nDCG and others with intervals, as JSON and HTML."""
    from flows import report as flow
    from pipeline.config import SourceConfig
    from pipeline.data import convert
    from pipeline.evaluation import report as reports
    from pipeline.evaluation.runs import RunFile

    source = SourceConfig(path=judgments, format=format, columns=convert.parse_columns(columns))
    if baseline_run and (baseline or not run):
        raise ConfigError("--baseline-run is compared with the file of --run, and takes the place of --baseline")
    workspace = existing(workspace) if baseline or not run else workspace
    if run:
        other = RunFile.parse(baseline_run) if baseline_run else baseline
        made = flow.report_on_run(source, workspace, run=RunFile.parse(run), baseline=other, clicks=clicks)
    else:
        split: flow.Split = "all" if all_queries else "test"
        made = flow.report(source, workspace, split=split, release=release, baseline=baseline, clicks=clicks)
    if out is not None:
        flow.copy_files(made, out)
    found = json.loads(made.file("report.json").read_text(encoding="utf-8"))
    where = (out or made.path) / "report.html"
    _show(found, as_json, reports.card(found))
    if not as_json:
        _console().print(f"report: {where}")


@app.command()
def reindex(
    documents: Annotated[
        list[str], typer.Option(help="Folder, file or SQLAlchemy URL of the documents; may be repeated.")
    ],
    workspace: Workspace = DEFAULT_WORKSPACE,
    format: Annotated[str, typer.Option(help="How the documents are written; auto looks at the files.")] = "auto",
    release: Annotated[
        str, typer.Option(help="Release whose models embed; a copy of it with the new index is published.")
    ] = "live",
    full: Annotated[bool, typer.Option("--full", help="Embed every document, not only the changed ones.")] = False,
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Publish without going live.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Publish documents that are far fewer, emptier or more repeated than before."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Embeds new and changed documents, builds a new index and makes it live with the same models."""
    from flows import reindex as flow

    made = flow.reindex(
        documents, existing(workspace), format=format, release=release, full=full, promote=not no_promote, force=force
    )
    _show(made, as_json, flow.render(made))


@app.command()
def ablate(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or a built-in recipe such as demo or homedepot.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Trains students over a grid of loss sets and seeds, tests their differences and says which losses earn a place.

    The grid is the recipe's section ablation: --set 'ablation.sets=["hard", "soft+margin", "all"]'.
    """
    from flows import ablate as flow
    from pipeline import recipe as recipes
    from pipeline.evaluation import ablation

    made = flow.ablate(recipes.load(recipe_path(recipe), overrides or []), workspace)
    found = flow.read(made)
    _show(found, as_json, ablation.card(found))
    if not as_json:
        _console().print(f"table: {made.path / 'table.md'}")


@recipe_app.command("list")
def recipe_list(as_json: Json = False) -> None:
    """Built-in recipes, each with the first sentence of its file."""
    found = {}
    for name in recipe_names():
        lines = split_lines(read_text(RECIPES / f"{name}.toml"))
        comment = " ".join(line.removeprefix("#").strip() for line in lines[: lines.index(f'name = "{name}"')])
        found[name] = comment.split(". ")[0].rstrip(".") + "."
    _show(found, as_json, "\n".join(f"{name:<10} {about}" for name, about in found.items()))


@recipe_app.command("show")
def recipe_show(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or a built-in recipe such as demo or homedepot.")],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Prints a recipe with all defaults and overrides resolved, as TOML."""
    from pipeline import recipe as recipes

    resolved = recipes.load(recipe_path(recipe), overrides or [])
    print(
        json.dumps(recipes.to_dict(resolved, complete=True), ensure_ascii=False, indent=1)
        if as_json
        else recipes.to_toml(resolved),
        end="",
    )


@recipe_app.command("schema")
def recipe_schema() -> None:
    """Prints the JSON Schema of recipes, by which an editor completes and checks them.

    Write it to a file and name it in the first line of a recipe: #:schema recipe.schema.json
    """
    from pipeline import recipe as recipes

    print(json.dumps(recipes.schema(), ensure_ascii=False, indent=1))


@app.command()
def stages(
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print the picture that the README shows.")] = False,
    as_json: Json = False,
) -> None:
    """Prints the graph of the stages: each kind of artifact, its inputs, the module that makes it and its section."""
    from flows import stages as contracts

    if mermaid:
        print(contracts.mermaid())
        return
    entries = contracts.graph()
    _show(contracts.plain(entries), as_json, contracts.table(entries))


@app.command()
def export(
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Annotated[
        str, typer.Option(help="Release whose models are exported: live, previous, or its first digits.")
    ] = "live",
    model: Annotated[
        Path | None, typer.Option(help="Folder of a ranker, teacher or encoder artifact, instead of a release's.")
    ] = None,
    precisions: Annotated[str, typer.Option(help="Such as fp16,int8,w8; those of the recipe when empty.")] = "",
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Exports trained models again and reports the cost and gain of each precision; releases nothing."""
    from flows import export as flow

    names = [name.strip() for name in precisions.split(",") if name.strip()]
    made = flow.export(
        existing(workspace) if model is None else workspace,
        release=release,
        model=model,
        precisions=names,
        overrides=overrides or [],
    )
    _show(made, as_json, flow.render(made))


@app.command()
def serve(
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Annotated[str | None, typer.Option(help="live follows the pointer; digits pin one release.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; only this machine by default.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 8080 by default; 0 for any free one.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, fp16, int8 or w8.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes behind the port, 1 by default.")] = None,
) -> None:
    """Answers rerank, embedding and search requests over HTTP, with a page at /.

    Every setting can be given as an environment variable too, such as RELEVANCE_PORT; see serving/settings.py.
    """
    from serving import settings
    from serving.process import launch

    knobs: dict[str, Any] = {"release": release, "host": host, "port": port, "precision": precision, "workers": workers}
    launch.serve(settings.from_environment(workspace=existing(workspace), **knobs))


@app.command()
def key(as_json: Json = False) -> None:
    """Makes an API key for a client of the service, and its hash; the service is given the hash alone.

    Put the hash into RELEVANCE_API_KEYS, or on a line of the file that RELEVANCE_API_KEYS_FILE names.
    """
    from serving.api import keys

    made, hashed = keys.make()
    _show({"key": made, "hash": hashed}, as_json, f"key:  {made}\nhash: {hashed}")


@app.command()
def schedule(
    recipe: Annotated[str, typer.Argument(help="Recipe whose cron lines are served.")],
    judgments: Annotated[str, typer.Option(help="Judged queries of the scheduled report.")] = "",
    documents: Annotated[
        list[str] | None, typer.Option(help="Documents of the scheduled re-index; may be repeated.")
    ] = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
    overrides: Set = None,
) -> None:
    """Serves the flows retrain, report and reindex to Prefect with the recipe's cron lines, until stopped."""
    from flows import schedules

    schedules.serve(recipe_path(recipe), overrides or [], workspace, judgments=judgments, documents=documents or [])


@app.command()
def search(
    query: str,
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Annotated[str, typer.Option(help="live, previous, or the first digits of a release.")] = "live",
    top: Annotated[int, typer.Option(min=1, help="How many results.")] = 10,
    as_json: Json = False,
) -> None:
    """Searches the documents of a release: lexical, semantic and final order side by side."""
    from flows import ask

    found = ask.search(query, existing(workspace), release=release, top=top)
    _show(found, as_json, ask.render_search(found))


@app.command()
def rerank(
    query: str,
    file: Annotated[Path, typer.Argument(help="Texts to rank: one a line, or JSON lines with text (and title).")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Annotated[str, typer.Option(help="live, previous, or the first digits of a release.")] = "live",
    as_json: Json = False,
) -> None:
    """Orders the texts of a file by their relevance to a query."""
    from flows import ask

    found = ask.rerank(query, file, existing(workspace), release=release)
    _show(found, as_json, ask.render_rerank(found))


@releases_app.command("list")
def releases_list(workspace: Workspace = DEFAULT_WORKSPACE, as_json: Json = False) -> None:
    """Lists all releases, oldest first, and says which is live."""
    from flows import releases

    found = releases.releases(existing(workspace))
    _show(found, as_json, releases.render_releases(found))


@releases_app.command("show")
def releases_show(
    release: Annotated[str, typer.Argument()] = "live", workspace: Workspace = DEFAULT_WORKSPACE, as_json: Json = False
) -> None:
    """Describes a release, its figures and its files, after checking them."""
    from flows import releases

    found = releases.show(existing(workspace), release)
    _show(found, as_json, releases.render_show(found))


@releases_app.command("promote")
def releases_promote(
    release: str,
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "by hand",
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Makes a release live, whatever the gate said."""
    from pipeline.releases import Releases

    registry = Releases(existing(workspace))
    seen = registry.live()
    pointer = registry.promote(release, reason=reason, expected=seen.generation if seen else 0)
    _console().print(f"live: {pointer.release[:12]}, generation {pointer.generation}")


@releases_app.command("rollback")
def releases_rollback(
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "by hand",
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Makes the previous release live again."""
    from pipeline.releases import Releases

    pointer = Releases(existing(workspace)).rollback(reason=reason)
    _console().print(f"live: {pointer.release[:12]}, generation {pointer.generation}")


@releases_app.command("gc")
def releases_gc(
    keep: Annotated[int, typer.Option(min=1, help="Number of the newest releases to keep, besides those in use.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it the command only lists.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
    as_json: Json = False,
) -> None:
    """Removes what no kept release needs: old releases, their training artifacts, leftovers of dead processes."""
    from flows import gc

    removals = gc.gc(existing(workspace), keep=keep, act=yes)
    _show(removals, as_json, gc.render(removals))


@data_app.command("check")
def data_check(
    path: str,
    format: Annotated[str, typer.Option(help="How the source is written; auto looks at the files.")] = "auto",
    columns: Columns = "",
    as_json: Json = False,
) -> None:
    """Describes judged data and its invalid rows; exits 2 when a part of it cannot be used."""
    from pipeline.data import check, convert

    found = check.examine(path, format, convert.parse_columns(columns))
    _show(found.to_dict(), as_json, check.render(found))
    if found.faults:
        raise InputError(f"{path}: {len(found.faults)} faults, listed above; mend or drop those rows")


@data_app.command("convert")
def data_convert(
    path: str,
    out: Path,
    format: Annotated[str, typer.Option(help="How the source is written; auto looks at the files.")] = "auto",
    columns: Columns = "",
) -> None:
    """Writes a source in any known format as our Parquet tables."""
    from pipeline.data import convert

    convert.convert(path, format, out, convert.parse_columns(columns))
    _console().print(f"written: {out}")


@data_app.command("split")
def data_split(
    path: Path,
    out: Path,
    valid: Annotated[float, typer.Option(help="Share of queries.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of queries.")] = 0.2,
    seed: int = 13,
) -> None:
    """Writes the data again with train, valid and test assigned by a hash of the normalised query."""
    from pipeline.data import convert

    convert.split(path, valid, test, seed, out)
    _console().print(f"written: {out}")


if __name__ == "__main__":
    main()
