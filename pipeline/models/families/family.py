"""The adapter between a transformers model and this pipeline: where a family keeps its parts.

Training, surgery, packing and export reach into a model only through the methods below, so a new family is one file
beside this one and one line in `families/__init__.py`.

    embed → layer 1 → … → layer n → finish → cls → score      one forward pass, layer by layer
            attention(body, n)                                queries, keys and values of that layer
            after_attention(layer, …)                         the rest of that layer

`ModelFamily` implements BERT's layout. A family overrides what it keeps elsewhere. `OwnForward` (own_forward.py) is
for models that are read by their own forward pass only.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

Array = TypeVar("Array")

Projection = Callable[[Tensor], Tensor]
"""A map of states to states, (…, hidden) → (…, heads · size)."""

Need = Literal["states", "tokens", "attention", "cut", "narrow", "serve"]
"""A thing that a loss or a later stage may need of a model: states of the first token, states of all tokens, queries,
keys and values, layers that can be left out, feed-forward units that can be left out, an export."""

EVERYTHING: frozenset[Need] = frozenset(("states", "tokens", "attention", "cut", "narrow", "serve"))
"""All that a family may offer."""


def same(states: Tensor) -> Tensor:
    """The states themselves."""
    return states


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """The projections of one layer's attention, and what goes with them."""

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
    norm: Callable[[Tensor], Tensor] = same
    """Normalisation of a layer's input before the three projections, where it stands ahead of attention."""
    rotate: Callable[[Tensor], Tensor] = same
    """Rotary positions of queries or keys, (texts, heads, tokens, size) to the same; the first token has position 0."""
    bias: Callable[[Tensor, Tensor], Tensor] | None = None
    """A number for each logit, from queries (texts, heads, n, size) of the first n tokens and all keys
    (texts, heads, tokens, size): broadcasts to (texts, heads, n, tokens). Relative positions and local windows."""

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

    def added(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """The numbers added to the logits: padding and, where there are any, relative positions."""
        return mask if self.bias is None else self.bias(query, key) + mask


class ModelFamily:
    """Where models of BERT's layout keep their layers, attention projections, embeddings and pooled state."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of `model_type` in config.json that belong to this family."""
    shares_layers: ClassVar[bool] = False
    """True when all layers use one set of weights."""
    offers: ClassVar[frozenset[Need]] = EVERYTHING
    """The needs that such a model meets; a recipe that needs more is refused before training."""
    has_graph: ClassVar[bool] = False
    """True when `pipeline.export.graph` writes the ONNX graph of this family; others go through torch's exporter."""
    head_activation: ClassVar[str] = "Tanh"
    """ONNX operator between the two linear layers of the head."""
    units_field: ClassVar[str] = "intermediate_size"
    """The config's field with the number of feed-forward units."""
    optional_pooler: ClassVar[bool] = True
    """True when the base model takes `add_pooling_layer`."""

    def splits(self, config: Any) -> bool:  # noqa: ARG002
        """Whether `attention` and `after_attention` together are the layer.

        Then the last layer is computed for the first token alone, and batches of unlike width are packed into one
        matrix. Otherwise batches are read one by one, and each layer for all tokens.
        """
        return True

    def reads_first_token(self, config: Any) -> bool:  # noqa: ARG002
        """Whether the score reads the first token's last state and no other."""
        return True

    def first_position(self, config: Any) -> int:  # noqa: ARG002
        """The position id of a text's first token."""
        return 0

    def positions(self, config: Any) -> int:
        """The number of tokens that the model can read."""
        return int(config.max_position_embeddings) - self.first_position(config)

    def segments(self, config: Any) -> int:
        """The number of segment ids that the model reads; with one it is given none."""
        return int(getattr(config, "type_vocab_size", 0) or 0)

    def template_segments(self, types: Sequence[int]) -> list[int]:
        """The segments that a template gives for a pair, from those of the tokenizer."""
        return list(types)

    def embed(
        self, body: Any, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """The states before the first layer, (batch, tokens, hidden), from ids of (batch, tokens).

        Segments are left out where the model has none.
        """
        types = token_type_ids if self.segments(body.config) else None
        given = {"token_type_ids": types, "position_ids": position_ids}
        states: Tensor = body.embeddings(
            input_ids=input_ids, **{name: ids for name, ids in given.items() if ids is not None}
        )
        return states

    def layer(self, body: Any, number: int) -> Any:
        """Layer `number` of a base model, from 1."""
        return body.encoder.layer[number - 1]

    def layers(self, body: Any) -> list[nn.Module]:
        """The layers of a base model, each once; where all are one, that one."""
        numbers = range(1, int(body.config.num_hidden_layers) + 1)
        return list({id(layer): layer for layer in (self.layer(body, number) for number in numbers)}.values())

    def run_layer(self, body: Any, number: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """The states after a layer, (batch, tokens, hidden), from those before it, by its own forward pass.

        Args:
            mask: (batch, 1, 1, tokens), 0 for a real token and very negative for padding.
        """
        output: Tensor = self.layer(body, number)(hidden, mask)
        return output

    def finish(self, body: Any, hidden: Tensor) -> Tensor:  # noqa: ARG002
        """The last states as the model gives them, from the output of its last layer."""
        return hidden

    def attention(self, body: Any, number: int) -> AttentionParts:
        """The attention of layer `number`, from 1.

        Raises:
            ConfigError: the layer has several.
        """
        module = self.layer(body, number).attention.self
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

    def cls(self, states: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002
        """The state of the classification token, (batch, hidden), out of (batch, tokens, hidden).

        Args:
            mask: (batch, tokens), 1 for a real token.
        """
        return states[:, 0]

    def pooled(self, model: Any, states: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002
        """The state that the score of a cross-encoder is made of, (batch, hidden); arguments as for `cls`."""
        return self.cls(states, mask)

    def score(self, model: Any, first: Tensor) -> Tensor:
        """(batch, labels) from `pooled`, (batch, hidden)."""
        states = first.unsqueeze(1)  # (batch, 1, hidden): the pooler takes the first token itself
        scores: Tensor = model.classifier(model.dropout(model.base_model.pooler(states)))
        return scores

    def score_layer(self, model: Any) -> nn.Linear:
        """The linear layer that gives the score."""
        layer = model.classifier
        assert isinstance(layer, nn.Linear)
        return layer

    def guess(self, model: Any, states: Tensor) -> Tensor:
        """Logits of masked tokens, (…, vocabulary), from their last states; `model` has a head for masked tokens."""
        heads = (getattr(model, name, None) for name in ("cls", "lm_head", "predictions"))
        head: Any = next(head for head in heads if head is not None)
        logits: Tensor = head(states)
        return logits

    def cut(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        """Leaves only these layers of a model, counted from 1, in place.

        Raises:
            ConfigError: the layers cannot be told apart.
        """
        body: Any = model.base_model
        kept = nn.ModuleList(copy.deepcopy(self.layer(body, number)) for number in layers)
        self.replace_layers(body, kept)
        model.config.num_hidden_layers = len(layers)

    def replace_layers(self, body: Any, layers: nn.ModuleList) -> None:
        """Puts these layers into a base model in place of its own."""
        body.encoder.layer = layers

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

    def new_config(self, shape: Mapping[str, Any], tokenizer: Any, embedding: int) -> dict[str, Any]:  # noqa: ARG002
        """Fields of the config of a new model of this family, beside its `model_type`.

        Args:
            shape: the fields that all families have, by BERT's names.
            tokenizer: the new model's; its special tokens' ids are set.
            embedding: width of the word embeddings, for families where it differs from the states'.
        """
        return dict(shape)
