"""The learned final order: what it finds in made-up worlds whose best order is known, and when it must not learn."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import SchemaError
from pipeline.evaluation import systems
from pipeline.evaluation.metrics import by_query
from pipeline.features import FEATURES, Fusion, table
from pipeline.training import fusion, fusion_candidates

NOISE = {"bm25": 3.0, "encoder": 3.0, "ranker": 2.0}


def world(queries: int, noise: dict[str, float], seed: int = 0, docs: int = 12, split: str = "valid") -> pd.DataFrame:
    """Features that are the grade plus noise of these sizes, each on a scale of its own."""
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 4, size=(queries, docs)) * (rng.random((queries, docs)) < 0.5)
    frame = pd.DataFrame(
        {
            "row_id": range(queries * docs),
            "query_id": np.repeat([f"{split}{number}" for number in range(queries)], docs),
            "doc_id": [f"d{number}" for number in range(queries * docs)],
            "split": split,
            "grade": grades.ravel(),
        }
    )
    for (name, size), scale in zip(noise.items(), (5.0, 0.1, 1.0), strict=True):
        frame[name] = scale * (grades + size * rng.normal(size=grades.shape)).ravel()
    frame["bm25"] -= frame["bm25"].min()
    return frame


def ndcg(frame: pd.DataFrame, weights: Fusion) -> float:
    scored_rows = systems.scored(frame, weights).sort_values("row_id")
    assert scored_rows["row_id"].tolist() == frame["row_id"].tolist()
    values = by_query(frame["query_id"], frame["grade"], scored_rows["fused"].to_numpy(), ids=frame["doc_id"])[
        "ndcg@10"
    ]
    return float(values[frame.groupby("query_id")["grade"].nunique() > 1].mean())


def test_what_is_measured_on_held_out_queries_holds_on_fresh_ones() -> None:
    weights, figures = fusion.fit(world(250, NOISE))
    fresh = world(1_500, NOISE, seed=1)
    assert figures["ndcg"]["fused"] == pytest.approx(ndcg(fresh, weights), abs=0.025)
    for name in ("bm25", "encoder", "ranker", "rrf", "rrf_all"):
        assert figures["ndcg"]["fused"] > figures["ndcg"][name]
    assert figures["strength"] is not None
    assert weights.weights["ranker"] > 0


def test_the_weights_are_those_of_a_direct_minimisation() -> None:
    frame = world(60, NOISE, docs=6)
    lists = fusion_candidates.candidate_lists(frame)
    candidate = fusion_candidates.Candidate("three", ("bm25", "encoder", "ranker"), 0.1)
    weights = fusion_candidates.candidate_weights(lists, candidate, np.ones(lists.queries, dtype=bool))

    gaps, shares = [], []
    for _, query in frame.groupby("query_id"):
        rows = np.array(table(*(query[name].tolist() for name in ("bm25", "encoder", "ranker"))))[:, [0, 2, 4]]
        grade = query["grade"].to_numpy()
        pairs = [(i, j) for i in range(6) for j in range(6) if grade[i] > grade[j]]
        gaps += [rows[i] - rows[j] for i, j in pairs]
        shares += [1 / len(pairs) for _ in pairs]
    spread = np.sqrt(np.mean(np.square(gaps), axis=0))
    scaled = np.array(gaps) / spread

    def loss(weights: np.ndarray) -> float:
        return float(weights @ weights / 2 + 0.1 * np.array(shares) @ np.logaddexp(0, -scaled @ weights))

    expected = minimize(loss, np.zeros(3), tol=1e-12).x / spread
    np.testing.assert_allclose(weights[[0, 2, 4]], expected, rtol=1e-3)
    assert not weights[[1, 3, 5]].any()


def test_the_measure_of_a_simple_order_is_not_of_the_queries_that_chose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all scores are noise, the best of five orders is above their mean by chance, on these queries alone."""
    monkeypatch.setattr(fusion_candidates, "candidates", fusion_candidates.simple_orders)
    noise = dict.fromkeys(NOISE, 100.0)
    gains, lucky = [], []
    for seed in range(25):
        _, figures = fusion.fit(world(24, noise, seed=seed))
        simple = [value for name, value in figures["ndcg"].items() if name != "fused"]
        gains.append(figures["ndcg"]["fused"] - np.mean(simple))
        lucky.append(max(simple) - np.mean(simple))
    assert np.mean(lucky) > 0.03
    assert np.mean(gains) < 0.01


