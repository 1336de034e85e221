"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's layers, other positions and another head."""

from typing import Any

from torch import Tensor, nn

from pipeline.models.families.family import ModelFamily


class Roberta(ModelFamily):
    """Positions begin behind the padding id, and the head has its own dense layer in place of a pooler."""

    model_types = ("roberta", "xlm-roberta", "camembert")

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
