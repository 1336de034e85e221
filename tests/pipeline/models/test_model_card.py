"""Model cards: what they say is what the artifacts say, and nothing of this machine."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.artifacts import Artifact
from pipeline.manifest import Manifest
from pipeline.models import model_card
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder

METRICS = {
    "ndcg@10 before": 0.5,
    "ndcg@10": 0.61234,
    "pairs": 1200,
    "tokens": 45000,
    "steps": 30,
    "training_seconds": 77.7,
    "vocabulary": {"before": 30522, "after": 9000, "bytes_saved": 33_057_792},
}


def artifact(kind: str, **metrics: Any) -> Artifact:
    plain: dict[str, Any] = {"version": 1, "config": {}, "inputs": {}, "files": {}, "code": "", "created": ""}
    return Artifact(
        Path("/somewhere"), Manifest(kind=kind, fingerprint=f"{kind}0123456789abcdef", metrics=metrics, **plain)
    )


INPUTS = {
    "data": artifact(
        "data",
        sources={"crowdflower": "crowdflower"},
        documents=5000,
        queries=261,
        judgments=10158,
        grades={"0": 700, "3": 9458},
    ),
    "pairs": artifact("pairs", train={"pairs": 8000, "queries": 200}, valid={"pairs": 900, "queries": 30}),
}


def written(folder: Path, role: Any, model: Any, **changed: Any) -> str:
    folder.mkdir(exist_ok=True)
    figures: dict[str, Any] = {
        "base": "FacebookAI/roberta-large",
        "inputs": INPUTS,
        "config": {
            "base": "/home/someone/models/minilm",
            "hard_ordinal_weight": 0.5,
            "soft_weight": 0.25,
            "margin_weight": 0.0,
        },
        "metrics": METRICS,
        "measure": "ndcg@10",
    } | changed
    model_card.write(folder, role, model, model_card.TrainingRecord(**figures))
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def ranker(untrained: Any) -> CrossEncoder:
    return CrossEncoder.load(untrained.ranker.path)


def test_the_head_is_yaml_of_the_hub(tmp_path: Path, ranker: CrossEncoder, untrained: Any) -> None:
    text = written(tmp_path / "r", "ranker", ranker)
    head = yaml.safe_load(text.split("---")[1])
    assert head["pipeline_tag"] == "text-ranking"
    assert head["library_name"] == "sentence-transformers"
    assert head["base_model"] == "FacebookAI/roberta-large"
    assert "cross-encoder" in head["tags"]
    other = written(
        tmp_path / "e", "encoder", BiEncoder.load(untrained.encoder.path), base="/home/someone/models/minilm"
    )
    head = yaml.safe_load(other.split("---")[1])
    assert head["pipeline_tag"] == "sentence-similarity"
    assert "base_model" not in head


def test_a_folder_named_like_a_hub_model_is_none(
    tmp_path: Path, ranker: CrossEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "minilm").mkdir(parents=True)
    text = written(tmp_path / "r", "ranker", ranker, base="models/minilm")
    assert "base_model" not in yaml.safe_load(text.split("---")[1])
    assert "started from: minilm\n" in text


@pytest.mark.parametrize(
    ("metrics", "fact"),
    [
        ({"labelled": 8900, "unlabelled": 32000}, "8,900 pairs with a grade, and 32,000 without"),
        ({"mined": 5000, "kept": 1600, "queries": 200}, "mined negatives: 1,600 of 200 queries"),
    ],
)
def test_pairs_that_were_added_are_counted(
    tmp_path: Path, ranker: CrossEncoder, metrics: dict[str, int], fact: str
) -> None:
    assert fact in written(tmp_path, "ranker", ranker, inputs=INPUTS | {"pairs": artifact("pairs", **metrics)})


def test_it_says_what_the_training_had_in_hand(tmp_path: Path, ranker: CrossEncoder) -> None:
    text = written(tmp_path, "ranker", ranker)
    for fact in (
        "0.6123, 0.5000 before",
        "crowdflower (crowdflower)",
        "5,000 documents, 261 queries, 10,158 judgments; grade 0: 700, grade 3: 9,458",
        "train: 8,000 pairs of 200 queries",
        "losses and weights: hard_ordinal 0.5, soft 0.25\n",
        "1,200 pairs, 45,000 tokens, 30 steps",
        "30,522 → 9,000 tokens, 33.1 MB less",
        "at most 48 tokens",
        "to 12 tokens",
    ):
        assert fact in text
    assert "soft 0.25" not in written(tmp_path, "plain student", ranker).split("All settings")[0]


def test_two_writings_are_one_and_name_no_path_and_no_time(tmp_path: Path, ranker: CrossEncoder) -> None:
    first, second = (written(tmp_path / name, "teacher", ranker, base="/home/someone/models/minilm") for name in "ab")
    assert first == second
    assert not re.search(r"/home|/somewhere|77\.7|20\d\d-", first)
    assert "started from: minilm" in first


def test_the_ways_to_open_it_are_python_that_gives_our_score(
    tmp_path: Path, untrained: Any, ranker: CrossEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = written(tmp_path, "ranker", ranker)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) == 3
    monkeypatch.chdir(untrained.ranker.path)
    by_transformers: dict[str, Any] = {}
    exec(blocks[1].replace("print(model(**inputs).logits)", "score = model(**inputs).logits.item()"), by_transformers)
    ours: dict[str, Any] = {}
    exec(blocks[2], ours)
    model = ours["model"]
    ids, types = model.template.assemble(
        *(model.tokenizer.encode(part, add_special_tokens=False).ids for part in ("a query", "a document"))
    )
    import torch

    with torch.no_grad():
        score = model(torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids), dtype=torch.long)).item()
    assert score == pytest.approx(by_transformers["score"], abs=1e-5)


def test_without_valid_queries_it_says_so(tmp_path: Path, ranker: CrossEncoder) -> None:
    text = written(tmp_path, "ranker", ranker, metrics={**METRICS, "ndcg@10": None, "ndcg@10 before": None})
    assert "Not measured: the data has no valid queries." in text
