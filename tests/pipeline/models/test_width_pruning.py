"""Feed-forward pruning: units that do nothing are removed first, and then no score changes."""

from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models import width_pruning
from pipeline.models.cross_encoder import CrossEncoder

IDLE = 24
"""Units of each layer that are made useless."""


@pytest.fixture
def model(untrained: Any) -> CrossEncoder:
    return CrossEncoder.load(untrained.ranker.path)


def inputs(seed: int = 0) -> width_pruning.Inputs:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 40, (6, 12), generator=rng)
    mask = torch.ones_like(ids)
    mask[3:, 8:] = 0
    return ids, torch.zeros_like(ids), mask


def layers(model: CrossEncoder) -> list[tuple[torch.nn.Linear, torch.nn.Linear]]:
    body = model.model.base_model
    return [model.family.feed_forward(model.family.layer(body, number)) for number in range(1, model.layers + 1)]


def test_useless_units_go_first_and_no_score_changes(model: CrossEncoder, tmp_path: Any) -> None:
    chosen = torch.Generator().manual_seed(1)
    for _, outer in layers(model):
        idle = torch.randperm(outer.in_features, generator=chosen)[:IDLE]
        outer.weight.data[:, idle] = 0
    with torch.no_grad():
        before = model(*inputs())
    units = int(model.model.config.intermediate_size) - IDLE
    width_pruning.narrow(model, units, [inputs(2), inputs(3)])
    with torch.no_grad():
        assert torch.allclose(model(*inputs()), before, atol=1e-6)
    assert {outer.in_features for _, outer in layers(model)} == {units}
    model.save(tmp_path)
    with torch.no_grad():
        assert torch.allclose(CrossEncoder.load(tmp_path)(*inputs()), before, atol=1e-6)


def test_importance_is_activation_times_slope_and_padding_has_none(model: CrossEncoder) -> None:
    """The slope by a finite difference: the score with one unit's output a little larger."""
    ids, types, mask = inputs()
    (inner, outer), *_ = layers(model)
    first = width_pruning.importance(model, [(ids, types, mask)])[0]
    for unit in range(0, outer.in_features, 13):
        total = 0.0
        for row in range(len(ids)):
            length = int(mask[row].sum())
            example = ids[row : row + 1, :length], types[row : row + 1, :length], mask[row : row + 1, :length]
            for token in range(length):
                total += abs(_change_by(model, inner, example, token, unit))
        assert first[unit].item() == pytest.approx(total, rel=0.05, abs=2e-4)


def _change_by(model: CrossEncoder, inner: torch.nn.Linear, example: Any, token: int, unit: int) -> float:
    """First-order change of the score when one unit of the first layer is off for one token."""
    outer = layers(model)[0][1]
    scores = {}
    for factor in (1 - 1e-2, 1 + 1e-2):

        def scaled(_: Any, given: Any, factor: float = factor) -> Any:
            hidden = given[0].clone()
            hidden.view(-1, hidden.shape[-1])[token, unit] *= factor
            return (hidden,)

        handle = outer.register_forward_pre_hook(scaled)
        with torch.no_grad():
            scores[factor] = float(model.double()(*example))
        handle.remove()
    model.float()
    low, high = scores.values()
    return (high - low) / 2e-2


def test_gradients_and_mode_are_left_as_they_were(model: CrossEncoder) -> None:
    model.train()
    width_pruning.importance(model, [inputs()])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("units", "shared", "message"), [(65, False, "have 64 units"), (8, True, "share one set")])
def test_what_cannot_be_narrowed_is_refused(units: int, shared: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        width_pruning.check(units, 64, shared=shared)
