"""ModernBERT: normalisation ahead of each part, rotary positions, local attention in most layers, gated units."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from pipeline.errors import ConfigError
from pipeline.models.families.family import EVERYTHING, AttentionParts, ModelFamily, Projection
from pipeline.models.families.nomic_bert import rotated

FAR = torch.finfo(torch.bfloat16).min
"""The number added to the logits of tokens outside a layer's window."""


class Modernbert(ModelFamily):
    """ModernBERT, Ettin and rerankers made of them."""

    model_types = ("modernbert",)
    offers = EVERYTHING - {"narrow"}
    optional_pooler = False

    def reads_first_token(self, config: Any) -> bool:
        return bool(config.classifier_pooling == "cls")

    def segments(self, config: Any) -> int:  # noqa: ARG002
        return 0

    def embed(
        self,
        body: Any,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,  # noqa: ARG002
        position_ids: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        states: Tensor = body.embeddings(input_ids=input_ids)
        return states

    def layer(self, body: Any, number: int) -> Any:
        return body.layers[number - 1]

    def replace_layers(self, body: Any, layers: nn.ModuleList) -> None:
        body.layers = layers

    def run_layer(self, body: Any, number: int, hidden: Tensor, mask: Tensor) -> Tensor:
        layer, tokens = self.layer(body, number), hidden.shape[1]
        positions = torch.arange(tokens, device=hidden.device)[None]
        output: Tensor = layer(
            hidden,
            attention_mask=(mask + _window(body, layer, tokens, tokens, hidden.device)).to(mask.dtype),
            position_embeddings=body.rotary_emb(hidden, positions, layer.attention_type),
        )
        return output

    def finish(self, body: Any, hidden: Tensor) -> Tensor:
        states: Tensor = body.final_norm(hidden)
        return states

    def attention(self, body: Any, number: int) -> AttentionParts:
        layer = self.layer(body, number)
        module = layer.attn

        def rotate(states: Tensor) -> Tensor:
            positions = torch.arange(states.shape[2], device=states.device)[None]
            return rotated(states, *body.rotary_emb(states, positions, layer.attention_type))

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
            rotate=rotate,
            bias=lambda query, key: _window(body, layer, query.shape[2], key.shape[2], key.device),
        )

    def after_attention(self, layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
        attended = hidden + layer.attn.out_drop(layer.attn.Wo(context))
        output: Tensor = attended + layer.mlp(layer.mlp_norm(attended))
        return output

    def feed_forward(self, layer: Any) -> tuple[nn.Linear, nn.Linear]:  # noqa: ARG002
        raise ConfigError("a modernbert model's feed-forward units are gated, so none can be left out alone")

    def pooled(self, model: Any, states: Tensor, mask: Tensor) -> Tensor:
        if model.config.classifier_pooling == "cls":
            return states[:, 0]
        share = mask.unsqueeze(-1).to(states.dtype)  # (batch, tokens, 1)
        return (states * share).sum(1) / share.sum(1)

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
