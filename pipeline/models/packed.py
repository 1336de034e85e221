"""A BERT or RoBERTa encoder over several batches of unlike width at once.

The batches lie end to end as one matrix of tokens. Embeddings, projections and feed-forward layers see that matrix
alone; only attention goes batch by batch. So a step's matrix products are few and large whatever its texts' lengths,
their shapes come again (a CPU compiles a kernel for each new one), and the gradient of the embeddings is written once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

STEP = 64
"""The matrix is filled up to a multiple of so many rows."""

MASKED = torch.finfo(torch.bfloat16).min
"""Added to attention logits of padding; what all float types can hold."""

Inputs = tuple[Tensor, Tensor, Tensor]
"""Ids, segments and attention mask, each (texts, tokens); the mask is 1 for a real token."""


def first_tokens(body: Any, batches: Sequence[Inputs], *, offset: int) -> list[Tensor]:
    """The first token's state after each layer, in the order of the batches: layers × (texts, hidden).

    The last layer is computed for the first token alone.

    Args:
        body: what transformers calls the base model, of a family whose layers do not share weights.
        offset: position of a first token; RoBERTa's begin behind the padding id.
    """
    shapes = [tuple(ids.shape) for ids, _, _ in batches]
    tail = -sum(texts * tokens for texts, tokens in shapes) % STEP
    device = batches[0][0].device
    filling = torch.zeros(tail, dtype=torch.int64, device=device)
    columns = [torch.arange(tokens, device=device).expand(texts, tokens) for texts, tokens in shapes]
    ids, types, positions = (
        torch.cat([*(each.flatten() for each in part), filling]).unsqueeze(0)  # (1, all tokens)
        for part in ([one[0] for one in batches], [one[1] for one in batches], columns)
    )
    added = [padding(mask) for _, _, mask in batches]  # (texts, 1, 1, tokens)
    hidden = body.embeddings(input_ids=ids, token_type_ids=types, position_ids=positions + offset)[0]

    def first_of(states: Tensor) -> Tensor:
        """(texts, hidden) out of (all tokens, hidden)."""
        return torch.cat([part[:, 0] for part in _parts(states, shapes)])

    *lower, last = body.encoder.layer
    found = []
    for layer in lower:
        attention = layer.attention.self
        query, key, value = attention.query(hidden), attention.key(hidden), attention.value(hidden)
        contexts = _attend(attention, query, key, value, shapes, shapes, added)
        context = torch.cat([*contexts, hidden.new_zeros(tail, hidden.shape[1], dtype=contexts[0].dtype)])
        hidden = _behind(layer, context, hidden)  # (all tokens, hidden)
        found.append(first_of(hidden))
    attention, first = last.attention.self, first_of(hidden)  # (texts, hidden)
    alone = [(texts, 1) for texts, _ in shapes]
    contexts = _attend(
        attention, attention.query(first), attention.key(hidden), attention.value(hidden), alone, shapes, added
    )
    return [*found, _behind(last, torch.cat(contexts), first)]


def padding(attention_mask: Tensor) -> Tensor:
    """(batch, 1, 1, tokens), added to attention logits: 0 for a real token, very negative for padding."""
    return (1 - attention_mask[:, None, None, :]) * MASKED


def _attend(
    attention: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    asking: Sequence[tuple[int, ...]],
    shapes: Sequence[tuple[int, ...]],
    added: Sequence[Tensor],
) -> list[Tensor]:
    """For each batch (its asking tokens, hidden): what they take from all tokens of their text."""
    heads = (attention.num_attention_heads, attention.attention_head_size)
    kind = attention.config._attn_implementation
    asked = _parts(query, asking)
    told = [_parts(states, shapes) for states in (key, value)]
    found = []
    for number, mask in enumerate(added):
        ours = asked[number].view(*asking[number], *heads).transpose(1, 2)  # (texts, heads, asking, size)
        theirs, values = (states[number].view(*shapes[number], *heads).transpose(1, 2) for states in told)
        if kind == "sdpa":
            dropped = attention.dropout.p if attention.training else 0.0
            context = F.scaled_dot_product_attention(
                ours, theirs, values, attn_mask=mask.to(ours.dtype), dropout_p=dropped, scale=attention.scaling
            )
        else:
            weights = (ours @ theirs.transpose(2, 3) * attention.scaling + mask).softmax(-1)
            context = attention.dropout(weights) @ values
        found.append(context.transpose(1, 2).flatten(2).flatten(0, 1))
    return found


def _parts(states: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Out of (all tokens, hidden) each batch, (texts, tokens, hidden), without the filling at the end."""
    sizes = [texts * tokens for texts, tokens in shapes]
    parts = torch.split(states, [*sizes, len(states) - sum(sizes)])  # One split, whose gradient is written once.
    return [part.view(*shape, -1) for part, shape in zip(parts[:-1], shapes, strict=True)]


def _behind(layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
    """The part of a layer behind its attention."""
    attended = layer.attention.output(context, hidden)
    output: Tensor = layer.output(layer.intermediate(attended), attended)
    return output
