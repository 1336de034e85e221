"""MPNet: BERT's layers with relative positions beside the absolute ones, shared by all layers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.models.families.family import AttentionParts
from pipeline.models.families.roberta import Roberta

PADDING_ID = 1
"""Id of the padding token, after which positions begin, whatever the config says: transformers' model fixes it."""


class Mpnet(Roberta):
    """all-mpnet-base and its kin: RoBERTa's head, no segments, a bias of the logits by distance."""

    model_types = ("mpnet",)
    has_graph = False

    def first_position(self, config: Any) -> int:  # noqa: ARG002
        return PADDING_ID + 1

    def segments(self, config: Any) -> int:  # noqa: ARG002
        return 0

    def embed(
        self, body: Any, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None] + PADDING_ID + 1
        return super().embed(body, input_ids, token_type_ids, position_ids)

    def run_layer(self, body: Any, number: int, hidden: Tensor, mask: Tensor) -> Tensor:
        tokens = hidden.shape[1]
        output: Tensor = self.layer(body, number)(hidden, mask, _distances(body, tokens, tokens))[0]
        return output

    def attention(self, body: Any, number: int) -> AttentionParts:
        module = self.layer(body, number).attention.attn
        return AttentionParts(
            query=module.q,
            key=module.k,
            value=module.v,
            heads=module.num_attention_heads,
            size=module.attention_head_size,
            scaling=module.attention_head_size**-0.5,
            dropout=module.dropout,
            implementation=body.config._attn_implementation,
            bias=lambda query, key: _distances(body, query.shape[2], key.shape[2]),
        )

    def after_attention(self, layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
        attention = layer.attention
        attended = attention.LayerNorm(attention.dropout(attention.attn.o(context)) + hidden)
        output: Tensor = layer.output(layer.intermediate(attended), attended)
        return output

    def new_config(self, shape: Mapping[str, Any], tokenizer: Any, embedding: int) -> dict[str, Any]:  # noqa: ARG002
        return {**shape, "max_position_embeddings": shape["max_position_embeddings"] + PADDING_ID + 1}


def _distances(body: Any, queries: int, tokens: int) -> Tensor:
    """(1, heads, queries, tokens), the bias of the logits of the first `queries` tokens."""
    table = body.encoder.relative_attention_bias
    device = table.weight.device
    distance = torch.arange(tokens, device=device)[None] - torch.arange(queries, device=device)[:, None]
    buckets = body.encoder.relative_position_bucket(distance)
    bias: Tensor = table(buckets).permute(2, 0, 1).unsqueeze(0)
    return bias
