"""The training stages in order: from judged queries to the teacher, its scores, and the assistants."""

import dataclasses
from functools import partial

from flows.encoder_rounds import first_round, train_encoder
from flows.indexing import make_searchable
from flows.runner import Runner
from flows.training_inputs import FirstStage, TrainingInputs
from pipeline.artifacts import Artifact
from pipeline.config import ExternalTeacherConfig, RankerConfig, Recipe


def check(recipe: Recipe, run: Runner) -> list[str]:
    """Reads the data and checks all that can be told before the first training; a line for each thing checked.

    Raises:
        InputError: the recipe cannot be trained here; the message names the key, file or split.
    """
    from index.analyzer import analyser
    from pipeline.data import judgments
    from pipeline.training import preflight

    models = preflight.check(recipe)
    analyser(recipe.index.language)
    return [*models, *preflight.check_data(run(judgments.make, recipe.data), clicks=recipe.evaluation.clicks)]


def prepare(recipe: Recipe, run: Runner) -> TrainingInputs:
    """Makes data, pairs, teacher, assistants and their scores: all that the students of a recipe learn from.

    Raises:
        ConfigError: a student cannot be cut or taught as the recipe says; raised before anything is made.
    """
    from index import lexical
    from pipeline.data import candidates, judgments
    from pipeline.training import preflight, pretrain, ranker, teacher

    preflight.check_rankers(recipe)
    data = run(judgments.make, recipe.data)
    words = run(lexical.make, recipe.index, data=data)
    depth = max(recipe.candidates.retrieve, recipe.candidates.negatives_depth + recipe.candidates.skip_top)
    bm25_run = run(lexical.run, lexical=words, data=data, depth=depth, splits=("train", "valid", "test"))
    pairs = run(candidates.pairs, recipe.candidates, data=data, run=bm25_run)

    base: Artifact | str = recipe.teacher.base
    if recipe.pretrain.enabled or recipe.teacher.base == pretrain.SCRATCH:
        base = run(pretrain.make, recipe.pretrain, recipe.teacher.base, data=data)
    first = None
    if recipe.candidates.encoder_negatives:
        first = _first_stage(recipe, first_round(recipe, run, data=data, pairs=pairs, base=base), run, data, pairs)
        pairs = _pairs_of_both(recipe, first, run, data=data, bm25_run=bm25_run, bm25_pairs=pairs)
    large = run(teacher.make, recipe.teacher, recipe.candidates, data=data, pairs=pairs, base=base)

    ranker_pairs = with_ungraded(recipe, run, data=data, lexical=words, pairs=pairs, base=base)
    students = (*recipe.assistants, recipe.ranker)
    score = partial(score_pairs, data=data, pairs=ranker_pairs)
    origins = [student_origin(student, recipe, run, data=data, base=base) for student in students]
    scores = score(run, students[0], recipe.external_teacher, teacher=large, base=origins[0])
    if students[0].teachers > 1:
        scores = _mean_scores(recipe, run, data=data, pairs=pairs, scored=ranker_pairs, base=base, first=scores)
    inputs = TrainingInputs(
        data=data,
        lexical=words,
        bm25_run=bm25_run,
        pairs=pairs,
        base=base,
        teacher=large,
        ranker_pairs=ranker_pairs,
        teacher_scores=scores,
        ranker_teacher=large,
        ranker_teacher_scores=scores,
        first_stage=first,
    )
    if first is None and any(student.fused_teacher for student in students):
        first = _first_stage(recipe, train_encoder(recipe, inputs, run), run, data, pairs)
        inputs = dataclasses.replace(inputs, first_stage=first)
    ranker_teacher, ranker_teacher_scores = large, fused(run, students[0], inputs, ranker_pairs, scores)
    for number, assistant in enumerate(recipe.assistants, start=1):
        named = run.labelled(f"assistant {number}")
        ranker_teacher = named(
            ranker.make,
            assistant,
            recipe.candidates,
            data=data,
            pairs=ranker_pairs,
            teacher=ranker_teacher,
            teacher_scores=ranker_teacher_scores,
            base=student_base(assistant, recipe, named, data=data, base=base),
        )
        own_scores = score(named, students[number], None, teacher=ranker_teacher, base=origins[number])
        ranker_teacher_scores = fused(named, students[number], inputs, ranker_pairs, own_scores)
    return dataclasses.replace(inputs, ranker_teacher=ranker_teacher, ranker_teacher_scores=ranker_teacher_scores)


def _first_stage(recipe: Recipe, trained: Artifact, run: Runner, data: Artifact, pairs: Artifact) -> FirstStage:
    """Exports an encoder and indexes the data's documents with it; the retraining takes these artifacts over."""
    from pipeline.export import bundle

    exported = run.labelled("encoder")(bundle.make, recipe.export, model=trained, data=data, pairs=pairs)
    corpus = make_searchable(recipe.index, run, encoder=exported, data=data)
    return FirstStage(trained=trained, encoder=exported, corpus=corpus)


