"""Cut models: the same weights in the chosen layers, and the forward pass that these layers alone would make."""

from typing import Any

import pytest
import torch
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

from pipeline.errors import ConfigError
from pipeline.models import surgery
from pipeline.models.cross_encoder import CrossEncoder


def deep() -> BertModel:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.3}
    return BertModel(BertConfig(vocab_size=50, num_hidden_layers=5, **sizes)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("depth", "keep", "layers"),
    [
        (12, 6, (2, 4, 6, 8, 10, 12)),
        (24, 6, (4, 8, 12, 16, 20, 24)),
        (6, 3, (2, 4, 6)),
        (6, 4, (2, 3, 4, 6)),
        (6, 6, (1, 2, 3, 4, 5, 6)),
        (5, 1, (5,)),
    ],
)
def test_layers_are_spaced_evenly_with_the_last(depth: int, keep: int, layers: tuple[int, ...]) -> None:
    assert surgery.spaced(depth, keep) == layers


@pytest.mark.parametrize("depth", range(1, 25))
def test_spaced_layers_are_distinct_whatever_the_depth(depth: int) -> None:
    for keep in range(1, depth + 1):
        layers = surgery.spaced(depth, keep)
        assert len(set(layers)) == keep
        assert layers == tuple(sorted(layers))
        assert layers[-1] == depth


def test_the_layer_map_of_the_paper() -> None:
    assert surgery.layer_map(12, 6) == (2, 4, 6, 8, 10)
    assert surgery.layer_map(24, 6) == (4, 8, 12, 16, 20)
    assert surgery.layer_map(6, 1) == ()


@pytest.mark.parametrize("keep", [(0,), (6,), (1, 7), ()])
def test_layers_that_are_not_there_are_refused(keep: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="layers 1 to 5"):
        surgery.keep_layers(deep(), keep)


def test_too_many_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="between 1 and 5"):
        surgery.spaced(5, 6)


def test_kept_layers_run_one_after_the_other() -> None:
    model = deep()
    shallow = surgery.keep_layers(model, (2, 5))
    assert shallow.config.num_hidden_layers == 2
    assert model.config.num_hidden_layers == 5
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        states = model.embeddings(ids)
        for layer in (1, 4):
            states = model.encoder.layer[layer](states)
            states = states[0] if isinstance(states, tuple) else states
        assert torch.allclose(shallow(ids).last_hidden_state, states, atol=1e-6)


def test_a_cut_model_shares_no_memory_with_the_whole() -> None:
    model = deep()
    copy = surgery.keep_layers(model, (1, 2, 3, 4, 5))
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert model.encoder.layer[0].attention.self.query.weight.abs().sum() > 0


def test_a_student_keeps_head_and_thresholds(untrained: Any) -> None:
    ranker = CrossEncoder.load(untrained.ranker.path)
    same = surgery.student(ranker, (1, 2))
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        arguments = (ids, torch.zeros_like(ids), torch.ones_like(ids))
        assert torch.allclose(same.eval()(*arguments), ranker(*arguments), atol=1e-6)
    assert same.model.config._attn_implementation == ranker.model.config._attn_implementation
    assert torch.allclose(same.thresholds, ranker.thresholds, atol=1e-6)
    assert torch.equal(surgery.student(ranker, (2,)).head.weight, ranker.head.weight)


def shared(**more: int) -> AlbertModel:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "embedding_size": 8}
    config = AlbertConfig(vocab_size=50, num_hidden_layers=5, initializer_range=0.3, **sizes, **more)  # type: ignore
    return AlbertModel(config).eval()


def test_a_cut_albert_goes_fewer_times_through_its_one_layer() -> None:
    model = shared()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        assert torch.equal(surgery.keep_layers(model, (3, 5)).eval()(ids).last_hidden_state, states[2])
    assert model.config.num_hidden_layers == 5


def test_an_albert_of_several_groups_cannot_be_cut() -> None:
    with pytest.raises(ConfigError, match="several groups"):
        surgery.keep_layers(shared(num_hidden_groups=5), (1,))


@pytest.mark.parametrize(
    ("depth", "keep", "expected"),
    [
        (12, (2, 4, 6, 8, 10, 12), (1, 3, 5, 7, 9, 11)),
        (24, (4, 8, 12, 16, 20, 24), (3, 7, 11, 15, 19, 23)),
        (4, (1, 3, 4), (2, 3, 4)),
        (6, (6,), (5,)),
    ],
)
def test_a_second_student_has_other_layers(depth: int, keep: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert surgery.other_layers(depth, keep) == expected


def test_beside_all_layers_there_are_no_others() -> None:
    with pytest.raises(ConfigError, match="all 3 layers are kept"):
        surgery.other_layers(3, (1, 2, 3))
