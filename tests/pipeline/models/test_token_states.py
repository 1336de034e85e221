"""States of all tokens, queries, keys and attention scores against transformers' own outputs, for three families."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AlbertConfig, AlbertForSequenceClassification, AutoModelForSequenceClassification

from pipeline.errors import ConfigError, ShapeError
from pipeline.models import base_models
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.losses.token_distillation import attention_scores

LAYERS = 2


def albert(untrained: Any, groups: int = 1, inner: int = 1) -> CrossEncoder:
    torch.manual_seed(11)
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    shared = {"num_hidden_groups": groups, "inner_group_num": inner, "embedding_size": 8, "num_labels": 1}
    some = CrossEncoder.load(untrained.ranker.path)
    vocabulary = {"vocab_size": some.model.config.vocab_size, "max_position_embeddings": 64, "initializer_range": 0.3}
    config = AlbertConfig(**sizes, **shared, **vocabulary, attn_implementation="eager")  # type: ignore[arg-type]
    return CrossEncoder(
        AlbertForSequenceClassification(config), some.hub_tokenizer, some.template, some.thresholds.tolist()
    ).eval()


@pytest.fixture(params=["bert", "roberta", "albert", "albert of two groups"])
def model(request: pytest.FixtureRequest, untrained: Any) -> CrossEncoder:
    if request.param.startswith("albert"):
        return albert(untrained, groups=2 if "two" in request.param else 1)
    return CrossEncoder.load({"bert": untrained.ranker, "roberta": untrained.roberta}[request.param].path)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two inputs, of 9 and 6 tokens."""
    ids = torch.randint(5, 100, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    types = torch.zeros_like(ids)
    types[:, 4:] = 1
    return ids, types, mask


def theirs(model: CrossEncoder, tmp_path: Path) -> Any:
    """The output of transformers for the same weights, with hidden states and attention probabilities."""
    model.model.save_pretrained(tmp_path)
    with base_models.quiet():
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    ids, types, mask = batch()
    extra = {"token_type_ids": types} if model.segments else {}
    with torch.no_grad():
        return classifier(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True, **extra
        )


def test_states_of_all_tokens_are_transformers_hidden_states(model: CrossEncoder, tmp_path: Path) -> None:
    expected, (ids, types, mask) = theirs(model, tmp_path), batch()
    with torch.no_grad():
        reading = model.read(ids, types, mask, first=(2, 1), token_layers=(2, 1))
        alone = model.read(ids, types, mask, token_layers=(0, 1, 2), score=False).token_states
        scores = model(ids, types, mask)
    assert torch.allclose(reading.scores, expected.logits[:, 0], atol=1e-5)
    assert torch.allclose(scores, expected.logits[:, 0], atol=1e-5)
    real = mask.bool()
    for layer in (1, 2):
        for states in (reading.token_states[layer], alone[layer]):
            assert torch.allclose(states[real], expected.hidden_states[layer][real], atol=1e-5)
    assert torch.allclose(reading.first[:, 0], expected.hidden_states[2][:, 0], atol=1e-5)
    assert torch.allclose(reading.first[:, 1], expected.hidden_states[1][:, 0], atol=1e-5)
    assert torch.allclose(alone[0][real], expected.hidden_states[0][real], atol=1e-5)


def test_attention_scores_are_what_their_softmax_comes_from(model: CrossEncoder, tmp_path: Path) -> None:
    expected, (ids, types, mask) = theirs(model, tmp_path), batch()
    with torch.no_grad():
        states = model.read(ids, types, mask, token_layers=(0, 1), score=False).token_states
        for layer in (1, 2):
            queries, keys, _ = model.projections(layer, states[layer - 1])
            scores = attention_scores(queries, keys, model.heads)
            shares = scores.masked_fill(mask[:, None, None, :] == 0, -torch.inf).softmax(-1)
            assert torch.allclose(shares, expected.attentions[layer - 1], atol=1e-5)


def test_no_more_is_computed_than_asked_for(model: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, types, mask = batch()
    gone_through = []
    original = model.family.layer

    def layer(body: Any, number: int) -> Any:
        gone_through.append(number)
        return original(body, number)

    monkeypatch.setattr(model.family, "layer", layer)
    model.read(ids, types, mask, token_layers=(0,), score=False)
    assert gone_through == []
    model.read(ids, types, mask, token_layers=(1, 0), score=False)
    assert gone_through == [1]


def test_layers_that_are_not_there_are_named(untrained: Any) -> None:
    model, arguments = CrossEncoder.load(untrained.ranker.path), batch()
    for wanted in ({"token_layers": (3,)}, {"token_layers": (-1,)}, {"first": (0,)}):
        with pytest.raises(ShapeError, match="layers 1 to 2"):
            model.read(*arguments, **wanted)
    with pytest.raises(ShapeError, match="layers 1 to 2"):
        model.read(*arguments, token_layers=(3,), score=False)


def test_albert_layers_of_several_are_refused_by_name(untrained: Any) -> None:
    model = albert(untrained, inner=2)
    ids, types, mask = batch()
    states = model.read(ids, types, mask, token_layers=(0,), score=False).token_states
    with pytest.raises(ConfigError, match="albert model whose layers are groups"):
        model.projections(1, states[0])
