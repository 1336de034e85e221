"""Rounding as in an int8 graph, with gradients as if nothing were rounded: a model that is trained for its export.

`put` replaces the linear layers and the word embeddings of a cross-encoder by ones that round; `remove` puts the plain
ones back. Both share the parameters, so optimizers, checkpoints and saved folders see no difference. What is rounded
and how is what `pipeline.export.graph` writes for int8:

    weights             −64 to 64, a scale for each output
    activations         0 to 255, a scale and a zero point for all numbers of an input
    word embeddings     −127 to 127, a scale for each row

Source: Zafrir et al., Q8BERT: quantized 8bit BERT, NeurIPS EMC2 2019, arXiv:1910.06188.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.low_rank import FactoredEmbedding, holder

LARGEST_WEIGHT = 64
"""Largest size of a stored weight. A processor without VNNI adds two products of an activation and a weight in 16 bits,
and a larger sum is cut off there: 2 × 255 × 64 still fits, so a model gives the same outputs on every processor."""
LARGEST_EMBEDDING = 127
"""Largest size of a stored number of a word embedding, which is only looked up."""


class RoundedLinear(nn.Linear):
    """A linear layer that rounds its weight to −64 to 64 and its input to 8 bits."""

    def forward(self, states: Tensor) -> Tensor:
        """(…, out) from (…, in)."""
        return F.linear(rounded_activations(states), rounded_rows(self.weight, LARGEST_WEIGHT), self.bias)


class RoundedEmbedding(nn.Embedding):
    """A table of word embeddings whose rows are rounded to int8."""

    def forward(self, ids: Tensor) -> Tensor:
        """(…, width) from ids (…)."""
        return rounded_rows(super().forward(ids), LARGEST_EMBEDDING)


def rounded_rows(matrix: Tensor, largest: int) -> Tensor:
    """The matrix with each row rounded to whole multiples of a step, of which its largest number is `largest` steps.

    Args:
        matrix: (…, columns); the gradient passes unchanged.
        largest: LARGEST_WEIGHT or LARGEST_EMBEDDING.
    """
    with torch.no_grad():
        extent = matrix.abs().amax(dim=-1, keepdim=True)
        scale = torch.where(extent > 0, extent, 1.0) / largest
        difference = (matrix / scale).round() * scale - matrix
    return matrix + difference


def rounded_activations(states: Tensor) -> Tensor:
    """The states rounded to 256 steps between their smallest and largest number, 0 always among the steps.

    It computes ONNX's DynamicQuantizeLinear. In a padded batch, (texts, tokens, width), each text has its own steps. In
    a matrix of many texts' rows, (rows, width), all share theirs, which are then no finer than those of serving.

    Args:
        states: (texts, tokens, width) or (rows, width); the gradient passes unchanged.
    """
    with torch.no_grad():
        dims = tuple(range(1 if states.dim() > 2 else 0, states.dim()))
        low = states.amin(dim=dims, keepdim=True).clamp_max(0.0).float()
        high = states.amax(dim=dims, keepdim=True).clamp_min(0.0).float()
        scale = torch.where(high > low, high - low, 1.0) / 255
        zero = (-low / scale).round().clamp(0, 255)
        difference = ((states / scale).round().add(zero).clamp(0, 255) - zero) * scale - states
    return states + difference.to(states.dtype)


def put(model: CrossEncoder) -> None:
    """Lets a cross-encoder round as its int8 graph does, in place."""
    plain = _plain_in_graph(model)
    for parent, name, child in list(_children(model)):
        if id(child) not in plain:
            setattr(parent, name, _sharing(child, RoundedLinear, RoundedEmbedding))


def remove(model: CrossEncoder) -> None:
    """Lets the cross-encoder compute without rounding again, in place."""
    for parent, name, child in list(_children(model)):
        if isinstance(child, RoundedLinear | RoundedEmbedding):
            setattr(parent, name, _sharing(child, nn.Linear, nn.Embedding))


def _sharing(child: nn.Linear | nn.Embedding, linear: type[nn.Linear], embedding: type[nn.Embedding]) -> nn.Module:
    """A linear layer or a table of one of these classes, with the parameters of `child` itself."""
    if isinstance(child, nn.Embedding):
        table = embedding(child.num_embeddings, child.embedding_dim, padding_idx=child.padding_idx, device="meta")
        table.weight = child.weight
        return table
    layer = linear(child.in_features, child.out_features, bias=child.bias is not None, device="meta")
    layer.weight, layer.bias = child.weight, child.bias
    return layer


def _children(model: CrossEncoder) -> Iterator[tuple[nn.Module, str, nn.Linear | nn.Embedding]]:
    """The linear layers inside the model's layers, and its word embeddings, each with its parent and name there."""
    body: Any = model.model.base_model
    for layer in model.family.layers(body):
        for parent in layer.modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear):
                    yield parent, name, child
    table = model.model.get_input_embeddings()
    words = table.first if isinstance(table, FactoredEmbedding) else table
    assert isinstance(words, nn.Embedding)
    yield *holder(body, words), words


def _plain_in_graph(model: CrossEncoder) -> set[int]:
    """The ids of the modules that an int8 graph computes without rounding: keys and values of the last layer."""
    family, config = model.family, model.model.config
    if not (family.has_graph and family.splits(config) and family.reads_first_token(config)) or model.shared:
        return set()
    attention = family.attention(model.model.base_model, model.layers)
    return {id(attention.key), id(attention.value)}
