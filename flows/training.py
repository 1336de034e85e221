"""The training stages in order: from judged queries to the teacher, its scores, and the assistants."""

import dataclasses
import itertools
import logging

from flows.encoder_rounds import first_round, train_encoder
from flows.indexing import make_searchable
from flows.runner import Runner
from flows.training_inputs import FirstStage, TeacherInputs, TrainingInputs
from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig, RankerConfig, Recipe

log = logging.getLogger(__name__)


def check(recipe: Recipe, run: Runner) -> list[str]:
    """Reads the data and checks all that can be told before the first training; a line for each thing checked.

    Raises:
        InputError: the recipe cannot be trained here; the message names the key, file or split.
    """
    from index.analyzer import analyser
    from pipeline.data import judgments
    from pipeline.training import budget, preflight

    models = preflight.check(recipe)
    analyser(recipe.index.language)
    data = run(judgments.make, recipe.data)
    split = preflight.check_data(data, recipe.gate, clicks=recipe.evaluation.clicks)
    return [*models, *split, budget.summary(recipe)]


def fitted(recipe: Recipe) -> Recipe:
    """The recipe as this machine carries it out: without a GPU no fp16 is exported, unless its own list has it."""
    import torch

    from serving.runtime.processor import has_cuda

    export = recipe.export
    if export.precisions != ExportConfig().precisions or torch.cuda.is_available() or has_cuda():
        return recipe
    log.info("export: without fp16, which only a GPU runs faster; a list of export.precisions that differs is kept")
    precisions = tuple(name for name in export.precisions if name != "fp16")
    return dataclasses.replace(recipe, export=dataclasses.replace(export, precisions=precisions))


def prepare(recipe: Recipe, run: Runner, *, states: RankerConfig | None = None) -> TrainingInputs:
    """Makes data, pairs, teacher, assistants and their scores: all that the students of a recipe learn from.

    Args:
        states: the ranker section whose hidden states of the teacher are stored with its scores; None for that of the
            teacher's first student. A student that needs no states can so share the scores that another one needs.

    Raises:
        ConfigError: a student cannot be cut or taught as the recipe says; raised before anything is made.
    """
    from pipeline.training import preflight

    preflight.check_rankers(recipe)
    inputs = _with_teacher(recipe, _teacher_inputs(recipe, run), run, states or _students(recipe)[0])
    if inputs.first_stage is None and any(student.fused_teacher for student in _students(recipe)):
        first = _first_stage(recipe, train_encoder(recipe, inputs, run), inputs, run)
        inputs = dataclasses.replace(inputs, first_stage=first)
    return _with_assistants(recipe, inputs, run)


def _students(recipe: Recipe) -> tuple[RankerConfig, ...]:
    """The config sections of the assistants and then the ranker; each model is the student of the one before."""
    return (*recipe.assistants, recipe.ranker)


def labelled(recipe: Recipe, run: Runner) -> TeacherInputs:
    """Makes data, BM25 run and the pairs that they give: all that comes before the first training."""
    from index import lexical, lexical_build
    from pipeline.data import candidates, judgments

    data = run(judgments.make, recipe.data)
    words = run(lexical_build.make, recipe.index, data=data)
    depth = max(recipe.candidates.retrieve, recipe.candidates.negatives_depth + recipe.candidates.skip_top)
    bm25_run = run(lexical.run, lexical=words, data=data, depth=depth, splits=("train", "valid", "test"))
    pairs = run(candidates.pairs, recipe.candidates, data=data, run=bm25_run)
    return TeacherInputs(data=data, lexical=words, bm25_run=bm25_run, pairs=pairs, base=recipe.teacher.base)


def _teacher_inputs(recipe: Recipe, run: Runner) -> TeacherInputs:
    """Makes data, BM25 run, pairs and the base of the teacher; with `encoder_negatives` the pairs of an encoder too."""
    from pipeline.training import pretrain

    inputs = labelled(recipe, run)
    if recipe.pretrain.enabled or recipe.teacher.base == pretrain.SCRATCH:
        base = run(pretrain.make, recipe.pretrain, recipe.teacher.base, data=inputs.data)
        inputs = dataclasses.replace(inputs, base=base)
    if not recipe.candidates.encoder_negatives:
        return inputs
    first = _first_stage(recipe, first_round(recipe, inputs, run), inputs, run)
    return dataclasses.replace(inputs, pairs=_pairs_of_both(recipe, first, inputs, run), first_stage=first)


