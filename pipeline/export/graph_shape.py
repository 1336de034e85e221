"""Reads from a transformers config the sizes and operators that `pipeline.export.graph` writes into an ONNX graph."""

from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.models.families import FAMILIES, ModelFamily

EMBEDDINGS = "embeddings"
"""Name of the embedding table in lists of a model's parts, beside `layer.0` and so on."""

ACTIVATIONS = {"gelu": "Gelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu", "relu": "Relu"}
"""Activation in a config → ONNX Runtime's operator."""


def graph_family(config: Any) -> ModelFamily:
    """The family of a model whose graph can be written.

    Args:
        config: a transformers config.

    Raises:
        ConfigError: a family whose graph is not known; names those that are.
    """
    known = [family for family in FAMILIES if family.has_graph]
    for family in known:
        if config.model_type in family.model_types:
            return family
    names = ", ".join(name for family in known for name in family.model_types)
    raise ConfigError(f"export: no ONNX graph is known for models of family '{config.model_type}'; start from {names}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphShape:
    """The sizes and kinds that the graph takes from a transformers config."""

    layers: int
    hidden: int
    heads: int
    activation: str
    epsilon: float
    types: int
    """Number of segments; with one, the graph has no input for them."""
    first_position: int
    """Row of the position table that the first token takes: 0, or after the padding id for RoBERTa."""
    positions: int
    head_activation: str = "Tanh"
    """Operator between the two layers of a cross-encoder's head."""
    shared: bool = False
    """Whether all layers are one (ALBERT), whose weights are then called `encoder.layer.0.…`."""

    @classmethod
    def of(cls, config: Any) -> "GraphShape":
        """The shape of a transformers config.

        Raises:
            ConfigError: a family, activation or kind of position whose graph is not known.
        """
        family = graph_family(config)
        activation = getattr(config, "hidden_act", None) or config.activation  # distilbert calls it activation.
        if activation not in ACTIVATIONS:
            raise ConfigError(f"export: activation '{activation}' is not one of {', '.join(ACTIVATIONS)}")
        positions = getattr(config, "position_embedding_type", None) or "absolute"
        if positions != "absolute" or getattr(config, "is_decoder", False):
            raise ConfigError(f"export: only encoders with absolute positions are known, not '{positions}' or decoders")
        family.check_one_layer_kind(config)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            activation=activation,
            epsilon=getattr(config, "layer_norm_eps", 1e-12),
            types=max(1, family.segments(config)),
            first_position=family.first_position(config),
            positions=config.max_position_embeddings,
            shared=family.shares_layers,
            head_activation=family.head_activation,
        )

    @property
    def max_tokens(self) -> int:
        """The longest input that has a position for every token."""
        return self.positions - self.first_position

    @property
    def inputs(self) -> list[str]:
        return ["input_ids", "attention_mask", *(["token_type_ids"] if self.types > 1 else [])]

    @property
    def parts(self) -> list[str]:
        """The names of the parts that can be kept in fp32: the embeddings and each layer."""
        return [EMBEDDINGS, *(f"layer.{number}" for number in range(self.layers))]
