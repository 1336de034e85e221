"""Trains networks of other kinds on what a study's ranker learned from, and prints them beside it as a table.

A benchmark of this folder names its networks and calls `main`. WORKSPACE holds a finished study with the method
`distilled` and is only read; a second run goes on from what is in OUT. Each network learns from the pairs, the teacher
scores and the losses of `distilled`, without its term over hidden states, which not every network has. The epoch with
the best nDCG@10 of the valid queries is kept. Scores and speeds are those of the exported networks in the serving
engine.
"""

import argparse
import dataclasses
import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from flows import comparisons
from pipeline import artifacts, disk
from pipeline.artifacts import Artifact, Staging
from pipeline.config import CandidatesConfig, EvaluationConfig, RankerConfig
from pipeline.evaluation import ablation, ablation_table, page, significance, text_tables
from pipeline.evaluation.ablation import AblationRun
from pipeline.evaluation.metrics import RANGE
from pipeline.export import parity, sample
from pipeline.models.cross_encoder import CrossEncoder, Reading
from pipeline.recipe import to_dict
from pipeline.training import ranker_shape
from pipeline.training.loop import scoring
from pipeline.training.loop.pair_tokens import Pairs, read_pairs
from pipeline.training.losses.cross_encoder_terms import LossWeights
from pipeline.training.tasks.cross_encoder import CrossTask, learn
from pipeline.training.tasks.objective import Objective
from pipeline.training.tasks.teacher_targets import TeacherTargets
from serving.runtime import ranker_trials

METHOD, PLAIN = "distilled", "plain"
LOOP = {"fresh_rate": 1.0, "valid_pairs": 0, "precision": "fp32"}
"""Settings of the loop that differ from the ranker's for every network: all of it starts untrained."""
SAMPLE_TOKENS, GOLDEN = 4000, 16
"""Tokens of the valid pairs that golden inputs are taken from, and their number."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OtherNetwork(CrossEncoder):
    """A network that reads the inputs of a cross-encoder, so that the training loop takes it for one."""

    EPOCHS: int
    """Epochs of the training, after each of which the valid queries are ranked."""
    SEEDS = 3
    """Trainings."""
    LOOP: ClassVar[Mapping[str, Any]]
    """Further settings of the loop that differ from the ranker's."""
    SETTINGS: ClassVar[Mapping[str, Any]]
    """Further settings of the network; a change trains it anew."""

    def __init__(self, teacher: CrossEncoder) -> None:
        """
        Args:
            teacher: gives thresholds, tokenizer and template.
        """
        nn.Module.__init__(self)
        self.template, self.tokenizer = teacher.template, teacher.tokenizer
        self.gaps = nn.Parameter(teacher.gaps.detach().clone())
        self.fresh = ("",)

    @classmethod
    def started(cls, teacher: CrossEncoder, score: float, pairs: Pairs) -> "OtherNetwork":
        """The network before the training.

        Args:
            teacher: the teacher of the study.
            score: the score of an untrained network: the mean of the teacher's.
            pairs: what it will learn from.
        """
        raise NotImplementedError

    def read_together(self, batches: Sequence[tuple[Tensor, Tensor, Tensor]], **_states: Any) -> Reading:
        readings = [self.read(*batch) for batch in batches]
        return Reading(*(torch.cat([getattr(each, name) for each in readings]) for name in ("scores", "first")), {})


@dataclass(frozen=True, slots=True)
class FinishedStudy:
    """A study in a workspace, and what its distilled ranker was made from."""

    workspace: Path
    artifact: Artifact

    @classmethod
    def newest(cls, workspace: Path) -> "FinishedStudy":
        """The newest study of a workspace."""
        return cls(workspace, artifacts.load(artifacts.finished(workspace, "study")[-1]))

    def input(self, name: str, of: Artifact | None = None) -> Artifact:
        """The input of the study, or of another artifact, by its name."""
        artifact = artifacts.input_of(self.workspace, of or self.artifact, name)
        assert artifact is not None, f"{self.workspace} lacks the input {name}"
        return artifact

    @property
    def bundle(self) -> Artifact:
        """The exported distilled ranker of the first seed."""
        return self.input("ranker", self.input(f"{METHOD} 0 test"))

    @property
    def ranker(self) -> Artifact:
        """The distilled ranker of the first seed, whose inputs and settings the networks share."""
        return self.input("model", self.bundle)

    @property
    def evaluation(self) -> EvaluationConfig:
        return EvaluationConfig(**_settings(EvaluationConfig, self.artifact))

    def runs(self, kind: str) -> list[AblationRun]:
        """The scores of a system, once a seed."""
        seeds = itertools.takewhile(
            lambda seed: f"{kind} {seed} test" in self.artifact.manifest.inputs, itertools.count()
        )
        return [
            AblationRun(kind, seed, 0, {split: self.input(f"{kind} {seed} {split}") for split in comparisons.SPLITS})
            for seed in seeds
        ]