@pytest.mark.parametrize("useful", ["bm25", "encoder", "ranker"])
def test_when_the_others_are_noise_the_useful_score_decides_alone(useful: str) -> None:
    noise = {name: 1.0 if name == useful else 100.0 for name in NOISE}
    weights, figures = fusion.fit(world(80, noise))
    alone = {name for name, weight in weights.weights.items() if weight}
    fresh = world(500, noise, seed=2)
    best = Fusion(weights={name: float(name == useful) for name in FEATURES})
    assert ndcg(fresh, weights) > ndcg(fresh, best) - 0.01
    assert figures["ndcg"]["fused"] >= figures["ndcg"][useful] - 0.005  # Some folds chose another order.
    assert useful in alone or f"{useful}_reciprocal_rank" in alone


RRF = {name: float(name in ("bm25_reciprocal_rank", "encoder_reciprocal_rank")) for name in FEATURES}


def direction(weights: Fusion) -> np.ndarray:
    values = np.array([weights.weights[name] for name in FEATURES])
    return np.asarray(values / values.sum())


@pytest.mark.parametrize("queries", [0, 1])
def test_without_evidence_reciprocal_rank_fusion_decides_with_a_reason(
    queries: int, caplog: pytest.LogCaptureFixture
) -> None:
    weights, figures = fusion.fit(world(queries, NOISE))
    np.testing.assert_allclose(direction(weights), direction(Fusion(weights=RRF)))
    assert figures["chosen"] == "rrf"
    assert f"{fusion.MIN_QUERIES} are needed" in figures["reason"]
    assert figures["reason"] in caplog.text


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("queries", [5, 12, 19])
def test_with_few_queries_a_useless_ranker_does_not_spoil_the_order(queries: int, seed: int) -> None:
    noise = {"bm25": 0.5, "encoder": 1.0, "ranker": 50.0}
    weights, figures = fusion.fit(world(queries, noise, seed=seed))
    fresh = world(300, noise, seed=100 + seed)
    assert figures["chosen"] != "ranker"
    assert ndcg(fresh, weights) > ndcg(fresh, Fusion(weights=RRF)) - 0.02


def test_with_few_queries_a_good_ranker_gains_weight_with_their_number() -> None:
    noise = {"bm25": 20.0, "encoder": 20.0, "ranker": 0.05}
    shares = []
    for queries in (1, 6, 12, 19):
        weights, figures = fusion.fit(world(queries, noise, seed=3))
        shares.append(direction(weights)[FEATURES.index("ranker_reciprocal_rank")])
        assert figures["ndcg"]["fused"] >= figures["ndcg"]["rrf"]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 0.4


@pytest.mark.parametrize("queries", [5, 60])
def test_rerank_gives_the_ranker_alone_only_where_it_is_no_worse_than_bm25(queries: int) -> None:
    for ranker, order in ((0.1, "ranker"), (50.0, "fused")):
        weights, _ = fusion.fit(world(queries, {"bm25": 3.0, "encoder": 3.0, "ranker": ranker}))
        assert weights.rerank == order


def test_without_evidence_rerank_does_not_trust_the_ranker_alone() -> None:
    assert fusion.fit(world(0, NOISE))[0].rerank == "fused"


def test_rerank_gives_the_ranker_alone_where_the_fused_order_needs_fields_apart() -> None:
    frame = world(120, {"bm25": 3.0, "encoder": 3.0, "ranker": 50.0})
    frame["bm25.title"] = frame["grade"] + np.random.default_rng(3).normal(size=len(frame)) * 0.3 + 5
    weights, _ = fusion.fit(frame)
    assert weights.fields == ("bm25.title",)
    assert weights.rerank == "ranker"


@pytest.mark.parametrize("queries", [19, 60])
def test_no_order_that_is_surely_worse_than_bm25_is_taken(queries: int) -> None:
    noise = {"bm25": 0.01, "encoder": 200.0, "ranker": 200.0}
    weights, figures = fusion.fit(world(queries, noise, seed=4))
    fresh = world(300, noise, seed=5)
    alone = Fusion(weights={name: float(name == "bm25") for name in FEATURES})
    assert ndcg(fresh, weights) > ndcg(fresh, alone) - 0.03
    assert figures["ndcg"]["fused"] >= figures["ndcg"]["bm25"] - 0.03


