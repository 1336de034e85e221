"""Commands that judge, index and learn an order: report, reindex and refit."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import (
    DEFAULT_WORKSPACE,
    Columns,
    Json,
    Labels,
    Release,
    Set,
    WrittenWorkspace,
    console,
    existing,
    judged_data,
    show,
)
from pipeline.errors import ConfigError

app = typer.Typer()


@app.command()
def report(
    judgments: Annotated[
        str,
        typer.Option(
            help="Judged queries in any format that is read, or a recipe, whose sources are meant. Where there are no "
            "documents beside them, those of the release are taken."
        ),
    ],
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    format: Annotated[str, typer.Option(help="Format of the judgments; auto looks at the files.")] = "auto",
    columns: Columns = "",
    labels: Labels = "",
    all_queries: Annotated[
        bool, typer.Option("--all", help="Judge all queries, not only those the release's recipe keeps from training.")
    ] = False,
    release: Release = "live",
    run: Annotated[
        str, typer.Option(metavar="FILE[:SYSTEM]", help="Judge this run file (TREC text or Parquet) instead.")
    ] = "",
    baseline: Annotated[str, typer.Option(help="A release to compare with.")] = "",
    clicks: Annotated[
        bool, typer.Option("--clicks", help="Count judgments that were made from clicks or thumbs too.")
    ] = False,
    baseline_run: Annotated[
        str, typer.Option(metavar="FILE[:SYSTEM]", help="A run file to compare the one of --run with.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Copy the report into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Judges a release, or a run file, on judged queries: nDCG and others with intervals, as JSON and HTML."""
    from flows import report as flow
    from flows import sources
    from pipeline import disk
    from pipeline.evaluation import report_card
    from pipeline.evaluation.runs import RunFile

    if out is not None:
        disk.check_writable(out)
    judged = judged_data(judgments, format, columns, labels)
    rules = sources.rules_of(judgments)
    if baseline_run and (baseline or not run):
        raise ConfigError("--baseline-run is compared with the file of --run, and takes the place of --baseline")
    if run and release != "live":
        raise ConfigError("--release: --run is judged in its place; compare with a release by --baseline")
    workspace = existing(workspace) if baseline or not run else workspace
    if run:
        other = RunFile.parse(baseline_run) if baseline_run else baseline
        artifact = flow.report_on_run(
            judged, workspace, run=RunFile.parse(run), baseline=other, clicks=clicks, rules=rules
        )
    else:
        split: flow.Split = "all" if all_queries else "test"
        artifact = flow.report(
            judged, workspace, split=split, release=release, baseline=baseline, clicks=clicks, rules=rules
        )
    if out is not None:
        flow.copy_files(artifact, out)
    content = json.loads(artifact.file("report.json").read_text(encoding="utf-8"))
    where = (out or artifact.path) / "report.html"
    show(content, as_json, report_card.card(content))
    if not as_json:
        console().print(f"report: {where}")


@app.command()
def reindex(
    documents: Annotated[
        list[str], typer.Option(help="Folder, file, SQLAlchemy URL or recipe of the documents; may be repeated.")
    ],
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    format: Annotated[str, typer.Option(help="Format of the documents; auto looks at the files.")] = "auto",
    columns: Columns = "",
    release: Annotated[
        str, typer.Option(help="Release whose models embed; a copy of it with the new index is published.")
    ] = "live",
    full: Annotated[bool, typer.Option("--full", help="Embed every document, not only the changed ones.")] = False,
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Publish without going live.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Publish documents that are far fewer, emptier or more repeated than before."),
    ] = False,
    shards: Annotated[
        int, typer.Option(help="Number of releases to publish, each with a part of the documents; none goes live.")
    ] = 0,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Embeds new and changed documents, builds a new index and makes it live with the same models.

    --set compute.engine=ray embeds them on a Ray cluster; see the section `compute` of `relevance recipe schema`.
    """
    from flows import figures, sources
    from flows import reindex as flow
    from pipeline.data.formats import option_text

    changes = overrides or []
    chosen = sources.of_documents(documents, format, option_text.parse_columns(columns), changes)
    compute = sources.compute_of(documents, changes)
    if shards:
        from flows import shards as divided

        if full or no_promote:
            raise ConfigError("--shards: publishes new releases and promotes none; leave --full, --no-promote")
        published = divided.reindex(chosen, existing(workspace), shards, release=release, force=force, compute=compute)
        show(published, as_json, divided.render(published, workspace))
        return
    outcome = flow.reindex(
        chosen,
        existing(workspace),
        format=format,
        release=release,
        full=full,
        promote=not no_promote,
        force=force,
        compute=compute,
    )
    show(outcome, as_json, figures.table(outcome, "re-index"))


@app.command()
def refit(
    judgments: Annotated[
        str,
        typer.Option(
            help="Judged queries in any format that is read, or a recipe, whose sources are meant. Where there are no "
            "documents beside them, those of the release are searched."
        ),
    ],
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    format: Annotated[str, typer.Option(help="Format of the judgments; auto looks at the files.")] = "auto",
    columns: Columns = "",
    labels: Labels = "",
    all_queries: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Learn from all queries, not only those the release's recipe holds out; report on others then.",
        ),
    ] = False,
    release: Release = "live",
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Publish without going live.")] = False,
    as_json: Json = False,
) -> None:
    """Learns the order of a release from judgments, with the same models and documents, and makes it live if better."""
    from flows import refit as flow
    from flows import sources

    outcome = flow.refit(
        judged_data(judgments, format, columns, labels),
        existing(workspace),
        release=release,
        queries="all" if all_queries else "held out",
        promote=not no_promote,
        rules=sources.rules_of(judgments),
    )
    show(outcome, as_json, flow.render(outcome))
