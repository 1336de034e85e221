"""Every family gives what transformers gives, layer by layer, packed, cut, and read again from its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pipeline.errors import ConfigError
from pipeline.models import base_models, packed, ready_made, surgery
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.families import FAMILIES, OwnForward
from pipeline.training.loop import memory
from tests.small_models import VARIANTS

Bases = Callable[[str], Path]


def start(base_of: Bases, variant: str, max_tokens: int = 64) -> CrossEncoder:
    base = base_of(variant)
    options: dict[str, Any] = {"max_tokens": max_tokens, "max_query_tokens": 12, "seed": 1}
    return CrossEncoder.start(base, thresholds=[-0.5, 0.5], **options).eval()


def batch(rows: int, tokens: int, seed: int, pad: int = 0) -> packed.Inputs:
    """Random ids of unlike length, padded at the end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 20, (rows, tokens), generator=generator)
    ids[:, 0] = 2
    types = (torch.arange(tokens) > tokens // 3).long().expand(rows, tokens).clone()
    lengths = torch.randint(tokens // 2, tokens + 1, (rows,), generator=generator)
    lengths[0] = tokens
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return torch.where(mask.bool(), ids, pad), types * mask, mask


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_and_states_are_those_of_transformers(base_of: Bases, variant: str, kind: str, tmp_path: Path) -> None:
    model = start(base_of, variant)
    pad = int(getattr(model.model.config, "pad_token_id", 0) or 0)
    ids, types, mask = batch(5, 30, 3, pad=1 if variant == "mpnet" else pad)
    model.save(tmp_path)
    hub = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    given = {"token_type_ids": types} if model.segments else {}
    if "deberta" not in variant:
        model.model.set_attn_implementation(kind)
    with torch.no_grad():
        expected = hub(input_ids=ids, attention_mask=mask, output_hidden_states=True, **given)
        reading = model.read(ids, types, mask, first=(1, 2, 3, 4), token_layers=(0, 2))
    states = expected.hidden_states
    assert torch.allclose(reading.scores, expected.logits[:, 0], atol=2e-5)
    assert expected.logits.std() > 1e-3
    for layer in (1, 2, 3):
        assert torch.allclose(reading.first[:, layer - 1], states[layer][:, 0], atol=2e-5), layer
    real = mask.bool()
    for layer in (0, 2):
        assert torch.allclose(reading.token_states[layer][real], states[layer][real], atol=2e-5), layer


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_read_together_are_each_read_alone(base_of: Bases, variant: str, kind: str) -> None:
    model = start(base_of, variant)
    if "deberta" not in variant:
        model.model.set_attn_implementation(kind)
    inputs = [batch(3, 30, 1), batch(2, 17, 2), batch(1, 9, 3)]
    weights = torch.linspace(-1, 1, 6)

    def learn(scores: Tensor, states: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        ((scores * weights).sum() + (states * weights[:, None, None]).sum()).backward()  # type: ignore[no-untyped-call]
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    alone = [model.read(*padded, first=(3, 1)) for padded in inputs]
    scores, states = torch.cat([reading.scores for reading in alone]), torch.cat([reading.first for reading in alone])
    together = model.read_together(inputs, first=(3, 1))
    assert torch.allclose(together.scores, scores, atol=2e-5)
    assert torch.allclose(together.first, states, atol=2e-5)
    expected, got = learn(scores, states), learn(together.scores, together.first)
    assert set(expected) == set(got)
    for name, value in expected.items():
        assert torch.allclose(value, got[name], atol=1e-4 * max(1.0, float(value.abs().max()))), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_score_does_not_depend_on_padding(base_of: Bases, variant: str) -> None:
    model = start(base_of, variant)
    ids, types, mask = batch(4, 30, 3)
    with torch.no_grad():
        padded = model(ids, types, mask)
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = model(*(each[row : row + 1, :length] for each in (ids, types, mask)))
            assert torch.allclose(alone, padded[row : row + 1], atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_whole_layer_from_its_parts_is_the_layer(base_of: Bases, variant: str) -> None:
    model = start(base_of, variant)
    _, _, mask = batch(3, 20, 4)
    hidden = torch.randn(3, 20, model.hidden, generator=torch.Generator().manual_seed(2))
    body, added = model.model.base_model, packed.padding(mask, hidden.dtype)
    for number in range(1, model.layers + 1):
        with torch.no_grad():
            output = model.family.run_layer(body, number, hidden, added)
            parts = packed.whole_layer(model.family, body, number, hidden, added)
        assert torch.allclose(output[mask.bool()], parts[mask.bool()], atol=2e-5), number


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_model_runs_its_layers_and_opens_again(base_of: Bases, variant: str, tmp_path: Path) -> None:
    model = start(base_of, variant)
    student = surgery.student(model, (2, 4)).eval()
    assert student.layers == 2
    student.save(tmp_path)
    again = CrossEncoder.load(tmp_path)
    inputs = batch(4, 25, 6)
    with torch.no_grad():
        scores = student(*inputs)
        assert torch.equal(again(*inputs), scores)
        assert not torch.allclose(model(*inputs), scores, atol=1e-3)
        kept = surgery.student(model, (1, 2, 3, 4)).eval()
        assert torch.equal(kept(*inputs), model(*inputs))


def test_a_modernbert_without_its_first_layer_keeps_the_scales_of_the_next(base_of: Bases) -> None:
    model = start(base_of, "modernbert")
    hidden = torch.nn.functional.layer_norm(torch.randn(2, 9, model.hidden), (model.hidden,))
    expected = model.family.attention(model.model.base_model, 2)
    cut = surgery.student(model, (2, 4)).family.attention(surgery.student(model, (2, 4)).model.base_model, 1)
    with torch.no_grad():
        for ours, theirs in ((cut.query, expected.query), (cut.value, expected.value)):
            assert torch.allclose(ours(cut.norm(hidden)), theirs(expected.norm(hidden)), atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_that_run_again_give_the_same_gradients(base_of: Bases, variant: str) -> None:
    model = start(base_of, variant).train()
    inputs = batch(3, 20, 7)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(*inputs).sum().backward()
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    plain = gradients()
    with memory.recomputed(model):
        again = gradients()
    assert set(plain) == set(again)
    assert all(torch.allclose(value, again[name], atol=1e-5) for name, value in plain.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_encoder_starts_saves_and_opens(base_of: Bases, variant: str, tmp_path: Path) -> None:
    base = base_of(variant)
    encoder = BiEncoder.start(base, dimensions=8, max_tokens=40, max_query_tokens=12, seed=2).eval()
    encoder.save(tmp_path)
    ids, _, mask = batch(3, 20, 8, pad=1 if variant == "mpnet" else 0)
    with torch.no_grad():
        vectors = encoder(ids, mask)
        assert torch.allclose(BiEncoder.load(tmp_path)(ids, mask), vectors, atol=1e-6)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    text = "redshoe oldlamp bluecar"
    own_ids = torch.tensor([encoder.document_template.assemble(encoder.tokenizer.encode(text).ids[1:-1])])
    with torch.no_grad():
        expected = encoder(own_ids, torch.ones_like(own_ids))[0]
    opened = SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    assert torch.allclose(torch.tensor(opened.encode(text, show_progress_bar=False)), expected, atol=1e-5)
    imported = ready_made.encoder(tmp_path / "model")
    with torch.no_grad():
        assert torch.allclose(imported(own_ids, torch.ones_like(own_ids))[0], expected, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shape_is_read_from_the_config_alone(base_of: Bases, variant: str) -> None:
    shape = base_models.shape(base_of(variant))
    assert (shape.layers, shape.hidden, shape.heads, shape.intermediate) == (4, 32, 4, 48)
    assert shape.model_type == VARIANTS[variant][0]


def test_every_family_is_tried_here() -> None:
    tried = {model_type for model_type, _ in VARIANTS.values()}
    for family in FAMILIES:
        assert isinstance(family, OwnForward) or tried & set(family.model_types), family


@pytest.mark.parametrize("variant", ["modernbert", "nomic_bert", "eurobert"])
def test_gated_units_are_not_left_out_one_by_one(base_of: Bases, variant: str) -> None:
    model = start(base_of, variant)
    assert "narrow" not in model.family.offers
    with pytest.raises(ConfigError, match="gated"):
        model.family.feed_forward(model.family.layer(model.model.base_model, 1))
