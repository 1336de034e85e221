"""The cross-encoder against transformers and sentence-transformers themselves, for two families."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from pipeline.errors import ArtifactError, ConfigError, ShapeError
from pipeline.models import base_models, tokenizers
from pipeline.models.cross_encoder import CrossEncoder

PAIRS = [
    ("steel angle", "twelve gauge"),
    ("deck", "one gallon of colour"),
    ("x", "Unseen ☃ 角 things"),
]


@pytest.fixture(params=["ranker", "roberta"])
def saved(request: pytest.FixtureRequest, untrained: Any) -> Path:
    folder: Path = getattr(untrained, request.param).path
    return folder


def inputs(model: CrossEncoder, query: str, document: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, types = model.template.assemble(
        *(model.tokenizer.encode(text, add_special_tokens=False).ids for text in (query, document))
    )
    return torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids), dtype=torch.long)


def score(model: CrossEncoder, query: str, document: str) -> float:
    with torch.no_grad():
        return model(*inputs(model, query, document)).item()


@pytest.mark.parametrize(("query", "document"), PAIRS)
def test_inputs_are_those_of_the_hub_tokenizer(saved: Path, query: str, document: str) -> None:
    model = CrossEncoder.load(saved)
    theirs = AutoTokenizer.from_pretrained(saved / "model")(query, document)
    ids, types, _ = inputs(model, query, document)
    assert ids[0].tolist() == theirs["input_ids"]
    if model.segments:
        assert types[0].tolist() == theirs["token_type_ids"]


def test_only_a_model_with_segments_reads_them(untrained: Any) -> None:
    assert CrossEncoder.load(untrained.ranker.path).segments
    roberta = CrossEncoder.load(untrained.roberta.path)
    assert not roberta.segments
    assert (roberta.template.query_type, roberta.template.document_type) == (0, 0)


@pytest.mark.parametrize(("query", "document"), PAIRS)
def test_the_saved_folder_gives_the_same_number_in_transformers(saved: Path, query: str, document: str) -> None:
    with base_models.quiet():
        theirs = AutoModelForSequenceClassification.from_pretrained(saved / "model")
    encoded = AutoTokenizer.from_pretrained(saved / "model")(query, document, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**encoded).logits.item()
    assert score(CrossEncoder.load(saved), query, document) == pytest.approx(expected, abs=1e-5)


def test_sentence_transformers_gives_the_raw_score(saved: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Not ours: what that package says on import.
        library = pytest.importorskip("sentence_transformers")
        with base_models.quiet():
            theirs = library.CrossEncoder(str(saved / "model"), device="cpu").predict(PAIRS, show_progress_bar=False)
    model = CrossEncoder.load(saved)
    assert theirs == pytest.approx([score(model, *pair) for pair in PAIRS], abs=1e-5)


@pytest.mark.parametrize(("max_tokens", "max_query_tokens"), [(48, 24), (47, 24), (32, 8), (40, 30)])
def test_sentence_transformers_cuts_alike_up_to_the_stated_query(
    saved: Path, tmp_path: Path, max_tokens: int, max_query_tokens: int
) -> None:
    """The statement of the model card, over query lengths on both sides of the bound and documents of all lengths."""
    start = {"thresholds": [0.0], "max_tokens": max_tokens, "max_query_tokens": max_query_tokens, "seed": 0}
    model = CrossEncoder.start(saved / "model", **start).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        model.head.weight.mul_(50)  # so that one token more or less shows in the score
    model.save(tmp_path)
    template = model.template
    room = max_tokens - template.special_tokens
    word = next(word for word in ("a", "x") if len(model.tokenizer.encode(word, add_special_tokens=False).ids) == 1)
    other = next(
        word for word in ("b", "c", "5") if len(model.tokenizer.encode(word, add_special_tokens=False).ids) == 1
    )
    near = range(max(1, template.shared_query_tokens - 3), max_query_tokens + 4)
    pairs = [
        (query, document)
        for query in near
        for document in sorted({1, room - query - 1, room - query, room - query + 1, room // 2, room, 3 * room})
        if document > 0
    ]
    texts = [(" ".join([word] * query), " ".join([other] * document)) for query, document in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sentence-transformers warns on import
        library = pytest.importorskip("sentence_transformers")
        with base_models.quiet():
            theirs = library.CrossEncoder(str(tmp_path / "model"), device="cpu").predict(texts, show_progress_bar=False)
    ours = [score(model, *each) for each in texts]
    same = [abs(mine - other_score) < 1e-4 for mine, other_score in zip(ours, theirs.tolist(), strict=True)]
    promised = [
        query <= template.shared_query_tokens or (query <= max_query_tokens and query + document <= room)
        for query, document in pairs
    ]
    assert all(equal for equal, due in zip(same, promised, strict=True) if due)
    longer = [equal for equal, (query, document) in zip(same, pairs, strict=True) if query > max_query_tokens]
    assert not all(longer), "beyond the bound the two differ, so the promise says something"


def test_padding_does_not_move_a_score(saved: Path) -> None:
    model = CrossEncoder.load(saved)
    ids, types, mask = inputs(model, *PAIRS[0])
    wide = [torch.nn.functional.pad(part, (0, 9)) for part in (ids, types, mask)]
    with torch.no_grad():
        assert model(*wide).item() == pytest.approx(model(ids, types, mask).item(), abs=1e-5)


def test_saved_and_loaded_are_one(saved: Path, tmp_path: Path) -> None:
    first = CrossEncoder.load(saved)
    first.save(tmp_path)
    second = CrossEncoder.load(tmp_path)
    assert second.template == first.template
    assert torch.allclose(second.thresholds, first.thresholds, atol=1e-6)
    assert score(second, *PAIRS[1]) == score(first, *PAIRS[1])


def test_thresholds_ascend_about_zero_and_the_bias_takes_their_mean(saved: Path) -> None:
    model = CrossEncoder.start(saved / "model", thresholds=[-3.0, -1.0, 2.5], max_tokens=32, max_query_tokens=8, seed=0)
    assert model.thresholds.tolist() == pytest.approx([-2.5, -0.5, 3.0], abs=1e-5)
    assert model.head.bias.item() == pytest.approx(0.5)
    with torch.no_grad():
        model.gaps.fill_(-20)  # However far training pushes, they stay in order.
    assert (model.thresholds.diff() > 0).all()


def test_one_threshold_stands_at_zero(saved: Path) -> None:
    model = CrossEncoder.start(saved / "model", thresholds=[0.7], max_tokens=32, max_query_tokens=8, seed=0)
    assert model.thresholds.tolist() == [0.0]
    assert model.head.bias.item() == pytest.approx(-0.7)


def test_thresholds_out_of_order_are_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match="strictly ascending"):
        CrossEncoder.start(saved / "model", thresholds=[1.0, 1.0], max_tokens=32, max_query_tokens=8, seed=0)


def test_what_the_base_lacks_is_fresh_and_made_by_the_seed(saved: Path, tmp_path: Path) -> None:
    body = CrossEncoder.load(saved).model.base_model
    body.save_pretrained(tmp_path)
    CrossEncoder.load(saved).hub_tokenizer.save_pretrained(tmp_path)

    def start(seed: int) -> CrossEncoder:
        return CrossEncoder.start(tmp_path, thresholds=[0.0], max_tokens=32, max_query_tokens=8, seed=seed)

    first, second, third = start(1), start(1), start(2)
    assert "gaps" in first.fresh
    assert any(name.startswith("model.classifier") for name in first.fresh)
    assert not any("encoder" in name or "embeddings" in name for name in first.fresh)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, third.head.weight)


def test_states_are_the_first_tokens_hidden_states(saved: Path) -> None:
    model = CrossEncoder.load(saved)
    ids, types, mask = inputs(model, *PAIRS[1])
    extra = {"token_type_ids": types} if model.segments else {}
    with torch.no_grad():
        reading = model.read(ids, types, mask, first=(2, 1))
        scores, states = reading.scores, reading.first
        output = model.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, **extra)
    # The last layer is computed for the first token only, so the sums have another order.
    assert torch.allclose(scores, output.logits[:, 0], atol=1e-5)
    assert torch.allclose(states[:, 0], output.hidden_states[2][:, 0], atol=1e-5)
    assert torch.allclose(states[:, 1], output.hidden_states[1][:, 0], atol=1e-5)
    with pytest.raises(ShapeError, match=r"layers \(3,\).*layers 1 to 2"):
        model.read(ids, types, mask, first=(3,))


@pytest.mark.parametrize(("part", "room"), [("ranker", 64), ("roberta", 62)])
def test_inputs_longer_than_the_positions_are_refused(untrained: Any, part: str, room: int) -> None:
    """RoBERTa's positions start after the padding id 1, so two of 64 cannot be used."""
    base = getattr(untrained, part).path / "model"
    fits = CrossEncoder.start(base, thresholds=[0.0], max_tokens=room, max_query_tokens=8, seed=0)
    ids = torch.full((1, room), 7)
    with torch.no_grad():
        assert fits(ids, torch.zeros_like(ids), torch.ones_like(ids)).isfinite().all()
    with pytest.raises(ConfigError, match=f"has {room} positions"):
        CrossEncoder.start(base, thresholds=[0.0], max_tokens=room + 1, max_query_tokens=8, seed=0)


