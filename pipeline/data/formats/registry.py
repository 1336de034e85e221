"""The forms of judged collections that we read, and how each is known by its files."""

from pathlib import Path

from pipeline.data.formats import beir, esci, kaggle, parquet, qbqtc, t2ranking, trec_collection, wands
from pipeline.data.formats.tables import Format
from pipeline.errors import MissingError

FORMATS = (
    Format(
        "parquet",
        "documents.parquet (or corpus.parquet), queries.parquet, judgments.parquet (or qrels.parquet)",
        parquet.parquet_files,
        parquet.parquet,
    ),
    Format("beir", "corpus.jsonl, queries.jsonl and qrels/*.tsv", beir.beir_files, beir.beir),
    Format(
        "esci",
        "shopping_queries_dataset_examples.parquet and shopping_queries_dataset_products.parquet",
        esci.esci_files,
        esci.esci,
    ),
    Format("wands", "query.csv, product.csv and label.csv", wands.wands_files, wands.wands),
    Format(
        "t2ranking",
        "collection.tsv with queries.train.tsv and qrels.train.tsv (or dev)",
        t2ranking.t2ranking_files,
        t2ranking.t2ranking,
    ),
    Format(
        "trec",
        "a qrels file with corpus.jsonl or collection.tsv, and queries.jsonl or queries.tsv",
        trec_collection.trec_files,
        trec_collection.trec_collection,
    ),
    Format(
        "qbqtc",
        "train.json, dev.json or test_public.json with lines of query, title and label",
        qbqtc.qbqtc_files,
        qbqtc.qbqtc,
    ),
    Format(
        "crowdflower",
        "train.csv with columns query and median_relevance",
        kaggle.crowdflower_files,
        kaggle.crowdflower,
    ),
    Format(
        "homedepot",
        "train.csv with columns search_term and relevance",
        kaggle.homedepot_files,
        kaggle.homedepot,
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
