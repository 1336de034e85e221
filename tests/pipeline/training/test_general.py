"""General distillation: a student's layers come nearer to the base that they were cut from, on masked texts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertForMaskedLM

from pipeline.config import LoopConfig, PretrainConfig, RankerConfig
from pipeline.errors import ConfigError
from pipeline.models import base_models, tokenizers
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import general, ranker, ranker_shape
from pipeline.training.losses import token_distillation
from pipeline.training.pretrain import read_corpus
from pipeline.training.tasks.masked_model import MaskedModel

CONFIG = PretrainConfig(
    max_tokens=40, loop=LoopConfig(learning_rate=2e-3, tokens_per_batch=256, evaluations=2, precision="fp32")
)
TOKENS = 12_000


def base_with_head(untrained: Any, folder: Path) -> Path:
    """A base of four layers with a head for masked tokens, and the world's tokenizer."""
    tokenizer = tokenizers.load_tokenizer(untrained.ranker.path / "model")
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.2, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_student_learns_to_read_as_the_base_does(untrained: Any, tmp_path: Path) -> None:
    base = base_with_head(untrained, tmp_path / "base")
    student = general.make(tmp_path, CONFIG, (2, 4), TOKENS, data=untrained.data, base=str(base))
    metrics = student.metrics
    assert metrics["cosine"] > metrics["cosine before"] + 0.02
    assert metrics["soft"] < metrics["soft before"]
    assert set(metrics["history"][-1]) == {"step", "loss", "cosine", "masked_loss", "soft"}
    assert abs(metrics["tokens"] - TOKENS) < 600
    body = AutoModel.from_pretrained(student.path / "model")
    base_model = AutoModel.from_pretrained(base)
    assert body.config.num_hidden_layers == 2
    assert not torch.equal(body.encoder.layer[0].output.dense.weight, base_model.encoder.layer[1].output.dense.weight)
    again = general.make(tmp_path, CONFIG, (1, 4), TOKENS, data=untrained.data, base=str(base))
    assert again.fingerprint != student.fingerprint


def test_a_base_without_a_head_teaches_by_its_states_alone(untrained: Any, tmp_path: Path) -> None:
    base = str(untrained.ranker.path / "model")
    student = general.make(tmp_path, CONFIG, (2,), TOKENS, data=untrained.data, base=base)
    assert set(student.metrics["history"][-1]) == {"step", "loss", "cosine"}
    assert student.metrics["cosine"] > student.metrics["cosine before"]


def test_the_terms_are_those_of_transformers_read_text_by_text(untrained: Any, tmp_path: Path) -> None:
    base = base_with_head(untrained, tmp_path / "base")
    base_model = MaskedModel.start(base, CONFIG).eval()
    student = MaskedModel.start(base, dataclasses.replace(CONFIG)).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    assert base_model.own_head
    task = general.GeneralTask(student, base_model, read_corpus(untrained.data, 13), CONFIG)
    chunk = task.plan(0)[0].chunks[0]
    torch.manual_seed(5)
    batch = task.masked_batch(chunk.examples, chunk.starts)
    with torch.no_grad():
        terms = task.terms([batch], masked=len(batch.wanted), tokens=int(batch.shown.attention_mask.sum()))
    cosines, cross, divergence, number = [], [], [], 0
    for row in range(len(batch.chosen)):
        length = int(batch.shown.attention_mask[row].sum())
        given = {
            "input_ids": batch.shown.input_ids[row : row + 1, :length],
            "token_type_ids": batch.shown.token_type_ids[row : row + 1, :length],
            "output_hidden_states": True,
        }
        with torch.no_grad():
            ours, theirs = student.model(**given), base_model.model(**given)
        states = ours.hidden_states[-1][0], theirs.hidden_states[-1][0]
        cosines += [1 - float(a @ b / a.norm() / b.norm()) for a, b in zip(*states, strict=True)]
        for token in batch.chosen[row, :length].nonzero().flatten().tolist():
            logits, target = ours.logits[0, token], theirs.logits[0, token]
            cross.append(-float(F.log_softmax(logits, 0)[batch.wanted[number]]))
            p, q = (F.softmax(each / general.TEMPERATURE, 0) for each in (target, logits))
            divergence.append(float((p * (p / q).log()).sum()) * general.TEMPERATURE**2)
            number += 1
    for name, values in (("cosine", cosines), ("masked_loss", cross), ("soft", divergence)):
        assert float(terms[name]) == pytest.approx(sum(values) / len(values), rel=1e-3), name


def test_soft_token_loss_is_nothing_between_equals_and_its_gradient_keeps_its_size() -> None:
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(1))
    assert float(token_distillation.soft_token_loss(logits, logits + 3.0, 2.0)) == pytest.approx(0.0, abs=1e-6)
    sizes = []
    for temperature in (20.0, 40.0):
        own = (logits * 0.01).requires_grad_()
        token_distillation.soft_token_loss(own, -logits * 0.01, temperature).backward()  # type: ignore[no-untyped-call]
        assert own.grad is not None
        sizes.append(float(own.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-2)


def test_a_ranker_starts_from_it(untrained: Any, tmp_path: Path) -> None:
    base = base_with_head(untrained, tmp_path / "base")
    pretrained = general.make(tmp_path, CONFIG, (2, 4), TOKENS, data=untrained.data, base=str(base))
    loop = LoopConfig(epochs=0.1, evaluations=0, learning_rate=1e-9)
    config = RankerConfig(base="base", layers=2, general_tokens=TOKENS, loop=loop)
    student = ranker.make(
        tmp_path,
        config,
        _candidates(),
        data=untrained.data,
        pairs=untrained.pairs,
        teacher=untrained.ranker,
        teacher_scores=None,
        base=pretrained,
    )
    body = AutoModel.from_pretrained(pretrained.path / "model")
    model: Any = CrossEncoder.load(student.path).model
    for ours, theirs in zip(model.base_model.encoder.layer, body.encoder.layer, strict=True):
        assert torch.allclose(ours.output.dense.weight, theirs.output.dense.weight, atol=1e-6)


def _candidates() -> Any:
    from pipeline.config import CandidatesConfig

    return CandidatesConfig()


def test_where_there_is_nothing_to_learn_it_is_refused(untrained: Any) -> None:
    shape = base_models.shape(untrained.ranker.path / "model")
    with pytest.raises(ConfigError, match=r"ranker\.general_tokens is 5: .* ranker\.base is teacher; set it to base"):
        RankerConfig(general_tokens=5)
    config = RankerConfig(base="base", general_tokens=5, layers=2, hidden_weight=0.0)
    with pytest.raises(ConfigError, match=r"ranker\.general_tokens: the student keeps all 2 layers"):
        ranker_shape.cut(config, shape, shape)
    ranker_shape.cut(dataclasses.replace(config, layers=1), shape, shape)
