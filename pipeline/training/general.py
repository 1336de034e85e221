"""General distillation: the teacher's base, cut to a student's depth, learns to read the corpus as the whole base does.

It comes before the distillation of the ranker, as the first of two stages. The student sees texts with masked tokens
and learns three things at once: the masked tokens, what the base guesses there, and the base's states of all tokens.
A base without a head for masked tokens teaches by its states alone.

Source: Sanh et al., DistilBERT, arXiv:1910.01108; the two stages are those of Jiao et al., TinyBERT, arXiv:1909.10351.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.artifacts import Artifact, Staging
from pipeline.config import LoopConfig, PretrainConfig
from pipeline.models import base_models, surgery
from pipeline.recipe import to_dict
from pipeline.stage import Stage
from pipeline.training.loop import batches, scoring
from pipeline.training.loop.loop import autocast, train
from pipeline.training.losses import token_distillation
from pipeline.training.pretrain import read_corpus
from pipeline.training.tasks.masked_lm import (
    MEASURE_SEED,
    MaskedBatch,
    MaskedChunk,
    MaskedCorpus,
    MaskedTask,
)
from pipeline.training.tasks.masked_model import MaskedModel

STAGE = Stage(
    "pretrained",
    version=1,
    inputs={"data": "data", "base": "pretrained"},
    section="ranker",
    title="general distillation",
)

MASKED_WEIGHT, SOFT_WEIGHT, COSINE_WEIGHT, TEMPERATURE = 2.0, 5.0, 1.0, 2.0
"""Weights of the three losses and the temperature of the second, as published with DistilBERT."""


@STAGE
def make(
    workspace: Path, config: PretrainConfig, keep: Sequence[int], tokens: int, *, data: Artifact, base: Artifact | str
) -> Artifact:
    """The `pretrained` artifact of a student's start: `model/`, an encoder of the layers `keep` and its tokenizer.

    The metrics tell how well held-out documents are read, before and after: `cosine` of its states to the base's, and
    `masked_loss` (nats a token) where the base has a head for masked tokens.

    Args:
        workspace: the folder that holds `artifacts/`.
        config: the section `pretrain`; its loop is bounded by `tokens`.
        keep: layers of the base, from 1.
        tokens: real tokens to learn from.
        data: documents and training queries.
        base: the model that the teacher started from.

    Raises:
        MissingError: the base model cannot be had.
        ConfigError: it is no encoder that can guess masked tokens, or has too few positions.
        TrainingError: no text to learn from, or the loss is not a number.
    """
    loop = loop_of(config, tokens)
    config = dataclasses.replace(config, loop=loop)

    start = base_models.StartingModel.of(base)

    def build(staging: Staging) -> Mapping[str, Any]:
        with start.opened(staging) as folder:
            return learn(staging, folder)

    def learn(staging: Staging, folder: Path) -> Mapping[str, Any]:
        base_model = MaskedModel.start(folder, config)
        student = MaskedModel(surgery.keep_layers(base_model.model, keep), base_model.hub_tokenizer, base_model.base)
        student.own_head = base_model.own_head
        task = GeneralTask(
            student.to(scoring.device()), base_model.to(scoring.device()), read_corpus(data, loop.seed), config
        )
        before = task.held_out_terms()
        progress = train(
            student, task, loop, label="general distillation", checkpoint=staging.checkpoint, began=staging.began
        )
        after = task.held_out_terms()
        student.save(staging.folder / "model", keep)
        terms = {f"{name} before": round(value, 4) for name, value in before.items()}
        terms |= {name: round(value, 4) for name, value in after.items()}
        return {"keep_layers": list(keep), **terms, **progress.metrics("likeness", task.unit)}

    settings = {name: value for name, value in to_dict(config).items() if name not in ("enabled", "scratch")}
    return STAGE.make(
        workspace,
        config={"general": True, "keep_layers": list(keep), **settings},
        inputs={"data": data, "base": start.input},
        build=build,
    )


def loop_of(config: PretrainConfig, tokens: int) -> LoopConfig:
    """The loop of `pretrain`, bounded by this number of tokens in place of its own bounds."""
    return dataclasses.replace(config.loop, max_tokens=tokens, max_seconds=0.0)


class GeneralTask(MaskedTask):
    """Masked texts that a student and the whole base read side by side."""

    def __init__(
        self, student: MaskedModel, base_model: MaskedModel, corpus: MaskedCorpus, config: PretrainConfig
    ) -> None:
        """
        Args:
            student: learns.
            base_model: teaches; is not trained.
            corpus: the texts.
            config: mask share, length and loop.
        """
        super().__init__(student, corpus, config)
        self.base_model = base_model.eval().requires_grad_(False)

    def loss(self, chunk: MaskedChunk) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum of the terms, and each by itself; means over the masked or real tokens of the step."""
        groups = batches.length_groups(self.lengths[chunk.examples])
        drawn = [self.masked_batch(chunk.examples[group], chunk.starts[group]) for group in groups]
        terms = self.terms(drawn, masked=chunk.masked, tokens=chunk.tokens)
        weights = {"masked_loss": MASKED_WEIGHT, "soft": SOFT_WEIGHT, "cosine": COSINE_WEIGHT}
        total = sum((weights[name] * value for name, value in terms.items()), torch.zeros((), device=self.device))
        return total, terms

    def terms(self, drawn: Sequence[MaskedBatch], *, masked: int, tokens: int) -> dict[str, Tensor]:
        """The losses by name; `cosine` is one minus the cosine.

        Args:
            drawn: texts with masked tokens.
            masked, tokens: numbers of masked and of real tokens that the sums are divided by.
        """
        together = not self.config.loop.checkpoint_activations
        shown = [batch.shown for batch in drawn]
        real = torch.cat([batch.attention_mask.flatten() for batch in shown]).bool()
        ours = self.model.states(shown, together=together)  # (all tokens, hidden)
        with torch.no_grad():
            theirs = self.base_model.states(shown)
        terms = {"cosine": token_distillation.cosine_loss(ours[None], theirs[None], real[None], total=tokens)}
        if self.base_model.own_head:
            chosen = torch.cat([batch.chosen.flatten() for batch in drawn])
            wanted = torch.cat([batch.wanted for batch in drawn])
            logits = self.model.guess(ours[chosen])  # (chosen, vocabulary)
            with torch.no_grad():
                target = self.base_model.guess(theirs[chosen])
            terms["masked_loss"] = F.cross_entropy(logits, wanted, reduction="sum") / masked
            terms["soft"] = token_distillation.soft_token_loss(logits, target, TEMPERATURE, total=masked)
        return terms

    def held_out_terms(self) -> dict[str, float]:
        """The terms on the beginnings of held-out documents, `cosine` as the cosine itself; the masks never change."""
        sums: dict[str, float] = {}
        was_training = self.model.training
        self.model.eval()
        masked = int(self.masked[self.held_out].sum())
        tokens = int(self.lengths[self.held_out].sum())
        with torch.no_grad(), autocast(self.config.loop.precision, self.device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(MEASURE_SEED)
            for rows in batches.scoring_batches(self.lengths[self.held_out], self.config.loop.chunk_tokens):
                examples = self.held_out[rows]
                batch = self.masked_batch(examples, np.zeros(len(examples), dtype=np.int64))
                for name, value in self.terms([batch], masked=masked, tokens=tokens).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        self.model.train(was_training)
        return {**sums, "cosine": 1 - sums["cosine"]}

    def evaluate(self) -> float:
        """The mean cosine of the student's states of held-out documents to the base's."""
        return self.held_out_terms()["cosine"]
