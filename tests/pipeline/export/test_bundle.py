"""Bundles: their files, their digest, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig
from pipeline.errors import ArtifactError, ConfigError
from pipeline.export import bundle as onnx
from pipeline.export.bundle import ExportSource
from pipeline.models import families

CONFIG = ExportConfig(parity=1e-5, golden=8, max_ndcg_drop=1.0, min_kendall_tau=0.0)
PRECISIONS = ("fp32", "fp16", "int8", "w8")
FILES = {"bundle.json", "tokenizer.json", "golden.json", *(f"model.{name}.onnx" for name in PRECISIONS)}


def bundle_of(artifact: Artifact) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(artifact.file("bundle.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", ["ranker", "encoder", "roberta"])
def test_a_bundle_holds_what_its_contract_says(untrained: Any, name: str) -> None:
    exported = onnx.make(
        untrained.workspace, CONFIG, model=getattr(untrained, name), data=untrained.data, pairs=untrained.pairs
    )
    bundle = bundle_of(exported)
    assert set(exported.manifest.files) == FILES
    assert bundle["role"] == ("encoder" if name == "encoder" else "ranker")
    assert bundle["inputs"] == ["input_ids", "attention_mask", *(["token_type_ids"] if name != "roberta" else [])]
    assert bundle["parity"] < 1e-5
    assert bundle["source"] == getattr(untrained, name).fingerprint
    assert set(bundle["chosen"]) == {"cpu", "cuda"}
    assert len(bundle["digest"]) == 32
    for kind, figures in bundle["precisions"].items():
        assert figures["bytes"] == exported.file(f"model.{kind}.onnx").stat().st_size
    sizes = [bundle["precisions"][kind]["bytes"] for kind in ("fp32", "fp16", "int8")]
    assert sizes == sorted(sizes, reverse=True)
    assert exported.metrics["precisions"] == bundle["precisions"]
    parts = {"embeddings", *(f"layer.{number}" for number in range(2))}
    for kind, figures in bundle["precisions"].items():
        assert set(figures["sensitivity"]) == (parts if kind in ("int8", "w8") else set())
    tokenizer = Tokenizer.from_file(str(exported.file("tokenizer.json")))
    assert tokenizer.padding is None
    assert tokenizer.truncation is None


def test_golden_scores_are_those_of_transformers(untrained: Any) -> None:
    exported = onnx.make(
        untrained.workspace, CONFIG, model=untrained.ranker, data=untrained.data, pairs=untrained.pairs
    )
    golden = json.loads(exported.file("golden.json").read_text(encoding="utf-8"))
    model = AutoModelForSequenceClassification.from_pretrained(untrained.ranker.path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(untrained.ranker.path / "model")
    assert len(golden) == 8
    compared = 0
    for item in golden:
        inputs = tokenizer(item["query"], item["document"], return_tensors="pt")
        if inputs["input_ids"].shape[1] > 48 or len(tokenizer.tokenize(item["query"])) > 12:
            continue  # Transformers cuts such a pair elsewhere.
        with torch.inference_mode():
            score = float(model(**inputs).logits[0, 0])
        assert item["scores"]["torch"] == pytest.approx(score, abs=1e-5)
        assert item["scores"]["fp32"] == pytest.approx(score, abs=1e-5)
        compared += 1
    assert compared >= 4


def test_golden_vectors_are_of_unit_length_for_both_roles(untrained: Any) -> None:
    exported = onnx.make(
        untrained.workspace, CONFIG, model=untrained.encoder, data=untrained.data, pairs=untrained.pairs
    )
    golden = json.loads(exported.file("golden.json").read_text(encoding="utf-8"))
    assert {item["role"] for item in golden} == {"query", "document"}
    for item in golden:
        assert set(item["vectors"]) == {"torch", *PRECISIONS}
        for vector in item["vectors"].values():
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_the_digest_follows_everything_that_a_score_depends_on(untrained: Any) -> None:
    source = ExportSource.load(untrained.ranker.path)
    bias = source.weights["head.out.bias"]
    template = source.templates["pair"]
    cleaned = Tokenizer.from_str(source.tokenizer.to_str().replace('"lowercase":true', '"lowercase":false'))
    assert cleaned.to_str() != source.tokenizer.to_str()
    changed = [
        replace(source, weights={**source.weights, "head.out.bias": np.nextafter(bias, np.float32(9))}),
        replace(source, templates={"pair": replace(template, max_query_tokens=11)}),
        replace(source, thresholds=[0.0, 1.0]),
        replace(source, tokenizer=cleaned),
    ]
    kept = [{}, {"int8": ["layer.0"]}, {"w8": ["layer.0"]}, {"int8": ["layer.0"], "w8": ["layer.1"]}]
    digests = [*(source.digest(parts) for parts in kept), *(other.digest({}) for other in changed)]
    assert len(set(digests)) == len(digests)
    assert ExportSource.load(untrained.ranker.path).digest({}) == source.digest({"fp32": (), "int8": ()})


def test_a_graph_that_says_something_else_is_refused(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(folder: Path) -> ExportSource:
        source = load(folder)
        return replace(source, weights={**source.weights, "head.out.bias": source.weights["head.out.bias"] + 1})

    load = ExportSource.load
    monkeypatch.setattr(ExportSource, "load", wrong)
    before = set((untrained.workspace / "artifacts" / "bundle").iterdir())
    with pytest.raises(ArtifactError, match=r"ONNX is 0\.\d+ from PyTorch, more than export\.parity"):
        onnx.make(
            untrained.workspace,
            replace(CONFIG, golden=7),
            model=untrained.ranker,
            data=untrained.data,
            pairs=untrained.pairs,
        )
    after = (untrained.workspace / "artifacts" / "bundle").iterdir()
    assert not [path for path in set(after) - before if path.suffix != ".lock"]


def test_a_family_without_a_graph_is_refused_by_name(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other_families = tuple(family for family in families.FAMILIES if "bert" not in family.model_types)
    monkeypatch.setattr("pipeline.export.graph_shape.FAMILIES", other_families)
    with pytest.raises(ConfigError, match=r"family 'bert'; start from .*roberta"):
        onnx.make(
            untrained.workspace,
            replace(CONFIG, golden=6),
            model=untrained.ranker,
            data=untrained.data,
            pairs=untrained.pairs,
        )
