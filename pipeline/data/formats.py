"""The forms of judged collections that we read, and how each is known by its files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.data import layouts, published
from pipeline.data.tables import Tables
from pipeline.errors import MissingError


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which judged collections are written."""

    name: str
    looked_for: str
    """The files it is known by, in words."""
    files: Callable[[Path], list[Path]]
    """The files that would be read from a path; empty when the path is not of this format."""
    read: Callable[[Path], Tables]


FORMATS = (
    Format(
        "parquet",
        "documents.parquet (or corpus.parquet), queries.parquet, judgments.parquet (or qrels.parquet)",
        layouts.parquet_files,
        layouts.parquet,
    ),
    Format("beir", "corpus.jsonl, queries.jsonl and qrels/*.tsv", layouts.beir_files, layouts.beir),
    Format(
        "esci",
        "shopping_queries_dataset_examples.parquet and shopping_queries_dataset_products.parquet",
        published.esci_files,
        published.esci,
    ),
    Format("wands", "query.csv, product.csv and label.csv", published.wands_files, published.wands),
    Format(
        "t2ranking",
        "collection.tsv with queries.train.tsv and qrels.train.tsv (or dev)",
        published.t2ranking_files,
        published.t2ranking,
    ),
    Format(
        "trec",
        "a qrels file with corpus.jsonl or collection.tsv, and queries.jsonl or queries.tsv",
        layouts.trec_files,
        layouts.trec_collection,
    ),
    Format(
        "qbqtc",
        "train.json, dev.json or test_public.json with lines of query, title and label",
        published.qbqtc_files,
        published.qbqtc,
    ),
    Format(
        "crowdflower",
        "train.csv with columns query and median_relevance",
        published.crowdflower_files,
        published.crowdflower,
    ),
    Format(
        "homedepot",
        "train.csv with columns search_term and relevance",
        published.homedepot_files,
        published.homedepot,
    ),
)
"""In the order in which `auto` tries them."""


def of(path: Path, name: str) -> Format:
    """The format called `name`, or with auto the one whose files are at `path`.

    Raises:
        MissingError: nothing at the path, or not the files that were looked for; the message lists them.
    """
    if not path.exists():
        raise MissingError(f"{path}: no such file or folder")
    candidates = [known for known in FORMATS if name in ("auto", known.name)]
    for known in candidates:
        if known.files(path):
            return known
    looked = "".join(f"\n  {known.name}: {known.looked_for}" for known in candidates)
    raise MissingError(f"{path}: these files were looked for and are not there:{looked}")
