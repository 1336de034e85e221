"""Trains the encoder in rounds: each round after the first adds hard negatives that the round before ranked high.

Pipeline never searches an index; each round's run comes from `index` as an artifact.
"""

from flows.indexing import make_searchable
from flows.runner import Runner
from flows.training_inputs import TeacherInputs, TrainingInputs
from pipeline.artifacts import Artifact
from pipeline.config import Recipe


def train_encoder(recipe: Recipe, inputs: TrainingInputs, run: Runner) -> Artifact:
    """The `encoder` artifact of the last of `encoder.mining.rounds` rounds."""
    from pipeline.training import encoder

    trained = first_round(recipe, inputs, run, teacher_scores=inputs.teacher_scores)
    if recipe.encoder.mining.rounds == 1:
        return trained
    bm25_run = _deep_run(recipe, inputs, run)
    for number in range(2, recipe.encoder.mining.rounds + 1):
        named = run.labelled(f"encoder round {number}")
        negatives = _mine(recipe, inputs, trained, bm25_run, named)
        trained = named(
            encoder.make,
            recipe.encoder,
            recipe.candidates,
            data=inputs.data,
            pairs=negatives,
            base=inputs.base,
            teacher_scores=negatives,
            start=trained,
        )
    return trained


def first_round(
    recipe: Recipe, inputs: TeacherInputs, run: Runner, *, teacher_scores: Artifact | None = None
) -> Artifact:
    """The `encoder` artifact of the first round.

    Args:
        inputs: the pairs are those of BM25, on whose valid queries the encoder is measured.
        teacher_scores: None where `encoder.train_body` is false and the encoder is made ahead of the teacher.
    """
    from pipeline.training import encoder

    return run(
        encoder.make,
        recipe.encoder,
        recipe.candidates,
        data=inputs.data,
        pairs=inputs.pairs,
        base=inputs.base,
        teacher_scores=teacher_scores,
    )


def _deep_run(recipe: Recipe, inputs: TrainingInputs, run: Runner) -> Artifact:
    """A BM25 run of the training queries that is `encoder.mining.depth` deep.

    The pairs keep the run that they were drawn from: otherwise the teacher would be trained again for every depth.
    """
    from index import lexical

    depth = recipe.encoder.mining.depth
    if depth <= inputs.bm25_run.manifest.config["depth"]:
        return inputs.bm25_run
    named = run.labelled("encoder mining")
    return named(lexical.run, lexical=inputs.lexical, data=inputs.data, depth=depth, splits=("train",))


def _mine(recipe: Recipe, inputs: TrainingInputs, trained: Artifact, bm25_run: Artifact, run: Runner) -> Artifact:
    """The pairs with new negatives: documents that BM25 and this encoder rank high and the teacher does not."""
    from index import semantic
    from pipeline.data import candidates
    from pipeline.export import bundle
    from pipeline.training import negatives, teacher_scores
    from serving.runtime import offline

    data, pairs, mining = inputs.data, inputs.pairs, recipe.encoder.mining
    exported = run(bundle.make, recipe.export, model=trained, data=data, pairs=pairs)
    corpus = make_searchable(recipe.index, run, encoder=exported, data=data)
    queries = offline.embedder(exported, "query")
    own_run = run(
        semantic.run, index=corpus.index, data=data, embed_queries=queries, depth=mining.depth, splits=("train",)
    )
    mined = run(candidates.mined, mining.depth, data=data, pairs=pairs, runs=[bm25_run, own_run])
    scores = run(
        teacher_scores.make, teacher=inputs.teacher, data=data, pairs=mined, layers=(), width=0, engine=run.engine
    )
    return run(negatives.make, mining, pairs=pairs, scores=inputs.teacher_scores, mined=mined, mined_scores=scores)
