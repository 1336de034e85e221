"""NomicBERT: normalisation behind attention as in BERT, rotary positions, and a gated feed-forward part."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.families.family import EVERYTHING, AttentionParts, ModelFamily


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """States with rotary positions, (texts, heads, tokens, size); cos and sin are (1, tokens, size).

    Source: Su et al., RoFormer, arXiv:2104.09864.
    """
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    result: Tensor = (states.float() * cos.unsqueeze(1) + turned.float() * sin.unsqueeze(1)).to(states.dtype)
    return result


class NomicBert(ModelFamily):
    """nomic-embed-text and its kin."""

    model_types = ("nomic_bert",)
    offers = EVERYTHING - {"narrow"}

    def layer(self, body: Any, number: int) -> Any:
        return body.layers[number - 1]

    def replace_layers(self, body: Any, layers: nn.ModuleList) -> None:
        body.layers = layers

    def run_layer(self, body: Any, number: int, hidden: Tensor, mask: Tensor) -> Tensor:
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        output: Tensor = self.layer(body, number)(
            hidden, attention_mask=mask, position_embeddings=body.rotary_emb(hidden, positions)
        )
        return output

    def attention(self, body: Any, number: int) -> AttentionParts:
        module = self.layer(body, number).self_attn

        def rotate(states: Tensor) -> Tensor:
            return rotated(states, *body.rotary_emb(states, torch.arange(states.shape[2], device=states.device)[None]))

        return AttentionParts(
            query=module.q_proj,
            key=module.k_proj,
            value=module.v_proj,
            heads=body.config.num_attention_heads,
            size=module.head_dim,
            scaling=module.scaling,
            dropout=nn.Dropout(module.attention_dropout).train(module.training),
            implementation=module.config._attn_implementation,
            rotate=rotate,
        )

    def after_attention(self, layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
        attended = layer.post_attention_layernorm(
            hidden + layer.post_attention_dropout(layer.self_attn.o_proj(context))
        )
        output: Tensor = layer.post_mlp_layernorm(attended + layer.post_mlp_dropout(layer.mlp(attended)))
        return output

    def feed_forward(self, layer: Any) -> tuple[nn.Linear, nn.Linear]:  # noqa: ARG002
        raise ConfigError("a nomic_bert model's feed-forward units are gated, so none can be left out alone")
