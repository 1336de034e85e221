"""Commands that answer: serve, key, search and rerank."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import DEFAULT_WORKSPACE, Json, Release, Workspace, existing, show

app = typer.Typer()


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

    api_key, hashed = keys.make()
    show({"key": api_key, "hash": hashed}, as_json, f"key:  {api_key}\nhash: {hashed}")


@app.command()
def search(
    query: str,
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Release = "live",
    top: Annotated[int, typer.Option(min=1, help="How many results.")] = 10,
    as_json: Json = False,
) -> None:
    """Searches the documents of a release: lexical, semantic and final order side by side."""
    from flows import ask

    results = ask.search(query, existing(workspace), release=release, top=top)
    show(results, as_json, ask.render_search(results))


@app.command()
def rerank(
    query: str,
    file: Annotated[Path, typer.Argument(help="Texts to rank: one a line, or JSON lines with text (and title).")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    release: Release = "live",
    as_json: Json = False,
) -> None:
    """Orders the texts of a file by their relevance to a query."""
    from flows import ask

    results = ask.rerank(query, file, existing(workspace), release=release)
    show(results, as_json, ask.render_rerank(results))
