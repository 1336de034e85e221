import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ArtifactError, ConflictError, MissingError
from pipeline.release_parts import part
from pipeline.releases import Releases


def _part(workspace: Path, kind: str, text: str) -> Artifact:
    def build(staging: Staging) -> Mapping[str, Any]:
        (staging.folder / "weights").write_text(text, encoding="utf-8")
        return {}

    return artifacts.make(workspace, kind, version=1, config={"text": text}, inputs={}, build=build)


def _release(workspace: Path, text: str) -> Artifact:
    return Releases(workspace).publish({"ranker": _part(workspace, "bundle", text)}, {"ndcg": 0.5}, {"name": text})


def test_release_holds_its_parts_and_needs_no_originals(tmp_path: Path) -> None:
    release = _release(tmp_path, "one")
    for path in (tmp_path / "artifacts" / "bundle").rglob("weights"):
        path.unlink()
    opened = Releases(tmp_path).open(release.fingerprint[:8])
    assert part(opened, "ranker").file("weights").read_text(encoding="utf-8") == "one"
    assert part(opened, "ranker").manifest.kind == "bundle"


def test_promote_rollback_and_history(tmp_path: Path) -> None:
    registry = Releases(tmp_path)
    first, second = (_release(tmp_path, name).fingerprint for name in ("one", "two"))
    registry.promote(first, reason="first")
    pointer = registry.promote(second, reason="better", expected=1)
    assert (pointer.generation, pointer.previous) == (2, first)
    assert registry.resolve("live") == second
    assert registry.resolve("previous") == first
    back = registry.rollback(reason="worse")
    assert (back.release, back.generation, back.action) == (first, 3, "rollback")
    assert [entry.release for entry in registry.history()] == [first, second, first]
    assert registry.ids() == [first, second]


def test_a_second_rollback_goes_further_back(tmp_path: Path) -> None:
    registry = Releases(tmp_path)
    first, second, third = (_release(tmp_path, name).fingerprint for name in ("one", "two", "three"))
    for release in (first, second, third):
        registry.promote(release, reason="better")
    assert registry.rollback(reason="worse").release == second
    assert registry.rollback(reason="worse still").release == first
    with pytest.raises(MissingError, match="no earlier release"):
        registry.rollback(reason="x")


def test_of_two_publishers_that_saw_the_same_generation_one_loses_and_is_told(tmp_path: Path) -> None:
    registry = Releases(tmp_path)
    first, second = (_release(tmp_path, name).fingerprint for name in ("one", "two"))
    registry.promote(first, reason="a", expected=0)
    with pytest.raises(ConflictError, match="generation 1, not 0"):
        registry.promote(second, reason="b", expected=0)
    live = registry.live()
    assert live is not None
    assert live.release == first


def test_promoting_what_is_live_changes_nothing(tmp_path: Path) -> None:
    registry = Releases(tmp_path)
    release = _release(tmp_path, "one").fingerprint
    registry.promote(release, reason="a")
    assert registry.promote(release, reason="again").generation == 1
    assert len(registry.history()) == 1


def test_names_that_mean_nothing_or_two_things(tmp_path: Path) -> None:
    registry = Releases(tmp_path)
    with pytest.raises(MissingError, match="no live release"):
        registry.open()
    with pytest.raises(MissingError, match="no earlier release"):
        registry.rollback(reason="x")
    _release(tmp_path, "one")
    with pytest.raises(MissingError, match="no release called 'zz'"):
        registry.open("zz")
    _release(tmp_path, "two")
    with pytest.raises(MissingError, match="2 releases called ''"):
        registry.open("")


def test_damaged_release_is_not_promoted(tmp_path: Path) -> None:
    registry = Releases(tmp_path)
    release = _release(tmp_path, "one")
    file = release.path / "ranker" / "weights"
    file.unlink()
    file.write_text("two", encoding="utf-8")
    with pytest.raises(ArtifactError, match="weights"):
        registry.promote(release.fingerprint, reason="x")
    assert registry.live() is None


def test_unreadable_pointer_says_what_to_do(tmp_path: Path) -> None:
    registry = Releases(tmp_path)
    registry.promote(_release(tmp_path, "one").fingerprint, reason="x")
    (tmp_path / "releases" / "live.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"history\.jsonl"):
        registry.live()
    line = (tmp_path / "releases" / "history.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    (tmp_path / "releases" / "live.json").write_text(line, encoding="utf-8")
    assert json.loads(line)["release"] == registry.resolve("live")


def test_a_lost_pointer_is_answered_with_a_promotion_and_only_an_empty_workspace_with_a_retraining(
    tmp_path: Path,
) -> None:
    registry = Releases(tmp_path)
    with pytest.raises(
        MissingError, match=r"`relevance quickstart DOCUMENTS --workspace .*` makes a release without judgments"
    ):
        registry.resolve("live")
    first, second, third = (_release(tmp_path, name).fingerprint for name in ("one", "two", "three"))
    with pytest.raises(
        MissingError, match=f"promote {third[:12]} --workspace {tmp_path}` makes one live, the newest; complete too"
    ):
        registry.resolve("live")
    registry.promote(first, reason="a")
    with pytest.raises(MissingError, match="no previous release; name one of those that are complete") as raised:
        registry.resolve("previous")
    assert "retrain" not in str(raised.value)
    registry.promote(second, reason="b")
    (tmp_path / "releases" / "live.json").unlink()
    for name in ("live", "previous"):
        with pytest.raises(MissingError) as raised:
            registry.resolve(name)
        message = str(raised.value)
        assert f"promote {second[:12]} --workspace {tmp_path}` makes one live, which was live last" in message
        assert f"complete too: {third[:12]}, {first[:12]}" in message
        assert "retrain" not in message
    # A release that lacks a file is not advised, whatever the history says.
    (registry.path(second) / "ranker" / "weights").unlink()
    with pytest.raises(MissingError, match=f"promote {third[:12]} --workspace {tmp_path}`") as raised:
        registry.resolve("live")
    assert second[:12] not in str(raised.value)
    registry.promote(third, reason="as advised")
    assert registry.resolve("live") == third
    for release in (first, second, third):
        (registry.path(release) / artifacts.MANIFEST).unlink()
    (tmp_path / "releases" / "live.json").unlink()
    with pytest.raises(
        MissingError, match=r"`relevance quickstart DOCUMENTS --workspace .*` makes a release without judgments"
    ):
        registry.resolve("live")
