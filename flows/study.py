"""The study flow: one teacher, many methods to compress the ranker, one table of the quality and cost of each."""

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import comparisons, runner, shape_search, study_plan, training
from flows.study_plan import StudyMethod
from flows.training_inputs import TrainingInputs
from pipeline.artifacts import Artifact
from pipeline.compute import engine_of
from pipeline.config import Precision, RankerConfig, Recipe
from pipeline.errors import ConfigError, TrainingError
from pipeline.evaluation.ablation import AblationRun
from pipeline.evaluation.study import StudentCost, StudyRow, row_name
from pipeline.text import counted
from pipeline.training.compression import PLAIN

log = logging.getLogger(__name__)


def study(recipe: Recipe, workspace: Path, *, execute: runner.Execute = runner.directly) -> Artifact:
    """The `study` artifact of a recipe: its ranker trained, exported and judged by every method that it asks for.

    All students learn from one teacher. All methods are trained with the first seed, then with the second and so on, so
    that a study whose time ends early has most methods complete. A killed study resumes, and one whose time ended goes
    on where it was.

    Raises:
        ConfigError: a method or variant is unknown or cannot apply to the recipe, or its time is over before the first
            student, or before the search of the ranker's shape has ended.
    """
    from pipeline.data import candidates
    from pipeline.evaluation import study as evaluation
    from serving.runtime import ranker_trials

    recipe = _fp32_first(training.fitted(recipe))
    planned = study_plan.plan(recipe)
    run = runner.Runner(workspace, execute, engine=engine_of(recipe.compute))
    began = minutes()
    training.check(recipe, run)
    planned = study_plan.with_pairs(recipe, planned, run)
    for name, reason in planned.refused.items():
        log.info("%s is left out: %s", name, reason)
    inputs = training.prepare(dataclasses.replace(recipe, assistants=(), ranker=_scored_for(recipe)), run)
    pool = run(candidates.pool, recipe.candidates, data=inputs.data, runs=[inputs.bm25_run])
    references = comparisons.references(inputs, pool, run)
    judged = {"data": inputs.data, "pool": pool}
    methods = planned.methods if not recipe.study.search_cost else (*planned.methods, _searched(recipe, run, began))
    failed: dict[str, str] = {}
    students = list(_train(recipe, methods, inputs, pool, run, began, failed))
    trained = [student for student in students if student.method not in failed]
    if not trained:
        raise _too_short(recipe, "the first student")
    bundles = [student.cost.bundle for student in trained if not student.seed]
    speeds = run(ranker_trials.speeds, rankers=bundles, **judged, precisions=recipe.study.precisions)
    return run(
        evaluation.make,
        recipe.evaluation,
        **judged,
        speeds=speeds,
        references=references,
        students=_runs(trained),
        plan=evaluation.StudyTable(
            title=f"Study of {recipe.name}",
            ceiling=comparisons.TEACHER,
            seeds=recipe.study.seeds,
            rows=_rows(recipe, [method for method in methods if method.name not in failed], trained),
            refused=dict(planned.refused),
            failed=failed,
            shared=inputs.teacher,
        ),
    )


def _fp32_first(recipe: Recipe) -> Recipe:
    """The recipe with fp32 as the first precision of its study, so that the baseline is the plain student in fp32."""
    precisions = tuple(sorted(recipe.study.precisions, key=lambda name: name != "fp32"))
    return dataclasses.replace(recipe, study=dataclasses.replace(recipe.study, precisions=precisions))


def _rows(recipe: Recipe, methods: Sequence[StudyMethod], trained: Sequence["_TrainedStudent"]) -> tuple[StudyRow, ...]:
    """The rows of the study's table: each method in each precision, with the costs of its students."""
    return tuple(
        StudyRow(
            name=row_name(method.name, precision),
            summary=method.summary,
            source=method.source,
            precision=precision,
            costs=tuple(student.cost for student in trained if student.method == method.name),
        )
        for method, precision in itertools.product(methods, recipe.study.precisions)
    )


def _runs(trained: Sequence["_TrainedStudent"]) -> list[AblationRun]:
    """The scores of the students in each precision, under the names of their rows."""
    return [
        AblationRun(row_name(student.method, precision), student.seed, 0, scores)
        for student in trained
        for precision, scores in student.scores.items()
    ]


def _too_short(recipe: Recipe, awaited: str) -> ConfigError:
    """The error for a study whose time was over before there was anything to compare."""
    return ConfigError(
        f"study.max_minutes is {recipe.study.max_minutes:g}: it was over before {awaited}; what was made is kept, so "
        "run the study again, or raise study.max_minutes"
    )


