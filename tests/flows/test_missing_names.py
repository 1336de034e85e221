"""A recipe or data that is not there is told before anything heavy is imported, so within about a second."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli import surroundings
from flows.cli.command import app

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "pandas", "pyarrow", "faiss", "prefect", "onnxruntime")


@pytest.fixture(scope="module")
def without_heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which the heavy packages are modules that must not be imported."""
    folder = tmp_path_factory.mktemp("heavy")
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "retrain none.toml",
        "retrain none --check",
        "ablate none",
        "study none --list",
        "schedule none",
        "recipe show none",
        "init none.csv",
        "data check none",
        "data convert none out",
        "data split none out",
        "quickstart none.csv --no-serve",
        "export --model none",
    ],
)
def test_a_missing_name_is_told_before_anything_heavy_is_imported(
    words: str, without_heavy: Path, tmp_path: Path
) -> None:
    env = {**os.environ, "PYTHONPATH": f"{without_heavy}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "flows.cli", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("relevance: none")
    assert "no such" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["retrain", "ablate", "study"])
def test_data_that_a_recipe_lacks_is_told_before_torch_is_imported(name: str, tmp_path: Path) -> None:
    for module in ("torch", "transformers", "faiss", "onnxruntime"):
        (tmp_path / f"{module}.py").write_text(f"raise RuntimeError('{module} was imported')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "flows.cli", name, "homedepot", "--set", "data.root=none"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr == "relevance: none/homedepot: no such file or folder\n"


def test_a_recipe_that_cannot_be_read_is_told_as_early(without_heavy: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": f"{without_heavy}{os.pathsep}{ROOT}"}
    for name in ("retrain", "ablate", "study"):
        command = [sys.executable, "-m", "flows.cli", name, "demo", "--set", "ranker.layer=2"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 2, done.stderr
        assert "did you mean ranker.layers?" in done.stderr


def named_things() -> Iterator[tuple[str, Any]]:
    """The arguments of all commands that name a recipe or data, each with its command."""
    waiting = [("", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop()
        waiting += [(f"{name} {inner}".strip(), below) for inner, below in getattr(command, "commands", {}).items()]
        for parameter in command.params:
            is_argument = parameter.param_type_name == "argument"
            if is_argument and parameter.name in ("recipe", "data", "path", "documents"):
                yield name, parameter


def test_every_argument_that_names_a_recipe_or_data_is_checked_at_once() -> None:
    things = dict(named_things())
    assert {"retrain", "study", "init", "data check", "quickstart", "recipe show", "schedule"} <= set(things)
    known = (surroundings.resolve_recipe, surroundings.check_data)
    for name, parameter in things.items():
        cells = getattr(parameter.callback, "__closure__", None) or ()
        assert any(cell.cell_contents in known for cell in cells), name


def test_addresses_and_patterns_are_left_to_their_readers(tmp_path: Path) -> None:
    (tmp_path / "there.csv").touch()
    for path in ("s3://bucket/data", "sqlite:///shop.db", f"{tmp_path}/*.csv", str(tmp_path / "there.csv")):
        assert surroundings.check_data([path]) == [path]
        assert surroundings.check_data(path) == path
