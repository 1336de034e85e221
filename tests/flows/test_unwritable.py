"""A folder that cannot be written is refused before anything else is done, with the exit code of wrong input."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from flows.cli import surroundings
from flows.cli.command import app
from pipeline import disk
from pipeline.errors import ConfigError
from tests.flows.full_disk import SmallDisk, small_disk

__all__ = ["small_disk"]  # A fixture.

ROOT = Path(__file__).parents[2]
READING = {
    "serve",
    "search",
    "rerank",
    "index list",
    "index verify",
    "index gc",
    "releases list",
    "releases show",
    "releases export",
    "releases push",
    "releases gc",
}
"""Commands that read a workspace, or make room in it. `serve` writes only where it imports a model."""


def commands_by_check() -> Iterator[tuple[str, bool]]:
    """Each command that takes a workspace, and whether it checks at once that it can be written."""
    waiting = [("", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop()
        waiting += [(f"{name} {inner}".strip(), below) for inner, below in getattr(command, "commands", {}).items()]
        for parameter in command.params:
            if parameter.name == "workspace":
                assert parameter.callback is not None
                yield name, _wraps(parameter.callback)


def _wraps(callback: object) -> bool:
    """Whether Typer's function around a callback holds that of a written workspace."""
    cells = getattr(callback, "__closure__", None) or ()
    return any(cell.cell_contents is surroundings.check_workspace for cell in cells)


def test_every_command_that_writes_checks_its_workspace_first() -> None:
    checked = dict(commands_by_check())
    assert {name for name, is_checked in checked.items() if not is_checked} == READING
    assert {"quickstart", "retrain", "reindex", "report", "releases pull"} <= set(checked) - READING


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process where torch must not be imported."""
    for name in ("torch", "transformers"):
        (cwd / "poison" / name).mkdir(parents=True, exist_ok=True)
        (cwd / "poison" / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    return subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", *arguments],
        env=os.environ | {"PYTHONPATH": f"{cwd / 'poison'}{os.pathsep}{ROOT}"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    "command",
    [
        ("quickstart", "docs.csv", "--workspace", "docs.csv/new"),
        ("retrain", "small", "--check", "--workspace", "docs.csv/new"),
        ("reindex", "--documents", "docs.csv", "--workspace", "docs.csv/new"),
        ("serve", "--ranker", "model", "--workspace", "docs.csv/new"),
        ("data", "convert", "docs.csv", "docs.csv/new"),
        ("report", "--run", "x", "--judgments", "y", "--workspace", "new", "--out", "docs.csv/new"),
    ],
    ids=lambda command: command[0],
)
def test_a_folder_below_a_file_is_refused_at_once(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "docs.csv").write_text("title\na steel deck\n", encoding="utf-8")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    message = f"relevance: docs.csv/new: cannot be written ({tmp_path / 'docs.csv'}: Not a directory); name a folder"
    assert message in done.stderr
    assert not (tmp_path / "new").exists()


AS_NOBODY = """
import os, sys
from pathlib import Path
from pipeline import disk
from pipeline.errors import ConfigError

if os.geteuid() == 0:
    os.seteuid(65534)
try:
    disk.check_writable(Path(sys.argv[1]))
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(("mode", "below"), [(0o555, "workspace"), (0o500, "inner/workspace")])
def test_a_folder_of_another_user_is_refused(mode: int, below: str, tmp_path: Path) -> None:
    """One that may only be read, and one that may not even be entered."""
    if mode == 0o500 and os.geteuid() != 0:
        pytest.skip("its owner may enter it")
    closed = tmp_path / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(mode)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o111)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(closed / below)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{closed / below}: cannot be written ({closed}: Permission denied)" in done.stdout


def test_a_full_disk_is_refused(small_disk: SmallDisk) -> None:
    folder = small_disk.path / "workspace"
    disk.check_writable(folder)
    with small_disk.filled(blocks=0), pytest.raises(ConfigError, match="No space left on device"):
        disk.check_writable(folder)
    assert list(small_disk.path.iterdir()) == []
