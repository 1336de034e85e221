"""ModernBERT: normalisation ahead of each part, rotary positions, local attention in most layers, gated units."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from pipeline.models.families.family import AttentionParts, Projection
from pipeline.models.families.rotary import UnsegmentedRotaryFamily

FAR = torch.finfo(torch.bfloat16).min
"""The number added to the logits of tokens outside a layer's window."""


class Modernbert(UnsegmentedRotaryFamily):
    """ModernBERT, Ettin and rerankers made of them."""

    model_types = ("modernbert",)
    first_token_pooling = "cls"

    def embed(
        self,
        body: Any,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,  # noqa: ARG002
        position_ids: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        states: Tensor = body.embeddings(input_ids=input_ids)
        return states

    def rotations(self, body: Any, layer: Any, states: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(tokens, device=states.device)[None]
        cos, sin = body.rotary_emb(states, positions, layer.attention_type)
        return cos, sin

    def layer_mask(self, body: Any, layer: Any, mask: Tensor) -> Tensor:
        tokens = mask.shape[-1]
        return (mask + _window(body, layer, tokens, tokens, mask.device)).to(mask.dtype)

    def finish(self, body: Any, hidden: Tensor) -> Tensor:
        states: Tensor = body.final_norm(hidden)
        return states

    def attention(self, body: Any, number: int) -> AttentionParts:
        layer = self.layer(body, number)
        module = layer.attn
        query, key, value = (_third(module.Wqkv, number) for number in range(3))
        return AttentionParts(
            query=query,
            key=key,
            value=value,
            heads=body.config.num_attention_heads,
            size=module.head_dim,
            scaling=module.head_dim**-0.5,
            dropout=nn.Dropout(module.attention_dropout).train(module.training),
            implementation=module.config._attn_implementation,
            norm=layer.attn_norm,
            rotate=self.rotate(body, layer),
            bias=lambda query, key: _window(body, layer, query.shape[2], key.shape[2], key.device),
        )

    def after_attention(self, layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
        attended = hidden + layer.attn.out_drop(layer.attn.Wo(context))
        output: Tensor = attended + layer.mlp(layer.mlp_norm(attended))
        return output

    def score(self, model: Any, first: Tensor) -> Tensor:
        scores: Tensor = model.classifier(model.drop(model.head(first)))
        return scores

    def guess(self, model: Any, states: Tensor) -> Tensor:
        logits: Tensor = model.decoder(model.head(states))
        return logits

    def cut(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        config: Any = model.config
        kinds = [config.layer_types[number - 1] for number in layers]
        super().cut(model, layers)
        config.layer_types = kinds
        self._join_first_norm(self.layer(model.base_model, 1))

    def _join_first_norm(self, layer: Any) -> None:
        """Takes the normalisation away from a new first layer, which in transformers has none, and keeps its scales.

        The embeddings are normalised already, so only the scales of that normalisation are lost with it.
        """
        norm = layer.attn_norm
        if isinstance(norm, nn.LayerNorm):
            with torch.no_grad():
                if norm.bias is not None and layer.attn.Wqkv.bias is not None:
                    layer.attn.Wqkv.bias += layer.attn.Wqkv.weight @ norm.bias
                layer.attn.Wqkv.weight *= norm.weight
            layer.attn_norm = nn.Identity()

    def new_config(self, shape: Mapping[str, Any], tokenizer: Any, embedding: int) -> dict[str, Any]:  # noqa: ARG002
        return {
            **shape,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "cls_token_id": tokenizer.cls_token_id,
            "sep_token_id": tokenizer.sep_token_id,
        }


def _third(linear: nn.Linear, number: int) -> Projection:
    """Queries, keys or values out of the one projection that makes all three."""

    size = linear.out_features // 3
    rows = slice(number * size, (number + 1) * size)

    def project(states: Tensor) -> Tensor:
        return F.linear(states, linear.weight[rows], None if linear.bias is None else linear.bias[rows])

    return project


def _window(body: Any, layer: Any, queries: int, tokens: int, device: torch.device) -> Tensor:
    """(1, 1, queries, tokens), 0 within a layer's window about each of the first tokens, else very negative."""
    if layer.attention_type != "sliding_attention":
        return torch.zeros(1, 1, 1, 1, device=device)
    distance = torch.arange(tokens, device=device)[None] - torch.arange(queries, device=device)[:, None]
    added: Tensor = (distance.abs() > body.config.sliding_window)[None, None] * FAR
    return added
