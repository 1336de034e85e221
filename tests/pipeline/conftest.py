"""Small random models of every family, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_models import VARIANTS, write_base


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the base model of a variant."""
    folders: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in folders:
            model_type, changes = VARIANTS[variant]
            folders[variant] = write_base(tmp_path_factory.mktemp(model_type), model_type, **changes)
        return folders[variant]

    return get
