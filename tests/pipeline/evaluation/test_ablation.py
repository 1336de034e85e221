"""The ablation over made-up scores of known quality: who wins, who ties, how much of a gap is closed."""

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import EvaluationConfig
from pipeline.errors import ConfigError, SchemaError
from pipeline.evaluation import ablation, ablation_table, metrics
from pipeline.evaluation.ablation import AblationRun
from pipeline.evaluation.per_query import measures
from pipeline.evaluation.report_summary import finite

CONFIG = EvaluationConfig(bootstrap=500)
NOISE = {"teacher": 0.2, "hard": 3.0, "soft": 0.7, "soft+margin": 0.7}
"""Spread of what is added to the true grade, by kind: more is worse."""


def artifact(workspace: Path, kind: str, name: str, files: Mapping[str, pd.DataFrame]) -> Artifact:
    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        for file, frame in files.items():
            frame.to_parquet(staging.folder / file, index=False)
        return {}

    return artifacts.make(workspace, kind, version=1, config={"name": name}, inputs={}, build=build)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    workspace = tmp_path_factory.mktemp("ablation")
    rng = np.random.default_rng(3)
    rows = [
        (f"q{query:03}", f"d{query:03}-{number}", int(rng.integers(0, 4)), split)
        for split, queries in (("valid", range(80)), ("test", range(80, 200)))
        for query in queries
        for number in range(8)
    ]
    pairs = pd.DataFrame(rows, columns=["query_id", "doc_id", "grade", "split"])
    pairs = pairs.assign(source="human", row_id=np.arange(len(pairs)))
    queries = pd.DataFrame({"query_id": pairs["query_id"].unique()})
    data = artifact(
        workspace,
        "data",
        "data",
        {
            "documents.parquet": pd.DataFrame({"doc_id": pairs["doc_id"], "title": "", "text": "t"}),
            "queries.parquet": queries.assign(text="q"),
            "judgments.parquet": pairs.drop(columns="row_id"),
        },
    )
    pool = artifact(workspace, "pool", "pool", {"pairs.parquet": pairs})

    def trial(kind: str, seed: int, terms: int) -> AblationRun:
        noise = np.random.default_rng([len(kind), seed]).normal(0, NOISE[kind], len(pairs))
        table = pairs[["row_id"]].assign(score=(pairs["grade"] + noise).astype(np.float32))
        scores = {
            split: artifact(
                workspace, "scores", f"{kind} {seed} {split}", {"scores.parquet": table[pairs["split"] == split]}
            )
            for split in ("valid", "test")
        }
        return AblationRun(kind, seed, terms, scores)

    students = [
        trial(kind, seed, terms) for kind, terms in (("hard", 2), ("soft", 3), ("soft+margin", 4)) for seed in range(3)
    ]
    return {
        "workspace": workspace,
        "data": data,
        "pool": pool,
        "pairs": pairs,
        "references": [trial("teacher", 0, 0)],
        "students": students,
    }


def ablation_of(world: dict[str, Any], **changes: Any) -> Artifact:
    names = ("workspace", "data", "pool", "references", "students")
    known = {name: changes.pop(name, world[name]) for name in names}
    workspace, data, pool, references, students = known.values()
    return ablation.make(
        workspace,
        CONFIG,
        data=data,
        pool=pool,
        references=references,
        students=students,
        ceiling="teacher",
        title="Made up",
        **changes,
    )


def found_in(artifact: Artifact) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(artifact.file("ablation.json").read_text(encoding="utf-8"))
    return content


def test_means_and_shares_are_those_of_the_scores(world: dict[str, Any]) -> None:
    content = found_in(ablation_of(world))
    test = world["pairs"][world["pairs"]["split"] == "test"]

    def mean(kind: str) -> float:
        """nDCG@10 by the formula, over the seeds' scores."""
        values = []
        for trial in [*world["references"], *world["students"]]:
            if trial.kind == kind:
                frame = test.merge(pd.read_parquet(trial.scores["test"].file("scores.parquet")), on="row_id")
                for _, rows in frame.groupby("query_id"):
                    discount = 1 / np.log2(np.arange(len(rows)) + 2)
                    gains = rows.sort_values("score", ascending=False)["grade"].to_numpy()
                    values.append((gains * discount).sum() / (np.sort(gains)[::-1] * discount).sum())
        return float(np.mean(values))

    means = {kind: mean(kind) for kind in NOISE}
    for kind, value in means.items():
        assert content["systems"][kind]["measures"]["ndcg@10"]["mean"] == pytest.approx(value, abs=1e-9)
    closed = (means["soft"] - means["hard"]) / (means["teacher"] - means["hard"])
    assert content["systems"]["soft"]["closed"]["ndcg@10"] == pytest.approx(closed, abs=1e-9)
    assert content["systems"]["soft"]["first"]["ndcg@10"]["mean"] == pytest.approx(means["soft"] - means["hard"])
    assert (
        content["systems"]["soft"]["ceiling"]["ndcg@10"]["high"]
        < 0
        < content["systems"]["soft"]["first"]["ndcg@10"]["low"]
    )
    assert len(content["systems"]["soft"]["seeds"]["pairwise"]) == 3


def test_a_tie_is_called_a_tie_and_the_simplest_is_supported(world: dict[str, Any]) -> None:
    choice = found_in(ablation_of(world))["choice"]
    assert {choice["best"], *choice["tied"]} == {"soft", "soft+margin"}
    assert choice["supported"] == "soft"
    assert choice["p"]["hard"] < 0.01
    assert choice["queries"] == 80


