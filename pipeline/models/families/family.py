"""The adapter between a transformers model and this pipeline: where a family keeps its parts.

Training, surgery, packing and export reach into a model only through the methods below, so a new family is one file
beside this one and one line in `families/__init__.py`.

    embed → layer 1 → … → layer n → score             one forward pass, layer by layer
            attention(layer)                          queries, keys and values of that layer
            after_attention(layer, …)                 the rest of that layer

`ModelFamily` implements BERT's layout. A family overrides what it keeps elsewhere.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

Array = TypeVar("Array")

Projection = Callable[[Tensor], Tensor]
"""A map of states to states, (…, hidden) → (…, heads · size)."""


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """The projections of one layer's attention, and the numbers that go with them."""

    query: Projection
    key: Projection
    value: Projection
    heads: int
    size: int
    """Width of one head."""
    scaling: float
    """Factor of the products of queries and keys; 1 / √size for most."""
    dropout: nn.Dropout
    """Dropout of the attention weights."""
    implementation: str
    """The name that transformers has for the computation: eager or sdpa."""

    @classmethod
    def of(cls, module: Any, *, dropout: nn.Dropout) -> "AttentionParts":
        """The parts of a module whose attributes are called as those of BERT's self-attention."""
        return cls(
            query=module.query,
            key=module.key,
            value=module.value,
            heads=module.num_attention_heads,
            size=module.attention_head_size,
            scaling=module.scaling,
            dropout=dropout,
            implementation=module.config._attn_implementation,
        )


class ModelFamily:
    """Where models of BERT's layout keep their layers, attention projections, embeddings and pooled state."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of `model_type` in config.json that belong to this family."""
    shares_layers: ClassVar[bool] = False
    """True when all layers use one set of weights."""
    splits_layers: ClassVar[bool] = True
    """True when `attention` and `after_attention` together are the layer.

    Then the last layer is computed for the first token alone, and batches of unlike width are packed into one matrix.
    """
    has_graph: ClassVar[bool] = True
    """True when `pipeline.export.graph` writes the ONNX graph of this family."""

    def first_position(self, config: Any) -> int:  # noqa: ARG002
        """The position id of a text's first token."""
        return 0

    def segments(self, config: Any) -> int:
        """The number of segment ids that the model reads; with one it is given none."""
        return int(getattr(config, "type_vocab_size", 0))

    def embed(
        self, body: Any, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """The states before the first layer, (batch, tokens, hidden), from ids of (batch, tokens)."""
        given = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        states: Tensor = body.embeddings(
            input_ids=input_ids, **{name: ids for name, ids in given.items() if ids is not None}
        )
        return states

    def layer(self, body: Any, number: int) -> Any:
        """Layer `number` of a base model, from 1; maps states and the additive mask to states."""
        return body.encoder.layer[number - 1]

    def attention(self, layer: Any) -> AttentionParts:
        """The attention of a layer.

        Raises:
            ConfigError: the layer has several.
        """
        module = layer.attention.self
        return AttentionParts.of(module, dropout=module.dropout)

    def after_attention(self, layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
        """The output of a layer, from its input and the joined heads of its attention.

        Args:
            context: (…, hidden) the attention's result, before its output projection.
            hidden: (…, hidden) the layer's input at the same tokens.
        """
        attended = layer.attention.output(context, hidden)
        output: Tensor = layer.output(layer.intermediate(attended), attended)
        return output

    def feed_forward(self, layer: Any) -> tuple[nn.Linear, nn.Linear]:
        """The two linear layers of a layer's feed-forward part: to its units, and back to the states.

        Raises:
            ConfigError: the family keeps them in another form.
        """
        inner, outer = layer.intermediate.dense, layer.output.dense
        assert isinstance(inner, nn.Linear)
        assert isinstance(outer, nn.Linear)
        return inner, outer

    def score(self, model: Any, first: Tensor) -> Tensor:
        """(batch, labels) from the last state of the first token, (batch, hidden)."""
        states = first.unsqueeze(1)  # (batch, 1, hidden): the pooler takes the first token itself
        scores: Tensor = model.classifier(model.dropout(model.base_model.pooler(states)))
        return scores

    def score_layer(self, model: Any) -> nn.Linear:
        """The linear layer that gives the score."""
        layer = model.classifier
        assert isinstance(layer, nn.Linear)
        return layer

    def cut(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        """Leaves only these layers of a model, counted from 1, in place.

        Raises:
            ConfigError: the layers cannot be told apart.
        """
        body: Any = model.base_model
        body.encoder.layer = nn.ModuleList(copy.deepcopy(self.layer(body, number)) for number in layers)
        model.config.num_hidden_layers = len(layers)

    def check_one_layer_kind(self, config: Any) -> None:
        """Raises ConfigError when layers that share weights are not all the same layer."""

    def body_weights(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """The base model's weights by BERT's names, as `pipeline.export.graph` reads them.

        Args:
            weights: name → array, the base model's prefix taken off.
        """
        return {name: array for name, array in weights.items() if name.startswith(("embeddings.", "encoder.layer."))}

    def head_weights(self, prefix: str) -> tuple[str, str]:
        """Names of the two linear layers between the first token's state and the score.

        Args:
            prefix: the name of the base model inside the whole one.
        """
        return f"{prefix}.pooler.dense", "classifier"
