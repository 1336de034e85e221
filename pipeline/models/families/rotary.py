"""The part that families with rotary positions share: where their layers stand, how these turn queries and keys.

All of them have gated feed-forward parts. Source: Su et al., RoFormer, arXiv:2104.09864.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.families.family import EVERYTHING, ModelFamily, Need


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys with rotary positions, (texts, heads, tokens, size); cos and sin are (1, tokens, size)."""
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    result: Tensor = (states.float() * cos.unsqueeze(1) + turned.float() * sin.unsqueeze(1)).to(states.dtype)
    return result


class RotaryFamily(ModelFamily):
    """A family whose layers are `body.layers` and take the rotations of all positions with each call."""

    offers: ClassVar[frozenset[Need]] = EVERYTHING - {"narrow"}

    def layer(self, body: Any, number: int) -> Any:
        return body.layers[number - 1]

    def replace_layers(self, body: Any, layers: nn.ModuleList) -> None:
        body.layers = layers

    def rotations(self, body: Any, layer: Any, states: Tensor, tokens: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Cosines and sines of the positions 0 … tokens − 1 for a layer, each (1, tokens, size).

        Args:
            body: the base model in the sense of transformers.
            layer: the layer that turns its queries and keys by them.
            states: any states of the layer, for their device and type.
            tokens: the number of positions.
        """
        cos, sin = body.rotary_emb(states, torch.arange(tokens, device=states.device)[None])
        return cos, sin

    def rotate(self, body: Any, layer: Any) -> Callable[[Tensor], Tensor]:
        """A function that turns queries or keys, (texts, heads, tokens, size), as this layer does."""
        return lambda states: rotated(states, *self.rotations(body, layer, states, states.shape[2]))

    def run_layer(self, body: Any, number: int, hidden: Tensor, mask: Tensor) -> Tensor:
        layer = self.layer(body, number)
        positions = self.rotations(body, layer, hidden, hidden.shape[1])
        output: Tensor = layer(hidden, attention_mask=self.layer_mask(body, layer, mask), position_embeddings=positions)
        return output

    def layer_mask(self, body: Any, layer: Any, mask: Tensor) -> Tensor:  # noqa: ARG002
        """Numbers that a layer adds to its attention logits, from those of padding, (texts, 1, 1, tokens)."""
        return mask

    def feed_forward(self, layer: Any) -> tuple[nn.Linear, nn.Linear]:  # noqa: ARG002
        kind = self.model_types[0]
        raise ConfigError(f"a {kind} model's feed-forward units are gated, so none can be left out alone")


class UnsegmentedRotaryFamily(RotaryFamily):
    """A family without segments, whose score reads one token or the mean of all, as `classifier_pooling` says."""

    optional_pooler = False
    first_token_pooling: ClassVar[str]
    """Value of `classifier_pooling` in the config of a model whose score reads the first token."""

    def reads_first_token(self, config: Any) -> bool:
        return bool(config.classifier_pooling == self.first_token_pooling)

    def segments(self, config: Any) -> int:  # noqa: ARG002
        return 0

    def pooled(self, model: Any, states: Tensor, mask: Tensor) -> Tensor:
        if self.reads_first_token(model.config):
            return states[:, 0]
        share = mask.unsqueeze(-1).to(states.dtype)  # (batch, tokens, 1)
        return (states * share).sum(1) / share.sum(1)
