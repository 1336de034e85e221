"""The check of the sizes in a model's config, before anything is built."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "num_labels")
"""Keys of config.json that decide how much is built; families have names of their own for some."""

LAYER_BYTES = 1000
"""Bytes of weights per layer of the smallest model; bounds the number of layers by the size of the files."""


def check_sizes(path: Path, config: Mapping[str, Any], weights: int) -> None:
    """Refuses sizes that are no positive numbers, or larger than the number of all weights, before anything is built.

    Args:
        path: config.json.
        config: its content.
        weights: bytes of the files of weights, an upper bound of their number.

    Raises:
        ConfigError: names the key.
    """
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    own_names = CONFIG_MAPPING[kind].attribute_map if isinstance(kind, str) and kind in CONFIG_MAPPING else {}
    for name in SIZES:
        key = own_names.get(name, name)
        value = config.get(key, 1)
        most = weights // LAYER_BYTES if name == "num_hidden_layers" else weights
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise ConfigError(
                f"{path}: {key} is {str(value)[:60]}, which the weights beside it cannot have; give the model with "
                "its own config.json"
            )
