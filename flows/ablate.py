"""The flow that finds out which losses earn their place: students over a grid of loss sets, doses and seeds."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from flows import runner, training
from pipeline.artifacts import Artifact
from pipeline.config import RankerConfig, Recipe
from pipeline.errors import ConfigError
from pipeline.evaluation.ablation import AblationRun
from pipeline.training.losses.ablation_sets import LossSet

BM25, TEACHER = "BM25", "teacher"
SPLITS = ("valid", "test")


def ablate(recipe: Recipe, workspace: Path, *, run: runner.Runner = runner.directly) -> Artifact:
    """The `ablation` artifact of a recipe: its ranker trained with each of `ablation.sets`, so many seeds of each.

    The teacher is trained once, and the recipe's assistants; every student is cut from the last of them, sees the same
    pairs and takes the same steps. With `ablation.doses` the taught ones see so many unlabelled pairs more. A killed
    ablation goes on where it was.

    Raises:
        ConfigError: a set that names an unknown loss, or one without a weight, or that cannot apply to student and
            teacher.
    """
    from index import lexical
    from pipeline.data import candidates
    from pipeline.evaluation import ablation
    from pipeline.training import preflight, teacher_scores
    from pipeline.training.losses import ablation_sets

    sets = [ablation_sets.parse(text, recipe.ranker) for text in recipe.ablation.sets]
    preflight.check_rankers(recipe)
    for one in sets:
        try:
            preflight.check_rankers(dataclasses.replace(recipe, ranker=dataclasses.replace(one.config, plain=False)))
        except ConfigError as error:
            raise ConfigError(f"ablation.sets '{one.name}': {error}") from error
    widest = dataclasses.replace(recipe, ranker=_widest(recipe.ranker, sets))
    taught = training.teach(widest, workspace, run=run)
    data = taught.data
    pool = run("pool", lambda: candidates.pool(workspace, recipe.candidates, data, [taught.found]))

    def scored(name: str, model: Artifact) -> dict[str, Artifact]:
        return {
            split: run(
                f"{split} scores of {name}",
                partial(teacher_scores.score, workspace, model, data, pool, split=split),
            )
            for split in SPLITS
        }

    words = {
        split: run(f"{split} BM25", partial(lexical.score, workspace, taught.words, data, pool, split=split))
        for split in SPLITS
    }
    references = [AblationRun(BM25, 0, 0, words), AblationRun(TEACHER, 0, 0, scored(TEACHER, taught.teacher))]
    students = []
    for lesson in _lessons(widest, workspace, taught, run):
        for one in sets:
            kind = f"{one.name}{lesson.name}"
            told = _told(widest, workspace, one, taught, lesson, run)
            for seed in range(recipe.ablation.seeds):
                name = f"{kind}, seed {seed + 1} of {recipe.ablation.seeds}"
                model = _student(recipe, workspace, one, seed, taught, told, name, run)
                line = one.name if recipe.ablation.doses else ""
                students.append(AblationRun(kind, seed, one.terms, scored(name, model), line=line, dose=lesson.dose))
    return run(
        "ablation",
        lambda: ablation.make(
            workspace,
            recipe.evaluation,
            data,
            pool,
            references,
            students,
            ceiling=TEACHER,
            measure=recipe.ablation.measure,
            title=f"Ablation of {recipe.name}",
        ),
    )


def read(made: Artifact) -> dict[str, object]:
    """What ablation.json holds."""
    found: dict[str, object] = json.loads(made.file("ablation.json").read_text(encoding="utf-8"))
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Lesson:
    """Pairs to train on, and what the teacher says about them."""

    name: str
    """Behind the name of a set; empty for the recipe's own pairs."""
    pairs: Artifact
    scores: Artifact | None
    """None where a student asks no teacher."""
    dose: float = 0.0
    """Unlabelled pairs a labelled one, where there are several."""


def _lessons(recipe: Recipe, workspace: Path, taught: training.TrainingInputs, run: runner.Runner) -> Iterator[_Lesson]:
    """The recipe's own pairs, or the pairs with each dose of unlabelled ones."""
    if not recipe.ablation.doses:
        yield _Lesson("", taught.lessons, taught.tutor_scores)
        return
    for dose in recipe.ablation.doses:
        chosen = dataclasses.replace(recipe.candidates, unlabelled=dose)
        pairs = training.with_unlabelled(workspace, chosen, taught.data, taught.words, taught.pairs, run=run)
        scores = _scores(recipe, workspace, recipe.ranker, taught, pairs, run)
        yield _Lesson(f", {dose:g}×", pairs, scores, dose)


def _scores(
    recipe: Recipe,
    workspace: Path,
    student: RankerConfig,
    taught: training.TrainingInputs,
    pairs: Artifact,
    run: runner.Runner,
) -> Artifact:
    """What the tutor says about the pairs, with the states that this student needs."""
    outside = None if recipe.assistants else recipe.outside
    return training.scores_for(student, workspace, outside, taught.tutor, taught.data, pairs, taught.base, run=run)


def _told(
    recipe: Recipe,
    workspace: Path,
    losses: LossSet,
    taught: training.TrainingInputs,
    lesson: _Lesson,
    run: runner.Runner,
) -> _Lesson:
    """The lesson as the students of a set see it."""
    if not losses.taught:
        return dataclasses.replace(lesson, pairs=taught.pairs, scores=None)
    if losses.config.hidden_weight and losses.config.base != recipe.ranker.base:  # Perhaps of another width.
        scores = _scores(recipe, workspace, losses.config, taught, lesson.pairs, run)
        return dataclasses.replace(lesson, scores=scores)
    return lesson


def _student(
    recipe: Recipe,
    workspace: Path,
    losses: LossSet,
    seed: int,
    taught: training.TrainingInputs,
    lesson: _Lesson,
    name: str,
    run: runner.Runner,
) -> Artifact:
    from pipeline.training import ranker

    config = losses.config
    config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=config.loop.seed + seed))
    return run(
        name,
        lambda: ranker.make(
            workspace, config, recipe.candidates, taught.data, lesson.pairs, taught.tutor, lesson.scores, taught.base
        ),
    )


def _widest(config: RankerConfig, sets: Sequence[LossSet]) -> RankerConfig:
    """A ranker that asks the teacher for all that any of the sets needs."""
    hidden = max([config.hidden_weight, *(one.config.hidden_weight for one in sets)])
    return dataclasses.replace(config, hidden_weight=hidden)
