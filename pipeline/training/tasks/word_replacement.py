"""Finds words that may replace a word of a text: guesses of a masked language model, or neighbours in its embeddings.

A base model with a head for masked tokens guesses the replacements of words of one token; all words of a text that are
to be replaced are masked at once. Words of several tokens, and all words where the base has no such head, get the words
of one token whose embeddings are nearest to the mean of their own tokens' embeddings.

Source: Jiao et al., TinyBERT, Findings of EMNLP 2020, arXiv:1909.10351, algorithm 1, which masks one word at a time
and takes neighbours from GloVe.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from pipeline.models import base_models, tokenizers
from pipeline.training.loop import batches, scoring
from pipeline.training.loop.loop import autocast
from pipeline.training.tasks.masked_model import MaskedModel

CANDIDATES = 15
"""Maximum number of alternatives of a word; K in the paper."""

BATCH_TOKENS, BATCH_WORDS = 4096, 512
"""Padded tokens of one batch of masked texts, and number of words whose neighbours are searched for at once."""

Choice = Sequence[int]
"""Indices of the words of a text that are to be replaced."""


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text, as its tokenizer splits it."""

    text: str
    spans: Sequence[tuple[int, int]]
    """Start and end of each word in characters; the end is exclusive."""
    ids: Sequence[tuple[int, ...]]
    """Tokens of each word."""

    def __len__(self) -> int:
        return len(self.spans)

    def is_word(self, number: int) -> bool:
        """Whether the word with this index has a letter or digit; punctuation, which is split off too, has none."""
        return any(letter.isalnum() for letter in self.text[slice(*self.spans[number])])

    def with_words(self, words: Sequence[str | None]) -> str:
        """The text with these words in place of its own; None keeps a word, an empty text drops it and its space."""
        parts, end = [], 0
        for (start, stop), word in zip(self.spans, words, strict=True):
            gap = "" if word == "" else self.text[end:start]
            parts.append(gap + (self.text[start:stop] if word is None else word))
            end = stop
        return "".join(parts).strip()

    def part(self, begin: int, count: int) -> str:
        """The part of the text from word `begin` on that holds `count` words."""
        return self.text[self.spans[begin][0] : self.spans[begin + count - 1][1]]


