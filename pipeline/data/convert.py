"""Any known source written as our own Parquet tables, whole or not at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from pipeline import disk, schema
from pipeline.config import DataConfig, SourceConfig
from pipeline.data import judgments, splits, validation
from pipeline.data.clicks import short_logs
from pipeline.data.formats.text_files import STRING
from pipeline.data.validation import ValidatedTables
from pipeline.errors import SchemaError
from pipeline.secrets import hide_passwords


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


def split(source: SourceConfig, valid_share: float, test_share: float, seed: int, out: Path) -> Path:
    """Writes a source into a new folder `out` with a column `split` cut by a hash of the normalised query.

    Raises:
        ConfigError: shares that leave nothing to train on, or `out` holds something already.
        MissingError: no such source.
        SchemaError: rows that cannot be used; nothing is written.
    """
    config = DataConfig(splits="hash", valid_share=valid_share, test_share=test_share, seed=seed)
    with _new_folder(out) as folder:
        sifted = _read(source)
        if not sifted.judgments.num_rows:
            raise SchemaError(f"{hide_passwords(source.path)}: has no judgments, so there is nothing to split")
        texts = judgments.texts_of(sifted.queries, sifted.judgments)
        assigned = pa.array(splits.assign(texts, [None] * len(texts), config), STRING)
        bare = sifted.judgments
        if "split" in bare.column_names:
            bare = bare.drop_columns(["split"])
        _write(folder, sifted, bare.append_column("split", assigned))
    return out


def _read(config: SourceConfig) -> ValidatedTables:
    source = short_logs.read(config, Path())
    sifted = validation.sift(source, validation.purpose_of(source))
    validation.refuse(sifted.findings, hide_passwords(config.path), source.advice or validation.mend_first(config))
    return sifted


def _write(folder: Path, sifted: ValidatedTables, rows: pa.Table) -> None:
    for kind, table in (("documents", sifted.documents), ("queries", sifted.queries), ("judgments", rows)):
        schema.write(table, folder / f"{kind}.parquet", kind)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """The folder of `disk.new_folder`, whose errors name `out`."""
    try:
        with disk.new_folder(out) as folder:
            yield folder
    except OSError as error:
        raise SchemaError(f"{out}: could not be written ({error.strerror or error}); nothing was kept") from error
