"""Checks of the values of a recipe, which its sections share, and how their fields are declared."""

import dataclasses
from typing import TypeVar

from pydantic import ConfigDict

from pipeline.errors import ConfigError

DOCUMENTED = ConfigDict(use_attribute_docstrings=True)
"""Makes the text below a field its description in the JSON Schema."""

ADDED = "added"
"""The mark of a field that `added` declares."""

T = TypeVar("T")


def added(default: T) -> T:
    """A field that a section got after artifacts had been made from it.

    Manifests and fingerprints leave it out while it has its default, so the artifacts made before are used again. A
    later change of the default must raise the version of the stages that read it.
    """
    return dataclasses.field(default=default, metadata={ADDED: True})


def positive(section: str, **values: float) -> None:
    """Raises `ConfigError` if a value is not above 0."""
    for name, value in values.items():
        if value <= 0:
            raise ConfigError(f"{section}.{name} is {value}; it must be above 0")


def weights(section: str, **values: float) -> None:
    """Raises `ConfigError` if a weight is below 0, or all of them are 0."""
    for name, value in values.items():
        if value < 0:
            raise ConfigError(f"{section}.{name} is {value}; it must be 0, for none, or more")
    if not any(values.values()):
        raise ConfigError(f"{section}: every loss has weight 0, so there is nothing to learn; give one a weight")


def share(section: str, **values: float) -> None:
    """Raises `ConfigError` if a value is not between 0 and 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{section}.{name} is {value}; it is a share, between 0 and 1")
