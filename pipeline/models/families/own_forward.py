"""Models that are read by their own forward pass alone: XLNet, and all else that transformers can classify with.

They teach: scores always, and the classification token's states where the model gives its hidden states. No layer
runs by itself, so nothing is packed, cut, narrowed or exported, and no queries, keys or values can be compared.
"""

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from pipeline.errors import ConfigError
from pipeline.models.families.family import EVERYTHING, AttentionParts, ModelFamily, Need

log = logging.getLogger(__name__)


class OwnForward(ModelFamily):
    """Any other model with a head for classification; the type is given to the instance."""

    offers = frozenset[Need](("states",))
    optional_pooler = False
    _logged_types: ClassVar[set[str]] = set()
    """Types of models whose limits have been logged in this process."""

    def __init__(self, model_type: str = "") -> None:
        self.model_type = model_type

    @classmethod
    def can_read(cls, model_type: str) -> bool:
        """Whether transformers has a head for classification for this type."""
        return model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    def log_limits(self, config: Any) -> None:
        """Warns, once for each type of model, which losses and stages it cannot serve."""
        if config.model_type in self._logged_types:
            return
        self._logged_types.add(config.model_type)
        missing = ", ".join(sorted(EVERYTHING - self.offers))
        log.warning(
            "a %s model is read by its own forward pass, so it can only teach; it offers no %s",
            *(config.model_type, missing),
        )

    def splits(self, config: Any) -> bool:  # noqa: ARG002
        return False

    def positions(self, config: Any) -> int:
        most = getattr(config, "max_position_embeddings", None) or 0
        return int(most) if most > 0 else 2**31

    def outputs(
        self, model: Any, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Scores (batch, labels), and the states after the embeddings and each layer, (batch, tokens, hidden) each."""
        pad = getattr(model.config, "pad_token_id", None)
        if pad is None and len(input_ids) > 1:  # Decoders look for the last real token by its id.
            return self._one_by_one(model, input_ids, token_type_ids, attention_mask)
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if pad is None:
            input_ids = input_ids[:, : int(attention_mask.sum())]
            attention_mask = torch.ones_like(input_ids)
            given = {name: ids[:, : input_ids.shape[1]] for name, ids in given.items()}
        else:
            input_ids = torch.where(attention_mask.bool(), input_ids, pad)
        output = model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, **given)
        return output.logits, list(getattr(output, "hidden_states", None) or ())

    def _one_by_one(
        self, model: Any, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        width = input_ids.shape[1]
        rows = []
        for row in range(len(input_ids)):
            types = None if token_type_ids is None else token_type_ids[row : row + 1]
            rows.append(self.outputs(model, input_ids[row : row + 1], types, attention_mask[row : row + 1]))
        states = [
            torch.cat([nn.functional.pad(part, (0, 0, 0, width - part.shape[1])) for part in parts])
            for parts in zip(*(states for _, states in rows), strict=True)
        ]
        return torch.cat([scores for scores, _ in rows]), states

    def attention(self, body: Any, number: int) -> AttentionParts:  # noqa: ARG002
        raise self._refusal(body.config, "queries, keys and values")

    def cut(self, model: PreTrainedModel, layers: Any) -> None:
        if list(layers) != list(range(1, int(model.config.num_hidden_layers) + 1)):
            raise self._refusal(model.config, "a choice of layers")

    def feed_forward(self, layer: Any) -> tuple[nn.Linear, nn.Linear]:  # noqa: ARG002
        raise self._refusal(None, "feed-forward units to leave out")

    def layers(self, body: Any) -> list[nn.Module]:
        raise self._refusal(body.config, "layers that run again by themselves (loop.checkpoint_activations)")

    def score_layer(self, model: Any) -> nn.Linear:
        """The last linear layer with one output."""
        heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
        if not heads:
            raise self._refusal(model.config, "a linear layer that gives one score")
        return heads[-1]

    def _refusal(self, config: Any, what: str) -> ConfigError:
        name = getattr(config, "model_type", None) or self.model_type
        return ConfigError(f"a {name} model is read by its own forward pass and offers no {what}; it can only teach")
