"""Trains models from scratch on fifty documents, in about half a minute on a CPU, and searches these.

    python flows/examples/train_and_search.py FOLDER

FOLDER receives the documents, the recipe and the workspace. The models are far too small to rank well: the script
shows the whole way, from tables to answers, and costs nothing to change.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flows import notebook as relevance

THINGS = {
    "kitchen": "knife pan oven spoon kettle",
    "garden": "spade rake hose seed lawn",
    "office": "desk lamp chair stapler printer",
    "garage": "wrench drill hammer screw ladder",
    "bath": "towel soap mirror shower brush",
}

RECIPE = """
name = "fifty"

[data]
sources = [{ path = "tables" }]
valid_share = 0.3
test_share = 0.3

[candidates]
pool = "retrieved"
retrieve = 8

[pretrain]
max_tokens = 32
scratch = { layers = 2, hidden = 32, heads = 2, intermediate = 64, positions = 64, vocab_size = 300 }

[teacher]
base = "scratch"
max_tokens = 32
max_query_tokens = 8
loop = { epochs = 2.0, learning_rate = 1e-3, tokens_per_batch = 1024 }

[ranker]
layers = 1
loop = { epochs = 2.0, learning_rate = 1e-3, tokens_per_batch = 1024 }

[encoder]
dimensions = 16
max_tokens = 32
max_query_tokens = 8
loop = { learning_rate = 1e-3, tokens_per_batch = 1024 }
"""


def write_tables(folder: Path) -> None:
    """Writes documents, queries and judgments: grade 2 for the thing in the query, 1 for others of its topic."""
    topic_of = {thing: topic for topic, things in THINGS.items() for thing in things.split()}
    documents = [
        {"title": f"{colour} {thing}", "text": f"a {thing} for the {topic}, {colour}"}
        for thing, topic in topic_of.items()
        for colour in ("red", "blue")
    ]
    queries = [{"text": f"{word} {thing}"} for thing in topic_of for word in ("best", "cheap", "new", "small")]
    judgments = []
    for query_number, query in enumerate(queries):
        thing = query["text"].split()[1]
        for number, document in enumerate(documents):
            wanted = document["title"].split()[1] == thing
            if wanted or topic_of[thing] in document["text"]:
                judgments.append({"query_id": f"q{query_number}", "doc_id": f"d{number}", "grade": 1 + wanted})
    tables = {
        "documents": [{"doc_id": f"d{number}", **document} for number, document in enumerate(documents)],
        "queries": [{"query_id": f"q{number}", **query} for number, query in enumerate(queries)],
        "judgments": judgments,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def main(folder: Path) -> None:
    """Trains in `folder` and prints the answers to one query."""
    write_tables(folder / "tables")
    recipe = folder / "fifty.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    result = relevance.retrain(recipe, folder / "workspace", [f"data.root={folder}"])
    release = relevance.open_release(folder / "workspace", result.release.fingerprint)
    print(release.search("best hammer", top=3)[["rank", "title", "relevance"]].to_string(index=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