def _with_teacher(recipe: Recipe, inputs: TeacherInputs, run: Runner, states: RankerConfig) -> TrainingInputs:
    """Trains the teacher and lets it score the pairs; until assistants are trained, the ranker learns from it.

    Args:
        states: decides which hidden states are stored with the scores, and nothing else.
    """
    from pipeline.training import teacher

    large = run(teacher.make, recipe.teacher, recipe.candidates, data=inputs.data, pairs=inputs.pairs, base=inputs.base)
    ranker_pairs = with_ungraded(recipe, inputs, run)
    scores = score_pairs(recipe, states, inputs, run, teacher=large, pairs=ranker_pairs)
    if _students(recipe)[0].teachers > 1:
        scores = _mean_scores(recipe, inputs, run, first=scores, pairs=ranker_pairs)
    return TrainingInputs(
        data=inputs.data,
        lexical=inputs.lexical,
        bm25_run=inputs.bm25_run,
        pairs=inputs.pairs,
        base=inputs.base,
        first_stage=inputs.first_stage,
        teacher=large,
        ranker_pairs=ranker_pairs,
        teacher_scores=scores,
        ranker_teacher=large,
        ranker_teacher_scores=scores,
    )


def _with_assistants(recipe: Recipe, inputs: TrainingInputs, run: Runner) -> TrainingInputs:
    """Trains the assistants, each by the one before it; the ranker then learns from the last.

    Each model's scores are joined with those of other systems where the student that learns from them asks for it.
    """
    from pipeline.training import ranker

    students, pairs = _students(recipe), inputs.ranker_pairs
    scores = fused(students[0], inputs, run, pairs=pairs, scores=inputs.teacher_scores)
    inputs = dataclasses.replace(inputs, ranker_teacher_scores=scores)
    for number, (assistant, next_student) in enumerate(itertools.pairwise(students), start=1):
        named = run.labelled(f"assistant {number}")
        trained = named(
            ranker.make,
            assistant,
            recipe.candidates,
            data=inputs.data,
            pairs=pairs,
            teacher=inputs.ranker_teacher,
            teacher_scores=inputs.ranker_teacher_scores,
            base=student_base(recipe, assistant, inputs, named),
        )
        own_scores = score_pairs(recipe, next_student, inputs, named, teacher=trained, pairs=pairs)
        scores = fused(next_student, inputs, named, pairs=pairs, scores=own_scores)
        inputs = dataclasses.replace(inputs, ranker_teacher=trained, ranker_teacher_scores=scores)
    return inputs


def _first_stage(recipe: Recipe, trained: Artifact, inputs: TeacherInputs, run: Runner) -> FirstStage:
    """Exports an encoder and indexes the data's documents with it; the retraining takes these artifacts over."""
    from pipeline.export import bundle

    exported = run.labelled("encoder")(bundle.make, recipe.export, model=trained, data=inputs.data, pairs=inputs.pairs)
    corpus = make_searchable(recipe.index, run, encoder=exported, data=inputs.data)
    return FirstStage(trained=trained, encoder=exported, corpus=corpus)


def _pairs_of_both(recipe: Recipe, first: FirstStage, inputs: TeacherInputs, run: Runner) -> Artifact:
    """The pairs with those documents too that the encoder ranks high for the same queries."""
    from index import semantic
    from pipeline.data import candidates
    from serving.runtime import offline

    named = run.labelled("both ways")
    encoder_run = named(
        semantic.run,
        index=first.corpus.index,
        data=inputs.data,
        embed_queries=offline.embedder(first.encoder, "query"),
        depth=inputs.bm25_run.manifest.config["depth"],
        splits=("train", "valid"),
        pairs=inputs.pairs,
    )
    return named(candidates.pairs, recipe.candidates, data=inputs.data, run=inputs.bm25_run, encoder_run=encoder_run)


def fused(student: RankerConfig, inputs: TrainingInputs, run: Runner, *, pairs: Artifact, scores: Artifact) -> Artifact:
    """The scores that a student learns from: its teacher's, with `bm25_teacher` joined with BM25, with `fused_teacher`
    joined with those of the first stage.

    Args:
        student: the ranker's section.
        pairs: graded pairs and, where the recipe wants them, unlabelled ones.
        scores: the teacher's scores of these pairs.
    """
    from index import lexical
    from pipeline.training import bm25_teacher, fused_teacher
    from serving.runtime import offline

    if student.bm25_teacher:
        bm25 = run.labelled("pairs")(lexical.score, lexical=inputs.lexical, data=inputs.data, pairs=pairs, split="")
        return run(bm25_teacher.make, student.bm25_teacher, scores=scores, bm25=bm25, pairs=pairs)
    if not student.fused_teacher:
        return scores
    first = inputs.first_stage
    assert first is not None  # Some student of the recipe wants it.
    features = run.labelled("pairs")(
        offline.features,
        ranker=None,
        encoder=first.encoder,
        lexical=first.corpus.lexical,
        index=first.corpus.index,
        documents=first.corpus.documents,
        data=inputs.data,
        pool=pairs,
        fields=first.corpus.fields,
    )
    return run(fused_teacher.make, scores=scores, features=features, pairs=pairs)