def test_a_model_that_is_no_encoder_is_named(untrained: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ConfigError, match="a clip model; take an encoder"):
        CrossEncoder.start(tmp_path, thresholds=[0.0], max_tokens=32, max_query_tokens=8, seed=0)


@pytest.mark.parametrize("model_type", ["clip", "vit", "whisper", "made-up"])
def test_an_unknown_family_is_named_wherever_a_folder_is_read(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for read in (base_models.shape, base_models.family, tokenizers.load_tokenizer):
        with pytest.raises(ConfigError, match=f"a {model_type} model; take an encoder of the kinds bert, roberta"):
            read(tmp_path)


@pytest.mark.parametrize("labels", [2, 3])
def test_a_head_of_several_labels_is_refused_with_the_way_out(untrained: Any, tmp_path: Path, labels: int) -> None:
    base = untrained.ranker.path / "model"
    config = AutoConfig.from_pretrained(base, num_labels=labels)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, tmp_path / "model" / name)
    shutil.copyfile(untrained.ranker.path / "head.json", tmp_path / "head.json")
    with pytest.raises(ConfigError, match=f"gives {labels} labels .*AutoModel.from_pretrained"):
        CrossEncoder.start(tmp_path / "model", thresholds=[0.0], max_tokens=32, max_query_tokens=8, seed=0)
    with pytest.raises(ConfigError, match=f"gives {labels} labels"):
        CrossEncoder.load(tmp_path)
    body = AutoModel.from_pretrained(tmp_path / "model")
    body.save_pretrained(tmp_path / "body")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, tmp_path / "body" / name)
    CrossEncoder.start(tmp_path / "body", thresholds=[0.0], max_tokens=32, max_query_tokens=8, seed=0)


