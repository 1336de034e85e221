"""Trains two networks without attention on what a study's ranker learned from, and prints them beside it as a table.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.simple_networks WORKSPACE OUT

    feed-forward   mean token vectors of query and document, three layers: BERT2DNN, Jiang et al. 2020, arXiv:2010.10442
    BiLSTM         one layer over each text, one hidden layer: Distilled BiLSTM, Tang et al. 2019, arXiv:1903.12136

The rest is in `other_networks`.
"""

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.models.cross_encoder import CrossEncoder, Reading
from pipeline.training.loop.pair_tokens import Pairs
from tests.benchmarks import other_networks
from tests.benchmarks.other_networks import OtherNetwork

DROPOUT = 0.2


class SimpleRanker(OtherNetwork):
    """A network without attention.

    The segment of the query and that of the document become a vector each; the score is read from the two vectors,
    their product and their absolute difference. Token vectors start from the teacher's, scaled to unit deviation.
    """

    LOOP: ClassVar = {"learning_rate": 1e-3, "tokens_per_batch": 8192}
    """A rate for networks that start untrained, and larger steps, as each step updates the whole table of vectors."""
    SETTINGS: ClassVar = {"dropout": DROPOUT}
    WIDTH = 0
    """Width of a text's vector; 0 for that of the token vectors."""
    LAYERS: tuple[int, ...]
    """Widths of the hidden layers."""

    def __init__(self, teacher: CrossEncoder, score: float) -> None:
        """
        Args:
            teacher: gives token vectors, thresholds, tokenizer and template.
            score: the score of an untrained network.
        """
        super().__init__(teacher)
        table = teacher.model.get_input_embeddings().weight.detach()
        self.words = nn.Embedding.from_pretrained(table / table.std(), freeze=False)
        sizes = [4 * (self.WIDTH or table.shape[1]), *self.LAYERS]
        layers = [(nn.Linear(*both), nn.ReLU()) for both in itertools.pairwise(sizes)]
        last = nn.Linear(sizes[-1], 1)
        nn.init.constant_(last.bias, score)
        self.score = nn.Sequential(nn.Dropout(DROPOUT), *itertools.chain(*layers), last)

    @classmethod
    def started(cls, teacher: CrossEncoder, score: float, pairs: Pairs) -> OtherNetwork:
        return cls(teacher, score)

    def vectors(self, ids: Tensor, query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, width) each, from ids (batch, tokens) and which of them are of the query and of the document."""
        raise NotImplementedError

    @property
    def hidden(self) -> int:
        return self.words.embedding_dim

    def read(self, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor, **_states: Any) -> Reading:
        assert token_type_ids is not None
        real, in_document = attention_mask > 0, token_type_ids == self.template.document_type
        first, second = self.vectors(input_ids, real & ~in_document, real & in_document)
        compared = torch.cat([first, second, first * second, (first - second).abs()], dim=1)  # (batch, 4 · width)
        scores = self.score(compared)[:, 0]
        return Reading(scores, scores.new_empty(len(scores), 0, self.hidden), {})


class FeedForward(SimpleRanker):
    """Mean token vectors and three layers, in the manner of BERT2DNN."""

    EPOCHS = 8
    LAYERS = (256, 128)

    def vectors(self, ids: Tensor, query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
        words = self.words(ids)  # (batch, tokens, embedding)
        of_query, of_document = (
            (words * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True) for kept in (query.float(), document.float())
        )
        return of_query, of_document


class BiLSTM(SimpleRanker):
    """The siamese Distilled BiLSTM: last states of both directions, concatenate-compare, one hidden layer."""

    EPOCHS = 4
    WIDTH = 300
    LAYERS = (200,)

    def __init__(self, teacher: CrossEncoder, score: float) -> None:
        super().__init__(teacher, score)
        self.lstm = nn.LSTM(self.hidden, self.WIDTH // 2, batch_first=True, bidirectional=True)

    def vectors(self, ids: Tensor, query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
        texts = [ids[row][kept[row]] for kept in (query, document) for row in range(len(ids))]
        if len(ids) == 1:  # As exported: two texts at their exact length.
            states = torch.cat([self.lstm(self.words(text[None]))[1][0] for text in texts], dim=1)
        else:
            states = self._states(texts)
        both = states.transpose(0, 1).flatten(1)
        return both[: len(ids)], both[len(ids) :]

    def _states(self, texts: Sequence[Tensor]) -> Tensor:
        """(directions, texts, units); a text that occurs twice, as a query does, is read once."""
        keys = [tuple(text.tolist()) for text in texts]
        first = {key: number for number, key in reversed(list(enumerate(keys)))}
        order = {number: row for row, number in enumerate(first.values())}
        distinct = [texts[number] for number in order]
        lengths = torch.tensor([len(text) for text in distinct])
        words = self.words(nn.utils.rnn.pad_sequence(distinct, batch_first=True))
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states: Tensor = self.lstm(packed)[1][0]
        return states[:, [order[first[key]] for key in keys]]


if __name__ == "__main__":
    other_networks.main(__doc__, {"feed-forward": FeedForward, "BiLSTM": BiLSTM})