def _searched(recipe: Recipe, run: runner.Runner, began: float) -> StudyMethod:
    """The method whose shape is the best that successive halving finds within `study.search_cost`.

    Raises:
        ConfigError: the time of the study is over before the search has ended.
    """
    from pipeline.training import ranker_chain
    from pipeline.training.loop import scoring

    tried: list[Artifact] = []

    def train(config: RankerConfig, label: str) -> Artifact:
        if _over(recipe, began):
            raise _too_short(recipe, "the search of the ranker's shape had ended")
        tried.append(_trained(recipe, StudyMethod(label, "", "", recipe), config, run.labelled(label)))
        return tried[-1]

    source = ranker_chain.source_shape(recipe)
    best = shape_search.search(recipe, source, train, scoring.MEASURE)
    method = study_plan.checked(recipe, study_plan.of_shape(recipe, best))
    return dataclasses.replace(method, tried=tuple(tried))


@dataclass(frozen=True, slots=True)
class _TrainedStudent:
    """One student of a study, with its scores of the pairs that all systems are compared on."""

    method: str
    seed: int
    cost: StudentCost
    scores: Mapping[Precision, Mapping[str, Artifact]]
    """Number format → split → scores."""


def _train(
    recipe: Recipe,
    methods: Sequence[StudyMethod],
    inputs: TrainingInputs,
    pool: Artifact,
    run: runner.Runner,
    began: float,
    failed: dict[str, str],
) -> Iterator[_TrainedStudent]:
    """Trains and yields students, all methods with the first seed first; ends when the time of the study is over.

    Args:
        failed: gets the name of each method whose training failed, with the reason; the study goes on without it.

    Raises:
        TrainingError: the training of the plain student failed, which the others are held against, or one that several
            processes share.
    """
    from pipeline.training.loop import distributed
    from serving.runtime import ranker_trials

    order = ((seed, method) for seed in range(recipe.study.seeds) for method in methods)
    for number, (seed, method) in enumerate(order):
        if _over(recipe, began):
            missing = counted(recipe.study.seeds * len(methods) - number, "student", "are")
            log.warning("study.max_minutes is over: %s missing; run the study again for the rest", missing)
            return
        if method.name in failed:
            continue
        named = run.labelled(f"{method.name}, seed {seed + 1} of {recipe.study.seeds}")
        try:
            model, bundle = _student(recipe, method, seed, inputs, named)
        except TrainingError as error:
            if method.name == PLAIN or distributed.processes() > 1:  # A shared training has ended the other processes.
                raise type(error)(f"study, '{method.name}', seed {seed + 1}: {error}") from error
            failed[method.name] = f"seed {seed + 1}: {error}"
            log.warning("%s is left out: %s", method.name, failed[method.name])
            continue
        judged = {"ranker": bundle, "data": inputs.data, "pool": pool}
        scores = {
            name: comparisons.by_split(named.labelled(name), ranker_trials.scores, **judged, precision=name)
            for name in recipe.study.precisions
        }
        yield _TrainedStudent(method.name, seed, StudentCost(model, bundle, method.tried), scores)


def _scored_for(recipe: Recipe) -> RankerConfig:
    """The ranker section that decides which hidden states of the teacher are stored with the scores of all methods."""
    return recipe.assistants[0] if recipe.assistants else dataclasses.replace(recipe.ranker, plain=False)


def minutes() -> float:
    """Minutes of a clock that only runs forward."""
    return time.monotonic() / 60


def _over(recipe: Recipe, began: float) -> bool:
    """Whether the time of the study is over."""
    return bool(recipe.study.max_minutes) and minutes() - began > recipe.study.max_minutes


def _student(
    recipe: Recipe, method: StudyMethod, seed: int, inputs: TrainingInputs, run: runner.Runner
) -> tuple[Artifact, Artifact]:
    """The ranker of a method and seed, and its exported bundle, judged on the valid queries in each precision."""
    from pipeline.export import bundle

    model = _trained(recipe, method, comparisons.seeded(method.recipe.ranker, seed), run)
    return model, run(bundle.make, method.recipe.export, model=model, data=inputs.data, pairs=inputs.pairs)


def _trained(recipe: Recipe, method: StudyMethod, config: RankerConfig, run: runner.Runner) -> Artifact:
    """The ranker of a method, trained with the ranker section `config` in place of the method's own."""
    from pipeline.training import ranker

    # A method that needs no hidden states takes the scores stored with those of the recipe's own ranker, although it
    # ignores them: so the teacher scores the pairs once for all such methods.
    states = None
    if not (method.recipe.assistants or method.recipe.external_teacher.given or config.hidden_weight):
        states = _scored_for(dataclasses.replace(recipe, assistants=()))
    inputs = training.prepare(dataclasses.replace(method.recipe, ranker=config), run, states=states)
    return run(
        ranker.make,
        config if method.from_teacher else dataclasses.replace(ranker.plain(config), plain=False),
        method.recipe.candidates,
        data=inputs.data,
        pairs=inputs.ranker_pairs if method.from_teacher else inputs.pairs,
        teacher=inputs.ranker_teacher if method.from_teacher else inputs.teacher,
        teacher_scores=inputs.ranker_teacher_scores if method.from_teacher else None,
        base=training.student_base(method.recipe, config, inputs, run),
    )


def read(artifact: Artifact) -> dict[str, Any]:
    """The content of study.json."""
    results: dict[str, Any] = json.loads(artifact.file("study.json").read_text(encoding="utf-8"))
    return results
