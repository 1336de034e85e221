"""ALBERT: one layer that every state passes several times, and embeddings narrower than the states."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.errors import ConfigError
from pipeline.models.families.family import EVERYTHING, Array, AttentionParts, ModelFamily

_LAYER = "encoder.albert_layer_groups.0.albert_layers.0"

_BERT_NAMES = {
    f"{_LAYER}.attention.query": "encoder.layer.0.attention.self.query",
    f"{_LAYER}.attention.key": "encoder.layer.0.attention.self.key",
    f"{_LAYER}.attention.value": "encoder.layer.0.attention.self.value",
    f"{_LAYER}.attention.dense": "encoder.layer.0.attention.output.dense",
    f"{_LAYER}.attention.LayerNorm": "encoder.layer.0.attention.output.LayerNorm",
    f"{_LAYER}.ffn": "encoder.layer.0.intermediate.dense",
    f"{_LAYER}.ffn_output": "encoder.layer.0.output.dense",
    f"{_LAYER}.full_layer_layer_norm": "encoder.layer.0.output.LayerNorm",
    "encoder.embedding_hidden_mapping_in": "embeddings.mapping",
}


class Albert(ModelFamily):
    """Layers are groups of layers whose weights are used again and again; all built-in models have one group of one."""

    model_types = ("albert",)
    has_graph = True
    shares_layers = True
    offers = EVERYTHING - {"narrow"}

    def splits(self, config: Any) -> bool:
        return int(config.inner_group_num) == 1

    def embed(
        self, body: Any, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        narrow = super().embed(body, input_ids, token_type_ids, position_ids)  # (batch, tokens, embedding)
        states: Tensor = body.encoder.embedding_hidden_mapping_in(narrow)
        return states

    def layer(self, body: Any, number: int) -> Any:
        groups = body.encoder.albert_layer_groups
        return groups[(number - 1) * len(groups) // int(body.config.num_hidden_layers)]

    def attention(self, body: Any, number: int) -> AttentionParts:
        layer = self.layer(body, number)
        if len(layer.albert_layers) > 1:
            raise ConfigError("an albert model whose layers are groups of several has no one attention to learn from")
        module = layer.albert_layers[0].attention
        return AttentionParts.of(module, dropout=module.attention_dropout)

    def after_attention(self, layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
        (inner,) = layer.albert_layers
        attention = inner.attention
        attended = attention.LayerNorm(hidden + attention.output_dropout(attention.dense(context)))
        output: Tensor = inner.full_layer_layer_norm(inner.ff_chunk(attended) + attended)
        return output

    def feed_forward(self, layer: Any) -> tuple[nn.Linear, nn.Linear]:
        (inner,) = layer.albert_layers
        return inner.ffn, inner.ffn_output

    def score(self, model: Any, first: Tensor) -> Tensor:
        body = model.base_model
        scores: Tensor = model.classifier(model.dropout(body.pooler_activation(body.pooler(first))))
        return scores

    def cut(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        self.check_one_layer_kind(model.config)
        model.config.num_hidden_layers = len(layers)

    def check_one_layer_kind(self, config: Any) -> None:
        if (config.num_hidden_groups, config.inner_group_num) != (1, 1):
            raise ConfigError(
                "only an albert whose layers are all one is known here, not one of several groups; "
                "start from a model with num_hidden_groups 1 and inner_group_num 1"
            )

    def body_weights(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        body = {name: array for name, array in weights.items() if name.startswith("embeddings.")}
        for own, bert in _BERT_NAMES.items():
            body |= {f"{bert}.{part}": weights[f"{own}.{part}"] for part in ("weight", "bias")}
        return body

    def head_weights(self, prefix: str) -> tuple[str, str]:
        return f"{prefix}.pooler", "classifier"

    def new_config(self, shape: Mapping[str, Any], tokenizer: Any, embedding: int) -> dict[str, Any]:
        return {
            **shape,
            "embedding_size": embedding,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
        }
