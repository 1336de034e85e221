"""Every `*_weight` of every config section changes the loss of the stage that reads the section."""

import ast
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import config as configs
from pipeline.config import EncoderConfig, RankerConfig, TeacherConfig, weights_of
from pipeline.errors import ConfigError
from pipeline.training import encoder, ranker, teacher, teacher_scores
from pipeline.training.losses.bi_encoder_terms import BI_ENCODER_TERMS, BiEncoderWeights
from pipeline.training.losses.cross_encoder_terms import (
    MUTUAL,
    SCORE_TERMS,
    TAUGHT_TERMS,
    TOKEN_TERMS,
    Counts,
    LossWeights,
    Scored,
    Taught,
    hyperparameters,
)
from tests.pipeline.training.test_stages import CANDIDATES, LOOP, World, base_model, stage, tables

SECTIONS: dict[str, Any] = {"teacher": TeacherConfig, "ranker": RankerConfig, "encoder": EncoderConfig}
TOKENS = {"max_tokens": 24, "max_query_tokens": 6}
SHAPES: dict[str, dict[str, Any]] = {
    "teacher": TOKENS,
    "ranker": {"layers": 2},
    "encoder": {"dimensions": 8, **TOKENS},
}
KEYS = [(section, key) for section, kind in SECTIONS.items() for key in weights_of(kind())]


class CapturedError(Exception):
    """Carries the task out of a stage before it is trained."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world without a trained teacher: weights are compared, nothing is learned."""
    workspace, base = tmp_path_factory.mktemp("world"), base_model(tmp_path_factory.mktemp("base"))
    data_tables, pair_table = tables()
    data, pairs = stage(workspace, "data", data_tables), stage(workspace, "pairs", {"pairs": pair_table})
    loop = configs.LoopConfig(max_tokens=1, evaluations=0, precision="fp32")
    large = teacher.make(
        workspace, TeacherConfig(loop=loop, **TOKENS), CANDIDATES, data=data, pairs=pairs, base=str(base)
    )
    scores = teacher_scores.make(workspace, teacher=large, data=data, pairs=pairs, layers=(2,), width=32)
    return World(workspace, base, data, pairs, large, scores)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("narrow"), hidden=16, layers=3)


def loss_of_stage(
    world: World, narrow: Path, section: str, weights: dict[str, float], **settings: float
) -> tuple[float, dict[str, float]]:
    """The loss at the first chunk, and its terms by name, with the task as the stage itself builds it."""
    shape = dict(SHAPES[section], loop=LOOP)
    if section == "ranker" and not weights.get("hidden_weight"):
        shape["base"] = str(narrow)  # A copy of the teacher has the teacher's embeddings, so that term would be 0.
    config = SECTIONS[section](**shape, **weights, **settings)
    inputs: dict[str, Any] = {"data": world.data, "pairs": world.pairs}

    def capture(*arguments: Any, **_: Any) -> None:
        raise CapturedError(next(argument for argument in arguments if hasattr(argument, "plan")))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(CapturedError) as captured:  # noqa: PT012
        if section == "teacher":
            patch.setattr(teacher, "learn", capture)
            teacher.make(world.workspace, config, CANDIDATES, **inputs, base=str(world.base))
        elif section == "ranker":
            patch.setattr(ranker, "learn", capture)
            ranker.make(
                world.workspace,
                config,
                CANDIDATES,
                **inputs,
                teacher=world.teacher,
                teacher_scores=world.teacher_scores,
            )
        else:
            patch.setattr(encoder, "train", capture)
            encoder.make(
                world.workspace, config, CANDIDATES, **inputs, base=str(world.base), teacher_scores=world.teacher_scores
            )
    task = captured.value.args[0]
    torch.manual_seed(1)
    loss, terms = task.loss(task.plan(0)[0].chunks[0])
    return loss.item(), {name: term.item() for name, term in terms.items()}


def test_the_sections_with_weights_are_those_that_are_tested() -> None:
    def has_weights(kind: Any) -> bool:
        return isinstance(kind, type) and any(
            name.endswith("_weight") for name in vars(kind).get("__annotations__", {})
        )

    # `candidates.click_weight` is a weight of judgments in all of these losses; test_click_weight.py tests it.
    without_losses = {configs.CandidatesConfig}
    assert {kind for kind in vars(configs).values() if has_weights(kind)} - without_losses == set(SECTIONS.values())


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_each_weight_changes_the_loss(world: World, narrow: Path, section: str, key: str) -> None:
    alone = dict.fromkeys(weights_of(SECTIONS[section]()), 0.0) | {key: 1.0}
    first, _ = loss_of_stage(world, narrow, section, alone)
    second, _ = loss_of_stage(world, narrow, section, alone | {key: 3.0})
    assert first != 0
    assert second == pytest.approx(3 * first, rel=1e-4)


def test_a_weight_that_no_term_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.training.losses import cross_encoder_terms

    monkeypatch.setattr(cross_encoder_terms, "weights_of", lambda _: {"ordinal_weight": 1.0, "novel_weight": 1.0})
    for read in (
        lambda: LossWeights.of_config(TeacherConfig()),
        lambda: LossWeights.of_config(RankerConfig(), "hard_"),
        lambda: BiEncoderWeights.of_config(EncoderConfig()),
    ):
        with pytest.raises(ConfigError, match=r"Config\.\w+_weight: no loss term has this weight"):
            read()


