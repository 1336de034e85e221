"""The encoder's rounds: trained, let loose on all documents for the training queries, trained again on what it found.

Pipeline asks no index; each round's run comes from `index` as an artifact.
"""

from functools import partial
from pathlib import Path

from flows.indexing import make_searchable
from flows.runner import Runner, directly
from flows.training import TrainingInputs
from pipeline.artifacts import Artifact
from pipeline.config import Recipe


def train_encoder(recipe: Recipe, workspace: Path, taught: TrainingInputs, *, run: Runner = directly) -> Artifact:
    """The `encoder` artifact of the last of `encoder.mining.rounds` rounds.

    A round after the first learns from the recipe's pairs and new negatives, which BM25 and the round before rank high
    and the teacher does not take for relevant.
    """
    from index import lexical, semantic
    from pipeline.data import candidates
    from pipeline.export import bundle as onnx
    from pipeline.training import encoder, negatives, teacher_scores
    from serving.runtime import offline

    data, pairs, mining = taught.data, taught.pairs, recipe.encoder.mining
    learn = partial(encoder.make, workspace, recipe.encoder, recipe.candidates, data)
    made = run("encoder", partial(learn, pairs, taught.base, taught.scores))
    by_words = taught.found
    if mining.rounds > 1 and mining.depth > by_words.manifest.config["depth"]:
        # Not the run that the pairs are drawn from: the teacher would be trained again for every depth.
        deeper = partial(lexical.run, workspace, taught.words, data, depth=mining.depth, splits=("train",))
        by_words = run("BM25 run for mining", deeper)
    for number in range(2, mining.rounds + 1):

        def named(name: str, stage: partial[Artifact], number: int = number) -> Artifact:
            return run(f"encoder round {number}: {name}", stage)

        bundle = named("bundle", partial(onnx.make, workspace, recipe.export, made, data, pairs))
        corpus = make_searchable(workspace, recipe.index, bundle, data, run=run)
        queries = offline.embedder(bundle, "query")
        asked = partial(semantic.run, workspace, corpus.index, data, queries, depth=mining.depth, splits=("train",))
        found = [by_words, named("semantic run", asked)]
        mined = named("mined pairs", partial(candidates.mined, workspace, mining.depth, data, pairs, found))
        judge = partial(teacher_scores.make, workspace, taught.teacher, data, mined, layers=(), width=0)
        said = named("teacher scores", judge)
        hard = named("negatives", partial(negatives.make, workspace, mining, pairs, taught.scores, mined, said))
        made = named("encoder", partial(learn, hard, taught.base, hard, start=made))
    return made
