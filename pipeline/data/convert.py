"""Any known source written as our own Parquet tables, whole or not at all."""

import csv
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
from pipeline.schema import MAX_GRADE
from pipeline.secrets import hide_passwords
from pipeline.temporary import temporary_folder

_ADVICE = "mend them first; `relevance data check` lists them all"


def convert(
    path: Path | str,
    format: str,
    out: Path,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[str, int] | None = None,
) -> Path:
    """Writes documents, queries and judgments .parquet into a new folder `out`, with all columns of the source.

    Judgments that disagree are written as they are: a recipe says what to do with them.

    Raises:
        ConfigError: `out` holds something already.
        MissingError: no such source.
        SchemaError: rows that cannot be used; nothing is written.
    """
    with _new_folder(out) as folder:
        sifted = _read(SourceConfig(path=str(path), format=format, columns=columns or {}, labels=labels or {}))
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
        sifted = _read(SourceConfig(path=str(path)))
        if not sifted.judgments.num_rows:
            raise SchemaError(f"{path}: has no judgments, so there is nothing to split")
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
    for part in _parts(text):
        key, equals, name = (piece.strip() for piece in part.partition("="))
        if not (key and equals and name) or key in columns:
            raise ConfigError(
                f"--columns: '{part}' is not key=column, or its key is there twice; see query=search_term"
            )
        columns[key] = name
    return columns


def parse_labels(text: str) -> dict[str, int]:
    """The grades of words in `Exact=2,Partial=1,Irrelevant=0`; see `SourceConfig.labels`.

    Raises:
        ConfigError: it is not written so, a grade is no whole number from 0 on, or a word is there twice.
    """
    labels: dict[str, int] = {}
    for part in _parts(text):
        word, equals, grade = (piece.strip() for piece in part.rpartition("="))
        word, equals = (word, equals) if equals else (part, "")
        if not (word and equals and grade.isascii() and grade.isdigit()) or int(grade) > MAX_GRADE or word in labels:
            raise ConfigError(
                f"--labels: '{part}' is not word=grade with a grade from 0 to {MAX_GRADE}, or its word is there twice; "
                "see Exact=2,Partial=1,Irrelevant=0"
            )
        labels[word] = int(grade)
    return labels


def _parts(text: str) -> list[str]:
    """The parts between commas that are not empty; a part with a comma of its own stands in double quotes."""
    return [part for part in next(csv.reader([text], skipinitialspace=True), []) if part]


def _read(config: SourceConfig) -> ValidatedTables:
    source = sources.read(config, Path())
    sifted = validation.sift(source)
    validation.refuse(sifted.findings, hide_passwords(config.path), source.advice or _ADVICE)
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
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out) as temporary:
            yield temporary
            temporary.rename(out)
        disk.fsync(out.parent)
    except OSError as error:
        raise SchemaError(f"{out}: could not be written ({error.strerror or error}); nothing was kept") from error
