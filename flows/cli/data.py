"""Commands on judged data: check, convert and split."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import surroundings
from flows.cli.options import Columns, Json, Labels, Set, any_data, console, show
from pipeline.errors import ConfigError, InputError

if TYPE_CHECKING:
    from pipeline.config import SourceConfig

Source = Annotated[str, typer.Argument(help="Folder, file or SQLAlchemy URL.", callback=surroundings.check_data)]
NewFolder = Annotated[Path, typer.Argument(help="Folder to make; one that is there must be empty.")]

app = typer.Typer(help="Checks, converts and splits judged data.", no_args_is_help=True)


@app.command("check")
def data_check(
    path: Annotated[
        str,
        typer.Argument(
            help="Folder, file or SQLAlchemy URL; or a recipe, for all its sources.", callback=surroundings.check_data
        ),
    ],
    format: Annotated[str, typer.Option(help="Format of the source; auto looks at the files.")] = "auto",
    columns: Columns = "",
    labels: Labels = "",
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Describes judged data and its invalid rows; exits 2 when a part of it cannot be used.

    Rows that a recipe drops (data.faulty_rows = "drop") or merges (data.conflicts = "max" or "mean") are listed only.
    """
    from flows import sources
    from pipeline.data import sources as reader
    from pipeline.data.checks import check, check_tables
    from pipeline.data.clicks import short_logs
    from pipeline.text import counted

    recipe = sources.recipe_at(path, overrides or [])
    chosen = any_data(path, format, columns, labels, overrides)
    # A recipe says itself how much evidence its click logs need.
    is_recipe = sources.is_recipe(path)
    read = reader.read if is_recipe else short_logs.read
    reports = check.examine(chosen, Path(), read, to_train=is_recipe)
    if as_json:
        show(reports[0].to_dict() if len(reports) == 1 else [report.to_dict() for report in reports], as_json)
    for report in () if as_json else reports:
        console().print(check_tables.render(report))
    notes = (check.without_documents(reports), check.test_queries(reports, recipe.data, recipe.gate))
    for note in filter(None, () if as_json else notes):
        console().print(note)
    merged = sum(report.conflicts for report in reports) if recipe.data.conflicts != "error" else 0
    unusable = sum(len(report.faults) for report in reports) - merged
    dropped = recipe.data.faulty_rows == "drop" and not any(report.advice for report in reports)
    if not as_json:
        if merged:
            console().print(
                f'{counted(merged, "row")} would be merged, as data.conflicts = "{recipe.data.conflicts}" says'
            )
        if dropped and unusable:
            console().print(f'{counted(unusable, "row")} would be dropped, as data.faulty_rows = "drop" says')
    if unusable and not dropped:
        they, them = ("it is", "it") if unusable == 1 else ("they are", "them")
        merging = check.on_conflicts(reports) if recipe.data.conflicts == "error" else ""
        raise InputError(
            f"{path}: {counted(unusable, 'row')} cannot be used; {they} listed above; mend {them}, or drop {them} by a "
            f'recipe with data.faulty_rows = "drop", as `init` writes it{check.hint(reports)}{merging}'
        )


@app.command("convert")
def data_convert(
    path: Source,
    out: NewFolder,
    format: Annotated[str, typer.Option(help="Format of the source; auto looks at the files.")] = "auto",
    columns: Columns = "",
    labels: Labels = "",
) -> None:
    """Writes a source in any known format as our Parquet tables."""
    from pipeline import disk
    from pipeline.data import convert

    disk.check_writable(out)
    source = _single_source(path, format, columns, labels)
    convert.convert(source.path, format, out, source.columns, source.labels)
    console().print(f"written: {out}")


@app.command("split")
def data_split(
    path: Source,
    out: NewFolder,
    valid: Annotated[float, typer.Option(help="Share of queries in the valid split.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of queries in the test split.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the hash.")] = 13,
    format: Annotated[str, typer.Option(help="Format of the source; auto looks at the files.")] = "auto",
    columns: Columns = "",
    labels: Labels = "",
) -> None:
    """Writes the data again with train, valid and test assigned by a hash of the normalised query."""
    from pipeline import disk
    from pipeline.data import convert

    disk.check_writable(out)
    convert.split(_single_source(path, format, columns, labels), valid, test, seed, out)
    console().print(f"written: {out}")


def _single_source(path: str, format: str, columns: str, labels: str) -> "SourceConfig":
    """The source at a path, which is no recipe; errors as of `options.any_data`."""
    from flows import sources

    if sources.is_recipe(path):
        raise ConfigError(f"{path}: is a recipe; name one of its sources")
    (source,) = any_data(path, format, columns, labels)
    return source