@pytest.mark.parametrize("queries", [12, 16, 19])
def test_a_useless_encoder_is_no_start_for_few_queries(queries: int) -> None:
    noise = {"bm25": 1.0, "encoder": 100.0, "ranker": 100.0}
    alone = Fusion(weights={name: float(name == "bm25") for name in FEATURES})
    losses, chosen = [], set()
    for seed in range(8):
        weights, figures = fusion.fit(world(queries, noise, seed=seed))
        fresh = world(200, noise, seed=100 + seed)
        losses.append(ndcg(fresh, alone) - ndcg(fresh, weights))
        chosen.add(figures["chosen"])
    assert "bm25" in chosen
    assert np.mean(losses) < 0.04


def test_queries_with_one_grade_teach_nothing() -> None:
    frame = world(40, NOISE).assign(grade=1)
    _, figures = fusion.fit(frame)
    assert figures["queries"] == 0
    assert figures["chosen"] == "rrf"
    assert figures["ndcg"] == {}


def test_constant_and_equal_scores_raise_nothing() -> None:
    frame = world(30, NOISE).assign(bm25=0.0, encoder=0.5)
    frame.loc[frame.index % 2 == 0, "ranker"] = 1.0
    weights, _ = fusion.fit(frame)
    assert all(np.isfinite(weight) for weight in weights.weights.values())


def test_the_same_input_gives_the_same_weights() -> None:
    frame = world(30, NOISE)
    assert fusion.fit(frame) == fusion.fit(frame)


def features_and_pool(
    workspace: Path, frame: pd.DataFrame, pairs: pd.DataFrame | None = None
) -> tuple[Artifact, Artifact]:
    pool = frame[["row_id", "query_id", "doc_id", "grade", "split"]] if pairs is None else pairs

    def write(kind: str, name: str, content: pd.DataFrame) -> Artifact:
        def build(staging: artifacts.Staging) -> dict[str, int]:
            content.to_parquet(staging.folder / f"{name}.parquet", index=False)
            return {}

        inputs = {"ranker": "a", "encoder": "b", "rows": str(pd.util.hash_pandas_object(content).sum())}
        return artifacts.make(workspace, kind, version=1, config={}, inputs=inputs, build=build)

    features = frame.drop(columns="grade").sample(frac=1, random_state=0)
    return write("features", "features", features), write("pool", "pairs", pool)


def test_the_artifact_learns_from_valid_rows_only_and_is_plain_numbers(tmp_path: Path) -> None:
    valid = world(30, NOISE)
    test = world(30, {"bm25": 0.1, "encoder": 50.0, "ranker": 50.0}, seed=3, split="test")
    test["row_id"] += len(valid)
    features, pool = features_and_pool(tmp_path, pd.concat([test, valid], ignore_index=True))
    artifact = fusion.make(tmp_path, features=features, pool=pool)
    expected, figures = fusion.fit(valid)
    text = artifact.file("fusion.json").read_text(encoding="utf-8")
    assert list(artifact.manifest.files) == ["fusion.json"]
    assert Fusion.from_json(text) == expected
    assert set(json.loads(text)["weights"]) == set(FEATURES)
    assert artifact.metrics["ndcg"] == figures["ndcg"]
    assert artifact.metrics["queries"] <= 30


@pytest.mark.parametrize("queries", [8, 120])
def test_without_a_ranker_the_order_weighs_the_two_others(queries: int) -> None:
    weights, figures = fusion.fit(world(queries, NOISE).drop(columns="ranker"))
    assert set(figures["ndcg"]) == {"bm25", "encoder", "rrf", "fused"}
    assert weights.weights["ranker"] == weights.weights["ranker_reciprocal_rank"] == 0
    fresh = world(800, NOISE, seed=1).assign(ranker=0.0)
    best = max(ndcg(fresh, Fusion(weights=dict.fromkeys(FEATURES, 0.0) | {name: 1.0})) for name in ("bm25", "encoder"))
    assert ndcg(fresh, weights) > best


@pytest.mark.parametrize("queries", [8, 40])
def test_held_out_values_are_those_that_the_artifact_tells(tmp_path: Path, queries: int) -> None:
    features, pool = features_and_pool(tmp_path, world(queries, NOISE))
    artifact = fusion.make(tmp_path, features=features, pool=pool)
    before = Fusion(weights=dict.fromkeys(FEATURES, 0.0) | {"bm25": 1.0})
    values = fusion.held_out(features, pool, before)
    for name, mean in artifact.metrics["ndcg"].items():
        assert values[name].mean() == pytest.approx(mean)
    assert values["before"].tolist() == values["bm25"].tolist()


