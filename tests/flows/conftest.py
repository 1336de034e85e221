"""One retraining of the tiny world, shared by all tests of the flows; tests that change it take a copy."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows import retrain
from pipeline import config
from pipeline import recipe as recipes
from tests.flows.world import TINY_RECIPE, write_tiny_world
from tests.serving.conftest import TinyWorkspace


@dataclass(frozen=True)
class Trained:
    """A workspace with one live release."""

    world: Path
    workspace: Path
    outcome: retrain.RetrainResult

    @property
    def recipe(self) -> config.Recipe:
        return recipes.load(self.world / "tiny.toml", [f"data.root={self.world}"])


@pytest.fixture(scope="session")
def trained(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    workspace = tmp_path_factory.mktemp("workspace")
    recipe = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}"])
    return Trained(tiny_world, workspace, retrain.retrain(recipe, workspace))


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Trained:
    """The trained workspace in a place of its own, to change."""
    workspace = tmp_path / "workspace"
    shutil.copytree(trained.workspace, workspace)
    return Trained(trained.world, workspace, trained.outcome)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny/` (documents, queries, judgments) and `tiny.toml`, a recipe that trains in seconds."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_world(folder / "tiny")
    (folder / "tiny.toml").write_text(TINY_RECIPE, encoding="utf-8")
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> TinyWorkspace:
    """A new workspace with a live release of tiny models."""
    workspace = TinyWorkspace(tmp_path / "workspace")
    workspace.releases.promote(workspace.publish(1), reason="test")
    return workspace


def index_artifacts(workspace: Path) -> set[str]:
    """The folders of all lexical indexes, vectors and semantic indexes of a workspace."""
    folders = (workspace / "artifacts" / kind for kind in ("lexical", "vectors", "index"))
    return {str(path) for folder in folders for path in folder.iterdir()}
