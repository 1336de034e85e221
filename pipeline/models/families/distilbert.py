"""DistilBERT: BERT's layers by other names, without segments and without a pooler."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.models.families.family import Array, AttentionParts, ModelFamily

_PARTS = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}

_FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}


class Distilbert(ModelFamily):
    """DistilBERT, whose head for scores has a dense layer with ReLU in place of BERT's pooler with tanh."""

    model_types = ("distilbert",)
    has_graph = True
    head_activation = "Relu"
    units_field = "hidden_dim"
    optional_pooler = False

    def segments(self, config: Any) -> int:  # noqa: ARG002
        return 0

    def layer(self, body: Any, number: int) -> Any:
        return body.transformer.layer[number - 1]

    def replace_layers(self, body: Any, layers: nn.ModuleList) -> None:
        body.transformer.layer = layers

    def attention(self, body: Any, number: int) -> AttentionParts:
        module = self.layer(body, number).attention
        return AttentionParts(
            query=module.q_lin,
            key=module.k_lin,
            value=module.v_lin,
            heads=module.n_heads,
            size=module.attention_head_size,
            scaling=module.scaling,
            dropout=module.dropout,
            implementation=module.config._attn_implementation,
        )

    def after_attention(self, layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
        attended = layer.sa_layer_norm(layer.attention.out_lin(context) + hidden)
        output: Tensor = layer.output_layer_norm(layer.ffn.ff_chunk(attended) + attended)
        return output

    def feed_forward(self, layer: Any) -> tuple[nn.Linear, nn.Linear]:
        return layer.ffn.lin1, layer.ffn.lin2

    def score(self, model: Any, first: Tensor) -> Tensor:
        scores: Tensor = model.classifier(model.dropout(model.pre_classifier(first).relu()))
        return scores

    def guess(self, model: Any, states: Tensor) -> Tensor:
        states = model.vocab_layer_norm(model.activation(model.vocab_transform(states)))
        logits: Tensor = model.vocab_projector(states)
        return logits

    def body_weights(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        body: dict[str, Any] = {name: array for name, array in weights.items() if name.startswith("embeddings.")}
        for name, array in weights.items():
            if name.startswith("transformer.layer."):
                number, rest = name.removeprefix("transformer.layer.").split(".", 1)
                part = next(part for part in _PARTS if rest.startswith(f"{part}."))
                body[f"encoder.layer.{number}.{_PARTS[part]}{rest.removeprefix(part)}"] = array
        row = body["embeddings.position_embeddings.weight"][:1]
        body["embeddings.token_type_embeddings.weight"] = row * 0  # No segments: nothing is added for them.
        return body

    def head_weights(self, prefix: str) -> tuple[str, str]:  # noqa: ARG002
        return "pre_classifier", "classifier"

    def new_config(self, shape: Mapping[str, Any], tokenizer: Any, embedding: int) -> dict[str, Any]:  # noqa: ARG002
        return {_FIELDS.get(name, name): value for name, value in shape.items()}
