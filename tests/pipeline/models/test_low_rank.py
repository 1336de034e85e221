"""Low-rank factors: the best of their rank, the same scores in every file format, and a graph that is smaller."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.export.bundle import ExportSource
from pipeline.models import low_rank
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.low_rank import FactoredEmbedding, FactoredLinear, FactorRanks

RANKS = FactorRanks(feed_forward=12, embedding=10)


@pytest.fixture
def model(untrained: Any) -> CrossEncoder:
    return CrossEncoder.load(untrained.ranker.path)


def inputs(words: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, words, (6, 12), generator=rng)
    mask = torch.ones_like(ids)
    mask[3:, 8:] = 0
    return ids, torch.zeros_like(ids), mask


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_product_is_the_best_of_its_rank(shape: tuple[int, int], rank: int) -> None:
    """The loss is the square root of the squares of the singular values that are left out (Eckart and Young)."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    outer, inner = low_rank.factors(matrix, rank)
    assert (outer.shape, inner.shape) == ((shape[0], rank), (rank, shape[1]))
    left_out = np.linalg.svd(matrix.numpy(), compute_uv=False)[rank:]
    assert float((matrix - outer @ inner).norm()) == pytest.approx(np.sqrt((left_out**2).sum()), abs=1e-4)
    assert torch.allclose(outer.norm(dim=0), inner.norm(dim=1), rtol=1e-4)


def test_a_matrix_of_zeros_has_finite_factors() -> None:
    outer, inner = low_rank.factors(torch.zeros(9, 4), 2)
    assert torch.equal(outer @ inner, torch.zeros(9, 4))


def test_factors_and_their_product_give_the_same_scores(model: CrossEncoder, tmp_path: Path) -> None:
    original = model(*inputs(300))
    low_rank.factorise(model, RANKS)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(FactoredLinear) == 2 * model.layers
    assert kinds.count(FactoredEmbedding) == 1
    with torch.no_grad():
        factored = model(*inputs(300))
        assert not torch.allclose(factored, original, atol=1e-2)
        low_rank.merge(model)
        assert not any(isinstance(module, FactoredLinear | FactoredEmbedding) for module in model.modules())
        assert torch.allclose(model(*inputs(300)), factored, atol=1e-5)
        model.save(tmp_path)
        loaded = CrossEncoder.load(tmp_path)
        assert loaded.ranks == RANKS
        assert torch.allclose(loaded(*inputs(300)), factored, atol=1e-5)
        low_rank.factorise(loaded, loaded.ranks)
        assert torch.allclose(loaded(*inputs(300)), factored, atol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "w8"])
@pytest.mark.parametrize("variant", ["bert", "roberta", "electra", "distilbert", "mpnet"])  # The last is traced.
def test_the_graph_of_every_family_has_the_factors(
    variant: str, precision: Any, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    shape: dict[str, Any] = {"thresholds": [0.0], "max_tokens": 40, "max_query_tokens": 12, "seed": 3}
    model = CrossEncoder.start(base_of(variant), **shape).eval()
    sizes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    ids, types, mask = inputs(20)
    with torch.no_grad():
        original = model(ids, types, mask).numpy()
    low_rank.factorise(model, FactorRanks(feed_forward=8, embedding=4))
    low_rank.merge(model)
    model.save(tmp_path)
    loaded, source = CrossEncoder.load(tmp_path), ExportSource.load(tmp_path)
    assert {name: tuple(value.shape) for name, value in loaded.named_parameters()} == sizes
    with torch.no_grad():
        expected = loaded(ids, types, mask).numpy()
    spread = float(expected.max() - expected.min())
    assert np.abs(original - expected).max() > 0.5 * spread
    feeds = {"input_ids": ids.numpy(), "token_type_ids": types.numpy(), "attention_mask": mask.numpy()}
    stored = source.graph("fp32")
    assert np.allclose(_run(stored, feeds), expected, atol=1e-3 * spread)
    hidden, units, words = 32, 48, len(model.hub_tokenizer)
    width = 16 if variant == "electra" else hidden
    matrices = [tuple(item.dims) for item in stored.graph.initializer]
    assert matrices.count((hidden, 8)) == matrices.count((8, units)) == model.layers
    assert matrices.count((units, 8)) == matrices.count((8, hidden)) == model.layers
    assert matrices.count((words, 4)) == matrices.count((4, width)) == 1
    assert not {(hidden, units), (units, hidden), (words, width)} & set(matrices)
    assert np.abs(_run(source.graph(precision), feeds) - expected).max() < 0.5 * spread


def _run(model: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    wanted = {item.name for item in session.get_inputs()}
    return session.run(None, {name: value for name, value in feeds.items() if name in wanted})[0]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (FactorRanks(feed_forward=22), r"ranker\.feed_forward_rank is 22: .* 32 × 64 are no smaller .* at most 21"),
        (FactorRanks(embedding=40), r"ranker\.embedding_rank is 40"),
    ],
)
def test_factors_that_save_nothing_are_refused(model: CrossEncoder, ranks: FactorRanks, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        low_rank.check_model(model, ranks)
    kinds = [type(module) for module in model.modules()]
    low_rank.factorise(model, ranks)  # As for a table that has lost words since.
    assert [type(module) for module in model.modules()] == kinds


def test_the_padding_row_stays_the_padding_row(model: CrossEncoder) -> None:
    table = model.model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    padding = table.padding_idx
    low_rank.factorise(model, FactorRanks(embedding=9))
    factored = model.model.get_input_embeddings()
    assert isinstance(factored, FactoredEmbedding)
    assert factored.first.padding_idx == padding
    low_rank.merge(model)
    merged = model.model.get_input_embeddings()
    assert isinstance(merged, nn.Embedding)
    assert merged.padding_idx == padding
