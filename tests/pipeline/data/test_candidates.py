"""Candidates against slow loops over the same tables, and the promises that their docstrings make."""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import artifacts, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.config import CandidatesConfig
from pipeline.data import candidates, splits
from pipeline.errors import ConfigError, SchemaError

Rows = Sequence[Mapping[str, Any]]
CONFIG = CandidatesConfig(negatives=3, negatives_depth=8, skip_top=1, retrieve=4)


def artifact(workspace: Path, kind: str, tables: Mapping[str, Rows]) -> Artifact:
    def build(staging: Staging) -> Mapping[str, Any]:
        for name, rows in tables.items():
            schema.write(pa.Table.from_pylist(list(rows)), staging.folder / f"{name}.parquet", name)
        return {}

    digest = str(sorted((name, [sorted(row.items()) for row in rows]) for name, rows in tables.items()))
    return artifacts.make(workspace, kind, version=1, config={}, inputs={"rows": digest}, build=build)


def world(
    workspace: Path, seed: int, *, queries: int = 24, documents: int = 40, without: Sequence[str] = ()
) -> tuple[Artifact, list[Artifact]]:
    """Data and two runs; the sources, splits and grades are drawn, `without` has no rows in the runs."""
    rng = random.Random(seed)
    doc_ids = [f"d{n}" for n in range(documents)]
    query_ids = [f"q{n}" for n in rng.sample(range(100), queries)]
    judgments = []
    for query in query_ids:
        split = rng.choice(schema.SPLITS)
        for doc in rng.sample(doc_ids, rng.randint(1, 6)):
            for source in rng.sample(["human", "click", "model", "other"], rng.choice((1, 1, 2, 3))):
                grade = rng.randint(0, 3)
                judgments.append({"query_id": query, "doc_id": doc, "grade": grade, "source": source, "split": split})
    rng.shuffle(judgments)
    runs = [
        [
            {"query_id": query, "doc_id": doc, "rank": rank, "score": -float(rank), "system": system}
            for query in query_ids
            if query not in without
            for rank, doc in enumerate(rng.sample(doc_ids, rng.randint(1, 15)), start=1)
        ]
        for system in ("bm25", "encoder")
    ]
    for run in runs:
        rng.shuffle(run)
    data: dict[str, Rows] = {
        "documents": [{"doc_id": doc, "title": "", "text": doc} for doc in doc_ids],
        "queries": [{"query_id": query, "text": query} for query in query_ids],
        "judgments": judgments,
    }
    return artifact(workspace, "data", data), [artifact(workspace, "run", {"run": run}) for run in runs]


def rows_of(pairs_artifact: Artifact) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(pairs_artifact.file("pairs.parquet")).to_pylist()
    return rows


