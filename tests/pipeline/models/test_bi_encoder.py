"""The bi-encoder against transformers by hand, its first projection against scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from pipeline.errors import ArtifactError, ConfigError, ShapeError
from pipeline.models import base_models
from pipeline.models.bi_encoder import BiEncoder

TEXTS = ["steel angle", "one gallon of solid colour and more", "☃"]


@pytest.fixture
def model(untrained: Any) -> BiEncoder:
    return BiEncoder.load(untrained.encoder.path)


def padded(model: BiEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [
        model.document_template.assemble(model.tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXTS
    ]
    width = max(map(len, rows)) + 3
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def test_vectors_are_the_projected_mean_of_the_real_tokens(model: BiEncoder, untrained: Any) -> None:
    folder = untrained.encoder.path / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with base_models.quiet():
        body = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    with torch.no_grad():
        vectors = model(*padded(model))
        for text, vector in zip(TEXTS, vectors, strict=True):
            states = body(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            assert torch.allclose(vector, F.normalize(model.dense(states.mean(0)), dim=0), atol=1e-5)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(TEXTS)), atol=1e-6)


def test_saved_and_loaded_are_one(model: BiEncoder, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = BiEncoder.load(tmp_path)
    assert (again.query_template, again.document_template) == (model.query_template, model.document_template)
    with torch.no_grad():
        assert torch.equal(again(*padded(model)), model(*padded(model)))


def test_the_projection_spans_the_principal_directions(model: BiEncoder) -> None:
    sample = torch.randn(200, 32, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.arange(1.0, 33.0)) + 5
    kept = model.fit_projection(sample)
    reference = PCA(n_components=8).fit(sample.numpy())
    assert kept == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-4)
    with torch.no_grad():
        projected = model.dense(sample).numpy()
    expected = reference.transform(sample.numpy())
    assert np.abs(projected) == pytest.approx(np.abs(expected), rel=1e-2, abs=1e-2)  # signs are a convention


def test_as_many_dimensions_as_the_base_has_lose_nothing(untrained: Any) -> None:
    folder = untrained.encoder.path / "model"
    full = BiEncoder.start(folder, dimensions=32, max_tokens=40, max_query_tokens=8, seed=0).eval()
    with torch.no_grad():
        pooled = full.pooled(*padded(full))
        full.fit_projection(pooled)
        vectors = full(*padded(full))
    directions = F.normalize(pooled - pooled.mean(0), dim=1)
    assert torch.allclose(vectors @ vectors.T, directions @ directions.T, atol=1e-4)


def test_the_projection_does_not_depend_on_the_order_of_the_sample(model: BiEncoder) -> None:
    sample = torch.randn(100, 32, generator=torch.Generator().manual_seed(2))
    model.fit_projection(sample)
    first = model.dense.weight.clone()
    model.fit_projection(sample.flip(0))
    assert torch.allclose(first, model.dense.weight, atol=1e-4)


def test_a_projection_wider_than_the_base_is_refused(model: BiEncoder) -> None:
    with pytest.raises(ShapeError, match="8 directions"):
        model.fit_projection(torch.zeros(50, 4))


def test_texts_longer_than_the_positions_are_refused(untrained: Any) -> None:
    with pytest.raises(ConfigError, match="has 64 positions"):
        BiEncoder.start(untrained.encoder.path / "model", dimensions=8, max_tokens=65, max_query_tokens=8, seed=0)


def test_a_damaged_projection_is_named(model: BiEncoder, tmp_path: Path) -> None:
    model.save(tmp_path)
    (tmp_path / "model" / "2_Dense" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"2_Dense/model\.safetensors is not readable"):
        BiEncoder.load(tmp_path)
