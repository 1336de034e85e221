"""NomicBERT: normalisation after attention as in BERT, rotary positions, and a gated feed-forward part."""

from typing import Any

from torch import Tensor, nn

from pipeline.models.families.family import AttentionParts
from pipeline.models.families.rotary import RotaryFamily


class NomicBert(RotaryFamily):
    """nomic-embed-text and its kin."""

    model_types = ("nomic_bert",)

    def attention(self, body: Any, number: int) -> AttentionParts:
        layer = self.layer(body, number)
        module = layer.self_attn
        return AttentionParts(
            query=module.q_proj,
            key=module.k_proj,
            value=module.v_proj,
            heads=body.config.num_attention_heads,
            size=module.head_dim,
            scaling=module.scaling,
            dropout=nn.Dropout(module.attention_dropout).train(module.training),
            implementation=module.config._attn_implementation,
            rotate=self.rotate(body, layer),
        )

    def after_attention(self, layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
        attended = layer.post_attention_layernorm(
            hidden + layer.post_attention_dropout(layer.self_attn.o_proj(context))
        )
        output: Tensor = layer.post_mlp_layernorm(attended + layer.post_mlp_dropout(layer.mlp(attended)))
        return output
