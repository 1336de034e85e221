"""The log of a flow, which a person reads: a line for each stage that is made, or that was there already."""

import logging
from pathlib import Path
from typing import Any

import pytest

from flows.runner import Runner
from pipeline.artifacts import Artifact, Staging
from pipeline.stage import Stage

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
