"""Click logs become weak judgments: a simulator of known truth, the map of columns, and what is refused."""

import dataclasses
import json
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import recipe
from pipeline.artifacts import Artifact
from pipeline.config import DataConfig, EvaluationConfig, SourceConfig
from pipeline.data import candidates, clicks, convert, judgments, sources
from pipeline.data.formats import column_map
from pipeline.errors import ConfigError, InputError, SchemaError
from pipeline.evaluation import per_query
from tests.tables import stage

EXAMINATION = np.array([1.0, 0.7, 0.45, 0.3, 0.2, 0.12])
COLUMNS = {"query": "q", "title": "shown", "position": "rank", "clicked": "hit"}


def simulate(
    seed: int, *, queries: int = 40, documents: int = 8, impressions: int = 30_000, positions: int = 6
) -> tuple[pd.DataFrame, dict[tuple[str, str], float]]:
    """A log by the model itself, one row a shown result, and the true attractiveness of each pair.

    Rankings are noisy and put attractive documents first, so clicks alone overrate what stands first.
    """
    rng = np.random.default_rng(seed)
    truth = rng.beta(1.2, 2.0, (queries, documents))
    rows: list[tuple[str, str, int, bool]] = []
    for query in rng.integers(0, queries, impressions // positions):
        order = np.argsort(-(truth[query] + rng.normal(0, 0.5, documents)))[:positions]
        examined = rng.random(positions) < EXAMINATION[:positions]
        clicked = examined & (rng.random(positions) < truth[query][order])
        rows += [
            (f"query {query}", f"document {document}", rank, bool(hit))
            for rank, (document, hit) in enumerate(zip(order, clicked, strict=True), start=1)
        ]
    frame = pd.DataFrame(rows, columns=["q", "shown", "rank", "hit"])
    names = {
        (f"query {query}", f"document {document}"): float(truth[query, document])
        for query in range(queries)
        for document in range(documents)
    }
    return frame, names


def read(path: Path, frame: pd.DataFrame, **settings: Any) -> sources.Source:
    frame.to_csv(path, index=False)
    return sources.read(SourceConfig(path=str(path), columns=COLUMNS, **settings), Path())


def graded(source: sources.Source) -> dict[tuple[str, str], int]:
    queries = {row["query_id"]: row["text"] for row in source.queries.to_pylist()}
    documents = {row["doc_id"]: row["title"] for row in source.documents.to_pylist()}
    return {(queries[row["query_id"]], documents[row["doc_id"]]): row["grade"] for row in source.judgments.to_pylist()}


@pytest.mark.parametrize("seed", range(3))
def test_examination_and_attractiveness_of_a_simulated_log_are_recovered(seed: int) -> None:
    frame, truth = simulate(seed, impressions=120_000)
    cells = frame.groupby(["q", "shown", "rank"])["hit"].agg(["size", "sum"]).reset_index()
    pair = cells.groupby(["q", "shown"]).ngroup()
    model = clicks.fit(
        pair.to_numpy(np.int64), cells["rank"].to_numpy(np.int64) - 1, *cells[["size", "sum"]].to_numpy(np.int64).T
    )
    assert model.iterations < clicks.MOST_ITERATIONS
    assert model.examination == pytest.approx(EXAMINATION, abs=0.03)
    pairs = cells.assign(pair=pair).drop_duplicates("pair").sort_values("pair")
    true = np.array([truth[key] for key in zip(pairs["q"], pairs["shown"], strict=True)])
    sure = model.examined >= 100
    assert sure.mean() > 0.5
    assert np.abs(model.attractiveness - true)[sure].mean() < 0.05
    rate = (frame.groupby(["q", "shown"])["hit"].mean()).to_numpy()
    naive = np.corrcoef(rate[sure], true[sure])[0, 1]
    assert np.corrcoef(model.attractiveness[sure], true[sure])[0, 1] > max(naive, 0.97)


def test_the_fit_is_a_maximum_of_the_likelihood() -> None:
    """No small step away from the fitted values makes the log likelier; computed by a plain loop over its rows."""
    frame, _ = simulate(7, queries=4, documents=4, impressions=4_000, positions=3)
    cells = frame.groupby(["q", "shown", "rank"])["hit"].agg(["size", "sum"]).reset_index()
    pair, rank = cells.groupby(["q", "shown"]).ngroup().to_numpy(np.int64), cells["rank"].to_numpy(np.int64) - 1
    size, hits = cells[["size", "sum"]].to_numpy(np.int64).T
    model = clicks.fit(pair, rank, size, hits)

    def likelihood(examination: np.ndarray, attractiveness: np.ndarray) -> float:
        total = 0.0
        for p, k, n, c in zip(pair, rank, size, hits, strict=True):
            chance = examination[k] * attractiveness[p]
            total += c * np.log(chance) + (n - c) * np.log(1 - chance)
        # One impression of average attractiveness stands before each pair.
        average = np.bincount(pair, size) @ attractiveness / size.sum()
        return total + float((average * np.log(attractiveness) + (1 - average) * np.log(1 - attractiveness)).sum())

    best = likelihood(model.examination, model.attractiveness)
    rng = np.random.default_rng(0)
    for _ in range(200):
        other = model.examination * np.exp(rng.normal(0, 0.05, 3))
        liked = np.clip(model.attractiveness * np.exp(rng.normal(0, 0.05, len(model.attractiveness))), 1e-6, 1 - 1e-6)
        assert likelihood(np.minimum(other, 1.0), liked) <= best + 0.5


def test_a_log_becomes_judgments_of_their_own_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    frame, truth = simulate(1)
    source = read(tmp_path / "log.csv", frame)
    assert set(source.judgments["source"].to_pylist()) == {"click"}
    grades = graded(source)
    assert set(grades) <= set(truth)
    means = [np.mean([truth[key] for key, grade in grades.items() if grade == level]) for level in range(4)]
    assert means == sorted(means)
    [stats] = source.clicks
    assert [stats["examination"][str(rank)] for rank in range(1, 7)] == pytest.approx(EXAMINATION, abs=0.1)
    assert (
        stats["judged_pairs"] + stats["pairs_of_too_few_impressions"]
        == stats["pairs"]
        == len(frame.drop_duplicates(["q", "shown"]))
    )
    assert "examination by position: 1 1.00, 2 0." in caplog.text
    assert f"grade_scale = [0, {stats['grade_scale'][1]:g}, 3]" in caplog.text


def test_pairs_without_enough_evidence_are_not_judged(tmp_path: Path) -> None:
    frame, _ = simulate(2)
    few = read(tmp_path / "few.csv", frame, min_examined=60.0)
    many = read(tmp_path / "many.csv", frame, min_examined=5.0)
    assert 0 < few.judgments.num_rows < many.judgments.num_rows
    with pytest.raises(SchemaError, match=r"no pair has 10000 examined impressions, the most is [\d.]+; take a longer"):
        read(tmp_path / "none.csv", frame, min_examined=10_000.0)


def test_a_stated_scale_decides_the_grades(tmp_path: Path) -> None:
    frame, truth = simulate(3)
    grades = graded(read(tmp_path / "log.csv", frame, grade_scale=(0.2, 0.6, 2.0)))
    assert set(grades.values()) == {0, 1, 2}
    low = [truth[key] for key, grade in grades.items() if grade == 0]
    assert np.median(low) < 0.3


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "db"])
def test_each_kind_of_file_and_a_database_give_the_same_judgments(tmp_path: Path, suffix: str) -> None:
    frame, _ = simulate(4, impressions=6_000)
    expected = graded(read(tmp_path / "log.csv", frame))
    path = str(tmp_path / f"other.{suffix}")
    if suffix == "csv":
        frame.assign(hit=frame["hit"].map({True: "1", False: "0"})).to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        with sqlite3.connect(path) as connection:
            frame.to_sql("log", connection, index=False)
        path = f"sqlite:///{path}?table=log"
    assert graded(sources.read(SourceConfig(path=path, columns=COLUMNS), Path())) == expected