def _mean_scores(recipe: Recipe, inputs: TeacherInputs, run: Runner, *, first: Artifact, pairs: Artifact) -> Artifact:
    """The mean of the first teacher's scores and those of teachers that differ in their seed.

    Args:
        inputs: the artifacts that all teachers are trained on.
        first: the first teacher's scores.
        pairs: the pairs that they score.
    """
    from pipeline.training import teacher, teacher_scores

    other_scores = []
    for number in range(1, _students(recipe)[0].teachers):
        named = run.labelled(f"teacher {number + 1}")
        config = dataclasses.replace(recipe.teacher, loop=recipe.teacher.loop.reseeded(number))
        model = named(teacher.make, config, recipe.candidates, data=inputs.data, pairs=inputs.pairs, base=inputs.base)
        other_scores.append(
            named(
                teacher_scores.make,
                teacher=model,
                data=inputs.data,
                pairs=pairs,
                layers=(),
                width=0,
                engine=run.engine,
            )
        )
    return run(teacher_scores.mean, first=first, others=other_scores)


def with_ungraded(recipe: Recipe, inputs: TeacherInputs, run: Runner) -> Artifact:
    """The pairs with as many unlabelled and augmented ones added as `candidates` says; the pairs alone where it is 0.

    Augmentation takes its words from the model that the teacher starts from.
    """
    from index import lexical
    from pipeline.data import unlabelled
    from pipeline.training import augmentation

    config, data, pairs = recipe.candidates, inputs.data, inputs.pairs
    if config.unlabelled:
        queries = run(unlabelled.queries, config, data=data)
        search = run.labelled("unlabelled pairs")
        results = search(lexical.run, lexical=inputs.lexical, data=queries, depth=config.unlabelled_depth, splits=())
        pairs = run(unlabelled.pairs, config, data=data, labelled=pairs, asked=queries, run=results)
    if not config.augmented:
        return pairs
    return run(
        augmentation.pairs,
        config,
        data=data,
        labelled=pairs,
        base=inputs.base,
        max_query_tokens=recipe.teacher.max_query_tokens,
        max_tokens=recipe.teacher.max_tokens,
    )


def student_origin(recipe: Recipe, student: RankerConfig, inputs: TeacherInputs, run: Runner) -> Artifact | str:
    """The `base` that a ranker's stages get: a new model for `base = "scratch"`, else what the teacher started from.

    Args:
        student: the ranker's section. Where it names the teacher or a model of its own, the stages take that instead.
    """
    from pipeline.training import pretrain

    if student.base != pretrain.SCRATCH:
        return inputs.base
    return run.labelled("the ranker's start")(pretrain.make, recipe.pretrain, pretrain.SCRATCH, data=inputs.data)


def student_base(recipe: Recipe, student: RankerConfig, inputs: TeacherInputs, run: Runner) -> Artifact | str:
    """The model that a ranker is cut from: its origin, or with `general_tokens` one distilled from it on the texts.

    Args:
        student: the ranker's section.
    """
    from pipeline.models import base_models, model_folders
    from pipeline.training import general, ranker_shape

    base = student_origin(recipe, student, inputs, run)
    if not student.general_tokens:
        return base
    keep = ranker_shape.kept(student, base_models.shape(model_folders.folder(base)).layers)
    return run(general.make, recipe.pretrain, keep, student.general_tokens, data=inputs.data, base=base)


def score_pairs(
    recipe: Recipe, student: RankerConfig, inputs: TeacherInputs, run: Runner, *, teacher: Artifact, pairs: Artifact
) -> Artifact:
    """Scores of the pairs by a student's teacher, with the hidden states that the student needs.

    The recipe's external teacher, if it has one, scores in place of the trained one, but not in place of assistants.

    Args:
        student: the student's section, which decides which layers' hidden states are kept, and how wide they are.
        teacher: the trained teacher, or an assistant.
    """
    from pipeline.training import external_teacher, ranker, teacher_scores
    from pipeline.training.teacher import STAGE as TEACHER

    layers, width = ranker.taught_by(student, teacher, student_origin(recipe, student, inputs, run))
    external, data = recipe.external_teacher, inputs.data
    if external.given and teacher.manifest.kind == TEACHER.kind:
        return run(external_teacher.make, external, data=data, pairs=pairs, layers=layers, teacher=teacher)
    return run(
        teacher_scores.make, teacher=teacher, data=data, pairs=pairs, layers=layers, width=width, engine=run.engine
    )
