"""Commands on the indexes of all releases: list, verify and gc."""

from typing import Annotated

import typer

from flows.cli.options import DEFAULT_WORKSPACE, Json, Workspace, existing, show

app = typer.Typer(
    help="Lists and checks the segments of all releases, and removes what nothing needs.", no_args_is_help=True
)


@app.command("list")
def index_list(workspace: Workspace = DEFAULT_WORKSPACE, as_json: Json = False) -> None:
    """Lists the segments of each release: documents, tombstones, bytes, and the releases that share them."""
    from flows import indexes

    listing = indexes.inventory(existing(workspace))
    show(listing, as_json, indexes.render_inventory(listing))


@app.command("verify")
def index_verify(
    release: Annotated[str, typer.Argument(help="all, live, previous, or the first digits of a release.")] = "all",
    workspace: Workspace = DEFAULT_WORKSPACE,
    as_json: Json = False,
) -> None:
    """Reads every file of the releases and checks that their indexes fit together; exit code 1 if one is damaged."""
    from flows import indexes

    outcome = indexes.verify(existing(workspace), release)
    show(outcome, as_json, indexes.render_verify(outcome))
    if not outcome["sound"]:
        raise typer.Exit(1)


@app.command("gc")
def index_gc(
    yes: Annotated[
        bool, typer.Option("--yes/--dry-run", help="Whether to remove, or only to list what would be removed.")
    ] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
    as_json: Json = False,
) -> None:
    """Removes indexes, vectors and documents that no release and no reader needs; every release stays."""
    from flows import gc

    removals = gc.gc(existing(workspace), keep=None, act=yes)
    show(removals, as_json, gc.render(removals))
