"""Saved folders opened by sentence-transformers, which must give our numbers."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models import base_models
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Not ours: what that package says on import.
    library: Any = pytest.importorskip("sentence_transformers")

LONG = " ".join(["steel angle gauge colour"] * 30)
TEXTS = ["steel angle", "one gallon [SEP] of </s> colour", "☃", "", LONG]


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    with base_models.quiet():
        yield


def encode(model: BiEncoder, text: str, template: Any = None) -> np.ndarray:
    template = template or model.document_template
    ids = torch.tensor([template.assemble(model.tokenizer.encode(text, add_special_tokens=False).ids)])
    with torch.no_grad():
        return model(ids, torch.ones_like(ids))[0].numpy()


def score(model: CrossEncoder, query: str, document: str) -> float:
    tokens = (model.tokenizer.encode(text, add_special_tokens=False).ids for text in (query, document))
    ids, types = model.template.assemble(*tokens)
    with torch.no_grad():
        return model(torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids), dtype=torch.long)).item()


@pytest.mark.parametrize("family", ["ranker", "roberta"])
def test_the_encoder_folder_gives_our_vectors(untrained: Any, tmp_path: Path, family: str) -> None:
    """From bases of two families; over-long texts are cut at the same place, special tokens in a text are text."""
    base = getattr(untrained, family).path / "model"
    ours = BiEncoder.start(base, dimensions=8, max_tokens=40, max_query_tokens=12, seed=3).eval()
    ours.save(tmp_path)
    theirs = library.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert [type(module).__name__ for module in theirs] == ["Transformer", "Pooling", "Dense", "Normalize"]
    vectors = theirs.encode(TEXTS, show_progress_bar=False)
    assert vectors == pytest.approx(np.stack([encode(ours, text) for text in TEXTS]), abs=1e-5)
    assert theirs.similarity_fn_name == "cosine"


def test_only_an_overlong_query_has_another_vector(untrained: Any) -> None:
    """There is one limit there, that of documents."""
    ours = BiEncoder.load(untrained.encoder.path)
    theirs = library.SentenceTransformer(str(untrained.encoder.path / "model"), device="cpu")
    short, long = (theirs.encode(text, show_progress_bar=False) for text in ("steel angle", LONG))
    assert encode(ours, "steel angle", ours.query_template) == pytest.approx(short, abs=1e-5)
    assert np.abs(encode(ours, LONG, ours.query_template) - long).max() > 1e-3


@pytest.mark.parametrize("family", ["ranker", "roberta"])
def test_the_ranker_folder_gives_our_scores(untrained: Any, family: str) -> None:
    """Also of documents that are cut, and of special tokens written into a text."""
    folder = getattr(untrained, family).path
    ours, theirs = CrossEncoder.load(folder), library.CrossEncoder(str(folder / "model"), device="cpu")
    pairs = [("steel angle", text) for text in TEXTS] + [("a </s>", "deck"), ("[SEP]", "deck"), ("", "deck")]
    scores = theirs.predict(pairs, show_progress_bar=False)
    assert scores == pytest.approx([score(ours, *pair) for pair in pairs], abs=1e-5)
    assert theirs.max_seq_length == ours.template.max_tokens


def test_only_an_overlong_query_has_another_score(untrained: Any) -> None:
    """They cut the longer of the two texts, we a query at its own limit first."""
    ours = CrossEncoder.load(untrained.ranker.path)
    theirs = library.CrossEncoder(str(untrained.ranker.path / "model"), device="cpu")
    scores = theirs.predict([(LONG, LONG)], show_progress_bar=False)
    assert abs(scores[0] - score(ours, LONG, LONG)) > 1e-3


def test_the_projection_is_stored_once(untrained: Any) -> None:
    tensors = sorted(
        path.relative_to(untrained.encoder.path).as_posix() for path in untrained.encoder.path.rglob("*.safetensors")
    )
    assert tensors == ["model/2_Dense/model.safetensors", "model/model.safetensors"]