def slow(
    data: Artifact, runs: Sequence[Artifact], wanted: Sequence[str], config: CandidatesConfig
) -> list[dict[str, Any]]:
    """The same pairs, one at a time."""
    trust = {"human": 0, "click": 1, "model": 2}
    judgments = pq.read_table(data.file("judgments.parquet")).to_pylist()
    searched = [pq.read_table(run.file("run.parquet")).to_pylist() for run in runs]
    pairs: list[tuple[str, str, int, str, str]] = []
    if any(row["split"] == "valid" and row["source"] != "click" for row in judgments):
        judgments = [row for row in judgments if not (row["split"] == "valid" and row["source"] == "click")]
    for split in wanted:
        for query in pq.read_table(data.file("queries.parquet")).column("query_id").to_pylist():
            mine = [row for row in judgments if row["query_id"] == query and row["split"] == split]
            if not mine:
                continue
            best: dict[str, dict[str, Any]] = {}
            for row in mine:
                old = best.get(row["doc_id"])
                key = (trust.get(row["source"], 3), -row["grade"])
                if old is None or key < (trust.get(old["source"], 3), -old["grade"]):
                    best[row["doc_id"]] = row
            lists = [
                [row["doc_id"] for row in sorted(run, key=lambda row: row["rank"]) if row["query_id"] == query]
                for run in searched
            ]
            if split == "train" or config.pool == "judged":
                kept = sorted(best.values(), key=mine.index)
                pairs += [(query, row["doc_id"], row["grade"], split, row["source"]) for row in kept]
                wanted_of_lists = zip(lists, (config.negatives, config.encoder_negatives), strict=False)
                known = set(best)
                for ranked, number in wanted_of_lists if split == "train" else ():
                    free = [doc for doc in ranked[: config.negatives_depth] if doc not in known][config.skip_top :]
                    drawn = sorted(free, key=lambda doc: splits.share(config.seed, f"{query}\x00{doc}", "negative"))
                    drawn = sorted(drawn[:number], key=free.index)
                    pairs += [(query, doc, 0, split, "negative") for doc in drawn]
                    known |= set(drawn)
            else:
                union = dict.fromkeys(doc for ranked in lists for doc in ranked[: config.retrieve])
                for doc in union:
                    grade, source = (best[doc]["grade"], best[doc]["source"]) if doc in best else (0, "unjudged")
                    pairs.append((query, doc, grade, split, source))
    names = ("query_id", "doc_id", "grade", "split", "source")
    return [{"row_id": n, **dict(zip(names, row, strict=True))} for n, row in enumerate(pairs)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pool", ["judged", "retrieved"])
def test_pairs_are_those_of_a_slow_loop(tmp_path: Path, seed: int, pool: Any) -> None:
    config = replace(CONFIG, pool=pool, seed=seed)
    data, runs = world(tmp_path, seed)
    pairs = candidates.pairs(tmp_path, config, data=data, run=runs[0])
    assert rows_of(pairs) == slow(data, runs[:1], ("train", "valid"), config)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("negatives", [0, 2])
def test_pairs_of_both_ways_are_those_of_a_slow_loop(tmp_path: Path, seed: int, negatives: int) -> None:
    config = replace(CONFIG, negatives=negatives, encoder_negatives=3, seed=seed)
    data, (bm25, encoder) = world(tmp_path, seed)
    both = candidates.pairs(tmp_path, config, data=data, run=bm25, encoder_run=encoder)
    assert rows_of(both) == slow(data, [bm25, encoder], ("train", "valid"), config)
    alone = candidates.pairs(tmp_path, config, data=data, run=bm25)  # The pairs of the encoder itself.
    assert rows_of(alone) == slow(data, [bm25], ("train", "valid"), config)
    assert (
        alone.fingerprint
        == candidates.pairs(tmp_path, replace(config, encoder_negatives=0), data=data, run=bm25).fingerprint
    )


def test_so_many_training_queries_get_the_pairs_that_they_would_get_among_all(tmp_path: Path) -> None:
    data, runs = world(tmp_path, 3)
    everything = rows_of(candidates.pairs(tmp_path, CONFIG, data=data, run=runs[0]))
    some, fewer = (
        rows_of(candidates.pairs(tmp_path, replace(CONFIG, train_queries=number), data=data, run=runs[0]))
        for number in (4, 2)
    )

    def of_split(rows: list[dict[str, Any]], split: str) -> list[tuple[Any, ...]]:
        return [(row["query_id"], row["doc_id"], row["grade"]) for row in rows if row["split"] == split]

    chosen, chosen_before = ({row[0] for row in of_split(rows, "train")} for rows in (some, fewer))
    assert (len(chosen), len(chosen_before)) == (4, 2)
    assert chosen_before < chosen
    assert of_split(some, "train") == [row for row in of_split(everything, "train") if row[0] in chosen]
    assert of_split(some, "valid") == of_split(everything, "valid")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pool", ["judged", "retrieved"])
def test_pool_is_that_of_a_slow_loop(tmp_path: Path, seed: int, pool: Any) -> None:
    config = replace(CONFIG, pool=pool)
    data, runs = world(tmp_path, seed)
    pool_artifact = candidates.pool(tmp_path, config, data=data, runs=runs)
    assert rows_of(pool_artifact) == slow(data, runs, ("valid", "test"), config)


def test_clicks_choose_nothing_unless_nobody_else_judged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, (run, _) = world(tmp_path, 3)
    tables = {
        name: pq.read_table(data.file(f"{name}.parquet")).to_pylist() for name in ("documents", "queries", "judgments")
    }
    config = replace(CONFIG, pool="judged")
    mixed = rows_of(candidates.pairs(tmp_path, config, data=data, run=run))
    assert {row["source"] for row in mixed if row["split"] == "valid"} == {"human", "model", "other"}
    assert "click" in {row["source"] for row in mixed if row["split"] == "train"}
    tables["judgments"] = [{**row, "source": "click"} for row in tables["judgments"]]
    with caplog.at_level(logging.WARNING):
        alone = rows_of(candidates.pairs(tmp_path, config, data=artifact(tmp_path, "data", tables), run=run))
    assert {row["source"] for row in alone if row["split"] == "valid"} == {"click"}
    assert "no person judged a query of the split valid" in caplog.text


def test_other_queries_do_not_change_what_is_drawn(tmp_path: Path) -> None:
    data, (run, _) = world(tmp_path, 1)
    tables = {
        name: pq.read_table(data.file(f"{name}.parquet")).to_pylist() for name in ("documents", "queries", "judgments")
    }
    ranked = pq.read_table(run.file("run.parquet")).to_pylist()
    more = {
        **tables,
        "queries": [{"query_id": "new", "text": "new"}, *tables["queries"]],
        "judgments": [
            {"query_id": "new", "doc_id": "d1", "grade": 1, "source": "human", "split": "train"},
            *tables["judgments"],
        ],
    }
    new = [{"query_id": "new", "doc_id": f"d{n}", "rank": n, "score": 0.0, "system": "bm25"} for n in range(1, 9)]
    larger = candidates.pairs(
        tmp_path, CONFIG, data=artifact(tmp_path, "data", more), run=artifact(tmp_path, "run", {"run": [*new, *ranked]})
    )
    before = [{**row, "row_id": 0} for row in rows_of(candidates.pairs(tmp_path, CONFIG, data=data, run=run))]
    after = [{**row, "row_id": 0} for row in rows_of(larger)]
    assert [row for row in after if row["query_id"] != "new"] == before
    assert [row["source"] for row in after if row["query_id"] == "new"] == ["human", "negative", "negative", "negative"]


def test_another_seed_draws_others(tmp_path: Path) -> None:
    data, (run, _) = world(tmp_path, 2)
    config = replace(CONFIG, negatives=2, negatives_depth=50)
    first, second = (candidates.pairs(tmp_path, replace(config, seed=seed), data=data, run=run) for seed in (1, 2))
    assert rows_of(first) != rows_of(second)


def test_queries_that_no_run_has_are_counted(tmp_path: Path) -> None:
    data, runs = world(tmp_path, 3)
    judgments = pq.read_table(data.file("judgments.parquet")).to_pylist()
    lost = {
        split: sorted({row["query_id"] for row in judgments if row["split"] == split})[0] for split in schema.SPLITS
    }
    data, runs = world(tmp_path, 3, without=list(lost.values()))
    pairs = candidates.pairs(tmp_path, CONFIG, data=data, run=runs[0])
    assert pairs.metrics["train_queries_without_candidates"] == 1
    assert pairs.metrics["valid_queries_without_candidates"] == 1
    assert lost["train"] in {row["query_id"] for row in rows_of(pairs)}  # Its judged pairs are still learned from.
    pooled = candidates.pool(tmp_path, CONFIG, data=data, runs=runs)
    assert pooled.metrics["test_queries_without_candidates"] == 1
    assert pooled.metrics["test"]["pairs"] == sum(row["split"] == "test" for row in rows_of(pooled))


@pytest.mark.parametrize(
    "make",
    [
        lambda root, data, runs: candidates.pairs(root, CONFIG, data=data, run=runs[0]),
        lambda root, data, runs: candidates.pool(root, CONFIG, data=data, runs=runs),
    ],
)
def test_a_run_without_any_of_the_queries_is_an_error(
    tmp_path: Path, make: Callable[[Path, Artifact, list[Artifact]], Artifact]
) -> None:
    data, _ = world(tmp_path, 4)
    strangers = [{"query_id": "who", "doc_id": "d1", "rank": 1, "score": 1.0, "system": "bm25"}]
    with pytest.raises(SchemaError, match=r"no document for any of the \d+ queries of split"):
        make(tmp_path, data, [artifact(tmp_path, "run", {"run": strangers})])


def test_a_run_over_other_documents_is_an_error(tmp_path: Path) -> None:
    data, _ = world(tmp_path, 5)
    strange = [{"query_id": "q1", "doc_id": "elsewhere", "rank": 1, "score": 1.0, "system": "bm25"}]
    with pytest.raises(SchemaError, match="'elsewhere' is not among those of"):
        candidates.pairs(tmp_path, CONFIG, data=data, run=artifact(tmp_path, "run", {"run": strange}))


def test_without_negatives_the_judged_lists_alone_need_no_run(tmp_path: Path) -> None:
    data, _ = world(tmp_path, 6)
    config = replace(CONFIG, negatives=0, pool="judged")
    nothing = [{"query_id": "who", "doc_id": "d1", "rank": 1, "score": 1.0, "system": "bm25"}]
    pairs = candidates.pairs(tmp_path, config, data=data, run=artifact(tmp_path, "run", {"run": nothing}))
    assert {row["source"] for row in rows_of(pairs)} <= {"human", "click", "model", "other"}
    assert pairs.metrics["train"]["pairs"] + pairs.metrics["valid"]["pairs"] == len(rows_of(pairs))
    assert rows_of(candidates.pool(tmp_path, config, data=data, runs=[])) == slow(data, [], ("valid", "test"), config)


@pytest.mark.parametrize("key", ["negatives", "skip_top"])
def test_counts_below_zero_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"candidates\.{key} is -1"):
        CandidatesConfig(negatives=-1) if key == "negatives" else CandidatesConfig(skip_top=-1)
