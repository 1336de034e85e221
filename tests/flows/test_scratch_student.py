"""A ranker from scratch: another family, width, depth and vocabulary than its teacher, pre-trained on the texts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from flows import retrain, training
from flows.runner import Runner
from pipeline import config
from pipeline.errors import ConfigError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import preflight
from tests.flows.conftest import Trained

SHAPE: dict[str, Any] = {"family": "modernbert", "layers": 3, "hidden": 24, "heads": 2, "intermediate": 40}


def recipe_of(trained: Trained, **ranker: Any) -> config.Recipe:
    """The tiny recipe, whose teacher starts from a folder and whose ranker starts from scratch."""
    (base,) = (trained.workspace / "artifacts" / "pretrained").glob("*/model")
    scratch = dataclasses.replace(trained.recipe.pretrain.scratch, **SHAPE)
    student = {"base": "scratch", "layers": 3, "hidden_weight": 0.0, **ranker}
    return dataclasses.replace(
        trained.recipe,
        pretrain=dataclasses.replace(trained.recipe.pretrain, scratch=scratch),
        teacher=dataclasses.replace(trained.recipe.teacher, base=str(base)),
        ranker=dataclasses.replace(trained.recipe.ranker, **student),
    )


def test_the_ranker_is_a_new_model_that_read_the_texts_and_learns_from_the_teacher(copied: Trained) -> None:
    recipe, run = recipe_of(copied), Runner(copied.workspace)
    preflight.check_rankers(recipe)
    inputs = training.prepare(recipe, run)
    trained = retrain.train_students(recipe, inputs, run)
    model = CrossEncoder.load(trained.ranker.path).model.config
    assert (model.model_type, model.num_hidden_layers, model.hidden_size) == ("modernbert", 3, 24)
    teacher = CrossEncoder.load(inputs.teacher.path).model.config
    assert (teacher.model_type, teacher.num_hidden_layers, teacher.hidden_size) == ("bert", 2, 32)
    start = _manifest(copied.workspace, "pretrained", trained.ranker.manifest.inputs["base"])
    assert start["inputs"]["base"] == "scratch"
    assert start["metrics"]["masked_loss"] < start["metrics"]["masked_loss before"]
    assert trained.ranker.manifest.inputs["teacher_scores"] == inputs.teacher_scores.fingerprint
    assert trained.ranker.metrics["steps"] > 0
    assert trained.compared["plain student"].manifest.inputs["base"] == trained.ranker.manifest.inputs["base"]


def _manifest(workspace: Path, kind: str, fingerprint: str) -> dict[str, Any]:
    path = workspace / "artifacts" / kind / fingerprint / "manifest.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


REFUSED = {
    r"^ranker\.hidden_weight: the student has 3 layers and its teacher 2": {"hidden_weight": 0.1},
    r"^ranker\.token_hidden_weight: .*vocabulary of its own": {"token_hidden_weight": 1.0},
    r"^ranker\.relation_weight: .*vocabulary of its own": {"relation_weight": 1.0},
    r"^ranker\.layers is 4": {"layers": 4},
    r"^ranker\.max_tokens 65: scratch has 64 positions": {"max_tokens": 65},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_new_model_cannot_learn_is_refused_before_any_training(trained: Trained, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preflight.check(recipe_of(trained, **REFUSED[message]))


def test_a_deeper_student_learns_states_of_layers_that_are_named(trained: Trained) -> None:
    preflight.check_rankers(recipe_of(trained, hidden_weight=0.1, layer_map=(1, 2)))


def test_passages_of_the_teacher_are_none_of_a_new_vocabulary(trained: Trained) -> None:
    recipe = recipe_of(trained)
    passages = dataclasses.replace(recipe.teacher.passages, most=4)
    recipe = dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, passages=passages))
    with pytest.raises(ConfigError, match=r"^ranker\.base: .*another tokenizer"):
        preflight.check_passages(recipe)
