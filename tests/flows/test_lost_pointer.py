"""A live pointer that is lost or cannot be read: the commands that messages advise mend it, others need it not."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from flows import gc, release_storage
from flows.cli.command import app
from pipeline.errors import ArtifactError
from serving.api import app as apps
from serving.api import keys
from serving.rollout.lifecycle import Lifecycle
from tests.serving.conftest import TinyWorkspace
from tests.serving.patience import patient

LOSSES = {"missing": None, "damaged": "{", "missing, without its history": None}


def lose(workspace: Path, loss: str) -> None:
    pointer, text = workspace / "releases" / "live.json", LOSSES[loss]
    pointer.unlink() if text is None else pointer.write_text(text, encoding="utf-8")
    if "history" in loss:
        (workspace / "releases" / "history.jsonl").unlink()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("was_live", [True, False])
def test_the_advice_of_gc_to_promote_a_release_works(tiny: TinyWorkspace, loss: str, was_live: bool) -> None:
    live, other = tiny.releases.resolve("live"), tiny.publish(2)
    tiny.releases.promote(other, reason="test")
    tiny.releases.promote(live, reason="test")
    lose(tiny.path, loss)
    with pytest.raises(ArtifactError, match="promot"):
        gc.gc(tiny.path, keep=1)
    chosen = live if was_live else other
    done = CliRunner().invoke(app, ["releases", "promote", chosen[:12], "--workspace", str(tiny.path)])
    assert done.exit_code == 0, done.exception
    assert tiny.releases.resolve("live") == chosen
    assert gc.gc(tiny.path, keep=1)["removed"] is False


@pytest.mark.parametrize("loss", ["missing", "damaged"])
def test_a_release_is_pushed_and_pulled_beside_a_lost_pointer(tiny: TinyWorkspace, loss: str, tmp_path: Path) -> None:
    live, address = tiny.releases.resolve("live"), f"file://{tmp_path / 'shared'}"
    release_storage.push(tiny.path, address)
    other = tiny.publish(2)
    tiny.releases.promote(other, reason="test")
    lose(tiny.path, loss)
    assert release_storage.push(tiny.path, address, live)["live_there"] is False
    assert release_storage.pull(tiny.path, address)["live"] is True
    assert tiny.releases.resolve("live") == live


@pytest.mark.parametrize("loss", ["missing", "damaged"])
def test_an_administrator_rolls_back_over_http_from_a_lost_pointer(tiny: TinyWorkspace, loss: str) -> None:
    before, other = tiny.releases.resolve("live"), tiny.publish(2)
    tiny.releases.promote(other, reason="test")
    lifecycle = Lifecycle(patient(workspace=tiny.path, threads=1, admin_keys=(keys.digest("admin").hex(),)))
    lifecycle.start()
    headers = {"authorization": "Bearer admin"}
    with TestClient(apps.create(lifecycle), client=("127.0.0.1", 5000), headers=headers) as client:
        lose(tiny.path, loss)
        listed = client.get("/admin/releases")
        assert listed.json()["pointer"]["release"] == other
        answer = client.post("/admin/rollback", json={"reason": "test"})
        assert answer.status_code == 200, answer.text
    assert tiny.releases.resolve("live") == before


def test_a_gc_of_indexes_keeps_all_releases_and_needs_no_live_one(tiny: TinyWorkspace) -> None:
    tiny.publish(2)
    known = tiny.releases.ids()
    for lost in ("live.json", "history.jsonl"):
        (tiny.path / "releases" / lost).unlink()
    gc.gc(tiny.path, keep=None, act=True)
    assert tiny.releases.ids() == known
    assert all(tiny.releases.open(name) for name in known)
