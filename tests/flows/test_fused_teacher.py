"""A ranker of the fused teacher in a retraining: the encoder is made first, and both learn from what they should."""

import dataclasses

from flows import retrain, training
from flows.runner import Runner
from pipeline import artifacts
from pipeline.artifacts import Artifact
from tests.flows.conftest import Trained


def test_the_ranker_alone_learns_the_fused_order(copied: Trained) -> None:
    """The ranker's pairs include unlabelled ones, whose queries are no part of the graded pairs."""
    recipe = dataclasses.replace(
        copied.recipe,
        ranker=dataclasses.replace(copied.recipe.ranker, fused_teacher=True, plain=False),
        candidates=dataclasses.replace(copied.recipe.candidates, unlabelled=0.2, unlabelled_depth=10),
    )
    stages: list[str] = []

    def run(name: str, stage: object) -> Artifact:
        stages.append(name)
        return stage()  # type: ignore[operator,no-any-return]

    outcome = retrain.retrain(recipe, copied.workspace, promote=False, execute=run)
    assert stages.index("encoder: bundle") < stages.index("fused teacher scores") < stages.index("ranker")

    inputs = training.prepare(recipe, Runner(copied.workspace))
    fused, own = inputs.ranker_teacher_scores, inputs.teacher_scores
    assert fused.manifest.inputs["scores"] == own.fingerprint
    assert fused.metrics["pairs"] == own.metrics["pairs"] > inputs.pairs.metrics["train"]["pairs"]
    rankers = [
        artifacts.load(path.parent, "ranker")
        for path in (copied.workspace / "artifacts" / "ranker").glob("*/manifest.json")
    ]
    assert sum(item.manifest.inputs.get("teacher_scores") == fused.fingerprint for item in rankers) == 1
    first = inputs.first_stage
    assert first is not None
    assert first.encoder.fingerprint == outcome.release.manifest.inputs["encoder"]
