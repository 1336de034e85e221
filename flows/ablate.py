"""The ablation flow: trains students over a grid of loss sets, unlabelled ratios and seeds, and compares them."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows import comparisons, runner, student_pairs, training
from flows.training_inputs import TrainingInputs
from pipeline.artifacts import Artifact
from pipeline.compute import engine_of
from pipeline.config import RankerConfig, Recipe
from pipeline.errors import ConfigError
from pipeline.evaluation.ablation import AblationRun
from pipeline.text import exact
from pipeline.training.losses.ablation_sets import LossSet


@dataclasses.dataclass(frozen=True, slots=True)
class _TrainingPairs:
    """Pairs that students are trained on, with the teacher's scores of them."""

    name: str
    """Suffix of the names of students that learn from these pairs; empty for the recipe's own pairs."""
    pairs: Artifact
    scores: Artifact | None
    """None for students that learn from grades alone."""
    ratio: float = 0.0
    """Unlabelled pairs for each labelled one, where several ratios are compared."""


def ablate(recipe: Recipe, workspace: Path, *, execute: runner.Execute = runner.directly) -> Artifact:
    """The `ablation` artifact of a recipe: its ranker trained with each of `ablation.sets`, several seeds of each.

    The teacher is trained once, and the recipe's assistants; every student is cut from the last of them, sees the same
    pairs and takes the same steps. With `ablation.unlabelled_ratios` students that learn from the teacher see
    unlabelled pairs too. A killed ablation resumes.

    Raises:
        ConfigError: a set names an unknown loss or one without a weight, cannot apply to student and teacher or trains
            as another does, or the measure is unknown.
    """
    from pipeline.data import candidates
    from pipeline.evaluation import ablation

    recipe = training.fitted(recipe)
    ablation.decisive_measure(recipe.ablation.measure, recipe.evaluation)
    run = runner.Runner(workspace, execute, engine=engine_of(recipe.compute))
    sets = _loss_sets(recipe)
    training.check(recipe, run)
    _check_pairs(recipe, sets, run)
    widest = dataclasses.replace(recipe, ranker=_widest(recipe.ranker, sets))
    inputs = training.prepare(widest, run)
    pool = run(candidates.pool, recipe.candidates, data=inputs.data, runs=[inputs.bm25_run])
    return run(
        ablation.make,
        recipe.evaluation,
        data=inputs.data,
        pool=pool,
        references=comparisons.references(inputs, pool, run),
        students=list(_students(widest, sets, inputs, pool, run)),
        ceiling=comparisons.TEACHER,
        measure=recipe.ablation.measure,
        title=f"Ablation of {recipe.name}",
    )


def _loss_sets(recipe: Recipe) -> list[LossSet]:
    """The sets of `ablation.sets`, each of which a student of the recipe can be trained with.

    Raises:
        ConfigError: a set names an unknown loss or one without a weight, cannot apply to student and teacher, or trains
            as another does.
    """
    from pipeline.training import preflight
    from pipeline.training.losses import ablation_sets

    sets = [ablation_sets.parse(text, recipe.ranker) for text in recipe.ablation.sets]
    preflight.check_bases(recipe)
    preflight.check_rankers(recipe)
    for number, losses in enumerate(sets):
        alike = [other.name for other in sets[:number] if other.config == losses.config]
        if alike:
            raise ConfigError(f"ablation.sets '{losses.name}': trains as '{alike[0]}' does; leave one of them out")
        try:
            _check_states(losses)
            preflight.check_rankers(dataclasses.replace(recipe, ranker=dataclasses.replace(losses.config, plain=False)))
        except ConfigError as error:
            raise ConfigError(f"ablation.sets '{losses.name}': {error}") from error
    return sets


def _check_states(losses: LossSet) -> None:
    """Checks that a set that learns from the teacher's states alone has states to compare.

    Raises:
        ConfigError: its student has one layer, which learns from scores.
    """
    from pipeline.training.losses import ablation_sets

    teacher_losses = [name for name, weight in ablation_sets.terms(losses.config).items() if weight]
    if teacher_losses == ["hidden"] and not losses.config.matches_states:
        raise ConfigError(
            "the student has one layer, and hidden compares the states of all but the last: name a teacher's layer in "
            "ranker.layer_map, or leave the set out"
        )


