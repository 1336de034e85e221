"""The answer to a workspace that is not there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli.options import existing
from pipeline.errors import MissingError


def test_the_workspace_beside_it_with_the_nearest_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "workspace" / "releases").mkdir(parents=True)
    (tmp_path / "workspaces").mkdir()
    with pytest.raises(MissingError, match=rf"there is no such workspace; did you mean {tmp_path / 'workspace'}\?"):
        existing(tmp_path / "workspac")


def test_a_folder_that_cannot_be_listed_is_not_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(MissingError, match=f"{tmp_path / 'none'}: there is no such workspace; "):
        existing(tmp_path / "none")
