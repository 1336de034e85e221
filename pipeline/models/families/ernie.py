"""ERNIE: BERT with one more embedding, of the task, which is 0 for all that we read."""

from collections.abc import Mapping
from typing import Any

from pipeline.models.families.family import Array, ModelFamily


class Ernie(ModelFamily):
    """ERNIE 1 to 3, the usual encoders of Chinese retrieval."""

    model_types = ("ernie",)
    has_graph = True

    def body_weights(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        body: dict[str, Any] = super().body_weights(weights)
        tasks = body.pop("embeddings.task_type_embeddings.weight", None)
        if tasks is not None:  # A constant for every token, as segments are with one segment.
            name = "embeddings.token_type_embeddings.weight"
            body[name] = body[name] + tasks[:1]
        return body
