"""Options that several commands share, and how a command prints."""

import contextlib
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import json_output, surroundings
from pipeline import command_line
from pipeline.errors import MissingError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pipeline.config import SourceConfig

_WORKSPACE: dict[str, Any] = {
    "envvar": "RELEVANCE_WORKSPACE",
    "file_okay": False,
    "help": "Folder of artifacts, releases and caches.",
}
Workspace = Annotated[Path, typer.Option(**_WORKSPACE, callback=surroundings.note_workspace)]
WrittenWorkspace = Annotated[Path, typer.Option(**_WORKSPACE, callback=surroundings.check_workspace)]
"""The workspace of a command that writes into it: one that cannot be written is refused before anything else."""
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Overrides a value of the recipe; may be repeated.")
]
Columns = Annotated[
    str,
    typer.Option(
        metavar="KEY=COLUMN,…",
        help="Columns of a table whose names do not tell what they are. Keys: query, query_id, doc_id, title, text, "
        "grade, split, position, clicked, positive, negative; another keeps a column of the documents.",
    ),
]
Labels = Annotated[
    str, typer.Option(help="The grade of each word in the column of grades: Exact=2,Partial=1,Irrelevant=0.")
]
Json = Annotated[bool, typer.Option(json_output.OPTION, help="Print one JSON object, for a machine.")]
Recipe = Annotated[
    str,
    typer.Argument(
        help="A TOML file, or a built-in recipe such as demo or homedepot.", callback=surroundings.resolve_recipe
    ),
]
Release = Annotated[str, typer.Option(help="live, previous, or the first digits of a release.")]
Format = Annotated[str, typer.Option(help="Format of the data; auto looks at the files.")]
DEFAULT_WORKSPACE = command_line.DEFAULT_WORKSPACE


def show(value: Any, as_json: bool, rendered: "RenderableType | None" = None) -> None:
    """Prints a value as JSON, or as it is rendered for a person."""
    if as_json:
        json_output.print_json(value)
    else:
        console().print(rendered if rendered is not None else value)


def any_data(
    path: str, format: str, columns: str, labels: str, overrides: list[str] | None = None
) -> "tuple[SourceConfig, ...]":
    """The sources that a path and the options --format, --columns, --labels and --set mean.

    Raises:
        ConfigError: an option is not written as it must be.
        SchemaError: see `source_columns.with_columns`.
    """
    from flows import sources
    from pipeline.data.formats import option_text

    return sources.of_any_data(
        path, format, option_text.parse_columns(columns), option_text.parse_labels(labels), overrides or []
    )


def judged_data(path: str, format: str, columns: str, labels: str) -> "tuple[SourceConfig, ...]":
    """The sources to judge by that a path and the options mean; errors as of `any_data`."""
    from flows import sources
    from pipeline.data.formats import option_text

    return sources.of_judgments(path, format, option_text.parse_columns(columns), option_text.parse_labels(labels))


def console() -> "Console":
    """The terminal; output to a file or pipe is 140 columns wide."""
    from pipeline import terminal

    return terminal.plain_console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)


def existing(workspace: Path) -> Path:
    """The workspace, after a check that its folder exists.

    Raises:
        MissingError: there is no such folder; names the workspace beside it whose name is most alike.
    """
    if workspace.is_dir():
        return workspace
    from pipeline.releases import first_release

    beside = workspace.parent if workspace.parent.is_dir() else Path()
    known = []
    with contextlib.suppress(OSError):  # A folder that cannot be listed gives no hint, and is not what is wrong.
        for path in beside.iterdir():
            if any((path / part).is_dir() for part in ("releases", "artifacts")):
                known.append(path.name)
    near = difflib.get_close_matches(workspace.name, known, n=1)
    hint = f"did you mean {beside / near[0]}?" if near else first_release(workspace)
    raise MissingError(f"{workspace}: there is no such workspace; {hint}")
