"""The log of a flow, which a person reads: a line for each stage that is made, or that was there already."""

import logging
from pathlib import Path
from typing import Any

import pytest

from flows import retrain
from flows.runner import Runner
from pipeline import progress
from pipeline.artifacts import Artifact, Staging
from pipeline.config import ExportConfig
from pipeline.stage import Stage
from serving.runtime import processor

STAGE = Stage("greeting", version=1, inputs={})


@STAGE
def make_greeting(workspace: Path) -> Artifact:
    """An artifact of one file."""

    def build(staging: Staging) -> dict[str, Any]:
        (staging.folder / "greeting.txt").write_text("hello", encoding="utf-8")
        return {}

    return STAGE.make(workspace, config={}, inputs={}, build=build)


def test_each_artifact_has_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            run = Runner(tmp_path)
            for _ in range(2):
                run(make_greeting)
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2  # A run that meets an artifact again says nothing.
    assert lines[0].startswith("greeting: made in ")
    assert lines[1] == "greeting: there already"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (48.2, "48 s"), (119.0, "119 s"), (432.0, "7.2 minutes")]
)
def test_durations_are_written_as_a_person_reads_them(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def test_fp16_is_exported_only_where_a_gpu_is_or_the_recipe_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> bool:
        return False

    monkeypatch.setattr("torch.cuda.is_available", no)
    monkeypatch.setattr(processor, "has_cuda", no)
    assert retrain.fitting_precisions(ExportConfig()).precisions == ("fp32", "int8", "w8")
    named = ExportConfig(precisions=("fp32", "fp16"))
    assert retrain.fitting_precisions(named) == named
    monkeypatch.setattr(processor, "has_cuda", lambda: True)
    assert retrain.fitting_precisions(ExportConfig()) == ExportConfig()
