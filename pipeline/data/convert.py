"""Any known source written as our own Parquet tables, whole or not at all."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from pipeline import disk, schema
from pipeline.config import DataConfig, SourceConfig
from pipeline.data import judgments, sources, splits, validation
from pipeline.data.formats.text_files import STRING
from pipeline.data.validation import ValidatedTables
from pipeline.errors import ConfigError, SchemaError

_ADVICE = "mend them first; `relevance data check` lists them all"


def convert(path: Path | str, format: str, out: Path, columns: Mapping[str, str] | None = None) -> Path:
    """Writes documents, queries and judgments .parquet into a new folder `out`, with all columns of the source.

    Judgments that disagree are written as they are: a recipe says what to do with them.

    Raises:
        ConfigError: `out` holds something already.
        MissingError: no such source.
        SchemaError: rows that cannot be used; nothing is written.
    """
    with _new_folder(out) as folder:
        sifted = _read(path, format, columns)
        _write(folder, sifted, sifted.judgments)
    return out


def split(path: Path, valid_share: float, test_share: float, seed: int, out: Path) -> Path:
    """Writes a source into a new folder `out` with a column `split` cut by a hash of the normalised query.

    Raises:
        ConfigError: shares that leave nothing to train on, or `out` holds something already.
        MissingError: no such source.
        SchemaError: rows that cannot be used; nothing is written.
    """
    config = DataConfig(splits="hash", valid_share=valid_share, test_share=test_share, seed=seed)
    with _new_folder(out) as folder:
        sifted = _read(path, "auto")
        texts = judgments.texts_of(sifted.queries, sifted.judgments)
        assigned = pa.array(splits.assign(texts, [None] * len(texts), config), STRING)
        bare = sifted.judgments
        if "split" in bare.column_names:
            bare = bare.drop_columns(["split"])
        _write(folder, sifted, bare.append_column("split", assigned))
    return out


def parse_columns(text: str) -> dict[str, str]:
    """The map of columns in `query=search_term,title=name`; see `SourceConfig.columns`.

    Raises:
        ConfigError: it is not written so, or names a key twice.
    """
    columns: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, name = (piece.strip() for piece in part.partition("="))
        if not (key and equals and name) or key in columns:
            raise ConfigError(
                f"--columns: '{part}' is not key=column, or its key is there twice; see query=search_term"
            )
        columns[key] = name
    return columns


def _read(path: Path | str, format: str, columns: Mapping[str, str] | None = None) -> ValidatedTables:
    source = sources.read(SourceConfig(path=str(path), format=format, columns=columns or {}), Path())
    sifted = validation.sift(source)
    validation.refuse(sifted.findings, str(path), _ADVICE)
    return sifted


def _write(folder: Path, sifted: ValidatedTables, rows: pa.Table) -> None:
    for kind, table in (("documents", sifted.documents), ("queries", sifted.queries), ("judgments", rows)):
        schema.write(table, folder / f"{kind}.parquet", kind)
        disk.fsync(folder / f"{kind}.parquet")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when all went well, and is removed when not."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out}: is there already and not an empty folder; give another name")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        temporary.rename(out)
        disk.fsync(out.parent)
    except OSError as error:
        raise SchemaError(f"{out}: could not be written ({error.strerror or error}); nothing was kept") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
