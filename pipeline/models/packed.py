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
"""The number added to attention logits of padding; bfloat16 and float32 hold it, in float16 it becomes -inf."""

Inputs = tuple[Tensor, Tensor, Tensor]
"""Ids, segments and attention mask, each (texts, tokens); the mask is 1 for a real token."""


def first_tokens(family: ModelFamily, body: Any, batches: Sequence[Inputs], *, offset: int) -> list[Tensor]:
    """The first token's state after each layer, in the order of the batches: layers × (texts, hidden).

    The last layer is computed for the first token alone.

    Args:
        family: one whose layers give their attention and feed-forward parts apart.
        body: the base model in the sense of transformers.
        offset: position number of the first token: 0, or the padding id plus 1 for RoBERTa.
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
    attention, first = family.attention(body, depth), first_of(hidden)  # (texts, hidden)
    alone = [(texts, 1) for texts, _ in rows.shapes]
    normal = attention.norm(hidden)
    states = (attention.query(attention.norm(first)), attention.key(normal), attention.value(normal))
    contexts = _attend(attention, states, alone, rows.shapes, rows.added)
    output = family.after_attention(family.layer(body, depth), torch.cat(contexts), first)
    return [*firsts, family.finish(body, output)]


def all_tokens(family: ModelFamily, body: Any, batches: Sequence[Inputs], *, offset: int) -> Tensor:
    """The state of each token after the last layer, batch after batch and text after text: (all tokens, hidden).

    Padding inside the batches has rows too; its states mean nothing. The arguments are those of `first_tokens`.
    """
    rows = _Rows.of(batches)
    hidden = rows.embed(family, body, batches, offset)
    for number in range(1, int(body.config.num_hidden_layers) + 1):
        hidden = rows.layer(family, body, number, hidden)
    return family.finish(body, hidden[: len(hidden) - rows.tail])


@dataclass(frozen=True, slots=True)
class _Rows:
    """The layout of several batches in one matrix of tokens."""

    shapes: Sequence[tuple[int, ...]]
    """(texts, tokens) of each batch."""
    tail: int
    """Rows of padding at the end of the matrix."""
    added: Sequence[Tensor]
    """Numbers added to the attention logits of each batch, (texts, 1, 1, tokens); see `padding`."""

    @classmethod
    def of(cls, batches: Sequence[Inputs]) -> "_Rows":
        shapes = [tuple(ids.shape) for ids, _, _ in batches]
        tail = -sum(texts * tokens for texts, tokens in shapes) % STEP
        return cls(shapes, tail, [padding(mask, torch.float32) for _, _, mask in batches])

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
        attention = family.attention(body, number)
        normal = attention.norm(hidden)
        query, key, value = attention.query(normal), attention.key(normal), attention.value(normal)
        contexts = _attend(attention, (query, key, value), self.shapes, self.shapes, self.added)
        context = torch.cat([*contexts, hidden.new_zeros(self.tail, hidden.shape[1], dtype=contexts[0].dtype)])
        return family.after_attention(family.layer(body, number), context, hidden)


def padding(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, 1, 1, tokens), added to attention logits: 0 for a real token, very negative for padding.

    Args:
        attention_mask: (batch, tokens), 1 for a real token.
        dtype: the type of the states. PyTorch reads a mask of another type wrongly, and does not say so.
    """
    return (1 - attention_mask.to(dtype)[:, None, None, :]) * MASKED


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
    for part in zip(query, key, value, added, strict=True):
        context = attend(attention, *part)  # (texts, heads, query tokens, size)
        contexts.append(context.transpose(1, 2).flatten(2).flatten(0, 1))
    return contexts


def attend(attention: AttentionParts, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The attention of the given queries to all tokens of each text, (texts, heads, queries, size).

    Args:
        query: (texts, heads, queries, size) before rotary positions; their tokens are the first of each text, or all.
        key, value: (texts, heads, tokens, size).
        mask: (texts, 1, 1, tokens), see `padding`.
    """
    query, key = attention.rotate(query), attention.rotate(key)
    added = attention.added(query, key, mask)
    if attention.implementation == "sdpa":
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=added.to(query.dtype),
            dropout_p=attention.dropout.p if attention.dropout.training else 0.0,
            scale=attention.scaling,
        )
    weights = (query @ key.transpose(2, 3) * attention.scaling + added).softmax(-1)
    context: Tensor = attention.dropout(weights) @ value
    return context


def first_token(family: ModelFamily, body: Any, number: int, hidden: Tensor, mask: Tensor) -> Tensor:
    """A layer's output at the first token alone, (batch, 1, hidden): the score reads nothing else of the last layer.

    This saves five sixths of the layer: an eighth of the training time at 6 layers, a quarter at 3.

    Args:
        family: one whose layers give their attention and feed-forward parts apart.
        number: which layer, from 1.
        hidden: (batch, tokens, hidden) the layer's input.
        mask: (batch, 1, 1, tokens), 0 for a real token and very negative for padding.
    """
    context = attended(family, body, number, hidden, mask, queries=1)
    return family.after_attention(family.layer(body, number), context, hidden[:, :1])


def whole_layer(family: ModelFamily, body: Any, number: int, hidden: Tensor, mask: Tensor) -> Tensor:
    """A layer's output at all tokens, (batch, tokens, hidden), from its parts; the arguments are `first_token`'s."""
    context = attended(family, body, number, hidden, mask, queries=None)
    return family.after_attention(family.layer(body, number), context, hidden)


def attended(
    family: ModelFamily, body: Any, number: int, hidden: Tensor, mask: Tensor, *, queries: int | None
) -> Tensor:
    """The joined heads of a layer's attention at its first `queries` tokens (None: all), (batch, queries, hidden)."""
    attention = family.attention(body, number)
    normal = attention.norm(hidden)
    states = (attention.query(normal[:, :queries]), attention.key(normal), attention.value(normal))
    query, key, value = (
        each.view(*each.shape[:2], attention.heads, attention.size).transpose(1, 2) for each in states
    )  # (batch, heads, tokens, size)
    return attend(attention, query, key, value, mask).transpose(1, 2).flatten(2)


def _parts(states: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The states of each batch, (texts, tokens, hidden), out of (all tokens, hidden) without the padding at the end."""
    sizes = [texts * tokens for texts, tokens in shapes]
    parts = torch.split(states, [*sizes, len(states) - sum(sizes)])  # One split, whose gradient is written once.
    return [part.view(*shape, -1) for part, shape in zip(parts[:-1], shapes, strict=True)]
