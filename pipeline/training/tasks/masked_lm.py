"""Masked language modelling: the texts, the masks, and the task for the loop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import PretrainConfig
from pipeline.errors import TrainingError
from pipeline.models import tokenizers
from pipeline.text import counted
from pipeline.training.loop import batches, distributed, pair_tokens
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.loop import Step, autocast
from pipeline.training.loop.pair_tokens import Ragged
from pipeline.training.tasks.masked_model import MaskedModel

WINDOWS = 4
"""Maximum number of inputs that a long document is cut into; each epoch reads one of them."""

MIN_TOKENS = 3
"""A shorter text leaves nothing to guess a token from."""

MEASURE_SEED = 7
"""Seed of the masks of held-out documents, the same in every evaluation."""


@dataclass(frozen=True, slots=True)
class MaskedCorpus:
    """The texts of pre-training: documents and training queries."""

    documents: list[str]
    queries: list[str]
    """Training queries only."""
    pairs: Ints
    """(pairs, 2) numbers of a training query and of a document with a grade above 0."""
    held_out: Ints
    """Documents to measure on, ascending; neither they nor their pairs are learned from."""


@dataclass(frozen=True, slots=True)
class MaskedChunk:
    """Texts of one step, and what the whole step counts."""

    examples: Ints
    starts: Ints
    """(texts,) the token at which each document is read from."""
    masked: int
    tokens: int
    """Real tokens of the step, special ones included."""


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """Texts with masked tokens, padded to one width."""

    shown: batches.PaddedBatch
    chosen: Tensor
    """(texts, tokens); true for a token to guess."""
    wanted: Tensor
    """(chosen tokens,) their ids before the masking."""


@dataclass(frozen=True, slots=True)
class Guesses:
    """Loss and accuracy of the guesses of masked tokens."""

    loss: float
    accuracy: float


class MaskedTask:
    """Texts, masks and loss for the loop. An example is a document alone, or a query and a document of a pair."""

    unit = "texts"

    def __init__(self, model: MaskedModel, corpus: MaskedCorpus, config: PretrainConfig) -> None:
        """A new head's bias is set to the tokens' shares in the documents.

        Raises:
            TrainingError: no text is long enough to learn from.
        """
        self.model = model
        self.config = config
        self.device = next(model.parameters()).device
        tokenizer = model.hub_tokenizer
        plain = tokenizers.plain_tokenizer(tokenizer)
        limit = config.max_tokens
        self.pair = tokenizers.pair_template(tokenizer, model.model.config, limit, limit // 4)
        self.single = tokenizers.text_template(tokenizer, limit)
        self.queries: Ragged = pair_tokens.tokenise(plain, corpus.queries, limit, "tokenise queries")
        self.documents: Ragged = pair_tokens.tokenise(plain, corpus.documents, WINDOWS * limit, "tokenise documents")
        alone = np.stack([np.full(len(self.documents), -1), np.arange(len(self.documents))], axis=1)
        examples = np.concatenate([alone, corpus.pairs])
        self.query, self.document = examples.T
        """(examples,) numbers in `queries`, -1 for a document alone, and in `documents`."""
        self.content = self._content()
        kept = self.content >= MIN_TOKENS
        held_out = np.isin(self.document, corpus.held_out)
        self.train = np.flatnonzero(kept & ~held_out)
        self.held_out = np.flatnonzero(kept & held_out & (self.query < 0))
        if not len(self.train) or not len(self.held_out):
            raise TrainingError(
                f"pre-training: of {counted(len(alone), 'document')} too few are long enough to learn from"
            )
        special = set(tokenizer.all_special_ids)
        ordinary = [number for number in range(len(tokenizer)) if number not in special]
        self.ordinary = torch.tensor(ordinary)
        self.mask_id = int(tokenizer.mask_token_id)
        model.expect(np.bincount(self.documents.ids, minlength=model.model.config.vocab_size))
        self.masked = np.maximum(1, np.rint(self.content * config.mask_share)).astype(np.int64)
        """(examples,) tokens to guess in each: a fixed share, so that a step's count is known before it is drawn."""

    def _content(self) -> Ints:
        """(examples,) tokens of each that are not special."""
        paired = self.query >= 0
        documents = self.documents.lengths[self.document]
        query = np.zeros_like(documents)
        query[paired] = np.minimum(self.queries.lengths[self.query[paired]], self.pair.max_query_tokens)
        single_room = self.single.max_tokens - len(self.single.before) - len(self.single.after)
        room = np.where(paired, self.pair.max_tokens - self.pair.special_tokens - query, single_room)
        return np.asarray(query + np.minimum(documents, room))

    @property
    def lengths(self) -> Ints:
        """(examples,) tokens of each input."""
        alone = len(self.single.before) + len(self.single.after)
        return self.content + np.where(self.query >= 0, self.pair.special_tokens, alone)

    def plan(self, epoch: int) -> list[Step[MaskedChunk]]:
        """Each example once; of a long document a part that is drawn anew for each epoch."""
        lengths, loop = self.lengths, self.config.loop
        drawn = np.random.default_rng([loop.seed, epoch, 1]).random(len(self.query))
        beyond = np.where(self.query < 0, self.documents.lengths[self.document] - self.content, 0)
        starts = (drawn * (beyond + 1)).astype(np.int64)
        order = np.random.default_rng([loop.seed, epoch]).permutation(self.train)
        ends = np.cumsum(lengths[order])
        count = math.ceil(ends[-1] / loop.tokens_per_batch)
        step_of = ((ends - lengths[order] / 2) * count / ends[-1]).astype(np.int64)
        steps = []
        for step in np.split(order, np.flatnonzero(np.diff(step_of)) + 1):
            fair = math.ceil(lengths[step].sum() / distributed.processes())
            tokens = loop.chunk_tokens if distributed.processes() == 1 else min(loop.chunk_tokens, fair)
            chosen = [step[examples] for examples in batches.scoring_batches(lengths[step], tokens)]
            masked = sum(int(self.masked[examples].sum()) for examples in chosen)
            real = sum(int(lengths[examples].sum()) for examples in chosen)
            steps.append(
                Step(
                    [MaskedChunk(examples, starts[examples], masked, real) for examples in chosen],
                    examples=sum(map(len, chosen)),
                    tokens=real,
                    padded=sum(batches.padded_tokens(lengths[examples]) for examples in chosen),
                )
            )
        return steps

    def loss(self, chunk: MaskedChunk) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean cross-entropy over the masked tokens of the step, in nats, and the share guessed right."""
        groups = batches.length_groups(self.lengths[chunk.examples])
        drawn = [self.masked_batch(chunk.examples[group], chunk.starts[group]) for group in groups]
        together = not self.config.loop.checkpoint_activations  # Which needs the layers' own forward passes.
        logits = self.model([each.shown for each in drawn], [each.chosen for each in drawn], together=together)
        wanted = torch.cat([each.wanted for each in drawn])
        loss = F.cross_entropy(logits, wanted, reduction="sum") / chunk.masked
        return loss, {"accuracy": (logits.detach().argmax(-1) == wanted).sum() / chunk.masked}

    def measure(self) -> Guesses:
        """Evaluates the guesses on the beginnings of held-out documents; the same tokens are masked every time."""
        was_training = self.model.training
        self.model.eval()
        loss, right, masked = 0.0, 0, 0
        with torch.no_grad(), autocast(self.config.loop.precision, self.device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(MEASURE_SEED)
            for batch in batches.scoring_batches(self.lengths[self.held_out], self.config.loop.chunk_tokens):
                examples = self.held_out[batch]
                drawn = self.masked_batch(examples, np.zeros(len(examples), dtype=np.int64))
                logits = self.model([drawn.shown], [drawn.chosen])
                loss += float(F.cross_entropy(logits, drawn.wanted, reduction="sum"))
                right += int((logits.argmax(-1) == drawn.wanted).sum())
                masked += len(drawn.wanted)
        self.model.train(was_training)
        return Guesses(loss / masked, right / masked)

    def evaluate(self) -> float:
        """Mean log-likelihood of held-out masked tokens, in nats."""
        return -self.measure().loss

    def masked_batch(self, examples: Ints, starts: Ints) -> MaskedBatch:
        """One padded batch of these examples, with tokens drawn and masked."""
        inputs = [
            self._input(example, start) for example, start in zip(examples.tolist(), starts.tolist(), strict=True)
        ]
        padded = batches.pad([(ids, types) for ids, types, _ in inputs], torch.device("cpu"))
        content = np.zeros(padded.input_ids.shape, dtype=np.bool_)
        for row, (_, _, flags) in enumerate(inputs):
            content[row, : len(flags)] = flags
        counts = torch.from_numpy(self.masked[examples])
        masked, chosen = mask(padded.input_ids, torch.from_numpy(content), counts, self.mask_id, self.ordinary)
        wanted = padded.input_ids[chosen].to(self.device)
        shown = batches.PaddedBatch(
            masked.to(self.device), padded.token_type_ids.to(self.device), padded.attention_mask.to(self.device)
        )
        return MaskedBatch(shown, chosen.to(self.device), wanted)

    def _input(self, example: int, start: int) -> tuple[list[int], list[int], list[bool]]:
        """Ids, segments and which of the tokens are not special, of an example at its exact length."""
        query, document = int(self.query[example]), self.documents[int(self.document[example])]
        content = int(self.content[example])
        if query < 0:
            single = self.single
            ids = single.assemble(document[start:])
            flags = [False] * len(single.before) + [True] * content + [False] * len(single.after)
            return ids, [0] * len(ids), flags
        pair = self.pair
        query_ids = self.queries[query][: pair.max_query_tokens]
        ids, types = pair.assemble(query_ids, document)
        flags = [False] * len(pair.before) + [True] * len(query_ids) + [False] * len(pair.between)
        flags += [True] * (content - len(query_ids)) + [False] * len(pair.after)
        return ids, types, flags


def mask(ids: Tensor, content: Tensor, counts: Tensor, mask_id: int, ordinary: Tensor) -> tuple[Tensor, Tensor]:
    """Draws tokens to guess: of each text exactly as many as `counts` says.

    Of the drawn ones 80 % become the mask token, 10 % any ordinary token, 10 % stay.

    Args:
        ids: (texts, tokens).
        content: (texts, tokens) true where a token may be drawn.
        counts: (texts,) at most as many as each has of these.
        ordinary: (tokens,) ids to draw the random ones from.

    Returns:
        Ids to show and which were drawn, both (texts, tokens).

    Source: Devlin et al., BERT, NAACL 2019, arXiv:1810.04805, section 3.1.
    """
    order = torch.rand(ids.shape).masked_fill(~content, 2.0)  # After all that may be drawn.
    chosen = order.argsort(dim=1).argsort(dim=1) < counts.unsqueeze(1)
    fate = torch.rand(ids.shape)
    strangers = ordinary[torch.randint(len(ordinary), ids.shape)]
    shown = torch.where(chosen & (fate < 0.8), mask_id, ids)
    return torch.where(chosen & (fate >= 0.9), strangers, shown), chosen
