"""XLNet, which can teach: the classification token stands last and has a segment of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.families.own_forward import OwnForward


class Xlnet(OwnForward):
    """XLNet; its attention over relative positions of two streams runs in its own forward pass only."""

    model_types = ("xlnet",)

    def segments(self, config: Any) -> int:  # noqa: ARG002
        return 3

    def template_segments(self, types: Sequence[int]) -> list[int]:
        return [min(kind, 1) for kind in types]  # `outputs` gives the last token its own.

    def positions(self, config: Any) -> int:  # noqa: ARG002
        return 2**31  # Relative positions only.

    def cls(self, states: Tensor, mask: Tensor) -> Tensor:
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]

    def outputs(
        self, model: Any, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        last = torch.arange(input_ids.shape[1], device=input_ids.device) == attention_mask.sum(1, keepdim=True) - 1
        output = model.base_model(
            input_ids=input_ids,
            token_type_ids=torch.where(last, 2, types),
            attention_mask=attention_mask.float(),
            output_hidden_states=True,
            use_mems=False,
        )
        last_states = self.cls(output.last_hidden_state, attention_mask)
        scores = model.logits_proj(model.sequence_summary(last_states.unsqueeze(1)))
        return scores, list(output.hidden_states)

    def score_layer(self, model: Any) -> nn.Linear:
        layer = model.logits_proj
        assert isinstance(layer, nn.Linear)
        return layer