def test_a_damaged_head_is_named(untrained: Any, tmp_path: Path) -> None:
    CrossEncoder.load(untrained.ranker.path).save(tmp_path)
    (tmp_path / "head.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"head\.json: not readable"):
        CrossEncoder.load(tmp_path)


@pytest.mark.parametrize("thresholds", ["[0.0, NaN]", "[0.0, Infinity]", "[1.0, 0.5]", "[0.5, 0.5]", '["0.5"]', "0.5"])
def test_thresholds_that_are_not_finite_and_ascending_are_refused(
    untrained: Any, tmp_path: Path, thresholds: str
) -> None:
    CrossEncoder.load(untrained.ranker.path).save(tmp_path)
    head = (tmp_path / "head.json").read_text(encoding="utf-8")
    (tmp_path / "head.json").write_text(re.sub(r'"thresholds": \[[^]]*\]', f'"thresholds": {thresholds}', head))
    with pytest.raises(ArtifactError, match=r"head\.json: not readable .*not finite, ascending numbers"):
        CrossEncoder.load(tmp_path)


def test_a_byte_order_mark_in_a_models_config_is_dropped(untrained: Any, tmp_path: Path) -> None:
    shutil.copytree(untrained.ranker.path / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert base_models.model_type(tmp_path / "model") == "bert"
    assert base_models.shape(tmp_path / "model") == replace(
        base_models.shape(untrained.ranker.path / "model"), tokenizer=tmp_path / "model"
    )


def test_the_gradient_is_that_of_the_whole_model(saved: Path) -> None:
    """Though the last layer is computed for one token only; a padded batch of two."""
    model = CrossEncoder.load(saved)
    rows = [inputs(model, *pair) for pair in PAIRS[:2]]
    width = max(ids.shape[1] for ids, _, _ in rows)
    ids, types, mask = (
        torch.cat([torch.nn.functional.pad(row[part], (0, width - row[part].shape[1])) for row in rows])
        for part in range(3)
    )
    extra = {"token_type_ids": types} if model.segments else {}
    model(ids, types, mask).square().sum().backward()
    ours = {name: value.grad.clone() for name, value in model.model.named_parameters() if value.grad is not None}
    model.zero_grad()
    model.model(input_ids=ids, attention_mask=mask, **extra).logits.square().sum().backward()
    theirs = {name: value.grad for name, value in model.model.named_parameters() if value.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=1e-5 * (1 + float(gradient.abs().max()))), name