def _pairs_of_both(
    recipe: Recipe, first: FirstStage, run: Runner, *, data: Artifact, bm25_run: Artifact, bm25_pairs: Artifact
) -> Artifact:
    """The pairs with those documents too that the encoder finds.

    Args:
        bm25_pairs: the queries that it searches for.
    """
    from index import semantic
    from pipeline.data import candidates
    from serving.runtime import offline

    named = run.labelled("both ways")
    encoder_run = named(
        semantic.run,
        index=first.corpus.index,
        data=data,
        embed_queries=offline.embedder(first.encoder, "query"),
        depth=bm25_run.manifest.config["depth"],
        splits=("train", "valid"),
        pairs=bm25_pairs,
    )
    return named(candidates.pairs, recipe.candidates, data=data, run=bm25_run, encoder_run=encoder_run)


def fused(run: Runner, student: RankerConfig, inputs: TrainingInputs, pairs: Artifact, scores: Artifact) -> Artifact:
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


def _mean_scores(
    recipe: Recipe,
    run: Runner,
    *,
    data: Artifact,
    pairs: Artifact,
    scored: Artifact,
    base: Artifact | str,
    first: Artifact,
) -> Artifact:
    """The mean of the first teacher's scores and those of teachers that differ in their seed.

    Args:
        pairs: graded pairs, which the teachers are trained on.
        scored: the pairs that they score.
        first: the first teacher's scores.
    """
    from pipeline.training import teacher, teacher_scores

    other_scores = []
    for number in range(1, (*recipe.assistants, recipe.ranker)[0].teachers):
        named = run.labelled(f"teacher {number + 1}")
        loop = dataclasses.replace(recipe.teacher.loop, seed=recipe.teacher.loop.seed + number)
        config = dataclasses.replace(recipe.teacher, loop=loop)
        model = named(teacher.make, config, recipe.candidates, data=data, pairs=pairs, base=base)
        other_scores.append(
            named(teacher_scores.make, teacher=model, data=data, pairs=scored, layers=(), width=0, engine=run.engine)
        )
    return run(teacher_scores.mean, first=first, others=other_scores)


def with_ungraded(
    recipe: Recipe, run: Runner, *, data: Artifact, lexical: Artifact, pairs: Artifact, base: Artifact | str
) -> Artifact:
    """The pairs with as many unlabelled and augmented ones added as `candidates` says; the pairs alone where it is 0.

    Args:
        base: the model that the teacher started from, whose words augmentation takes.
    """
    from index import lexical as lexical_index
    from pipeline.data import unlabelled
    from pipeline.training import augmentation

    config = recipe.candidates
    if config.unlabelled:
        queries = run(unlabelled.queries, config, data=data)
        search = run.labelled("unlabelled pairs")
        results = search(lexical_index.run, lexical=lexical, data=queries, depth=config.unlabelled_depth, splits=())
        pairs = run(unlabelled.pairs, config, data=data, labelled=pairs, asked=queries, run=results)
    if not config.augmented:
        return pairs
    return run(
        augmentation.pairs,
        config,
        data=data,
        labelled=pairs,
        base=base,
        max_query_tokens=recipe.teacher.max_query_tokens,
        max_tokens=recipe.teacher.max_tokens,
    )


def student_origin(
    student: RankerConfig, recipe: Recipe, run: Runner, *, data: Artifact, base: Artifact | str
) -> Artifact | str:
    """The `base` that a ranker's stages get: a new model for `base = "scratch"`, else what the teacher started from.

    Args:
        student: the ranker's section. Where it names the teacher or a model of its own, the stages take that instead.
        base: the model that the teacher started from.
    """
    from pipeline.training import pretrain

    if student.base != pretrain.SCRATCH:
        return base
    return run.labelled("the ranker's start")(pretrain.make, recipe.pretrain, pretrain.SCRATCH, data=data)


def student_base(
    student: RankerConfig, recipe: Recipe, run: Runner, *, data: Artifact, base: Artifact | str
) -> Artifact | str:
    """The model that a ranker is cut from: its origin, or with `general_tokens` one distilled from it on the texts.

    Args:
        student: the ranker's section.
        base: the model that the teacher started from.
    """
    from pipeline.models import base_models
    from pipeline.training import general, ranker_shape

    base = student_origin(student, recipe, run, data=data, base=base)
    if not student.general_tokens:
        return base
    keep = ranker_shape.kept(student, base_models.shape(base_models.folder(base)).layers)
    return run(general.make, recipe.pretrain, keep, student.general_tokens, data=data, base=base)


def score_pairs(
    run: Runner,
    student: RankerConfig,
    external: ExternalTeacherConfig | None,
    *,
    teacher: Artifact,
    data: Artifact,
    pairs: Artifact,
    base: Artifact | str,
) -> Artifact:
    """Scores the pairs by the external teacher if there is one, else by the teacher, with the states a student needs.

    Args:
        student: decides which layers' states are kept, and how wide they are.
        external: None where `teacher` is an assistant.
        base: the model that the student starts from, unless its section names another or its teacher.
    """
    from pipeline.training import external_teacher, ranker, teacher_scores

    layers, width = ranker.taught_by(student, teacher, base)
    if external is not None and external.given:
        return run(external_teacher.make, external, data=data, pairs=pairs, layers=layers, teacher=teacher)
    return run(
        teacher_scores.make, teacher=teacher, data=data, pairs=pairs, layers=layers, width=width, engine=run.engine
    )
