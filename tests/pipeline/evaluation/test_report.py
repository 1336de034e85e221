"""The report on a small world of known values: numbers, files, page, and what is refused."""

import html.parser
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
from rich.console import Console

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import EvaluationConfig, GateConfig
from pipeline.errors import ConfigError, MissingError, SchemaError
from pipeline.evaluation import gate, page, per_query, plots, report, report_card, systems
from pipeline.evaluation.runs import RunFile

QUERIES = 60
EVIL = '<script>alert("x")</script><img src=http://evil.example/a.png>&amp;'


def save(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, index=False)


def artifact(workspace: Path, kind: str, files: Mapping[str, pd.DataFrame], **metrics: Any) -> Artifact:
    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        for name, frame in files.items():
            save(frame, staging.folder / name)
        return metrics

    return artifacts.make(workspace, kind, version=1, config={}, inputs={}, build=build)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two slices of test queries, one valid query; a good and a bad system over one pool, as a run and as scores."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    ids = [f"q{number:03}" for number in range(QUERIES)]
    rows = [
        (query, f"{query}-d{number}", int(rng.integers(0, 4)), "valid" if query == "q000" else "test", "human")
        for query in ids
        for number in range(12)
    ]
    judgments = pd.DataFrame(rows, columns=["query_id", "doc_id", "grade", "split", "source"])
    judgments.loc[judgments["query_id"] == "q001", "grade"] = 0
    documents = pd.DataFrame(
        {"doc_id": judgments["doc_id"], "title": [f"{EVIL}{doc}" for doc in judgments["doc_id"]], "text": EVIL * 9}
    )
    queries = pd.DataFrame(
        {
            "query_id": ids,
            "text": [f"{EVIL} query {query}" for query in ids],
            "slice": ["<b>shop</b>" if number % 3 else "文档" for number in range(QUERIES)],
        }
    )
    data = artifact(
        folder,
        "data",
        {"documents.parquet": documents, "queries.parquet": queries, "judgments.parquet": judgments},
    )
    pool = judgments.iloc[rng.permutation(len(judgments))].reset_index(drop=True).assign(source="human")
    pool.insert(0, "row_id", range(len(pool)))
    noise = rng.normal(size=len(pool))
    good = pool["grade"] + noise
    run = pool[["query_id", "doc_id"]].assign(rank=1, score=good, system="good")
    bad = run.assign(score=0.2 * pool["grade"] + 2 * noise, system="bad")
    save(pd.concat([run, bad]), folder / "both.parquet")
    save(pool[["row_id"]].assign(score=good).sample(frac=1, random_state=1), folder / "scores.parquet")
    return {
        "folder": folder,
        "data": data,
        "judgments": judgments,
        "pool": artifact(folder, "pool", {"pairs.parquet": pool}),
        "good": run,
        "bad": bad,
        "both": folder / "both.parquet",
        "scores": folder / "scores.parquet",
    }


CONFIG = EvaluationConfig(bootstrap=200)


def make(world: dict[str, Any], ranked: Any = None, **options: Any) -> Artifact:
    files = ranked or {"bad": world["both"], "good": world["both"]}
    stats = report.ReportStats(fixed=options.pop("facts", {}), measured=options.pop("measured", {}))
    pool = options.pop("pool", None)
    plan = report.ReportPlan(**{"baseline": "bad", "title": f"Trial {EVIL}", **options})
    return report.make(world["folder"], CONFIG, data=world["data"], systems=files, plan=plan, pool=pool, stats=stats)


def content(report_artifact: Artifact) -> dict[str, Any]:
    report_json = json.loads(report_artifact.file("report.json").read_text(encoding="utf-8"))
    assert isinstance(report_json, dict)
    return report_json


