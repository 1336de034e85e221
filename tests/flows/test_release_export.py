"""Exported models open in sentence-transformers without a complaint, and in plain onnxruntime by the card's lines."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import ready_made, release_export
from flows.ready_made import ReadyMadeModels
from pipeline import release_parts, releases
from pipeline.artifacts import Artifact
from pipeline.data import convert
from pipeline.errors import ArtifactError, ConfigError, MissingError
from pipeline.export import exported_card
from serving.runtime.engine import Engine
from tests.flows.conftest import Trained
from tests.pipeline.models.test_ready_made import body

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Not ours: what that package says on import.
    library: Any = pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "models"
    release_export.export(trained.workspace, "live", folder)
    return folder


def output(engine_of: Path, folder: Path, role: str) -> tuple[np.ndarray, np.ndarray]:
    """The output of the card's five lines in the exported folder, and our engine's for the same texts."""
    lines = exported_card.code((folder / role / "README.md").read_text(encoding="utf-8"))
    assert len(lines.splitlines()) == 5
    name = "score" if role == "ranker" else "vector"
    script = f"{lines}\nimport json\nprint(json.dumps(numpy.asarray({name}).tolist()))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder / role, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    engine = Engine(engine_of, precision="fp32", threads=1)
    ours = engine.scores("a query", ["a document"]) if role == "ranker" else engine.embed(["a text"], "document")[0]
    engine.close()
    return np.array(json.loads(done.stdout)), np.array(ours).squeeze()


def part(workspace: Path, role: str) -> Artifact:
    return release_parts.part(releases.Releases(workspace).open(), role)


def card_mode(exported: Path) -> int:
    """The permissions of a file that was written anew."""
    return (exported / "ranker" / "README.md").stat().st_mode & 0o777


@pytest.mark.parametrize("role", ["ranker", "encoder"])
def test_the_cards_five_lines_compute_what_the_service_computes(role: str, trained: Trained, exported: Path) -> None:
    theirs, ours = output(part(trained.workspace, role).path, exported, role)
    assert theirs == pytest.approx(ours, abs=1e-6)
    card = (exported / role / "README.md").read_text(encoding="utf-8")
    assert "## Training" in card, "the card of the training is kept"
    assert "## Licence" in card
    assert f'from_pretrained("{role}")' in card, "lines name the folder"
    assert "from pipeline" not in card, "it has no head.json, by which this pipeline opens a model"
    modes = {path.stat().st_mode & 0o777 for path in (exported / role).rglob("*") if path.is_file()}
    assert modes == {card_mode(exported)}, "a copy is as readable as any new file"
    named = set(re.findall(r"`(onnx/.*?\.onnx)`", card))
    assert named == {f"onnx/{path.name}" for path in (exported / role / "onnx").iterdir()}
    precisions = part(trained.workspace, role).metrics["precisions"]
    assert named == {f"onnx/{exported_card.onnx_name(name)}" for name in precisions}


def test_sentence_transformers_opens_both_without_a_report(trained: Trained, exported: Path) -> None:
    script = (
        "import sys; from sentence_transformers import CrossEncoder, SentenceTransformer\n"
        "encoder = SentenceTransformer('encoder', device='cpu'); ranker = CrossEncoder('ranker', device='cpu')\n"
        "import numpy; numpy.save('vector.npy', encoder.encode(['red knife', 'a blue lawn']))\n"
        "numpy.save('score.npy', ranker.predict([('red knife', 'a blue lawn')]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=exported, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("MISSING", "UNEXPECTED", "newly initialized"):
        assert word not in done.stdout + done.stderr
    encoder = Engine(part(trained.workspace, "encoder").path, precision="fp32", threads=1)
    ranker = Engine(part(trained.workspace, "ranker").path, precision="fp32", threads=1)
    assert np.load(exported / "vector.npy") == pytest.approx(
        encoder.embed(["red knife", "a blue lawn"], "document"), abs=1e-5
    )
    assert np.load(exported / "score.npy") == pytest.approx(ranker.scores("red knife", ["a blue lawn"]), abs=1e-5)
    encoder.close()
    ranker.close()


def test_a_ready_made_model_is_exported_with_a_card_that_names_its_source(tmp_path: Path) -> None:
    folder = body(tmp_path / "my-ranker", "roberta", head=1)
    release = ready_made.release(ReadyMadeModels(ranker=str(folder)), tmp_path / "w")
    result = release_export.export(tmp_path / "w", release, tmp_path / "to" / "models")
    assert result["models"] == ["ranker"]
    card = (tmp_path / "to" / "models" / "ranker" / "README.md").read_text(encoding="utf-8")
    assert "Imported from `my-ranker`" in card
    registry = releases.Releases(tmp_path / "w")
    theirs, ours = output(
        release_parts.part(registry.open(release), "ranker").path, tmp_path / "to" / "models", "ranker"
    )
    assert theirs == pytest.approx(ours, abs=1e-6)


def test_nothing_is_overwritten_and_nothing_half_made(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already and not empty"):
        release_export.export(trained.workspace, "live", tmp_path / "full")
    with pytest.raises(MissingError, match="no release called"):
        release_export.export(trained.workspace, "0" * 8, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    release_export.export(trained.workspace, "live", tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_a_model_that_the_workspace_lost_is_named(copied: Trained, tmp_path: Path) -> None:
    model = part(copied.workspace, "encoder").manifest.inputs["model"]
    (copied.workspace / "artifacts" / "encoder" / model).rename(tmp_path / "away")
    with pytest.raises(MissingError, match=f"no longer holds the model {model[:12]}"):
        release_export.export(copied.workspace, "live", tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("kind", ["link", "dangling link", "current folder", "mount point", "file", "full folder"])
def test_a_folder_that_cannot_be_replaced_is_refused_before_anything_is_copied(
    kind: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, kept = tmp_path / "to", tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr(release_export, "_copy", lambda *_: pytest.fail("copies"))
    if kind.endswith("link"):
        to.symlink_to("nowhere" if kind.startswith("dangling") else "kept")
    elif kind == "current folder":
        monkeypatch.chdir(kept)
        to = Path()
    elif kind == "mount point":
        to = Path("/proc")
    elif kind == "file":
        to.write_text("mine")
    else:
        to.mkdir()
        (to / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"name a new folder( in it)?$"):
        release_export.export(trained.workspace, "live", to)
    with pytest.raises(ConfigError, match=r"name a new folder( in it)?$"):
        convert.convert(trained.world / "tiny", "auto", to)
    assert sorted(tmp_path.rglob("*")) == before
    assert to.is_dir() or kind == "dangling link" or to.read_text() == "mine"


def test_a_full_disk_is_one_error_and_the_same_command_works_when_there_is_room(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copyfile
    wrote: list[Path] = []

    def full(source: Path, target: Path) -> Path:
        if len(wrote) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        wrote.append(target)
        return copied(source, target)

    to = tmp_path / "to"
    to.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(ArtifactError, match=r"to: could not be written \(No space left on device;.*make room"):
            release_export.export(trained.workspace, "live", to)
    assert len(wrote) == 3
    assert list(tmp_path.rglob("*")) == [to]
    written = release_export.export(trained.workspace, "live", to)
    assert {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()} == set(written["files"])


def test_what_is_put_into_the_folder_meanwhile_stays(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, copy = tmp_path / "to", release_export._copy
    to.mkdir()

    def copy_beside_another_writer(*arguments: Any) -> None:
        copy(*arguments)
        (to / "mine").write_text("mine")

    monkeypatch.setattr(release_export, "_copy", copy_beside_another_writer)
    with pytest.raises(OSError, match="not empty"):
        release_export.export(trained.workspace, "live", to)
    assert [path.name for path in tmp_path.rglob("*")] == ["to", "mine"]