def test_a_clear_winner_is_called_one(world: dict[str, Any]) -> None:
    students = [trial for trial in world["students"] if trial.kind != "soft+margin"]
    content = found_in(ablation_of(world, students=students, measure="pairwise"))
    assert content["choice"]["tied"] == []
    assert content["choice"]["supported"] == "soft"
    assert "surely better than every other" in ablation_table.verdict(content)


def test_the_valid_queries_alone_choose(world: dict[str, Any]) -> None:
    """With the valid scores of two kinds exchanged the other one wins, and the table of test queries stays."""
    hard, soft = (
        [trial for trial in world["students"] if trial.kind == kind and trial.seed < 3] for kind in ("hard", "soft")
    )
    swapped = [
        AblationRun(trial.kind, trial.seed, trial.terms, {"valid": other.scores["valid"], "test": trial.scores["test"]})
        for trial, other in zip([*hard, *soft], [*soft, *hard], strict=True)
    ]
    content = found_in(ablation_of(world, students=swapped))
    assert content["choice"]["supported"] == "hard"
    assert content["systems"]["soft"]["closed"]["ndcg@10"] > 0.5


def test_tables_name_every_system_and_the_verdict(world: dict[str, Any]) -> None:
    artifact = ablation_of(world)
    content = found_in(artifact)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(ablation_table.card(content))
    for text in (artifact.file("table.md").read_text(encoding="utf-8"), console.export_text()):
        for kind in NOISE:
            assert kind in text
        assert "in a tie with" in text
    per_query = pd.read_parquet(artifact.file("per_query.parquet"))
    assert len(per_query) == 10 * 200


def test_ratios_of_unlabelled_pairs_are_drawn_with_a_line_for_each_set_and_more_that_helps_stands_higher(
    world: dict[str, Any],
) -> None:
    kinds = {"hard": 0.0, "soft": 4.0}
    students = [
        dataclasses.replace(trial, kind=f"all, {kinds[trial.kind]:g}×", line="all", unlabelled_ratio=kinds[trial.kind])
        for trial in world["students"]
        if trial.kind in kinds
    ]
    drawn = ablation_of(world, students=students[::-1])
    root = ElementTree.fromstring(drawn.file("doses-ndcg-10.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    (line,) = root.iter(f"{space}polyline")
    (left, low), (right, high) = (tuple(map(float, point.split(","))) for point in line.attrib["points"].split())
    assert left < right
    assert high < low  # Downwards.
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"0×", "4×", "all"} <= set(texts)
    assert not [name for name in ablation_of(world).manifest.files if name.endswith(".svg")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"measure": "ndcg@7"}, "ablation.measure 'ndcg@7'"), ({"students": []}, "needs students")],
)
def test_what_cannot_be_compared_is_refused(world: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ablation_of(world, **changes)


def test_the_measure_is_one_of_the_reports(world: dict[str, Any]) -> None:
    assert metrics.Measure.parse(found_in(ablation_of(world))["headline"]).name == "ndcg"


def test_means_leave_out_the_queries_that_do_not_define_a_measure() -> None:
    table = np.array([[0.25, np.nan, np.nan], [0.5, 0.5, np.nan]])
    np.testing.assert_array_equal(ablation.means_of(table), [0.375, 0.5, np.nan])
    np.testing.assert_array_equal(ablation.means_of(table[:0]), [np.nan] * 3)


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_queries_of_one_grade_each_have_no_pairwise_accuracy_and_every_table_leaves_it_empty(queries: int) -> None:
    names = list(measures(CONFIG))
    systems = {"BM25": 0.5, "teacher": 0.5, "plain": 0.25, "soft": 0.5}
    frame = pd.DataFrame(
        [
            {"kind": kind, "seed": 0, "query_id": f"q{number}", "slice": ""}
            | {name: np.nan if name == "pairwise" else value for name in names}
            for kind, value in systems.items()
            for number in range(queries)
        ]
    )
    references, students = (
        [AblationRun(kind, 0, 1, {}) for kind in kinds] for kinds in (("BM25", "teacher"), ("plain", "soft"))
    )
    content = finite(
        {
            "title": "t",
            "ceiling": "teacher",
            **ablation.compared(frame, references, students, "teacher", CONFIG),
            "choice": ablation._choice(frame, students, "ndcg@10", CONFIG),
        }
    )
    assert content["systems"]["soft"]["closed"] == {name: None if name == "pairwise" else 1.0 for name in names}
    table = ablation_table.markdown(content)
    assert "nan" not in table.lower()
    assert table.count("| soft |") == 2
    with pytest.raises(SchemaError, match="'pairwise' is defined for none of the valid queries"):
        ablation._choice(frame, students, "pairwise", CONFIG)


@pytest.mark.parametrize(
    ("behind", "beginning"),
    [
        ((-0.02, -0.03, -0.01), ""),
        (
            (-0.02, -0.05, 0.01),
            "teacher leads plain by 0.0200 [-0.0100, 0.0500] in pairwise accuracy, not surely above 0",
        ),
        ((0.01, -0.02, 0.04), "teacher is no better than plain in pairwise accuracy here, so there is no gap"),
    ],
)
def test_a_gap_that_is_not_sure_is_told_beside_the_shares_of_it(
    behind: tuple[float, float, float], beginning: str
) -> None:
    sure, difference = (dict(zip(("mean", "low", "high"), gap, strict=True)) for gap in ((-0.02, -0.03, -0.01), behind))
    systems = {"plain": {"ceiling": {"ndcg@10": sure, "pairwise": difference}}}
    content = {
        "kinds": ["plain", "soft"],
        "ceiling": "teacher",
        "headline": "ndcg@10",
        "measures": ["ndcg@10", "pairwise"],
    }
    remarks = ablation_table.gap_remarks(content | {"systems": systems})
    assert [remark[: len(beginning)] for remark in remarks] == [beginning] * bool(beginning)