def test_spellings_of_one_query_are_one_query(tmp_path: Path) -> None:
    frame, _ = simulate(5, queries=4, impressions=3_000)
    other = frame["q"].where(frame.index % 3 != 0, frame["q"].str.upper() + " ")
    assert graded(read(tmp_path / "a.csv", frame.assign(q=other))) == graded(read(tmp_path / "b.csv", frame))


def test_rows_of_one_impression_are_joined_by_session_and_time(tmp_path: Path) -> None:
    """A log that writes a row for what is shown and one more for a click, and shows the same again an hour later."""
    frame, _ = simulate(6, queries=6, impressions=3_000)
    frame["s"] = [f"session {row // 6}" for row in range(len(frame))]
    frame["t"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(len(frame)), unit="s")
    clicked = frame[frame["hit"]].assign(t=lambda rows: rows["t"] + pd.Timedelta(minutes=5))
    both = pd.concat([frame.assign(hit=False), clicked])
    later = both.assign(t=lambda rows: rows["t"] + pd.Timedelta(hours=1))
    columns = {**COLUMNS, "session": "s", "time": "t"}

    def stats(rows: pd.DataFrame, columns: dict[str, str]) -> dict[str, Any]:
        rows.to_csv(tmp_path / "log.csv", index=False)
        [counts] = sources.read(SourceConfig(path=str(tmp_path / "log.csv"), columns=columns), Path()).clicks
        return dict(counts)

    once = stats(both, columns)
    assert (once["impressions"], once["clicks"]) == (len(frame), int(frame["hit"].sum()))
    twice = stats(pd.concat([both, later]), columns)
    assert (twice["impressions"], twice["clicks"]) == (2 * len(frame), 2 * int(frame["hit"].sum()))
    seconds = both.assign(
        t=both["t"].astype("int64") // 10**6 if both["t"].dt.unit == "us" else both["t"].astype("int64") // 10**9
    )
    for unit in (1, 10**3, 10**6, 10**9):  # JavaScript counts milliseconds, BigQuery microseconds.
        assert stats(seconds.assign(t=seconds["t"] * unit), columns) == once
    with pytest.raises(ConfigError, match="maps time and no session"):
        stats(both, {**COLUMNS, "time": "t"})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_without_a_session_are_refused_as_they_would_be_one_impression(tmp_path: Path, suffix: str) -> None:
    frame, _ = simulate(6, queries=6, impressions=3_000)
    frame["s"] = [f"session {row // 6}" if row % 2 else None for row in range(len(frame))]
    path = tmp_path / f"log{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    with pytest.raises(SchemaError, match=rf"{len(frame) // 2:,} rows have no session, the first is .*; leave out"):
        sources.read(SourceConfig(path=str(path), columns={**COLUMNS, "session": "s"}), Path())


def log_of(rows: Sequence[tuple[str, str, object, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["q", "shown", "rank", "hit"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x", 1, 1), ("a", "y", 1, 0)], "all impressions are at position 1; examination and attractiveness"),
        ([("a", "x", 1, 1), ("a", "y", 2, 0)], "no query shows one document at two positions"),
        ([("a", "x", 1, 0), ("a", "x", 2, 0)], "no row is clicked"),
        ([("a", "x", 1, 1), ("a", "x", "top", 0)], r"1 row has no position .* line 3: 'top' is not a whole number"),
        ([("a", "x", 1, 1), ("a", "x", 1.5, 0)], "'1.5' is not a whole number from 0"),
        ([("a", "x", 1, 1), ("a", "x", 2, "maybe")], "'maybe' is not true, false or a number of clicks"),
        ([("a", "x", 1, 1), ("a", "x", 2, -1)], "'-1' is not true, false"),
        ([("a", "x", 1, 1), ("a", "x", 10**7, 0)], "'10000000' is not a whole number from 0 to 1,000,000"),
        ([("a", "x", 1, 1), ("a", "x", 2, "inf")], "'inf' is not true, false"),
        ([("a", "x", 1, 1), ("a", "x", 2, 1)], "every result that was shown is clicked"),
    ],
)
def test_a_log_that_cannot_tell_is_refused_with_the_reason(
    tmp_path: Path, rows: list[tuple[str, str, object, object]], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        read(tmp_path / "log.csv", log_of(rows))


def test_a_log_whose_highest_grade_would_stand_for_pairs_without_a_click_is_refused(tmp_path: Path) -> None:
    frame, _ = simulate(8, impressions=6_000)
    rare = frame.assign(hit=frame.index == 5)
    with pytest.raises(SchemaError, match=r"[01] of \d+ pairs of enough impressions have a click, too few"):
        read(tmp_path / "log.csv", rare)
    assert set(graded(read(tmp_path / "log.csv", rare, grade_scale=(0.0, 0.5, 3.0))).values()) == {0}


def test_positions_that_no_pair_links_to_the_others_are_left_out_and_counted(tmp_path: Path) -> None:
    frame, _ = simulate(8, impressions=6_000)
    deep = log_of([("query 1", "deep document", 50, True)] * 7)
    [stats] = read(tmp_path / "log.csv", pd.concat([frame, deep])).clicks
    assert stats["impressions_at_positions_alone"] == 7
    assert "50" not in stats["examination"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": "q", "title": "shown", "clicked": "hit"}, "clicked, but no position"),
        ({**COLUMNS, "grade": "rank"}, "maps clicked and grade"),
        ({"title": "shown", "position": "rank", "clicked": "hit"}, "maps clicked, but not query or query_id"),
    ],
)
def test_a_map_that_makes_no_click_log_is_refused(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    simulate(9, impressions=600)[0].to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(ConfigError, match=message):
        sources.read(SourceConfig(path=str(tmp_path / "log.csv"), columns=columns), Path())


def test_the_map_of_a_click_log_is_suggested_and_position_alone_is_a_column() -> None:
    assert column_map.suggest(["query", "title", "rank", "clicked", "session_id"]) == {
        "query": "query",
        "title": "title",
        "position": "rank",
        "clicked": "clicked",
        "session": "session_id",
    }
    assert "position" not in column_map.suggest(["query", "title", "grade", "position"])


def test_position_without_clicked_is_a_column_of_the_documents(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("name,shelf\nlamp,7\n")
    source = sources.read(SourceConfig(path="items.csv", columns={"title": "name", "position": "shelf"}), tmp_path)
    assert source.documents.column_names == ["doc_id", "title", "text", "position"]


def test_convert_and_the_data_stage_keep_source_and_curve(tmp_path: Path) -> None:
    simulate(10)[0].to_csv(tmp_path / "log.csv", index=False)
    out = convert.convert(tmp_path / "log.csv", "auto", tmp_path / "out", COLUMNS)
    assert set(pq.read_table(out / "judgments.parquet")["source"].to_pylist()) == {"click"}
    config = DataConfig(sources=(SourceConfig(path=str(tmp_path / "log.csv"), columns=COLUMNS),))
    data = judgments.make(tmp_path / "work", config)
    [[stats]] = json.loads((data.path / "manifest.json").read_text())["metrics"]["clicks"].values()
    assert stats["examination"]["1"] == 1.0
    lower = dataclasses.replace(config.sources[0], min_examined=3.0)
    again = judgments.make(tmp_path / "work", dataclasses.replace(config, sources=(lower,)))
    assert again.fingerprint != data.fingerprint


def judged_data(folder: Path, rows: list[tuple[str, str, int, str, str]]) -> Artifact:
    names = ("query_id", "doc_id", "grade", "split", "source")
    tables = {
        "documents": pa.table({"doc_id": ["a", "b"], "title": ["", ""], "text": ["a", "b"]}),
        "queries": pa.table({"query_id": ["p", "q"], "text": ["first", "second"]}),
        "judgments": pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]),
    }
    return stage(folder, "data", tables)


def test_reports_leave_clicks_out_unless_they_are_asked_for(tmp_path: Path) -> None:
    data = judged_data(
        tmp_path,
        [
            ("p", "a", 3, "test", "click"),
            ("p", "a", 1, "test", "human"),
            ("p", "b", 2, "test", "click"),
            ("q", "a", 2, "test", "click"),
        ],
    )
    people, left_out = per_query.judged(data, "test")
    assert people.select(["query_id", "doc_id", "grade"]).to_pylist() == [{"query_id": "p", "doc_id": "a", "grade": 1}]
    assert left_out == {"q"}
    assert per_query.judged(data, None)[1] == {"q"}
    every, left_out = per_query.judged(data, "test", clicks=True)
    assert [(row["doc_id"], row["grade"]) for row in every.to_pylist()] == [("a", 1), ("b", 2), ("a", 2)]
    assert left_out == set()
    assert candidates._judged(data, frozenset())["source"].tolist() == ["human", "click", "click"]


@pytest.mark.parametrize("other", ["click", "human"])
def test_a_report_on_clicks_alone_says_what_to_do(tmp_path: Path, other: str) -> None:
    data = judged_data(tmp_path, [("p", "a", 3, "test", "click"), ("q", "b", 1, "train", other)])
    with pytest.raises(InputError, match=r"evaluation\.clicks = true"):
        per_query.judged(data, "test")


def test_the_key_for_clicks_keeps_the_fingerprints_of_reports_without_it(tmp_path: Path) -> None:
    data = judged_data(tmp_path, [("p", "a", 3, "test", "human")])
    assert "clicks" not in per_query.settings(EvaluationConfig(), data)
    counted = EvaluationConfig(clicks=True)
    assert per_query.settings(counted, data) == recipe.to_dict(counted)
