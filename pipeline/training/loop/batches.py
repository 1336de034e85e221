"""Batches: the plan of an epoch, and padded batches with little padding.

The plan is a pure function of lengths, queries, config and epoch: an optimizer step is a set of whole queries, drawn at
random, of about `tokens_per_batch` real tokens. A step whose activations would not fit in memory, or that several
processes share, is cut into chunks of whole queries. Inside a chunk, texts of like length share a padded batch, so the
chunk's scores are computed together with hardly a padding token.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import LoopConfig
from pipeline.errors import ConfigError
from pipeline.text import counted
from pipeline.tokens import PairTemplate, TextTemplate
from pipeline.training.loop import distributed
from pipeline.training.loop.pair_tokens import Pairs, Ragged

Ints = NDArray[np.int64]

BATCH_COST_TOKENS = 24
"""The cost of one more padded batch, in tokens: so high that few are made, so low that padding stays below a twentieth
in steps of 2,048 tokens (`tests/benchmarks/test_training_speed.py` holds it there)."""


def plan(lengths: Ints, groups: Ints, config: LoopConfig, *, max_list: int, epoch: int) -> list[list[Ints]]:
    """The steps of an epoch: each is a list of chunks, and each chunk the indices of whole queries' pairs.

    Every query comes once, with at most `max_list` of its pairs, drawn anew each epoch. Steps are of about equal
    size, at most about `tokens_per_batch`; a query larger than that makes a larger step, as no query is divided.

    Args:
        lengths: (pairs,) tokens of each.
        groups: (pairs,) query of each.
        config: its seed, tokens_per_batch and chunk_tokens are used.

    Raises:
        ConfigError: one query's pairs exceed `chunk_tokens`.
    """
    if not len(groups):
        return []
    order = np.argsort(groups, kind="stable")
    names, starts = np.unique(groups[order], return_index=True)
    lists = []
    for name, indices in zip(names, np.split(order, starts[1:]), strict=True):
        if len(indices) > max_list:
            chosen = np.random.default_rng([config.seed, epoch, int(name)]).choice(
                len(indices), max_list, replace=False
            )
            indices = indices[np.sort(chosen)]  # noqa: PLW2901
        lists.append(indices)
    np.random.default_rng([config.seed, epoch]).shuffle(lists)
    sizes = np.array([lengths[indices].sum() for indices in lists])
    count = math.ceil(sizes.sum() / config.tokens_per_batch)
    step_of = ((np.cumsum(sizes) - sizes / 2) * count / sizes.sum()).astype(np.int64)
    steps = [[lists[number] for number in np.flatnonzero(step_of == step)] for step in np.unique(step_of)]
    return [_chunks(step, lengths, config.chunk_tokens) for step in steps]


def _chunks(lists: Sequence[Ints], lengths: Ints, chunk_tokens: int) -> list[Ints]:
    """Whole queries in chunks of at most `chunk_tokens` padded tokens.

    The number of chunks is a multiple of the processes, where there are queries enough.
    """
    step = np.concatenate(lists)
    if distributed.processes() == 1 and padded_tokens(lengths[step]) <= chunk_tokens:
        return [step]
    for indices in lists:
        if padded_tokens(lengths[indices]) > chunk_tokens:
            raise ConfigError(
                f"a query's {counted(len(indices), 'pair', 'have')} {int(lengths[indices].sum())} tokens, more than "
                f"loop.chunk_tokens {chunk_tokens}; lower candidates.max_list or max_tokens, or raise loop.chunk_tokens"
            )
    if distributed.processes() > 1:
        return balanced(lists, lengths, chunk_tokens, distributed.processes())
    chunks, held = [], np.zeros(0, dtype=np.int64)
    for indices in lists:
        grown = np.concatenate([held, indices])
        if padded_tokens(lengths[grown]) > chunk_tokens:
            chunks.append(held)
            grown = indices
        held = grown
    return [*chunks, held]


def balanced(lists: Sequence[Ints], lengths: Ints, chunk_tokens: int, processes: int) -> list[Ints]:
    """Chunks of about equal size: the smallest multiple of `processes` whose chunks fit in `chunk_tokens`.

    The longest query comes first, each goes to the chunk that holds least. With fewer queries than processes, some
    processes have nothing to do.
    """
    longest_first = sorted(lists, key=lambda indices: -int(lengths[indices].sum()))
    count = min(processes, len(lists))
    while True:
        chunks: list[list[Ints]] = [[] for _ in range(count)]
        tokens = np.zeros(count, dtype=np.int64)
        for indices in longest_first:
            least = int(np.argmin(tokens))
            chunks[least].append(indices)
            tokens[least] += lengths[indices].sum()
        joined = [np.concatenate(chunk) for chunk in chunks]
        if count == len(lists) or all(padded_tokens(lengths[chunk]) <= chunk_tokens for chunk in joined):
            return joined
        count = min(count + processes, len(lists))


def length_groups(lengths: Ints) -> list[Ints]:
    """Groups of texts of like length, to be padded together, that waste the fewest tokens.

    Args:
        lengths: (texts,) tokens of each.

    Returns:
        For each group the indices of its texts, longest first; each text is in one group. Among all cuts of the
        sorted lengths this one has the least padding plus BATCH_COST_TOKENS for each group.
    """
    order = np.argsort(-lengths, kind="stable")
    widths, counts = np.unique(-lengths, return_counts=True)
    widths = -widths  # distinct, descending
    ends = np.concatenate([[0], np.cumsum(counts)])
    cost = np.zeros(len(widths) + 1)
    cut = np.zeros(len(widths) + 1, dtype=np.int64)
    for end in range(1, len(widths) + 1):
        costs = cost[:end] + (ends[end] - ends[:end]) * widths[:end] + BATCH_COST_TOKENS
        cut[end] = np.argmin(costs)
        cost[end] = costs[cut[end]]
    groups, end = [], len(widths)
    while end > 0:
        groups.append(order[ends[cut[end]] : ends[end]])
        end = int(cut[end])
    return groups[::-1]


def padded_tokens(lengths: Ints) -> int:
    """The tokens of these texts in their length groups, padding included."""
    return sum(len(group) * int(lengths[group[0]]) for group in length_groups(lengths)) if len(lengths) else 0


def scoring_batches(lengths: Ints, tokens: int) -> Iterator[Ints]:
    """Indices of all texts, longest first, in batches of at most `tokens` padded tokens (or one text)."""
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < len(order):
        rows = max(1, tokens // max(1, int(lengths[order[begin]])))
        yield order[begin : begin + rows]
        begin += rows


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Inputs of a model, padded at the end to the longest of them."""

    input_ids: Tensor
    """(texts, tokens) int64."""
    token_type_ids: Tensor
    """(texts, tokens) int64."""
    attention_mask: Tensor
    """(texts, tokens) int64, 1 for a real token."""

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, segments and mask."""
        return self.input_ids, self.token_type_ids, self.attention_mask


def pair_inputs(pairs: Pairs, indices: Ints, template: PairTemplate) -> list[tuple[list[int], list[int]]]:
    """Ids and segments of each of these pairs, at their exact length."""
    return [
        template.assemble(pairs.queries[query], pairs.documents[document])
        for query, document in zip(pairs.query[indices].tolist(), pairs.document[indices].tolist(), strict=True)
    ]


def text_inputs(texts: Ragged, numbers: Ints, template: TextTemplate) -> list[tuple[list[int], list[int]]]:
    """Ids and segments, all zero, of each of these texts, at their exact length."""
    inputs = [template.assemble(texts[number]) for number in numbers.tolist()]
    return [(ids, [0] * len(ids)) for ids in inputs]


def pad(inputs: Sequence[tuple[list[int], list[int]]], device: torch.device) -> PaddedBatch:
    """These ids and segments as one padded batch."""
    width = max(len(ids) for ids, _ in inputs)
    # Any id may fill the padding: no real token attends to it.
    arrays = np.zeros((3, len(inputs), width), dtype=np.int64)
    for row, (ids, types) in enumerate(inputs):
        arrays[0, row, : len(ids)] = ids
        arrays[1, row, : len(ids)] = types
        arrays[2, row, : len(ids)] = 1
    return PaddedBatch(*torch.from_numpy(arrays).to(device))