def _settings(section: Any, artifact: Artifact) -> dict[str, Any]:
    """The fields of a config section in an artifact's settings."""
    stored = artifact.manifest.config
    return {field.name: stored[field.name] for field in dataclasses.fields(section) if field.name in stored}


def student(study: FinishedStudy, out: Path, network: type[OtherNetwork], seed: int) -> Artifact:
    """The bundle of a trained network; its metrics are those of the training."""
    config = RankerConfig(**_settings(RankerConfig, study.ranker))
    candidates = CandidatesConfig(**_settings(CandidatesConfig, study.ranker))
    epochs = {"epochs": network.EPOCHS, "evaluations": network.EPOCHS}
    loop = dataclasses.replace(config.loop, **epochs, **LOOP, **network.LOOP, seed=config.loop.seed + seed)
    inputs = {name: study.input(name, study.ranker) for name in ("data", "pairs", "teacher", "teacher_scores")}

    def build(staging: Staging) -> dict[str, Any]:
        teacher = CrossEncoder.load(inputs["teacher"].path)
        template = teacher.template
        differs = config.max_tokens or template.passages
        assert not differs, "the ranker reads other inputs than its teacher"
        assert template.document_type != template.query_type, "the teacher's tokens do not tell query from document"
        sizes = {name: getattr(template, name) for name in ("max_tokens", "max_query_tokens")}
        table = read_pairs(inputs["data"], inputs["pairs"], teacher.tokenizer, **sizes)
        targets = TeacherTargets.read(inputs["teacher"], inputs["teacher_scores"], table)
        torch.manual_seed(loop.seed)
        model = network.started(teacher, float(targets.scores.mean()), table)
        objective = Objective(weights=LossWeights.of_config(config, ranker_shape.HARD), targets=targets)
        click_weight, max_list = candidates.click_weight, candidates.max_list
        task = CrossTask(model, table, loop, objective, max_list=max_list, click_weight=click_weight)
        progress = learn(task, label=f"{network.__name__}, seed {seed + 1}", staging=staging)
        reader = sample.Reader(model.tokenizer, {"pair": model.template})
        taken = sample.take(inputs["data"], inputs["pairs"], reader, SAMPLE_TOKENS)
        export(model.eval(), study.bundle, staging.folder, taken)
        return progress.metrics(scoring.MEASURE, "pairs")

    settings = {
        "network": network.__name__,
        "ranker": study.ranker.fingerprint,
        "loop": to_dict(loop),
        **network.SETTINGS,
    }
    return artifacts.make(out, "bundle", version=1, config=settings, inputs=inputs, build=build)


def export(model: OtherNetwork, ranker: Artifact, folder: Path, taken: sample.Sample) -> None:
    """Writes the network as a bundle that differs from the ranker's in its graph, after a check against PyTorch."""
    ids = torch.full((1, 8), 3)
    types = (torch.arange(8)[None] > 3).long() * model.template.document_type
    path = folder / "model.fp32.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # This exporter, unlike the newer one, has LSTM and slices of unknown length.
        axes = {name: {1: "tokens"} for name in INPUTS}
        torch.onnx.export(
            *(model, (ids, types, torch.ones_like(ids)), str(path)),
            dynamo=False,
            input_names=[INPUTS[0], INPUTS[2], INPUTS[1]],
            output_names=["score"],
            dynamic_axes=axes,
        )

    def by_torch(item: sample.Input) -> Any:
        with torch.no_grad():
            ids, types = torch.tensor([item.ids]), torch.tensor([item.types])
            return model(ids, types, torch.ones_like(ids))[0].numpy()

    inputs = [taken.inputs[index] for index in taken.spread(GOLDEN)]
    outputs = {"torch": parity.outputs(by_torch, inputs), "fp32": parity.outputs(parity.runner(path), inputs)}
    parity.check(inputs, outputs["torch"], outputs["fp32"], 1e-5)
    fields = json.loads(ranker.file("bundle.json").read_text(encoding="utf-8")) | {
        "digest": disk.sha256(path)[:32],
        "inputs": INPUTS,
        "thresholds": model.thresholds.tolist(),
        "precisions": {"fp32": {"file": path.name, "bytes": path.stat().st_size}},
        "chosen": {"cpu": "fp32", "cuda": "fp32"},
    }
    model.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "golden.json").write_text(json.dumps(parity.golden(inputs, outputs)), encoding="utf-8")
    (folder / "bundle.json").write_text(json.dumps(fields), encoding="utf-8")


