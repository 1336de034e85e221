"""EuroBERT: a Llama without the causal mask; root-mean-square normalisation ahead of each part, rotary positions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.families.family import EVERYTHING, AttentionParts, ModelFamily, Projection
from pipeline.models.families.nomic_bert import rotated


class Eurobert(ModelFamily):
    """EuroBERT, as transformers has it; several heads may share one head of keys and values."""

    model_types = ("eurobert",)
    offers = EVERYTHING - {"narrow"}
    optional_pooler = False

    def reads_first_token(self, config: Any) -> bool:
        return bool(config.classifier_pooling == "bos")

    def segments(self, config: Any) -> int:  # noqa: ARG002
        return 0

    def embed(
        self,
        body: Any,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,  # noqa: ARG002
        position_ids: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        states: Tensor = body.embed_tokens(input_ids)
        return states

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

    def finish(self, body: Any, hidden: Tensor) -> Tensor:
        states: Tensor = body.norm(hidden)
        return states

    def attention(self, body: Any, number: int) -> AttentionParts:
        layer = self.layer(body, number)
        module = layer.self_attn

        def rotate(states: Tensor) -> Tensor:
            return rotated(states, *body.rotary_emb(states, torch.arange(states.shape[2], device=states.device)[None]))

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
            rotate=rotate,
        )

    def after_attention(self, layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
        attended = hidden + layer.self_attn.o_proj(context)
        output: Tensor = attended + layer.mlp(layer.post_attention_layernorm(attended))
        return output

    def feed_forward(self, layer: Any) -> tuple[nn.Linear, nn.Linear]:  # noqa: ARG002
        raise ConfigError("a eurobert model's feed-forward units are gated, so none can be left out alone")

    def pooled(self, model: Any, states: Tensor, mask: Tensor) -> Tensor:
        pooling = model.config.classifier_pooling
        if pooling == "bos":
            return states[:, 0]
        if pooling == "late":  # Its head reads every token, and the last step of it is linear: the mean may go ahead.
            states = model.activation(model.dense(states))
        share = mask.unsqueeze(-1).to(states.dtype)  # (batch, tokens, 1)
        return (states * share).sum(1) / share.sum(1)

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
