"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's layers, other positions and another head."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from pipeline.models.families.family import ModelFamily


class Roberta(ModelFamily):
    """Positions begin after the padding id, and the head has its own dense layer in place of a pooler."""

    model_types: ClassVar[tuple[str, ...]] = ("roberta", "xlm-roberta", "camembert")
    has_graph = True

    def first_position(self, config: Any) -> int:
        return int(config.pad_token_id) + 1

    def score(self, model: Any, first: Tensor) -> Tensor:
        scores: Tensor = model.classifier(first.unsqueeze(1))  # the head takes the first token itself
        return scores

    def score_layer(self, model: Any) -> nn.Linear:
        layer = model.classifier.out_proj
        assert isinstance(layer, nn.Linear)
        return layer

    def head_weights(self, prefix: str) -> tuple[str, str]:  # noqa: ARG002
        return "classifier.dense", "classifier.out_proj"

    def new_config(self, shape: Mapping[str, Any], tokenizer: Any, embedding: int) -> dict[str, Any]:  # noqa: ARG002
        return {
            **shape,
            "max_position_embeddings": shape["max_position_embeddings"] + tokenizer.pad_token_id + 1,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