def test_means_equal_trec_eval_over_the_test_queries_only(world: dict[str, Any]) -> None:
    report_json = content(make(world))
    test = world["judgments"][world["judgments"]["split"] == "test"]
    qrels = {
        query: dict(zip(part["doc_id"], map(int, part["grade"]), strict=True))
        for query, part in test.groupby("query_id")
    }
    judge = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map", "recip_rank", "recall.10"})
    names = {"ndcg_cut_10": "ndcg@10", "map": "map", "recip_rank": "mrr", "recall_10": "recall@10"}
    for system in ("good", "bad"):
        run = {
            q: dict(zip(part["doc_id"], part["score"], strict=True)) for q, part in world[system].groupby("query_id")
        }
        expected = judge.evaluate(run)
        assert len(expected) == QUERIES - 1
        for theirs, ours in names.items():
            value = report_json["systems"][system]["measures"][ours]
            assert value["mean"] == pytest.approx(np.mean([item[theirs] for item in expected.values()]), abs=1e-9)
            assert value["low"] < value["mean"] < value["high"]
    assert report_json["queries"] == {"judged": QUERIES - 1, "without_relevant": 1}
    assert (
        report_json["systems"]["good"]["answerable_mean"]
        > report_json["systems"]["good"]["measures"]["ndcg@10"]["mean"]
    )


def test_the_difference_is_that_of_the_per_query_table_and_slices_add_up(world: dict[str, Any]) -> None:
    report_artifact = make(world)
    report_json = content(report_artifact)
    frame = pd.read_parquet(report_artifact.file("per_query.parquet"))
    values = frame.pivot(index="query_id", columns="system", values="ndcg@10")
    gap = report_json["systems"]["good"]["difference"]["ndcg@10"]
    assert gap["mean"] == pytest.approx((values["good"] - values["bad"]).mean())
    assert gap["wins"] == (values["good"] > values["bad"] + 1e-9).sum()
    assert gap["wins"] + gap["ties"] + gap["losses"] == QUERIES - 1
    assert gap["low"] > 0
    assert gap["p"] == pytest.approx(1 / 201)
    assert report_json["systems"]["bad"]["difference"] is None
    counts = {name: item["queries"] for name, item in report_json["slices"].items()}
    assert set(counts) == {"<b>shop</b>", "文档"}
    total = sum(
        counts[name] * item["systems"]["good"]["measures"]["mrr"]["mean"]
        for name, item in report_json["slices"].items()
    )
    assert total / sum(counts.values()) == pytest.approx(report_json["systems"]["good"]["measures"]["mrr"]["mean"])


def test_examples_are_the_queries_that_moved_most_with_their_first_documents(world: dict[str, Any]) -> None:
    report_artifact = make(world)
    examples = content(report_artifact)["examples"]
    frame = pd.read_parquet(report_artifact.file("per_query.parquet"))
    values = frame.pivot(index="query_id", columns="system", values="ndcg@10")
    gap = (values["good"] - values["bad"]).sort_values()
    assert [item["query_id"] for item in examples["wins"]] == list(gap.index[::-1][:5])
    assert [item["query_id"] for item in examples["losses"]] == list(gap.index[gap < 0][:5])
    first = examples["wins"][0]
    ranked = world["good"][world["good"]["query_id"] == first["query_id"]].sort_values("score", ascending=False)
    assert [doc["doc_id"] for doc in first["documents"]["good"]] == list(ranked["doc_id"][:3])
    grades = dict(zip(world["judgments"]["doc_id"], world["judgments"]["grade"], strict=True))
    assert all(doc["grade"] == grades[doc["doc_id"]] for doc in first["documents"]["good"])
    best = first["wanted"][0]
    assert best["grade"] == max(grades[doc] for doc in ranked["doc_id"])
    assert best["ranks"]["good"] == list(ranked["doc_id"]).index(best["doc_id"]) + 1


def test_scores_by_row_id_give_the_same_as_a_run(world: dict[str, Any]) -> None:
    by_run = content(make(world))
    files = {"bad": world["both"], "good": world["scores"]}
    by_row = content(make(world, files, pool=world["pool"]))
    assert by_row["systems"] == by_run["systems"]


