"""The file that a recipe's name means."""

from pathlib import Path

import pytest

from flows.built_in_recipes import RECIPES, recipe_names, recipe_path
from pipeline.errors import ConfigError, MissingError


def test_each_built_in_name_means_its_own_file_and_nothing_else_does() -> None:
    for name in recipe_names():
        assert recipe_path(name) == RECIPES / f"{name}.toml"
        for other in (f"./{name}", f"../recipes/{name}"):
            with pytest.raises(MissingError, match=f"did you mean {name}"):
                recipe_path(other)


def test_a_folder_of_data_is_data_whatever_file_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path once meant the recipe beside the folder, and a relative one the folder."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop.toml").write_text('name = "shop"\n')
    monkeypatch.chdir(tmp_path)
    for name in ("shop", "./shop", str(tmp_path / "shop")):
        with pytest.raises(ConfigError, match="is data, not a recipe"):
            recipe_path(name)
    assert recipe_path("shop.toml") == Path("shop.toml")
