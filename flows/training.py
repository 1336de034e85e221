"""The training stages in order: from judged queries to teacher targets and trained students."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flows.runner import Runner, directly
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, ExternalTeacherConfig, RankerConfig, Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingInputs:
    """What students learn from."""

    data: Artifact
    words: Artifact
    """Lexical index of the data's documents."""
    found: Artifact
    """BM25 run of all queries."""
    pairs: Artifact
    """With grades."""
    base: Artifact | str
    """What the teacher started from."""
    teacher: Artifact
    lessons: Artifact
    """The pairs and, where the recipe wants them, others without a grade: what rankers learn from."""
    scores: Artifact
    """What the teacher, or one from outside, says about all of these."""
    tutor: Artifact
    """From whom the ranker learns: the last assistant, or the teacher where there is none."""
    tutor_scores: Artifact
    """What the tutor says about the lessons."""


def teach(recipe: Recipe, workspace: Path, *, run: Runner = directly) -> TrainingInputs:
    """Data, pairs, teacher and its scores: what every student of a recipe learns from.

    Raises:
        ConfigError: a student that cannot be cut or taught so, before anything is made.
    """
    from index import lexical
    from pipeline.data import candidates, judgments
    from pipeline.training import preflight, pretrain, ranker, teacher

    preflight.check_rankers(recipe)
    data = run("data", lambda: judgments.make(workspace, recipe.data))
    words = run("lexical index", lambda: lexical.make(workspace, recipe.index, data))
    depth = max(recipe.candidates.retrieve, recipe.candidates.negatives_depth + recipe.candidates.skip_top)
    found = run("BM25 run", lambda: lexical.run(workspace, words, data, depth=depth, splits=("train", "valid", "test")))
    pairs = run("pairs", lambda: candidates.pairs(workspace, recipe.candidates, data, found))

    base: Artifact | str = recipe.teacher.base
    if recipe.pretrain.enabled or recipe.teacher.base == "scratch":
        base = run("pre-training", lambda: pretrain.make(workspace, recipe.pretrain, recipe.teacher.base, data))
    large = run("teacher", lambda: teacher.make(workspace, recipe.teacher, recipe.candidates, data, pairs, base))
    lessons = with_unlabelled(workspace, recipe.candidates, data, words, pairs, run=run)
    students = (*recipe.assistants, recipe.ranker)
    scores = scores_for(students[0], workspace, recipe.outside, large, data, lessons, base, run=run)
    tutor, tutor_scores = large, scores
    for number, assistant in enumerate(recipe.assistants, start=1):
        name, learn = f"assistant {number}", partial(ranker.make, workspace, assistant, recipe.candidates, data)
        tutor = run(name, partial(learn, lessons, tutor, tutor_scores, base))
        tutor_scores = scores_for(students[number], workspace, None, tutor, data, lessons, base, run=run, name=name)
    return TrainingInputs(
        data=data,
        words=words,
        found=found,
        pairs=pairs,
        base=base,
        teacher=large,
        lessons=lessons,
        scores=scores,
        tutor=tutor,
        tutor_scores=tutor_scores,
    )


def with_unlabelled(
    workspace: Path,
    config: CandidatesConfig,
    data: Artifact,
    words: Artifact,
    pairs: Artifact,
    *,
    run: Runner = directly,
) -> Artifact:
    """The pairs with as many unlabelled ones as `config.unlabelled` says; themselves where it is 0."""
    from index import lexical
    from pipeline.data import unlabelled

    if not config.unlabelled:
        return pairs
    asked = run("queries for unlabelled pairs", lambda: unlabelled.queries(workspace, config, data))
    depth = config.unlabelled_depth
    found = run("their BM25 run", lambda: lexical.run(workspace, words, asked, depth=depth, splits=()))
    return run("unlabelled pairs", lambda: unlabelled.pairs(workspace, config, data, pairs, asked, found))


def scores_for(
    student: RankerConfig,
    workspace: Path,
    outside: ExternalTeacherConfig | None,
    teacher: Artifact,
    data: Artifact,
    pairs: Artifact,
    base: Artifact | str,
    *,
    run: Runner = directly,
    name: str = "teacher",
) -> Artifact:
    """What the teacher, or one from outside if there is one, says about the pairs, as this student needs it."""
    from pipeline.training import external_teacher as others
    from pipeline.training import ranker, teacher_scores

    layers, width = ranker.taught_by(student, teacher, base)
    if outside is not None and outside.given:
        return run("outside scores", lambda: others.make(workspace, outside, data, pairs, layers=layers))
    return run(
        f"{name} scores",
        lambda: teacher_scores.make(workspace, teacher, data, pairs, layers=layers, width=width),
    )