def test_a_systems_artifact_gives_the_same_as_its_file(world: dict[str, Any]) -> None:
    frame = pd.read_parquet(world["both"])
    ranked = artifact(world["folder"], "systems", {"run.parquet": frame}, systems=["bad", "good"])
    assert content(make(world, ranked))["systems"] == content(make(world))["systems"]


def test_of_several_judgments_of_a_pair_a_persons_counts_and_of_several_fields_the_highest(tmp_path: Path) -> None:
    rows = [
        ("q", "a", 3, "test", "click", "title"),
        ("q", "a", 1, "test", "human", "title"),
        ("q", "a", 2, "test", "human", "text"),
        ("q", "b", 1, "test", "elsewhere", "text"),
        ("other", "b", 1, "valid", "human", "text"),
    ]
    judgments = pd.DataFrame(rows, columns=["query_id", "doc_id", "grade", "split", "source", "field"])
    data = artifact(tmp_path, "data", {"judgments.parquet": judgments})
    table, other_queries = per_query.judged(data, "test")
    assert dict(zip(table["doc_id"].to_pylist(), table["grade"].to_pylist(), strict=True)) == {"a": 2, "b": 1}
    assert other_queries == {"other"}


class Page(html.parser.HTMLParser):
    """Collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "line", "circle", "path", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def test_the_page_is_whole_loads_nothing_and_escapes_what_documents_hold(world: dict[str, Any]) -> None:
    stats = {
        f"P95 {EVIL}": 12.5,
        "ranker": {"fp32": {"bytes": 90_000_000}, "int8": {"bytes": 23_000_000, "note": EVIL}},
        "index": {"documents": 20_000, "kind": "Flat"},
    }
    text = make(world, facts=stats).file("report.html").read_text(encoding="utf-8")
    parser = Page()
    parser.feed(text)
    assert parser.open == []
    assert not {"script", "img", "link", "iframe", "object"} & set(parser.tags)
    assert parser.links == []
    assert "url(" not in text
    assert "@import" not in text
    assert "&lt;script&gt;alert(&#34;x&#34;)" in text
    assert parser.tags.count("svg") == 2 + 1 + 1
    assert parser.tags.count("details") == len(content(make(world, facts=stats))["examples"]["wins"]) + len(
        content(make(world, facts=stats))["examples"]["losses"]
    )
    assert "23,000,000" in text
    assert "prefers-color-scheme: dark" in text


def test_the_fingerprint_holds_facts_but_not_what_was_measured(world: dict[str, Any]) -> None:
    plain = make(world)
    assert make(world, measured={"seconds": 3.2}).fingerprint == plain.fingerprint
    assert make(world, facts={"bytes": 3}).fingerprint != plain.fingerprint
    assert make(world, subject="bad", baseline="good").fingerprint != plain.fingerprint
    timed = make(world, measured={"seconds": 3.2}, title="timed")
    assert content(timed)["facts"] == {"seconds": 3.2}


def test_the_gate_reads_a_report(world: dict[str, Any]) -> None:
    report_artifact = make(world)
    better = gate.decide_reports(report_artifact, "bad", GateConfig(), new="good")
    assert better.promote
    assert better.measure == "ndcg@10"
    assert better.difference == pytest.approx(
        content(report_artifact)["systems"]["good"]["difference"]["ndcg@10"]["mean"]
    )
    assert not gate.decide_reports(report_artifact, "good", GateConfig(), new="bad").promote
    assert gate.decide_reports(report_artifact, None, GateConfig(), new="bad").promote
    with pytest.raises(SchemaError, match="no system 'fused'"):
        gate.decide_reports(report_artifact, "good", GateConfig())


def test_trec_run_files_are_judged_on_all_splits_and_missed_queries_are_counted(world: dict[str, Any]) -> None:
    path = world["folder"] / "some run.txt"
    kept = world["good"][world["good"]["query_id"] != "q005"]
    lines = [f"{row.query_id} Q0 {row.doc_id} 1 {row.score!r} mine" for row in kept.itertuples()]
    path.write_text("\n".join([*lines, "unknown Q0 d 1 0.5 mine"]) + "\n", encoding="utf-8")
    plan = report.ReportPlan(title="A run", split=None)
    runs = {"mine": RunFile(path)}
    report_artifact = report.make_from_run(world["folder"], CONFIG, data=world["data"], systems=runs, plan=plan)
    report_json = content(report_artifact)
    assert report_json["queries"]["judged"] == QUERIES
    assert report_json["systems"]["mine"]["missed"] == 1
    assert report_json["systems"]["mine"]["unjudged_queries"] == 1
    frame = pd.read_parquet(report_artifact.file("per_query.parquet")).set_index("query_id")
    assert frame.loc["q005", "ndcg@10"] == 0
    assert "Query by query" not in report_artifact.file("report.html").read_text(encoding="utf-8")


def test_the_exponential_gain_can_be_the_headline(world: dict[str, Any]) -> None:
    report_artifact = report.make(
        world["folder"],
        EvaluationConfig(bootstrap=50, gain="exponential", cutoff=5, relevant_from=2),
        data=world["data"],
        systems={"good": world["both"]},
        plan=report.ReportPlan(title="alone", baseline="good"),
    )
    assert content(report_artifact)["headline"] == "ndcg_exp@5"
    assert report_artifact.metrics["measure"] == "ndcg_exp@5"


def test_the_card_shows_every_system(world: dict[str, Any]) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    report_json = content(make(world))
    console.print(report_card.card(report_json))
    text = console.export_text()
    for name, system in report_json["systems"].items():
        assert name in text
        assert page.value(system["measures"]["ndcg@10"]["mean"]) in text
    assert f"{QUERIES - 1} judged queries" in text


def test_wrong_inputs_are_refused_with_what_and_where(world: dict[str, Any], tmp_path: Path) -> None:
    both = world["both"]
    with pytest.raises(ConfigError, match="baseline 'live' is none of the systems good"):
        make(world, {"good": both}, baseline="live")
    plan = report.ReportPlan(title="x", split=None)
    with pytest.raises(ConfigError, match="none of the systems"):
        report.make_from_run(world["folder"], CONFIG, data=world["data"], systems={}, plan=plan)
    with pytest.raises(MissingError, match="no such file"):
        make(world, {"bad": both, "good": tmp_path / "gone.parquet"})
    with pytest.raises(SchemaError, match="holds the systems bad, good"):
        make(world, {"bad": both, "other": both})
    with pytest.raises(SchemaError, match="without their pool"):
        make(world, {"bad": both, "good": world["scores"]})
    short = tmp_path / "short.parquet"
    save(pd.read_parquet(world["scores"]).iloc[3:], short)
    with pytest.raises(SchemaError, match="3 of the pool's rows have no score"):
        make(world, {"bad": both, "good": short}, pool=world["pool"])
    broken = tmp_path / "broken.parquet"
    save(world["good"].assign(score=np.where(world["good"].index == 7, np.nan, 1.0)), broken)
    with pytest.raises(SchemaError, match="row 8: score"):
        make(world, {"bad": both, "good": broken})
    other = tmp_path / "other.parquet"
    save(pd.DataFrame({"a": [1]}), other)
    with pytest.raises(SchemaError, match="has columns a"):
        make(world, {"bad": both, "good": other})
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(both.read_bytes()[:500])
    with pytest.raises(SchemaError, match="not a readable Parquet file"):
        make(world, {"bad": both, "good": cut})
    with pytest.raises(SchemaError, match="no judgment is in split 'train'"):
        make(world, split="train")


def test_scales_hold_their_values_and_have_round_ticks() -> None:
    scale = plots.AxisScale.over([0.512, 0.788, float("nan")])
    assert (scale.low, scale.high) == pytest.approx((0.5, 0.8))
    assert scale.ticks() == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert (scale.position(0.5), scale.position(0.65), scale.position(9)) == (0, 50, 100)
    assert plots.logarithmic_ticks(158.0, 3162.0) == [200, 500, 1000, 2000]
    assert plots.logarithmic_ticks(0.01, 0.05) == [0.01, 0.02, 0.05]
    assert plots.logarithmic_ticks(50.1e6, 79.4e6) == [60e6, 70e6]
    flat = plots.AxisScale.over([0.5, 0.5])
    assert flat.low < flat.high


def test_numbers_read_well() -> None:
    assert page.signed(-0.0123) == "−0.012"
    assert page.signed(-0.0001) == "0.000"
    assert page.signed(0.25) == "+0.250"
    assert (page.p_value(0.0004), page.p_value(0.0123), page.p_value(0.5)) == ("< 0.001", "0.012", "0.50")
    assert (page.value(None), page.fact(None), page.fact(True)) == ("–", "–", "yes")
    assert (page.fact(1234567), page.fact(1234.5), page.fact(0.41234)) == ("1,234,567", "1,234", "0.4123")
    assert page.label("ndcg_exp@10") == "nDCG@10, 2^g − 1"


def test_each_path_of_the_service_is_compared_with_its_first_stage(world: dict[str, Any], tmp_path: Path) -> None:
    both = pd.read_parquet(world["both"])
    names = {systems.BM25: "bad", systems.RANKER: "good", systems.BOTH: "good", systems.FUSED: "bad"}
    frame = pd.concat([both[both["system"] == source].assign(system=name) for name, source in names.items()])
    ranked = artifact(tmp_path, "systems", {"run.parquet": frame}, systems=list(names))
    report_artifact = make(world, ranked, baseline=systems.BM25, title="surfaces")
    report_json = content(report_artifact)
    gap = content(make(world))["systems"]["good"]["difference"]["ndcg@10"]
    assert report_json["surfaces"]["/rerank"]["mean"] == pytest.approx(gap["mean"])
    assert report_json["surfaces"]["/rerank"]["low"] == pytest.approx(gap["low"])
    assert report_json["surfaces"]["/search"]["mean"] == pytest.approx(-gap["mean"])
    assert [item["verdict"] for item in report_json["surfaces"].values()] == ["worse", "better"]
    assert report_artifact.metrics["surfaces"] == report_json["surfaces"]
    assert "What each path of the service is worth" in report_artifact.file("report.html").read_text(encoding="utf-8")
    assert report_card.surface_lines(report_json)[0].startswith("/search  fused against BM25+encoder: −")
    assert content(make(world))["surfaces"] == {}


def test_the_worth_of_rerank_is_that_of_the_order_it_gives(world: dict[str, Any], tmp_path: Path) -> None:
    both = pd.read_parquet(world["both"])
    names = {systems.BM25: "bad", systems.RANKER: "bad", systems.BOTH: "good", systems.FUSED: "good"}
    frame = pd.concat([both[both["system"] == source].assign(system=name) for name, source in names.items()])
    for order, verdict in ((systems.RANKER, "no difference shown"), (systems.FUSED, "better")):
        ranked = artifact(tmp_path / order, "systems", {"run.parquet": frame}, systems=list(names), rerank=order)
        report_artifact = make(world, ranked, baseline=systems.BM25, title=order)
        assert report_artifact.metrics["surfaces"]["/rerank"]["system"] == order
        assert report_artifact.metrics["surfaces"]["/rerank"]["verdict"] == verdict
        decision = gate.decide_reports(report_artifact, None, GateConfig())
        (rule,) = [rule for rule in decision.rules if rule.name == "floor /rerank"]
        assert ("in the fused order" in rule.detail) == (order == systems.FUSED)


@pytest.mark.parametrize(
    ("text", "path", "system"),
    [("run.txt", "run.txt", ""), ("a:b.txt", "a:b.txt", ""), ("run.txt:bm25", "run.txt", "bm25")],
)
def test_a_run_is_named_by_its_file_or_by_file_and_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, path: str, system: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run.txt", "a:b.txt", "a"):
        Path(name).touch()
    parsed = RunFile.parse(text)
    assert (parsed.path, parsed.system) == (Path(path), system)
    assert RunFile.parse("missing:system").path == Path("missing:system")
