"""Rounding in PyTorch is that of the int8 graph, its gradient is that of no rounding, and it leaves no trace."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.export.bundle import ExportSource
from pipeline.models import int8_rounding, low_rank
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.low_rank import FactorRanks


def test_activations_are_rounded_as_onnx_does() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rng = torch.Generator().manual_seed(4)
    drawn = torch.randn(7, 30, generator=rng)
    for states in (drawn, drawn * 1e-3, drawn.abs() + 2, -drawn.abs() - 2, torch.zeros(7, 30)):
        expected = session.run(None, {"x": states.numpy()})[0]
        assert np.allclose(int8_rounding.rounded_activations(states).numpy(), expected, atol=1e-6)


def test_each_text_of_a_padded_batch_has_its_own_scale() -> None:
    states = (
        torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 9.0, 0.1])[:, None, None]
    )
    together = int8_rounding.rounded_activations(states)
    for row in range(3):
        assert torch.equal(together[row], int8_rounding.rounded_activations(states[row]))


@pytest.mark.parametrize(
    "rounded", [lambda rows: int8_rounding.rounded_rows(rows, 64), int8_rounding.rounded_activations]
)
def test_the_gradient_passes_as_if_nothing_were_rounded(rounded: Callable[[torch.Tensor], torch.Tensor]) -> None:
    values = torch.randn(6, 10, generator=torch.Generator().manual_seed(2)).requires_grad_()
    weights = torch.randn(6, 10)
    (rounded(values) * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert torch.equal(values.grad, weights)
    again = rounded(rounded(values.detach()))
    assert torch.allclose(again, rounded(values.detach()), atol=1e-6)
    assert not torch.equal(again, values.detach())


@pytest.mark.parametrize("ranks", [FactorRanks(), FactorRanks(feed_forward=12, embedding=10)])
@pytest.mark.parametrize("kind", ["ranker", "roberta"])
def test_a_rounding_model_scores_as_its_int8_graph(
    untrained: Any, tmp_path: Path, kind: str, ranks: FactorRanks
) -> None:
    model = CrossEncoder.load(getattr(untrained, kind).path)
    low_rank.factorise(model, ranks)
    low_rank.merge(model)
    model.save(tmp_path)
    source = ExportSource.load(tmp_path)
    assert isinstance(source.model, CrossEncoder)
    model = source.model
    session = onnxruntime.InferenceSession(source.graph("int8").SerializeToString())
    rng = np.random.default_rng(6)
    rounding, plain, served = [], [], []
    for length in rng.integers(8, 40, size=20):
        ids = rng.integers(5, 100, size=(1, int(length)))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        wanted = {item.name for item in session.get_inputs()}
        served.append(float(session.run(None, {name: feeds[name] for name in wanted})[0][0]))
        given = torch.from_numpy(ids), torch.zeros_like(torch.from_numpy(ids)), torch.ones_like(torch.from_numpy(ids))
        with torch.no_grad():
            plain.append(model(*given).item())
            int8_rounding.put(model)
            rounding.append(model(*given).item())
            int8_rounding.remove(model)
    own, other = np.abs(np.subtract(rounding, served)), np.abs(np.subtract(plain, served))
    assert np.median(other) > 1e-3
    assert np.median(own) < 0.1 * np.median(other)  # A number on the edge of two steps may fall on either.


def test_nothing_is_left_of_it(untrained: Any) -> None:
    model = CrossEncoder.load(untrained.ranker.path)
    given = torch.arange(5, 25)[None], torch.zeros(1, 20, dtype=torch.long), torch.ones(1, 20, dtype=torch.long)
    before = {name: id(value) for name, value in model.named_parameters()}
    kinds = [type(module) for module in model.modules()]
    with torch.no_grad():
        plain = model(*given)
        int8_rounding.put(model)
        assert {name: id(value) for name, value in model.named_parameters()} == before
        rounded = model(*given)
        sent = pickle.loads(pickle.dumps(model))  # noqa: S301 (as torchrun's first process sends it to the others)
        assert torch.allclose(sent(*given), rounded, atol=1e-6)
        assert not torch.allclose(rounded, plain, atol=1e-4)
        int8_rounding.remove(model)
        assert torch.equal(model(*given), plain)
    assert [type(module) for module in model.modules()] == kinds
