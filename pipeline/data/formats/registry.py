"""The forms of judged collections that we read, and how each is known by its files."""

from dataclasses import replace
from pathlib import Path

from pipeline import storage
from pipeline.config import SourceConfig
from pipeline.config_checks import check_path
from pipeline.data.formats import (
    beir,
    column_advice,
    column_map,
    esci,
    kaggle,
    parquet,
    python_docs,
    qbqtc,
    qrels_file,
    sql,
    t2ranking,
    table,
    tables,
    text_folder,
    thumb_files,
    trec_collection,
    trec_files,
    wands,
)
from pipeline.data.formats.tables import Format, FoundSource, of_files
from pipeline.errors import ConfigError, InputError, MissingError
from pipeline.regular_files import refuse_special
from pipeline.secrets import hide_passwords
from pipeline.text import other_format

FORMATS = (
    Format(parquet.NAME, parquet.LOOKED_FOR, parquet.find),
    of_files("beir", "corpus.jsonl, queries.jsonl and qrels/*.tsv", beir.beir_files, beir.beir),
    of_files(
        "esci",
        "shopping_queries_dataset_examples.parquet and shopping_queries_dataset_products.parquet",
        esci.esci_files,
        esci.esci,
    ),
    of_files("wands", "query.csv, product.csv and label.csv", wands.wands_files, wands.wands),
    of_files(
        "t2ranking",
        "collection.tsv with queries.train.tsv and qrels.train.tsv (or dev)",
        t2ranking.t2ranking_files,
        t2ranking.t2ranking,
    ),
    of_files(
        "trec",
        "a qrels file with corpus.jsonl or collection.tsv, and queries.jsonl or queries.tsv",
        trec_collection.trec_files,
        trec_collection.trec_collection,
    ),
    of_files(
        "qbqtc",
        "train.json, dev.json or test_public.json with lines of query, title and label",
        qbqtc.qbqtc_files,
        qbqtc.qbqtc,
    ),
    of_files(
        "crowdflower",
        "train.csv with columns query and median_relevance",
        kaggle.crowdflower_files,
        kaggle.crowdflower,
    ),
    of_files(
        "homedepot",
        "train.csv with columns search_term and relevance",
        kaggle.homedepot_files,
        kaggle.homedepot,
    ),
    of_files("thumbs", "thumbs.jsonl", thumb_files.thumb_files, thumb_files.judgments_of_thumbs),
    Format(text_folder.NAME, text_folder.LOOKED_FOR, text_folder.find),
    Format("table", "any CSV, TSV, JSON lines or Parquet file by a map of its columns", table.find),
    Format("sql", "a SQLAlchemy URL", sql.find),
    Format(qrels_file.NAME, qrels_file.LOOKED_FOR, qrels_file.find),
    Format("python_api", "the installed packages; only when named", python_docs.find),
)
"""In the order in which `auto` tries them."""


NAMES = tuple(known.name for known in FORMATS)


def find(config: SourceConfig, root: Path) -> tuple[str, FoundSource]:
    """The name of a source's format, and the source.

    Raises:
        ConfigError: an unknown format, or an empty path.
        SchemaError: a pipe or a device, or a file of another format than a table's.
        MissingError: nothing at the path, an empty file or folder, or not the files that were looked for; the message
            lists them, and for a table of other columns the map that would fit best.
    """
    if config.format not in ("auto", *NAMES):
        raise ConfigError(f"{config.path}: format '{config.format}' is none of auto, {', '.join(NAMES)}")
    check_path(config.path)
    if storage.is_address(config.path):
        copy = storage.fetched(config.path)
        form, copied = find(replace(config, path=str(copy)), Path())
        return form, replace(copied, shown=hide_passwords(config.path))
    if "://" not in config.path and not (root / config.path).is_dir():
        refuse_special(root / config.path)
    candidates = [known for known in FORMATS if config.format in ("auto", known.name)]
    for known in candidates:
        source = known.find(config, root)
        if source is not None:
            return known.name, source
    path = root / config.path
    if not path.exists():
        raise MissingError(f"{path}: no such file or folder")
    if path.is_file() and not path.stat().st_size:
        raise MissingError(f"{path}: is empty; look at what writes it")
    if path.is_dir() and not tables.data_files(path, "**/*"):
        raise MissingError(f"{path}: is a folder without files; look at what writes it")
    is_named = config.format not in ("auto", "table")
    if path.is_file() and not is_named:
        raise _unknown_file(path)
    advice = trec_collection.lacking(path) or _of_arrow(path) or ("" if is_named else column_advice.of_file(path))
    looked = "".join(f"\n  {known.name}: {known.looked_for}" for known in candidates)
    raise MissingError(f"{path}: these files were looked for and are not there:{looked}{advice}")


def _of_arrow(path: Path) -> str:
    """The advice on a folder that Hugging Face's datasets saved; empty for any other."""
    if not tables.data_files(path, "**/*.arrow"):
        return ""
    return "\nIts .arrow files are of `save_to_disk` of Hugging Face's datasets; write a table by `to_parquet(FILE)`"


def _unknown_file(path: Path) -> InputError:
    """The error for a file that no format reads: the map of columns that fits a table, or what its name must be."""
    if qrels_file.is_qrels(path):
        return MissingError(qrels_file.advice(path))
    if qrels_file.is_run(path):
        return MissingError(trec_files.run_advice(path))
    if advice := column_advice.of_file(path):
        return MissingError(f"{path}: is not a file of a format that is known by its name{advice}")
    with path.open("rb") as file:
        other = other_format(path, file.read(1024))
    return other or MissingError(
        f"{path}: its name tells no format; a table's name ends in {', '.join(column_map.SUFFIXES)}, so rename or "
        "convert it, or name a folder of one of the known formats"
    )
