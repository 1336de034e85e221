"""EuroBERT: a Llama without the causal mask; root-mean-square normalisation ahead of each part, rotary positions."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.models.families.family import AttentionParts, Projection
from pipeline.models.families.rotary import UnsegmentedRotaryFamily


class Eurobert(UnsegmentedRotaryFamily):
    """EuroBERT, as transformers has it; several heads may share one head of keys and values."""

    model_types = ("eurobert",)
    first_token_pooling = "bos"

    def embed(
        self,
        body: Any,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,  # noqa: ARG002
        position_ids: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        states: Tensor = body.embed_tokens(input_ids)
        return states

    def finish(self, body: Any, hidden: Tensor) -> Tensor:
        states: Tensor = body.norm(hidden)
        return states

    def attention(self, body: Any, number: int) -> AttentionParts:
        layer = self.layer(body, number)
        module = layer.self_attn
        groups = module.num_key_value_groups
        return AttentionParts(
            query=module.q_proj,
            key=_repeated(module.k_proj, groups, module.head_dim),
            value=_repeated(module.v_proj, groups, module.head_dim),
            heads=body.config.num_attention_heads,
            size=module.head_dim,
            scaling=module.scaling,
            dropout=nn.Dropout(module.attention_dropout).train(module.training),
            implementation=module.config._attn_implementation,
            norm=layer.input_layernorm,
            rotate=self.rotate(body, layer),
        )

    def after_attention(self, layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
        attended = hidden + layer.self_attn.o_proj(context)
        output: Tensor = attended + layer.mlp(layer.post_attention_layernorm(attended))
        return output

    def pooled(self, model: Any, states: Tensor, mask: Tensor) -> Tensor:
        if model.config.classifier_pooling == "late":
            # Its head reads every token, and the last step of it is linear: the mean may go ahead.
            states = model.activation(model.dense(states))
        return super().pooled(model, states, mask)

    def score(self, model: Any, first: Tensor) -> Tensor:
        late = model.config.classifier_pooling == "late"
        scores: Tensor = model.classifier(first if late else model.activation(model.dense(first)))
        return scores

    def new_config(self, shape: Mapping[str, Any], tokenizer: Any, embedding: int) -> dict[str, Any]:  # noqa: ARG002
        return {
            **shape,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "mask_token_id": tokenizer.mask_token_id,
            "classifier_pooling": "bos",
        }


def _repeated(linear: nn.Linear, groups: int, size: int) -> Projection:
    """Keys or values, each head of them for `groups` heads of queries beside each other."""
    if groups == 1:
        return linear

    def project(states: Tensor) -> Tensor:
        heads: Tensor = linear(states)
        repeated: Tensor = heads.view(*heads.shape[:-1], -1, size).repeat_interleave(groups, dim=-2).flatten(-2)
        return repeated

    return project
