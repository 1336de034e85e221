"""Commands on releases: list, show, export, push, pull, promote, rollback and gc."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import DEFAULT_WORKSPACE, Json, Workspace, WrittenWorkspace, console, existing, show

ReleaseArgument = Annotated[str, typer.Argument(help="live, previous, or the first digits of a release.")]

app = typer.Typer(help="Lists releases and moves the live pointer.", no_args_is_help=True)


@app.command("list")
def releases_list(workspace: Workspace = DEFAULT_WORKSPACE, as_json: Json = False) -> None:
    """Lists all releases, oldest first, and says which is live."""
    from flows import releases

    entries = releases.releases(existing(workspace))
    show(entries, as_json, releases.render_releases(entries, workspace))


@app.command("show")
def releases_show(
    release: ReleaseArgument = "live", workspace: Workspace = DEFAULT_WORKSPACE, as_json: Json = False
) -> None:
    """Describes a release, its figures and its files, after checking them."""
    from flows import releases

    description = releases.show(existing(workspace), release)
    show(description, as_json, releases.render_show(description, workspace))


@app.command("export")
def releases_export(
    to: Annotated[Path, typer.Option(help="Folder to make.")],
    release: ReleaseArgument = "live",
    workspace: Workspace = DEFAULT_WORKSPACE,
    as_json: Json = False,
) -> None:
    """Copies a release's PyTorch and ONNX models, with their cards, into a folder that other tools open."""
    from flows import release_export

    written = release_export.export(existing(workspace), release, to)
    show(written, as_json, release_export.render(written))


@app.command("push")
def releases_push(
    address: Annotated[str, typer.Argument(help="Folder of shared storage, such as s3://bucket/search.")],
    release: ReleaseArgument = "live",
    workspace: Workspace = DEFAULT_WORKSPACE,
    as_json: Json = False,
) -> None:
    """Copies a release to shared storage, each file once; the live one becomes live there."""
    from flows import figures, release_storage

    copied = release_storage.push(existing(workspace), address, release)
    show(copied, as_json, figures.table(copied, "release"))


@app.command("pull")
def releases_pull(
    address: Annotated[str, typer.Argument(help="Folder of shared storage that releases were pushed to.")],
    release: Annotated[str, typer.Argument(help="live, or the first digits of a release.")] = "live",
    no_promote: Annotated[bool, typer.Option("--no-promote", help="Leave the live release as it is.")] = False,
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
    as_json: Json = False,
) -> None:
    """Copies a release from shared storage and checks it; the one that is live there becomes live here."""
    from flows import figures, release_storage

    copied = release_storage.pull(workspace, address, release, promote=not no_promote)
    show(copied, as_json, figures.table(copied, "release"))


@app.command("promote")
def releases_promote(
    release: str,
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "by hand",
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
) -> None:
    """Makes a release live, even one that the gate after its training refused."""
    from pipeline.releases import Releases
    from pipeline.surface_warnings import surface_warnings

    registry = Releases(existing(workspace))
    pointer = registry.promote(release, reason=reason, expected=registry.generation())
    console().print(f"live: {pointer.release[:12]}, generation {pointer.generation}")
    for warning in surface_warnings(registry.open(pointer.release, verify=False).metrics.get("surfaces", {})):
        console().print(f"warning: {warning}")


@app.command("rollback")
def releases_rollback(
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "by hand",
    workspace: WrittenWorkspace = DEFAULT_WORKSPACE,
) -> None:
    """Makes the previous release live again."""
    from pipeline.releases import Releases

    pointer = Releases(existing(workspace)).rollback(reason=reason)
    console().print(f"live: {pointer.release[:12]}, generation {pointer.generation}")


@app.command("gc")
def releases_gc(
    keep: Annotated[int, typer.Option(min=1, help="Number of the newest releases to keep, besides those in use.")] = 5,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it the command only lists.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
    as_json: Json = False,
) -> None:
    """Removes what no kept release needs: old releases, their training artifacts, leftovers of dead processes."""
    from flows import gc

    removals = gc.gc(existing(workspace), keep=keep, act=yes)
    show(removals, as_json, gc.render(removals))