def trained(study: FinishedStudy, out: Path, network: type[OtherNetwork]) -> list[Artifact]:
    """The bundles of a network, once a seed."""
    bundles = [student(study, out, network, seed) for seed in range(network.SEEDS)]
    for seed, bundle in enumerate(bundles):
        print(
            f"{network.__name__}, seed {seed + 1}: {bundle.metrics['seconds']:.0f} s, {bundle.metrics['evaluations']}"
        )
    return bundles


def scored(study: FinishedStudy, out: Path, name: str, bundles: Sequence[Artifact]) -> list[AblationRun]:
    """The scores of a network on the study's pairs, once a seed."""
    judged = {"data": study.input("data"), "pool": study.input("pool")}
    return [
        AblationRun(
            *(name, seed, 0),
            {
                split: ranker_trials.scores(out, ranker=bundle, **judged, split=split, precision="fp32")
                for split in comparisons.SPLITS
            },
        )
        for seed, bundle in enumerate(bundles)
    ]


def table(study: FinishedStudy, runs: Sequence[AblationRun], speeds: Mapping[str, float]) -> list[str]:
    """The lines of the table: the references, then the students by nDCG of the test queries."""
    config, judged = study.evaluation, (study.input("data"), study.input("pool"))
    references = [*study.runs(comparisons.BM25), *study.runs(comparisons.TEACHER)]
    students = [*study.runs(PLAIN), *study.runs(METHOD), *runs]
    frames = {
        split: ablation.values_per_query(config, *judged, [*references, *students], split)
        for split in comparisons.SPLITS
    }
    results = ablation.compared(frames["test"], references, students, comparisons.TEACHER, config)
    first, second = ablation_table.tabled(results)
    kinds = list(results["systems"])
    tables = {split: ablation.query_tables(frame, kinds, [first]) for split, frame in frames.items()}
    rows = []
    for kind in kinds:
        system, test = results["systems"][kind], tables["test"]
        seeds = system["seeds"][first]
        row = [kind, f"{len(seeds)}", f"{ablation.means_of(tables['valid'][kind])[0]:.4f}"]
        row.append(f"{np.mean(seeds):.4f}" + (f" ± {np.std(seeds, ddof=1):.4f}" if len(seeds) > 1 else ""))
        row.append(f"{system['measures'][second]['mean']:.4f}")
        row += [f"{system['closed'][name]:.0%}" if "closed" in system else "" for name in (first, second)]
        for other in (comparisons.TEACHER, METHOD):
            gap = significance.difference(
                test[kind][:, 0], test[other][:, 0], resamples=config.bootstrap, seed=config.seed, bounds=RANGE
            )
            row.append("" if kind == other else page.interval(dataclasses.asdict(gap), digits=4))
        rows.append([*row, f"{speeds[kind]:,.0f}" if kind in speeds else ""])
    labels = [page.label(name) for name in (first, second)]
    heads = ["", "seeds", f"{labels[0]}, valid", f"{labels[0]}, test ± seeds", labels[1], "gap closed", "gap closed"]
    heads += [f"less {comparisons.TEACHER}", f"less {METHOD}", "pairs per CPU-second"]
    return text_tables.markdown(heads, rows)


def main(description: str | None, networks: Mapping[str, type[OtherNetwork]]) -> None:
    """Trains these networks and prints them beside the study's rankers; see the head of this file.

    Args:
        description: the help of the command.
        networks: name in the table → network.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, help="holds a finished study; is only read")
    parser.add_argument("out", type=Path, help="another folder, for what is trained here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study, out = FinishedStudy.newest(arguments.workspace), arguments.out
    bundles = {name: trained(study, out, network) for name, network in networks.items()}
    runs = [run for name, exported in bundles.items() for run in scored(study, out, name, exported)]
    measured = {METHOD: study.bundle} | {name: exported[0] for name, exported in bundles.items()}
    judged = {"data": study.input("data"), "pool": study.input("pool")}
    artifact = ranker_trials.speeds(out, rankers=list(measured.values()), **judged, precisions=("fp32",))
    rates = json.loads(artifact.file("speeds.json").read_text(encoding="utf-8"))
    speeds = {name: rates[bundle.fingerprint]["fp32"] for name, bundle in measured.items()}
    print("\n".join(["", *table(study, runs, speeds)]))
