"""A person may move an artifact to another disk and leave a link: gc removes the link and goes on."""

import shutil
from pathlib import Path

from flows import gc
from pipeline import locks
from tests.serving.conftest import TinyWorkspace


def test_gc_removes_a_link_and_not_the_folder_that_it_leads_to(tiny: TinyWorkspace, tmp_path: Path) -> None:
    moved, newest = tiny.publish(2), tiny.publish(3)
    link, elsewhere = tiny.releases.path(moved), tmp_path / "elsewhere"
    shutil.move(link, elsewhere)
    link.symlink_to(elsewhere)
    unfinished = link.with_name(f"{'0' * 32}.partial")  # As a gc of former versions left a link.
    unfinished.symlink_to(elsewhere)
    locks.let_go(tiny.path)
    listed = gc.gc(tiny.path, keep=1)["items"]
    assert {item["path"]: item["bytes"] for item in listed}[str(link.relative_to(tiny.path))] == 0
    removed = {item["path"] for item in gc.gc(tiny.path, keep=1, act=True)["items"]}
    assert {str(path.relative_to(tiny.path)) for path in (link, unfinished)} <= removed
    assert not link.is_symlink()
    assert not unfinished.is_symlink()
    assert (elsewhere / "manifest.json").is_file()
    assert newest in tiny.releases.ids()