def test_an_encoder_that_orders_judged_lists_alone_does_not_order_what_is_retrieved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judged = world(40, {"bm25": 6.0, "encoder": 0.1, "ranker": 50.0})
    confused = world(40, {"bm25": 0.5, "encoder": 50.0, "ranker": 50.0}, seed=1)  # Among all documents.
    fresh = world(300, {"bm25": 0.5, "encoder": 50.0, "ranker": 50.0}, seed=2)
    bm25 = Fusion(weights={name: float(name == "bm25") for name in FEATURES})
    alone, _ = fusion.fit(judged)
    assert ndcg(fresh, alone) < ndcg(fresh, bm25) - 0.1
    held, figures = fusion.fit(judged, confused)
    assert ndcg(fresh, held) > ndcg(fresh, bm25) - 0.01
    assert "so /search takes the order that is best on these" in figures["reason"]
    assert figures["reason"] in caplog.text

    pairs = [features_and_pool(tmp_path, frame) for frame in (judged, confused)]
    retrieved = {"retrieved_features": pairs[1][0], "retrieved_pool": pairs[1][1]}
    artifact = fusion.make(tmp_path, features=pairs[0][0], pool=pairs[0][1], **retrieved)
    assert Fusion.from_json(artifact.file("fusion.json").read_text(encoding="utf-8")) == held


@pytest.mark.parametrize("noise", [NOISE, {"bm25": 50.0, "encoder": 0.5, "ranker": 0.5}])
def test_an_order_that_is_no_worse_than_bm25_among_all_documents_stays(noise: dict[str, float]) -> None:
    judged = world(60, {"bm25": 6.0, "encoder": 0.5, "ranker": 0.5})
    assert fusion.fit(judged, world(60, noise, seed=1)) == fusion.fit(judged)


def test_rows_that_the_pool_does_not_have_are_refused(tmp_path: Path) -> None:
    frame = world(3, NOISE)
    pool = frame[["row_id", "query_id", "doc_id", "grade", "split"]].iloc[:-2]
    features, pairs = features_and_pool(tmp_path, frame, pool)
    with pytest.raises(SchemaError, match="row 34 is not in the pool"):
        fusion.make(tmp_path, features=features, pool=pairs)


def test_a_score_that_is_no_number_is_refused_with_its_query() -> None:
    frame = world(3, NOISE)
    frame.loc[20, "encoder"] = np.nan
    with pytest.raises(SchemaError, match="query 'valid1'"):
        fusion.fit(frame)


def test_fused_scores_equal_a_slow_loop_whatever_the_row_order() -> None:
    frame = world(5, NOISE)
    weights = Fusion(weights={name: float(position + 1) for position, name in enumerate(FEATURES)})
    expected = {}
    for _, query in frame.groupby("query_id"):
        rows = table(*(query[name].tolist() for name in ("bm25", "encoder", "ranker")))
        expected |= dict(zip(query["row_id"], weights.scores(rows), strict=True))
    scored_rows = systems.scored(frame.sample(frac=1, random_state=4), weights)
    got = dict(zip(scored_rows["row_id"].tolist(), scored_rows["fused"].tolist(), strict=True))
    assert got == pytest.approx(expected, rel=1e-5)


def test_the_score_of_a_single_field_gets_a_weight_where_it_helps_and_none_where_it_does_not() -> None:
    def with_field(frame: pd.DataFrame, noise: float, seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        scores = np.maximum(0, frame["grade"] + noise * rng.normal(size=len(frame)))
        return frame.assign(**{"bm25.title": scores})

    helpful, measured = fusion.fit(with_field(world(120, NOISE), 0.5, 10))
    assert helpful.fields == ("bm25.title",)
    assert "bm25.title" in measured["chosen"]
    fresh = with_field(world(400, NOISE, seed=1), 0.5, 11)
    assert ndcg(fresh, helpful) > ndcg(fresh, fusion.fit(world(120, NOISE))[0]) + 0.02
    useless, _ = fusion.fit(with_field(world(120, {"bm25": 1.0, "encoder": 100.0, "ranker": 100.0}), 1000.0, 12))
    assert useless.fields == ()
