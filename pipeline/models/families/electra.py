"""ELECTRA: BERT's layers, perhaps narrower embeddings, and a head with GELU."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.models.families.family import Array, ModelFamily


class Electra(ModelFamily):
    """ELECTRA's discriminator. Its small models project embeddings of width 128 to states of width 256."""

    model_types = ("electra",)
    has_graph = True
    head_activation = "Gelu"
    optional_pooler = False

    def embed(
        self, body: Any, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        states = super().embed(body, input_ids, token_type_ids, position_ids)  # (batch, tokens, embedding)
        project = getattr(body, "embeddings_project", None)
        return states if project is None else project(states)

    def score(self, model: Any, first: Tensor) -> Tensor:
        scores: Tensor = model.classifier(first.unsqueeze(1))  # the head takes the first token itself
        return scores

    def score_layer(self, model: Any) -> nn.Linear:
        layer = model.classifier.out_proj
        assert isinstance(layer, nn.Linear)
        return layer

    def guess(self, model: Any, states: Tensor) -> Tensor:
        logits: Tensor = model.generator_lm_head(model.generator_predictions(states))
        return logits

    def body_weights(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        mapping = {f"embeddings_project.{part}": f"embeddings.mapping.{part}" for part in ("weight", "bias")}
        return super().body_weights(weights) | {bert: weights[own] for own, bert in mapping.items() if own in weights}

    def head_weights(self, prefix: str) -> tuple[str, str]:  # noqa: ARG002
        return "classifier.dense", "classifier.out_proj"

    def new_config(self, shape: Mapping[str, Any], tokenizer: Any, embedding: int) -> dict[str, Any]:  # noqa: ARG002
        return {**shape, "embedding_size": embedding}
