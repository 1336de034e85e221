"""Commands on judged data: check, convert and split."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Columns, Json, console, show
from pipeline.errors import InputError

app = typer.Typer(help="Checks, converts and splits judged data.", no_args_is_help=True)


@app.command("check")
def data_check(
    path: str,
    format: Annotated[str, typer.Option(help="How the source is written; auto looks at the files.")] = "auto",
    columns: Columns = "",
    as_json: Json = False,
) -> None:
    """Describes judged data and its invalid rows; exits 2 when a part of it cannot be used."""
    from pipeline.data import check, convert

    examined = check.examine(path, format, convert.parse_columns(columns))
    show(examined.to_dict(), as_json, check.render(examined))
    if examined.faults:
        raise InputError(f"{path}: {len(examined.faults)} faults, listed above; mend or drop those rows")


@app.command("convert")
def data_convert(
    path: str,
    out: Path,
    format: Annotated[str, typer.Option(help="How the source is written; auto looks at the files.")] = "auto",
    columns: Columns = "",
) -> None:
    """Writes a source in any known format as our Parquet tables."""
    from pipeline.data import convert

    convert.convert(path, format, out, convert.parse_columns(columns))
    console().print(f"written: {out}")


@app.command("split")
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
    console().print(f"written: {out}")
