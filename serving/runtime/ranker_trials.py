"""Exported rankers at work on judged pairs: their scores, and their speed beside each other.

Scores and speed are those of the engine that serves, at a chosen precision.
"""

import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import disk, progress, schema, text
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import SchemaError
from pipeline.stage import Stage
from serving.runtime.engine import Engine

SCORES = Stage(
    "scores", version=1, inputs={"ranker": "bundle", "data": "data", "pool": ("pool", "pairs")}, title="exported scores"
)
# Version 2: rankers of one shape have one speed.
SPEEDS = Stage("speeds", version=2, inputs={"rankers": "bundle", "data": "data", "pool": ("pool", "pairs")})

SPEED_PAIRS = 128
"""Pairs that each ranker scores in one turn."""

TURNS = 5
"""Turns of the measurement; the median counts."""


@SCORES
def scores(
    workspace: Path, *, ranker: Artifact, data: Artifact, pool: Artifact, split: str, precision: str
) -> Artifact:
    """The `scores` artifact of an exported ranker: scores.parquet (row_id, score) of one split of a table of pairs.

    Raises:
        ConfigError: the bundle has no such precision.
        SchemaError: the pool names a query or document that the data lacks.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        lists = _lists(data, pool, split)
        engine = Engine(ranker.path, precision=precision)
        rows: list[int] = []
        values: list[float] = []
        with progress.bar("scores", sum(len(item.rows) for item in lists), "pairs") as advance:
            for item in lists:
                values += engine.scores(item.query, item.documents)
                rows += item.rows
                advance(len(item.rows))
        engine.close()
        table = pa.table({"row_id": pa.array(rows, pa.int64()), "score": pa.array(values, pa.float32())})
        pq.write_table(table, staging.folder / "scores.parquet", compression="zstd")
        return {"pairs": len(rows)}

    inputs = {"ranker": ranker, "data": data, "pool": pool}
    return SCORES.make(workspace, config={"split": split, "precision": precision}, inputs=inputs, build=build)


@SPEEDS
def speeds(
    workspace: Path, *, rankers: Sequence[Artifact], data: Artifact, pool: Artifact, precisions: Sequence[str]
) -> Artifact:
    """The `speeds` artifact: speeds.json, bundle fingerprint → precision → pairs per second of one core.

    The rankers take turns on the same pairs of the valid split, so that a busy machine slows all of them alike.
    Rankers whose weights alone differ have one speed: the median of the turns of all of them. Tokenising is part of it.

    Raises:
        ConfigError: a bundle lacks one of the precisions.
        SchemaError: the pool has no valid pairs.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        lists = _until(_lists(data, pool, "valid"), SPEED_PAIRS)
        engines = {
            (ranker.fingerprint, precision): Engine(ranker.path, precision=precision, threads=1, token_bytes=0)
            for ranker in rankers
            for precision in precisions
        }
        rates: dict[tuple[str, str], list[float]] = {key: [] for key in engines}
        with progress.bar("speeds", TURNS * len(engines), "turns") as advance:
            for _ in range(TURNS):
                for key, engine in engines.items():
                    began = time.process_time()
                    for item in lists:
                        engine.scores(item.query, item.documents)
                    seconds = max(time.process_time() - began, 1e-9)
                    rates[key].append(sum(len(item.rows) for item in lists) / seconds)
                    advance(1)
        for engine in engines.values():
            engine.close()
        turns: dict[str, list[float]] = {}
        for ranker, precision in itertools.product(rankers, precisions):
            turns.setdefault(_shape(ranker, precision), []).extend(rates[ranker.fingerprint, precision])
        median = {shape: round(statistics.median(each), 1) for shape, each in turns.items()}
        table = {
            ranker.fingerprint: {precision: median[_shape(ranker, precision)] for precision in precisions}
            for ranker in rankers
        }
        disk.write_atomically(staging.folder / "speeds.json", json.dumps(table, indent=1) + "\n", json.loads)
        return {"pairs": sum(len(item.rows) for item in lists), "turns": TURNS}

    inputs: dict[str, Artifact | str] = {"data": data, "pool": pool}
    inputs |= {f"ranker {number}": ranker for number, ranker in enumerate(rankers)}
    return SPEEDS.make(workspace, config={"precisions": list(precisions)}, inputs=inputs, build=build)


def _shape(ranker: Artifact, precision: str) -> str:
    """The facts that a model's work depends on: its graph's size, how it reads a pair, and its tokenizer."""
    description = json.loads(ranker.file("bundle.json").read_text(encoding="utf-8"))
    graph, tokenizer = description["precisions"][precision], ranker.manifest.files["tokenizer.json"].sha256
    return json.dumps([precision, graph["bytes"], description["template"], tokenizer])


@dataclass(frozen=True, slots=True)
class _List:
    """One query and its documents."""

    query: str
    documents: list[str]
    rows: list[int]
    """Row ids of the pairs."""


def _lists(data: Artifact, pool: Artifact, split: str) -> list[_List]:
    """The lists of a split, with the texts that the ranker reads.

    Raises:
        SchemaError: no pair is in the split, or the data lacks a query or document.
    """
    pairs = schema.read(pool.file("pairs.parquet"), "pairs").to_pandas()
    pairs = pairs[pairs["split"] == split]
    if pairs.empty:
        raise SchemaError(f"{pool.path}: no pair is in split {split}; raise its share in the recipe's section data")
    queries = schema.read(data.file("queries.parquet"), "queries").to_pandas().set_index("query_id")["text"]
    documents = schema.read(data.file("documents.parquet"), "documents").to_pandas().set_index("doc_id")
    missing = set(pairs["query_id"]) - set(queries.index) | set(pairs["doc_id"]) - set(documents.index)
    if missing:
        raise SchemaError(f"{pool.path}: {sorted(missing)[:3]} are not in {data.path}; make the pool again")
    bodies = documents.loc[documents.index.isin(pairs["doc_id"]), ["title", "text"]]
    return [
        _List(
            query=str(queries[query_id]),
            documents=[text.document_text(*bodies.loc[doc_id]) for doc_id in rows["doc_id"]],
            rows=rows["row_id"].tolist(),
        )
        for query_id, rows in pairs.groupby("query_id", sort=True)
    ]


def _until(lists: Sequence[_List], pairs: int) -> list[_List]:
    """The first lists, until they hold this many pairs."""
    taken: list[_List] = []
    for item in lists:
        if sum(len(ranked.rows) for ranked in taken) >= pairs:
            break
        taken.append(item)
    return taken