def _check_pairs(recipe: Recipe, sets: Sequence[LossSet], run: runner.Runner) -> None:
    """Checks that each set of losses can learn from the pairs of each ratio, as far as they are known before training.

    Raises:
        ConfigError: no unlabelled pair is found, or a set learns only how documents of one query compare where no query
            has two.
        SchemaError: the file of an external teacher lacks pairs.
    """
    if recipe.candidates.encoder_negatives:  # The pairs are not known before an encoder has searched.
        return
    inputs = training.labelled(recipe, run)
    students = [losses.config for losses in sets if losses.from_teacher]
    for ratio in recipe.ablation.unlabelled_ratios or (recipe.candidates.unlabelled,):
        candidates = dataclasses.replace(recipe.candidates, unlabelled=ratio)
        student_pairs.check(dataclasses.replace(recipe, candidates=candidates), students, inputs, run)


def _students(
    recipe: Recipe, sets: Sequence[LossSet], inputs: TrainingInputs, pool: Artifact, run: runner.Runner
) -> Iterator[AblationRun]:
    """Trains a student for each ratio of unlabelled pairs, set of losses and seed, and scores the pool with it."""
    from pipeline.training import teacher_scores

    for pairs in _training_pairs(recipe, inputs, run):
        for losses in sets:
            scored_pairs = _for_losses(recipe, losses, inputs, pairs, run)
            for seed in range(recipe.ablation.seeds):
                name = f"{losses.name}{pairs.name}"
                named = run.labelled(f"{name}, seed {seed + 1} of {recipe.ablation.seeds}")
                model = _student(recipe, comparisons.seeded(losses.config, seed), inputs, scored_pairs, named)
                scores = comparisons.by_split(
                    named, teacher_scores.score, model=model, data=inputs.data, pairs=pool, engine=run.engine
                )
                line = losses.name if recipe.ablation.unlabelled_ratios else ""
                yield AblationRun(name, seed, losses.terms, scores, line=line, unlabelled_ratio=pairs.ratio)


def _student(
    recipe: Recipe, config: RankerConfig, inputs: TrainingInputs, scored_pairs: _TrainingPairs, run: runner.Runner
) -> Artifact:
    """The `ranker` artifact of one student.

    Args:
        config: the ranker's section, with the weights of one set of losses and the seed.
        scored_pairs: the pairs that it is trained on.
    """
    from pipeline.training import ranker

    return run(
        ranker.make,
        config,
        recipe.candidates,
        data=inputs.data,
        pairs=scored_pairs.pairs,
        teacher=inputs.ranker_teacher,
        teacher_scores=scored_pairs.scores,
        base=training.student_base(recipe, config, inputs, run),
    )


def read(artifact: Artifact) -> dict[str, object]:
    """The content of ablation.json."""
    results: dict[str, object] = json.loads(artifact.file("ablation.json").read_text(encoding="utf-8"))
    return results


def _training_pairs(recipe: Recipe, inputs: TrainingInputs, run: runner.Runner) -> Iterator[_TrainingPairs]:
    """The recipe's own pairs, or the pairs with each ratio of unlabelled ones."""
    if not recipe.ablation.unlabelled_ratios:
        yield _TrainingPairs("", inputs.ranker_pairs, inputs.ranker_teacher_scores)
        return
    for ratio in recipe.ablation.unlabelled_ratios:
        other = dataclasses.replace(recipe, candidates=dataclasses.replace(recipe.candidates, unlabelled=ratio))
        pairs = training.with_ungraded(other, inputs, run)
        yield _TrainingPairs(f", {exact(ratio)}×", pairs, _scores(recipe, recipe.ranker, inputs, pairs, run), ratio)


def _for_losses(
    recipe: Recipe, losses: LossSet, inputs: TrainingInputs, pairs: _TrainingPairs, run: runner.Runner
) -> _TrainingPairs:
    """The training pairs with the scores and hidden states that this set of losses needs."""
    if not losses.from_teacher:
        return dataclasses.replace(pairs, pairs=inputs.pairs, scores=None)
    if losses.config.hidden_weight and losses.config.base != recipe.ranker.base:  # Its width may be another.
        return dataclasses.replace(pairs, scores=_scores(recipe, losses.config, inputs, pairs.pairs, run))
    return pairs


def _scores(
    recipe: Recipe, student: RankerConfig, inputs: TrainingInputs, pairs: Artifact, run: runner.Runner
) -> Artifact:
    """Scores of the pairs by the ranker's teacher, with the hidden states that this student needs."""
    scores = training.score_pairs(recipe, student, inputs, run, teacher=inputs.ranker_teacher, pairs=pairs)
    return training.fused(student, inputs, run, pairs=pairs, scores=scores)


def _widest(config: RankerConfig, sets: Sequence[LossSet]) -> RankerConfig:
    """A ranker config that needs the teacher's hidden states if any of the sets needs them."""
    hidden = max([config.hidden_weight, *(losses.config.hidden_weight for losses in sets)])
    return dataclasses.replace(config, hidden_weight=hidden)
