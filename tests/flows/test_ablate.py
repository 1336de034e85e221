"""The ablation of the tiny world: every kind and seed is trained once, and nothing twice."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import ablate, cli
from pipeline import config
from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError
from tests.flows.conftest import Trained

SETS = '["plain", "soft+margin", "hard=0+soft+margin+hidden"]'


@pytest.fixture(scope="module")
def recipe(tiny_world: Path) -> config.Recipe:
    return config.load(
        tiny_world / "tiny.toml", [f"data.root={tiny_world}", "ablation.seeds=2", f"ablation.sets={SETS}"]
    )


@pytest.fixture(scope="module")
def ablated(recipe: config.Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    workspace = tmp_path_factory.mktemp("ablated")
    return workspace, ablate.ablate(recipe, workspace)


def test_every_kind_is_trained_with_every_seed(ablated: tuple[Path, Artifact], recipe: config.Recipe) -> None:
    workspace, made = ablated
    found = ablate.read(made)
    assert found["kinds"] == ["plain", "soft+margin", "hard=0+soft+margin+hidden"]
    assert found["references"] == ["BM25", "teacher"]
    assert len(list((workspace / "artifacts" / "ranker").glob("*/manifest.json"))) == 6
    assert len(list((workspace / "artifacts" / "teacher").glob("*/manifest.json"))) == 1


def test_plain_is_the_plain_student_of_a_retraining(ablated: tuple[Path, Artifact], trained: Trained) -> None:
    """Same data, teacher, layers and losses: the first seed's weights are those of the retraining's plain student."""

    def heads(workspace: Path) -> set[bytes]:
        rankers = (path.parent for path in (workspace / "artifacts" / "ranker").glob("*/manifest.json"))
        return {(folder / "model" / "model.safetensors").read_bytes() for folder in rankers}

    assert heads(ablated[0]) & heads(trained.workspace)


def test_a_second_run_makes_nothing(ablated: tuple[Path, Artifact], recipe: config.Recipe) -> None:
    workspace, made = ablated
    before = sorted(workspace.rglob("manifest.json"))
    assert ablate.ablate(recipe, workspace).fingerprint == made.fingerprint
    assert sorted(workspace.rglob("manifest.json")) == before


def test_the_command_prints_the_verdict(ablated: tuple[Path, Artifact], tiny_world: Path) -> None:
    arguments = ["ablate", str(tiny_world / "tiny.toml"), "--workspace", str(ablated[0])]
    for override in (f"data.root={tiny_world}", "ablation.seeds=2", f"ablation.sets={SETS}"):
        arguments += ["--set", override]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "valid queries" in result.output
    assert "table.md" in result.output


def test_an_unknown_loss_is_refused_before_any_work(tiny_world: Path, tmp_path: Path) -> None:
    recipe = config.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", 'ablation.sets=["sofd"]'])
    with pytest.raises(ConfigError, match="no loss is called 'sofd'"):
        ablate.ablate(recipe, tmp_path)
    assert not list(tmp_path.iterdir())
