"""Trains a MobileBERT of the teacher's depth and width on what a study's ranker learned from, and prints both.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.mobile_student WORKSPACE OUT

MobileBERT, Sun et al. 2020, arXiv:2004.02984: layers as wide outside as the teacher's and a quarter of that inside,
four feed-forward networks in each, narrow token vectors that are read three at a time. It first learns the teacher's
states after each layer, on the pairs alone, where the paper does it on a large corpus and from a teacher that was
pre-trained for it. Token vectors start from the teacher's by SVD. The rest is in `other_networks`.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MobileBertConfig, MobileBertModel

from pipeline import schema
from pipeline.models.cross_encoder import CrossEncoder, Reading
from pipeline.training.loop import batches, pair_tokens
from pipeline.training.loop.batches import PaddedBatch
from pipeline.training.loop.pair_tokens import Pairs
from tests.benchmarks import other_networks
from tests.benchmarks.other_networks import OtherNetwork

NARROWER, FEED_FORWARD, HEADS = 4, 4, 4
"""Outer width of a layer by its inner one, and its feed-forward networks and heads; as published."""
TRANSFER_TOKENS, TRANSFER_RATE = 500_000, 1e-3
"""Tokens of pairs over which the states are learned, and the rate of that at its peak."""
BATCH = 48


class MobileBert(OtherNetwork):
    """MobileBERT with layers of the teacher's number and outer width."""

    EPOCHS = 3
    SEEDS = 1
    LOOP: ClassVar = {"learning_rate": 3e-4}
    SETTINGS: ClassVar = {"transfer": [TRANSFER_TOKENS, TRANSFER_RATE], "shape": [NARROWER, FEED_FORWARD, HEADS]}

    def __init__(self, teacher: CrossEncoder, score: float) -> None:
        """
        Args:
            teacher: a BERT; gives the sizes and the token vectors.
            score: the score of an untrained network.
        """
        super().__init__(teacher)
        known = teacher.model.config
        narrow = known.hidden_size // NARROWER
        config = MobileBertConfig(
            vocab_size=known.vocab_size,
            hidden_size=known.hidden_size,
            num_hidden_layers=known.num_hidden_layers,
            num_attention_heads=HEADS,
            intermediate_size=known.hidden_size,
            embedding_size=narrow,
            intra_bottleneck_size=narrow,
            num_feedforward_networks=FEED_FORWARD,
            max_position_embeddings=known.max_position_embeddings,
            normalization_type="layer_norm",
            attention_probs_dropout_prob=0.0,
        )
        self.model = MobileBertModel(config, add_pooling_layer=False)
        words = teacher.model.get_input_embeddings().weight.detach()
        directions = torch.linalg.svd(words, full_matrices=False).Vh[:narrow]
        with torch.no_grad():
            table = self.model.embeddings.word_embeddings.weight
            table.copy_(words @ directions.T)
            table[config.pad_token_id] = 0  # Padding reads as the end of a text does.
            middle = self.model.embeddings.embedding_transformation.weight[:, narrow : 2 * narrow]
            middle.copy_(directions.T)
            for name in ("position_embeddings", "token_type_embeddings"):
                getattr(self.model.embeddings, name).weight.copy_(
                    getattr(teacher.model.base_model.embeddings, name).weight
                )
        self.score = nn.Linear(known.hidden_size, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.constant_(self.score.bias, score)

    @classmethod
    def started(cls, teacher: CrossEncoder, score: float, pairs: Pairs) -> OtherNetwork:
        network = cls(teacher, score)
        learn_states(network, teacher.eval(), pairs)
        return network

    @property
    def hidden(self) -> int:
        return int(self.model.config.hidden_size)

    def states(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """(batch, tokens, hidden) each: the embeddings, then the states after each layer."""
        read: tuple[Tensor, ...] = self.model(
            input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
        return read

    def read(self, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor, **_states: Any) -> Reading:
        assert token_type_ids is not None
        last = self.states(input_ids, token_type_ids, attention_mask)[-1]
        scores = self.score(last[:, 0])[:, 0]
        return Reading(scores, scores.new_empty(len(scores), 0, self.hidden), {})


def batches_of(pairs: Pairs, teacher: CrossEncoder) -> Iterator[PaddedBatch]:
    """Batches of pairs of like length in a random order, again and again."""
    draw = np.random.default_rng(13)
    lengths = pair_tokens.pair_lengths(pairs, teacher.template)
    learned = np.flatnonzero(np.isin(pairs.split, ("train", schema.UNLABELLED)))
    while True:
        order = learned[np.argsort(lengths[learned] + draw.random(len(learned)), kind="stable")]
        starts = draw.permutation(np.arange(0, len(order), BATCH))
        for start in starts:
            rows = order[start : start + BATCH]
            yield batches.pad(batches.pair_inputs(pairs, rows, teacher.template), torch.device("cpu"))


def learn_states(network: MobileBert, teacher: CrossEncoder, pairs: Pairs) -> None:
    """Sets the network's states near the teacher's after each layer, by their mean squared differences."""
    layers = range(network.model.config.num_hidden_layers + 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=TRANSFER_RATE)
    read, step = 0, 0
    for batch in batches_of(pairs, teacher):
        for group in optimizer.param_groups:
            group["lr"] = TRANSFER_RATE * min(1, (step + 1) / 100, 1.05 - read / TRANSFER_TOKENS)
        with torch.no_grad():
            goals = teacher.read(*batch.all, token_layers=tuple(layers), score=False).token_states
        states = network.states(*batch.all)
        real = batch.attention_mask.bool()
        loss = torch.stack([F.mse_loss(states[layer][real], goals[layer][real]) for layer in layers]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        read, step = read + int(real.sum()), step + 1
        if step % 100 == 1 or read >= TRANSFER_TOKENS:
            share = loss.item() / torch.stack([goals[layer][real].square().mean() for layer in layers]).mean().item()
            print(f"{read:,} tokens: mean squared difference {share:.3f} of the states' own", flush=True)
        if read >= TRANSFER_TOKENS:
            return


if __name__ == "__main__":
    other_networks.main(__doc__, {"MobileBERT": MobileBert})
