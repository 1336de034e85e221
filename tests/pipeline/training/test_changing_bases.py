"""A base model's folder that somebody changes while a stage reads it, for every stage that takes one.

Either the stage refuses, or what it makes is what its fingerprint says: made from the content that was hashed.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flows import ready_made
from pipeline.artifacts import Artifact, finished
from pipeline.config import CandidatesConfig, EncoderConfig, LoopConfig, PretrainConfig, RankerConfig, TeacherConfig
from pipeline.errors import SchemaError
from pipeline.models import import_stage
from pipeline.models.ready_made_files import ReadyMadeOptions
from pipeline.outside import OutsideFolder
from pipeline.training import encoder, external_teacher, pretrain, ranker, score_scale, teacher, teacher_scores
from tests.conftest import Untrained
from tests.pipeline.models.test_ready_made import body
from tests.pipeline.training import test_external_teacher as language_models

CANDIDATES = CandidatesConfig(max_list=4)
LOOP = LoopConfig(epochs=0.2, tokens_per_batch=200, evaluations=0, precision="fp32")
TEACHER = TeacherConfig(max_tokens=32, max_query_tokens=8, loop=LOOP)
RANKER = RankerConfig(layers=1, loop=LOOP)
ENCODER = EncoderConfig(dimensions=8, max_tokens=24, max_query_tokens=8, loop=LOOP, similarity_weight=0.5)
PRETRAIN = PretrainConfig(enabled=True, max_tokens=32, loop=LOOP)
SCALE = score_scale.ScoreScale(0.0, 1.0, 1.0, 0.0, (-1.0, 0.0, 1.0))

Make = Callable[[Path, Path, Untrained], Artifact]


def _teacher(workspace: Path, base: Path, given: Untrained) -> Artifact:
    return teacher.make(workspace, TEACHER, CANDIDATES, data=given.data, pairs=given.pairs, base=str(base))


def _ranker(workspace: Path, base: Path, given: Untrained) -> Artifact:
    config = replace(RANKER, base=str(base))
    inputs = {"data": given.data, "pairs": given.pairs, "teacher": given.ranker}
    return ranker.make(workspace, config, CANDIDATES, **inputs, teacher_scores=None)


def _encoder(workspace: Path, base: Path, given: Untrained) -> Artifact:
    scores = teacher_scores.make(
        workspace, teacher=given.ranker, data=given.data, pairs=given.pairs, layers=(), width=0
    )
    config = replace(ENCODER, base=str(base))
    return encoder.make(
        workspace, config, CANDIDATES, data=given.data, pairs=given.pairs, base="", teacher_scores=scores
    )


def _pretrained(workspace: Path, base: Path, given: Untrained) -> Artifact:
    return pretrain.make(workspace, PRETRAIN, str(base), data=given.data)


def _external(workspace: Path, base: Path, given: Untrained) -> Artifact:
    config = replace(language_models.CONFIG, causal_lm=str(base))
    return external_teacher.make(workspace, config, data=given.data, pairs=given.pairs, layers=())


def _imported_ranker(workspace: Path, base: Path, _given: Untrained) -> Artifact:
    return import_stage.ranker(workspace, str(base), ReadyMadeOptions())


def _imported_encoder(workspace: Path, base: Path, _given: Untrained) -> Artifact:
    return import_stage.encoder(workspace, str(base), ReadyMadeOptions())


def _bundle(workspace: Path, base: Path, _given: Untrained) -> Artifact:
    return ready_made.bundles(ready_made.ReadyMadeModels(ranker=str(base)), workspace)["ranker"]


STAGES: dict[str, tuple[Make, Callable[[Path], Path]]] = {
    "teacher": (_teacher, lambda folder: body(folder, "bert")),
    "ranker": (_ranker, lambda folder: body(folder, "bert")),
    "encoder": (_encoder, lambda folder: body(folder, "bert")),
    "pretrained": (_pretrained, lambda folder: body(folder, "bert")),
    "external teacher": (_external, language_models.save_model),
    "imported ranker": (_imported_ranker, lambda folder: body(folder, "bert", head=1)),
    "imported encoder": (_imported_encoder, lambda folder: body(folder, "bert")),
    "exported ranker": (_bundle, lambda folder: body(folder, "bert", head=1)),
}


def ruin(folder: Path) -> None:
    """Overwrites the files of a folder in place, as `cp` over them does, so that no read of them passes unseen."""
    for file in folder.rglob("*"):
        if file.is_file():
            size = file.stat().st_size
            with file.open("r+b") as handle:
                handle.write(b"\x7f" * size)


@pytest.fixture
def random_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of a random language model need not rise with the grades."""
    monkeypatch.setattr(score_scale, "fit", lambda *_: SCALE)


@pytest.mark.usefixtures("random_scores")
@pytest.mark.parametrize("name", STAGES)
def test_a_folder_that_changes_before_it_is_read_is_refused(
    untrained: Untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, save = STAGES[name]
    base = save(tmp_path / "base")
    at = OutsideFolder.at

    def then_changed(path: Path, endings: tuple[str, ...] = ()) -> OutsideFolder:
        folder = at(path, endings)
        with (base / "model.safetensors").open("r+b") as weights:
            weights.seek(-4, 2)
            weights.write(b"\x00\x00\x01\x3f")
        return folder

    monkeypatch.setattr(OutsideFolder, "at", staticmethod(then_changed))
    with pytest.raises(SchemaError, match=f"{base}: changed while it was read"):
        make(tmp_path / "workspace", base, untrained)
    for kind in ("teacher", "ranker", "encoder", "pretrained", "bundle"):
        assert not finished(tmp_path / "workspace", kind)


@pytest.mark.usefixtures("random_scores")
@pytest.mark.parametrize("name", STAGES)
def test_a_folder_that_is_ruined_after_it_was_read_changes_nothing(
    untrained: Untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, save = STAGES[name]
    base = save(tmp_path / "base")
    shutil.copytree(base, tmp_path / "again")
    expected = make(tmp_path / "undisturbed", base, untrained)
    copied = OutsideFolder.copied

    @contextmanager
    def then_ruined(folder: OutsideFolder, to: Path) -> Iterator[Path]:
        with copied(folder, to) as copy:
            ruin(base)
            yield copy

    monkeypatch.setattr(OutsideFolder, "copied", then_ruined)
    artifact = make(tmp_path / "workspace", base, untrained)
    assert artifact.fingerprint == expected.fingerprint
    unlike = {
        file for file in artifact.manifest.files if artifact.manifest.files[file] != expected.manifest.files[file]
    }
    assert not {file for file in unlike if file.endswith((".safetensors", ".parquet", ".onnx"))}
    assert not any(path.name in ("base", "source", ".ready-made") for path in artifact.path.iterdir())
    shutil.rmtree(base)
    (tmp_path / "again").rename(base)
    monkeypatch.undo()
    assert make(tmp_path / "workspace", base, untrained).fingerprint == expected.fingerprint
