"""An encoder over several batches of unlike width at once.

The batches lie end to end as one matrix of tokens. Embeddings, projections and feed-forward layers see that matrix
alone; only attention goes batch by batch. A step's matrix products are then few and large whatever its texts' lengths,
their shapes recur (a CPU compiles a kernel for each new one), and the gradient of the embeddings is written once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.families import AttentionParts, ModelFamily

STEP = 64
"""The matrix is padded to a multiple of this number of rows."""

MASKED = torch.finfo(torch.bfloat16).min
"""The number added to attention logits of padding; all float types can hold it."""

Inputs = tuple[Tensor, Tensor, Tensor]
"""Ids, segments and attention mask, each (texts, tokens); the mask is 1 for a real token."""


def first_tokens(family: ModelFamily, body: Any, batches: Sequence[Inputs], *, offset: int) -> list[Tensor]:
    """The first token's state after each layer, in the order of the batches: layers × (texts, hidden).

    The last layer is computed for the first token alone.

    Args:
        family: one that splits its layers.
        body: the base model in the sense of transformers.
        offset: position of a first token; RoBERTa's begin behind the padding id.
    """
    rows = _Rows.of(batches)
    hidden = rows.embed(family, body, batches, offset)  # (all tokens, hidden)

    def first_of(states: Tensor) -> Tensor:
        """(texts, hidden) out of (all tokens, hidden)."""
        return torch.cat([part[:, 0] for part in _parts(states, rows.shapes)])

    depth = int(body.config.num_hidden_layers)
    firsts = []
    for number in range(1, depth):
        hidden = rows.layer(family, body, number, hidden)  # (all tokens, hidden)
        firsts.append(first_of(hidden))
    last = family.layer(body, depth)
    attention, first = family.attention(last), first_of(hidden)  # (texts, hidden)
    alone = [(texts, 1) for texts, _ in rows.shapes]
    states = (attention.query(first), attention.key(hidden), attention.value(hidden))
    contexts = _attend(attention, states, alone, rows.shapes, rows.added)
    return [*firsts, family.after_attention(last, torch.cat(contexts), first)]


def all_tokens(family: ModelFamily, body: Any, batches: Sequence[Inputs], *, offset: int) -> Tensor:
    """The state of each token after the last layer, batch after batch and text after text: (all tokens, hidden).

    Padding inside the batches has rows too; its states mean nothing. The arguments are those of `first_tokens`.
    """
    rows = _Rows.of(batches)
    hidden = rows.embed(family, body, batches, offset)
    for number in range(1, int(body.config.num_hidden_layers) + 1):
        hidden = rows.layer(family, body, number, hidden)
    return hidden[: len(hidden) - rows.tail]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The layout of several batches in one matrix of tokens."""

    shapes: Sequence[tuple[int, ...]]
    """(texts, tokens) of each batch."""
    tail: int
    """Rows of padding at the end of the matrix."""
    added: Sequence[Tensor]
    """(texts, 1, 1, tokens) of each batch, see `padding`."""

    @classmethod
    def of(cls, batches: Sequence[Inputs]) -> "_Rows":
        shapes = [tuple(ids.shape) for ids, _, _ in batches]
        tail = -sum(texts * tokens for texts, tokens in shapes) % STEP
        return cls(shapes, tail, [padding(mask) for _, _, mask in batches])

    def embed(self, family: ModelFamily, body: Any, batches: Sequence[Inputs], offset: int) -> Tensor:
        """The states before the first layer, (all tokens, hidden)."""
        device = batches[0][0].device
        filling = torch.zeros(self.tail, dtype=torch.int64, device=device)
        columns = [torch.arange(tokens, device=device).expand(texts, tokens) for texts, tokens in self.shapes]
        ids, types, positions = (
            torch.cat([*(each.flatten() for each in part), filling]).unsqueeze(0)  # (1, all tokens)
            for part in ([ids for ids, _, _ in batches], [types for _, types, _ in batches], columns)
        )
        hidden: Tensor = family.embed(body, ids, types, positions + offset)[0]
        return hidden

    def layer(self, family: ModelFamily, body: Any, number: int, hidden: Tensor) -> Tensor:
        """The states after a layer, (all tokens, hidden), from those before it."""
        layer = family.layer(body, number)
        attention = family.attention(layer)
        query, key, value = attention.query(hidden), attention.key(hidden), attention.value(hidden)
        contexts = _attend(attention, (query, key, value), self.shapes, self.shapes, self.added)
        context = torch.cat([*contexts, hidden.new_zeros(self.tail, hidden.shape[1], dtype=contexts[0].dtype)])
        return family.after_attention(layer, context, hidden)


def padding(attention_mask: Tensor) -> Tensor:
    """(batch, 1, 1, tokens), added to attention logits: 0 for a real token, very negative for padding."""
    return (1 - attention_mask[:, None, None, :]) * MASKED


def _attend(
    attention: AttentionParts,
    states: tuple[Tensor, Tensor, Tensor],
    query_shapes: Sequence[tuple[int, ...]],
    shapes: Sequence[tuple[int, ...]],
    added: Sequence[Tensor],
) -> list[Tensor]:
    """The attention's result for each batch, (its query tokens, hidden), over all tokens of each text.

    Args:
        states: queries, keys and values, each (all tokens, hidden).
        query_shapes: (texts, query tokens) of each batch.
        shapes: (texts, tokens) of each batch.
        added: (texts, 1, 1, tokens) of each batch, see `padding`.
    """
    heads = (attention.heads, attention.size)
    query, key, value = (
        [part.view(*shape, *heads).transpose(1, 2) for part, shape in zip(_parts(each, own), own, strict=True)]
        for each, own in zip(states, (query_shapes, shapes, shapes), strict=True)
    )  # each (texts, heads, tokens, size)
    contexts = []
    for number, mask in enumerate(added):
        if attention.implementation == "sdpa":
            context = F.scaled_dot_product_attention(
                query[number],
                key[number],
                value[number],
                attn_mask=mask.to(query[number].dtype),
                dropout_p=attention.dropout.p if attention.dropout.training else 0.0,
                scale=attention.scaling,
            )
        else:
            weights = (query[number] @ key[number].transpose(2, 3) * attention.scaling + mask).softmax(-1)
            context = attention.dropout(weights) @ value[number]
        contexts.append(context.transpose(1, 2).flatten(2).flatten(0, 1))
    return contexts


def _parts(states: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The states of each batch, (texts, tokens, hidden), out of (all tokens, hidden) without the padding at the end."""
    sizes = [texts * tokens for texts, tokens in shapes]
    parts = torch.split(states, [*sizes, len(states) - sum(sizes)])  # One split, whose gradient is written once.
    return [part.view(*shape, -1) for part, shape in zip(parts[:-1], shapes, strict=True)]
