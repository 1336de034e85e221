"""A small product search with known truth, and a recipe that trains on it in seconds."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TINY_RECIPE = """
name = "tiny"

[data]
sources = [{ path = "tiny" }]
splits = "hash"
valid_share = 0.4 # enough valid queries to learn a fusion, so that the order is no worse than that of BM25
test_share = 0.3

[candidates]
pool = "retrieved"
negatives = 3
negatives_depth = 20
retrieve = 8
max_list = 6

[pretrain]
max_tokens = 32
scratch = { family = "bert", layers = 2, hidden = 32, heads = 2, intermediate = 64, positions = 64, vocab_size = 300 }
loop = { epochs = 1.0, evaluations = 1, learning_rate = 1e-3 }

[teacher]
base = "scratch"
max_tokens = 32
max_query_tokens = 8
loop = { epochs = 2.0, evaluations = 1, learning_rate = 1e-3, tokens_per_batch = 1024, checkpoint_s = 0.2 }

[ranker]
layers = 1
loop = { epochs = 2.0, evaluations = 1, learning_rate = 1e-3, tokens_per_batch = 1024, checkpoint_s = 0.2 }

[encoder]
dimensions = 16
max_tokens = 32
max_query_tokens = 8
loop = { epochs = 1.0, evaluations = 1, learning_rate = 1e-3, tokens_per_batch = 1024, checkpoint_s = 0.2 }

[export]
precisions = ["fp32"] # so small a model is as fast in any, and the choice would differ from run to run

[evaluation]
bootstrap = 200

[gate]
rerank_floor = false # a ranker of one layer that trains for seconds is surely worse than BM25

[schedule]
retrain = "0 2 * * 0"
"""

_TOPICS = {
    "kitchen": "knife pan oven spoon kettle plate bowl recipe whisk grater",
    "garden": "spade rake hose seed soil hedge flower lawn fence pruner",
    "office": "desk lamp chair paper stapler printer folder pencil notebook shelf",
    "garage": "wrench drill hammer screw bolt saw ladder clamp chisel pliers",
    "bath": "towel soap mirror tap shower sponge brush basin robe mat",
}


def write_tiny_world(folder: Path, *, documents: int = 150, queries: int = 80) -> None:
    """A small product search with known truth: grade 2 for the queried thing, 1 for its topic, in our layout."""
    rng = random.Random(5)
    words = [(topic, word) for topic, listed in _TOPICS.items() for word in listed.split()]
    rows, about = [], []
    for number in range(documents):
        topic, word = words[number % len(words)]
        neighbours = rng.sample(_TOPICS[topic].split(), 3)
        about.append((topic, word))
        size, colour = rng.randint(1, 99), rng.choice(["red", "blue", "green", "black", "white"])
        rows.append(
            (f"d{number}", f"{colour} {word}", f"a {word} for the {topic}, size {size}; with {' '.join(neighbours)}")
        )
    query_rows, judged = [], []
    for number in range(queries):
        topic, word = words[(number * 7) % len(words)]
        query_rows.append((f"q{number}", f"{rng.choice(['best', 'cheap', 'new', 'my'])} {word} {number % 9}"))
        same = [row for row, thing in enumerate(about) if thing == (topic, word)]
        near = [row for row, thing in enumerate(about) if thing[0] == topic and thing[1] != word]
        judged += [(f"q{number}", f"d{row}", 2) for row in same]
        judged += [(f"q{number}", f"d{row}", 1) for row in rng.sample(near, 3)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, table in (
        ("documents", ("doc_id", "title", "text"), rows),
        ("queries", ("query_id", "text"), query_rows),
        ("judgments", ("query_id", "doc_id", "grade"), judged),
    ):
        arrays = dict(zip(columns, map(list, zip(*table, strict=True)), strict=True))
        pq.write_table(pa.table(arrays), folder / f"{name}.parquet")