def test_each_term_of_a_table_has_a_weight() -> None:
    assert {*SCORE_TERMS, *TAUGHT_TERMS, *TOKEN_TERMS, "mutual", *hyperparameters()} == {
        field.name for field in dataclasses.fields(LossWeights)
    }
    assert set(BI_ENCODER_TERMS) <= {field.name for field in dataclasses.fields(BiEncoderWeights)}


def test_each_term_has_a_key_in_each_section_that_computes_it() -> None:
    """A forgotten key would leave a loss that nobody can switch on."""
    assert weights_of(TeacherConfig()).keys() == {f"{name}_weight" for name in SCORE_TERMS}
    assert weights_of(EncoderConfig()).keys() == {f"{name}_weight" for name in BI_ENCODER_TERMS}
    of_teacher = {f"{name}_weight" for name in (*TAUGHT_TERMS, *TOKEN_TERMS, MUTUAL)}
    assert weights_of(RankerConfig()).keys() == {f"hard_{name}_weight" for name in SCORE_TERMS} | of_teacher


def test_each_setting_that_a_loss_reads_is_a_key_of_its_sections() -> None:
    """A forgotten key would leave the loss with the default of `LossWeights`, whatever the recipe says."""
    generator = torch.Generator().manual_seed(1)
    counts = Counts(documents=6, graded=6, queries=2, lists=2, ordered_pairs=6, tokens=0, token_pairs=0)
    scores, states = torch.randn(6, generator=generator), torch.zeros(6, 1, 4)
    grades, groups = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    student = Scored(scores, torch.tensor([-1.0, 1.0]), states, grades, groups, counts)
    teacher = Taught(scores.flip(0), torch.tensor([-1.0, 1.0]), states)

    def read(compute: Callable[[Any], Any]) -> set[str]:
        seen: set[str] = set()

        class Recorder:
            def __getattr__(self, name: str) -> float:
                seen.add(name)
                return float(getattr(LossWeights(), name))

        compute(Recorder())
        return seen

    by_grades = {
        name for term in SCORE_TERMS.values() for name in read(lambda weights, term=term: term(student, weights))
    }
    by_teacher = {
        name
        for term in TAUGHT_TERMS.values()
        for name in read(lambda weights, term=term: term(student, teacher, weights))
    }
    assert by_grades <= {field.name for field in dataclasses.fields(TeacherConfig)}
    assert by_grades | by_teacher <= {field.name for field in dataclasses.fields(RankerConfig)}
    assert by_grades | by_teacher == set(hyperparameters())


def test_the_readme_names_each_term() -> None:
    text = (Path(teacher.__file__).parent / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    assert {*SCORE_TERMS, *TAUGHT_TERMS, *TOKEN_TERMS, MUTUAL} <= named


@pytest.mark.parametrize("name", SCORE_TERMS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("highest", [0, 2])
def test_each_loss_on_grades_stays_finite(name: str, scale: float, highest: int) -> None:
    """Equal and extreme scores, grades that are all 0, a query of one document."""
    scores = (scale * torch.tensor([0.5, -1.0, 2.0, 0.0])).requires_grad_()
    grades = torch.tensor([0, 2, 1, 1]).clamp(max=highest)
    counts = Counts(documents=4, graded=4, queries=2, lists=2, ordered_pairs=3, tokens=0, token_pairs=0)
    chunk = Scored(scores, torch.tensor([-1.0, 1.0]), torch.zeros(4, 1, 2), grades, torch.tensor([0, 0, 0, 1]), counts)
    loss = SCORE_TERMS[name](chunk, LossWeights())
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss >= 0
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def _settings_of_losses() -> list[tuple[str, str]]:
    """Each section with the settings of its losses: fields of the weights that are no weights."""
    of_encoder = [field.name for field in dataclasses.fields(BiEncoderWeights) if field.name not in BI_ENCODER_TERMS]
    names = {"teacher": hyperparameters(), "ranker": hyperparameters(), "encoder": of_encoder}
    return [(section, name) for section, every in names.items() for name in every if hasattr(SECTIONS[section](), name)]


@pytest.mark.parametrize(("section", "key"), _settings_of_losses())
def test_each_setting_of_a_loss_changes_the_loss(world: World, narrow: Path, section: str, key: str) -> None:
    without = (
        "mutual_weight",
        "hidden_weight",
    )  # A copy of the teacher scores as it does.
    weights = {name: 0.0 if name in without else 1.0 for name in weights_of(SECTIONS[section]())}
    _, first = loss_of_stage(world, narrow, section, weights)
    _, second = loss_of_stage(world, narrow, section, weights, **{key: 0.01})
    changes = {name: abs(second[name] - value) for name, value in first.items()}
    assert max(changes.values()) > 1e-7  # Scores of an untrained student are nearly equal, so the change may be small.


def test_a_setting_of_a_loss_is_kept_without_the_teacher() -> None:
    settings = dict.fromkeys(hyperparameters(), 7.0)
    kept = LossWeights(ordinal=1.0, soft=1.0, hidden=1.0, mutual=1.0, **settings).without_teacher()
    assert kept == LossWeights(ordinal=1.0, **settings)


def test_each_key_of_a_section_is_read_by_some_stage() -> None:
    """A key that nothing reads would be accepted and ignored; a weight is read through the tables of terms."""
    root = Path(configs.__file__).parent
    files = [path for folder in (root, root.parent / "flows") for path in folder.rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files if not path.name.startswith("config")]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for kind in SECTIONS.values():
        keys = {field.name for field in dataclasses.fields(kind) if not field.name.endswith("_weight")}
        assert keys <= read, kind
