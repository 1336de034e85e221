"""Click logs become weak judgments: grades of known truth, the map of columns, and what is refused."""

import dataclasses
import json
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import recipe
from pipeline.artifacts import Artifact
from pipeline.config import DataConfig, EvaluationConfig, SourceConfig
from pipeline.data import candidates, convert, judgments, sources
from pipeline.data.checks import check, check_tables
from pipeline.data.formats import column_map
from pipeline.errors import ConfigError, InputError, SchemaError
from pipeline.evaluation import per_query
from tests.pipeline.data.clicks.simulated_log import COLUMNS, EXAMINATION, graded, read, simulate
from tests.tables import stage


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
        ([("a", "x", 1, 1), ("a", "x", 2, "maybe")], "'maybe' is not true, false, yes, no .* or a number of clicks"),
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


@pytest.mark.parametrize(("yes", "no"), [("是", "否"), ("Yes", "No"), (3, 0)])
def test_clicks_are_numbers_or_words_that_say_yes_and_no(tmp_path: Path, yes: object, no: object) -> None:
    frame, _ = simulate(8, queries=4, impressions=2_000)
    worded = frame.assign(hit=[yes if hit else no for hit in frame["hit"]])
    expected = read(tmp_path / "log.csv", frame).judgments.to_pylist()
    assert read(tmp_path / "worded.csv", worded).judgments.to_pylist() == expected


@pytest.mark.parametrize("flat", [True, False])
def test_a_log_whose_clicks_do_not_fall_with_the_position_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, flat: bool
) -> None:
    """Programs that click on everything hide how people read."""
    frame, _ = simulate(8, impressions=6_000)
    if flat:
        frame["hit"] = np.random.default_rng(3).random(len(frame)) < 0.4
    with caplog.at_level("WARNING"):
        read(tmp_path / "log.csv", frame)
    assert ("clicks of programs" in caplog.text) == flat


def test_a_log_whose_highest_grade_would_stand_for_pairs_without_a_click_is_refused(tmp_path: Path) -> None:
    frame, _ = simulate(8, impressions=6_000)
    rare = frame.assign(hit=frame.index == 5)
    with pytest.raises(SchemaError, match=r"[01] of \d+ pairs of enough impressions have a click, too few"):
        read(tmp_path / "log.csv", rare)
    assert set(graded(read(tmp_path / "log.csv", rare, grade_scale=(0.0, 0.5, 3.0))).values()) == {0}


def test_positions_that_no_pair_links_to_the_others_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame, _ = simulate(8, impressions=6_000)
    deep = log_of([("query 1", "deep document", 50, True)] * 7)
    source = read(tmp_path / "log.csv", pd.concat([frame, deep]))
    [stats] = source.clicks
    assert stats["impressions_at_positions_alone"] == 7
    assert "50" not in stats["examination"]
    assert "7 impressions are not used, at positions whose results were shown at none of the others" in caplog.text
    shown = dict(check_tables._counts(check.describe(source, "log.csv")))
    assert shown["impressions at positions alone"] == "7"
    assert shown["rows of the log"] == f"{len(frame) + 7:,}"


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