def split(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[Words]:
    """The words of each text's first `max_tokens` tokens."""
    splits = []
    for text, encoding in zip(texts, tokenizer.encode_batch(list(texts), add_special_tokens=False), strict=True):
        tokens = list(zip(encoding.word_ids, encoding.offsets, encoding.ids, strict=True))[:max_tokens]
        spans, ids = [], []
        for _, group in groupby(tokens, key=lambda token: token[0]):
            parts = list(group)
            start, stop = parts[0][1][0], parts[-1][1][1]
            word = text[start:stop]
            start += len(word) - len(word.lstrip())  # Some tokenizers count the space before a word as part of it.
            if start < stop:
                spans.append((start, stop))
                ids.append(tuple(token for _, _, token in parts))
        splits.append(Words(text, spans, ids))
    return splits


class WordReplacer:
    """A base model that lists, for a word of a text, the words that may replace it."""

    def __init__(self, base: Path) -> None:
        """Loads the base model, with its head for masked tokens where it has one.

        Args:
            base: folder of an encoder of a known family.

        Raises:
            ConfigError: its tokenizer cannot be used.
        """
        self._hub_tokenizer = tokenizers.load_tokenizer(base)
        self.tokenizer = tokenizers.plain_tokenizer(self._hub_tokenizer)
        self._masked = _masked_model(base, self._hub_tokenizer)
        model: Any = self._masked.model if self._masked else _body(base)
        self._table: Tensor = model.get_input_embeddings().weight.detach().float()
        self._device = self._table.device
        self._template = tokenizers.text_template(self._hub_tokenizer, tokenizers.positions(model.config))
        listed = list(_whole_words(self.tokenizer, len(self._table)))
        self._words = [word for _, word in listed]
        self._word_ids = torch.tensor([number for number, _ in listed], device=self._device)
        self._known = F.normalize(self._table[self._word_ids], dim=1)  # (words, width)
        self._neighbours: dict[tuple[int, ...], list[str]] = {}

    @property
    def room(self) -> int:
        """Maximum number of tokens of a text that the base can read, special tokens not counted."""
        template = self._template
        return template.max_tokens - len(template.before) - len(template.after)

    @property
    def has_masked_head(self) -> bool:
        """Whether the base has a head for masked tokens."""
        return self._masked is not None

    def alternatives(self, texts: Sequence[Words], choices: Sequence[Choice]) -> list[list[list[str]]]:
        """The words that may replace the chosen ones, the likeliest first.

        Args:
            texts: texts of at most `room` tokens.
            choices: the words to be replaced, for each text.

        Returns:
            For each text, and each of its chosen words in the order of `choices`, at most `CANDIDATES` words.
        """
        known: list[dict[int, list[str]]] = [{} for _ in texts]
        if self._masked is not None:
            for number, word, options in self._guessed(self._masked, texts, choices):
                known[number][word] = options
        missing = [
            text.ids[word]
            for text, choice, have in zip(texts, choices, known, strict=True)
            for word in choice
            if word not in have
        ]
        self._find_neighbours(missing)
        return [
            [have[word] if word in have else self._neighbours[text.ids[word]] for word in choice]
            for text, choice, have in zip(texts, choices, known, strict=True)
        ]

    def _find_neighbours(self, words: Sequence[tuple[int, ...]]) -> None:
        """Finds and keeps the whole words nearest to each of these, by the cosine of mean token embeddings."""
        new = list(dict.fromkeys(word for word in words if word not in self._neighbours))
        for begin in range(0, len(new), BATCH_WORDS):
            some = new[begin : begin + BATCH_WORDS]
            means = torch.stack([self._table[list(ids)].mean(0) for ids in some])
            cosines = F.normalize(means, dim=1) @ self._known.T  # (some, words)
            best = cosines.topk(min(CANDIDATES + 1, len(self._words)), dim=1).indices
            self._neighbours |= {ids: self._listed(row, ids) for ids, row in zip(some, best.tolist(), strict=True)}

    def _listed(self, rows: Sequence[int], without: tuple[int, ...]) -> list[str]:
        """Lists the whole words in these rows, leaving out the word to be replaced; `CANDIDATES` at most.

        Args:
            rows: rows of the list of whole words, the best first.
            without: tokens of the word to be replaced.
        """
        own = without[0] if len(without) == 1 else -1
        return [self._words[row] for row in rows if int(self._word_ids[row]) != own][:CANDIDATES]

    def _guessed(
        self, model: MaskedModel, texts: Sequence[Words], choices: Sequence[Choice]
    ) -> Iterator[tuple[int, int, list[str]]]:
        """(index of the text, index of the word, its alternatives) for each chosen word of one token."""
        template = self._template
        mask = self._hub_tokenizer.mask_token_id
        inputs, masked = [], []
        for text, choice in zip(texts, choices, strict=True):
            single = [word for word in sorted(choice) if len(text.ids[word]) == 1]
            hidden = [[mask] if word in single else list(ids) for word, ids in enumerate(text.ids)]
            starts = torch.tensor([0, *map(len, hidden)]).cumsum(0) + len(template.before)
            ids = template.assemble([token for word in hidden for token in word])
            inputs.append((ids, [0] * len(ids)))
            masked.append([(word, int(starts[word])) for word in single])
        lengths = torch.tensor([len(ids) if chosen else 0 for (ids, _), chosen in zip(inputs, masked, strict=True)])
        for rows in batches.scoring_batches(lengths.numpy(), BATCH_TOKENS):
            some = [int(row) for row in rows if masked[row]]
            if not some:
                continue
            batch = batches.pad([inputs[row] for row in some], self._device)
            chosen = torch.zeros_like(batch.input_ids, dtype=torch.bool)
            for line, row in enumerate(some):
                chosen[line, [position for _, position in masked[row]]] = True
            with torch.no_grad(), autocast("auto", self._device):
                logits = model([batch], [chosen], together=False)[:, self._word_ids]  # (chosen, words)
            best = iter(logits.topk(min(CANDIDATES + 1, len(self._words)), dim=1).indices.tolist())
            for row in some:
                for word, _ in masked[row]:
                    yield row, word, self._listed(next(best), texts[row].ids[word])


def _masked_model(base: Path, tokenizer: Any) -> MaskedModel | None:
    """The base with its head for masked tokens; None where it has none."""
    known = base_models.model_type(base) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if tokenizer.mask_token_id is None or not known:
        return None
    with torch.random.fork_rng(devices=[]):  # Weights that the file lacks are drawn; the caller's seed must not move.
        model, missing = base_models.load_whole(AutoModelForMaskedLM, base, attn_implementation=tokenizers.attention())
    if missing:
        return None
    return MaskedModel(model, tokenizer, base).to(scoring.device()).eval()


def _body(base: Path) -> Any:
    """The base without a head."""
    with torch.random.fork_rng(devices=[]):
        model, _ = base_models.load_whole(AutoModel, base)
    return model.to(scoring.device())


def _whole_words(tokenizer: Tokenizer, rows: int) -> Iterator[tuple[int, str]]:
    """(id, word) of each token that is a whole word, in the form that it has after another word.

    Args:
        tokenizer: the base's tokenizer.
        rows: number of rows of the embedding table; tokens beyond it are left out.
    """
    ids = sorted(number for number in tokenizer.get_vocab(with_added_tokens=False).values() if number < rows)
    words = [tokenizer.decode([number]).strip() for number in ids]
    before = tokenizer.encode("a", add_special_tokens=False).ids
    read = tokenizer.encode_batch([f"a {word}" for word in words], add_special_tokens=False)
    for number, word, encoding in zip(ids, words, read, strict=True):
        if word.isalnum() and encoding.ids == [*before, number]:
            yield number, word
