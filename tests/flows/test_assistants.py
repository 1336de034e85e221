"""Students in a row: who learns from whom, which stages that takes, and what is still cut from the teacher."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import retrain, training
from flows.runner import Runner
from pipeline import artifacts, config, release_parts
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError
from pipeline.releases import Releases
from pipeline.training import ranker
from tests.flows.conftest import Trained

ASSISTANT = {"hard_listnet_weight": 0.2, "temperature": 3.0}


def with_assistants(recipe: config.Recipe, *layers: int) -> config.Recipe:
    assistants = tuple(dataclasses.replace(recipe.ranker, layers=count, **ASSISTANT) for count in layers)  # type: ignore[arg-type]
    return dataclasses.replace(recipe, assistants=assistants)


def test_each_student_learns_from_the_one_before(copied: Trained) -> None:
    """A teacher of two layers, an assistant as deep (self-distillation), one of one layer, and the ranker."""
    recipe, stages = with_assistants(copied.recipe, 2, 1), []

    def run(name: str, stage: Callable[[], Artifact]) -> Artifact:
        stages.append(name)
        return stage()

    outcome = retrain.retrain(recipe, copied.workspace, promote=False, execute=run)
    begin = stages.index("teacher scores")
    assistants = [f"assistant {number}: {stage}" for number in (1, 2) for stage in ("ranker", "teacher scores")]
    assert stages[begin + 1 : begin + 7] == [*assistants, "ranker", "plain student: ranker"]

    inputs = training.prepare(recipe, Runner(copied.workspace))
    second = inputs.ranker_teacher
    first = _artifact(copied.workspace, "ranker", str(second.manifest.inputs["teacher"]))
    assert first.manifest.inputs["teacher"] == inputs.teacher.fingerprint
    assert (first.metrics["keep_layers"], second.metrics["keep_layers"]) == ([1, 2], [2])
    assert inputs.ranker_teacher_scores.manifest.inputs["teacher"] == second.fingerprint
    assert inputs.teacher_scores.manifest.inputs["teacher"] == inputs.teacher.fingerprint

    small = _source(copied.workspace, Releases(copied.workspace).open(outcome.release.fingerprint))
    assert small.manifest.inputs["teacher"] == second.fingerprint
    rankers = [_artifact(copied.workspace, "ranker", path.parent.name) for path in _manifests(copied.workspace)]
    (plain,) = (student for student in rankers if "teacher_scores" not in student.manifest.inputs)
    assert plain.manifest.inputs["teacher"] == inputs.teacher.fingerprint
    per_system = json.loads(outcome.report.file("report.json").read_text(encoding="utf-8"))["systems"]
    assert {"teacher", "plain student", "distilled student"} <= per_system.keys()


def _manifests(workspace: Path) -> list[Path]:
    return list((workspace / "artifacts" / "ranker").glob("*/manifest.json"))


def _artifact(workspace: Path, kind: str, fingerprint: str) -> Artifact:
    return artifacts.load(workspace / "artifacts" / kind / fingerprint, kind)


def _source(workspace: Path, release: Artifact) -> Artifact:
    """The ranker whose export a release holds."""
    bundle = json.loads(release_parts.part(release, "ranker").file("bundle.json").read_text(encoding="utf-8"))
    return _artifact(workspace, "ranker", bundle["source"])


def test_without_assistants_nothing_is_another_stage(copied: Trained) -> None:
    inputs = training.prepare(copied.recipe, Runner(copied.workspace))
    assert inputs.ranker_teacher.fingerprint == inputs.teacher.fingerprint
    assert inputs.ranker_teacher_scores.fingerprint == inputs.teacher_scores.fingerprint


def test_the_plain_student_has_the_rankers_shape_in_the_teachers_layers() -> None:
    """Layers 1 and 3 of an assistant are not layers 1 and 3 of the teacher."""
    plain_config = ranker.plain(config.RankerConfig(layers=6, keep_layers=(1, 3)))
    assert (plain_config.layers, plain_config.keep_layers) == (2, ())


def test_assistants_are_read_from_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[[assistants]]\nlayers = 12\n[[assistants]]\nlayers = 9\n[ranker]\nlayers = 6\n", encoding="utf-8")
    recipe = recipes.load(path)
    assert [student.layers for student in (*recipe.assistants, recipe.ranker)] == [12, 9, 6]
    assert recipes.parse(config.Recipe, recipes.to_dict(recipe)) == recipe


def test_a_plain_student_that_has_nothing_to_learn_is_refused() -> None:
    taught_only = config.RankerConfig(hard_ordinal_weight=0.0, hard_pairwise_weight=0.0)
    with pytest.raises(ConfigError, match=r"ranker\.plain: .* set ranker\.plain to false"):
        config.Recipe(ranker=taught_only)
    assert config.Recipe(ranker=dataclasses.replace(taught_only, plain=False)).ranker.soft_weight
