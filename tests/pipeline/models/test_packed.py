"""Batches read end to end score, and learn, as each by itself."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.loop import batches, pair_tokens


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["ranker", "roberta"])
def test_batches_read_together_are_each_read_alone(untrained: Any, family: str, kind: str) -> None:
    model = CrossEncoder.load(getattr(untrained, family).path).double()  # Both ways are one sum in another order.
    model.model.set_attn_implementation(kind)
    pairs = pair_tokens.read_pairs(untrained.data, untrained.pairs, model.tokenizer, max_query_tokens=12, max_tokens=48)
    lengths = pair_tokens.pair_lengths(pairs, model.template)
    parts = batches.length_groups(lengths[:40])
    assert len(parts) > 1
    inputs = [batches.pad(batches.pair_inputs(pairs, part, model.template), torch.device("cpu")).all for part in parts]
    assert any((mask == 0).any() for _, _, mask in inputs)
    weights = torch.linspace(-1, 1, 40)

    def gradients(scores: torch.Tensor, states: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        ((scores * weights).sum() + (states * weights[:, None, None]).sum()).backward()  # type: ignore[no-untyped-call]
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    alone = [model.read(*batch, first=(2, 1)) for batch in inputs]
    scores, states = torch.cat([reading.scores for reading in alone]), torch.cat([reading.first for reading in alone])
    together = model.read_together(inputs, first=(2, 1))
    assert torch.allclose(together.scores, scores, rtol=1e-6, atol=1e-6)
    assert torch.allclose(together.first, states, rtol=1e-6, atol=1e-6)
    assert together.scores.std() > 0.1
    expected, got = gradients(scores, states), gradients(together.scores, together.first)
    assert set(expected) == set(got)
    for name, value in expected.items():
        assert torch.allclose(value, got[name], rtol=0, atol=1e-10 * max(1.0, float(value.abs().max()))), name


def test_a_batch_of_one_text_among_others(untrained: Any) -> None:
    model = CrossEncoder.load(untrained.ranker.path)
    pairs = pair_tokens.read_pairs(untrained.data, untrained.pairs, model.tokenizer, max_query_tokens=12, max_tokens=48)
    inputs = [
        batches.pad(batches.pair_inputs(pairs, np.array([row]), model.template), torch.device("cpu")).all
        for row in (3, 0, 7)
    ]
    together = model.read_together(inputs)
    assert together.first.shape == (3, 0, model.hidden)
    assert torch.allclose(together.scores, torch.cat([model(*batch) for batch in inputs]), atol=1e-5)
