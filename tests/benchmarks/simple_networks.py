"""Trains two networks without attention on what a study's ranker learned from, and prints them beside it as a table.

    OMP_NUM_THREADS=1 python tests/benchmarks/simple_networks.py WORKSPACE OUT

    feed-forward   mean token vectors of query and document, three layers: BERT2DNN, Jiang et al. 2020, arXiv:2010.10442
    BiLSTM         one layer over each text, one hidden layer: Distilled BiLSTM, Tang et al. 2019, arXiv:1903.12136

WORKSPACE holds a finished study with the method `distilled` and is only read; a second run goes on from what is in OUT.
Each network learns from the pairs, the teacher scores and the losses of `distilled`, without its term over hidden
states, which a network without layers cannot have. The epoch with the best nDCG@10 of the valid queries is kept. Scores
and speeds are those of the exported networks in the serving engine.
"""

import argparse
import dataclasses
import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from pipeline.training.loop.pair_tokens import read_pairs
from pipeline.training.losses.cross_encoder_terms import LossWeights
from pipeline.training.tasks.cross_encoder import CrossTask, learn
from pipeline.training.tasks.objective import Objective
from pipeline.training.tasks.teacher_targets import TeacherTargets
from serving.runtime import ranker_trials

METHOD, PLAIN = "distilled", "plain"
SEEDS = 3
LOOP = {"learning_rate": 1e-3, "fresh_rate": 1.0, "tokens_per_batch": 8192, "valid_pairs": 0, "precision": "fp32"}
"""Settings of the loop that differ from the ranker's: a rate for networks that start untrained, and larger steps, as
each step updates the whole table of token vectors."""
DROPOUT = 0.2
SAMPLE_TOKENS, GOLDEN = 4000, 16
"""Tokens of the valid pairs that golden inputs are taken from, and their number."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class SimpleRanker(CrossEncoder):
    """A network without attention that reads the inputs of a cross-encoder, so that the training loop takes it for one.

    The segment of the query and that of the document become a vector each; the score is read from the two vectors,
    their product and their absolute difference. Token vectors start from the teacher's, scaled to unit deviation.
    """

    EPOCHS: int
    """Epochs of the training, after each of which the valid queries are ranked."""
    WIDTH = 0
    """Width of a text's vector; 0 for that of the token vectors."""
    LAYERS: tuple[int, ...]
    """Widths of the hidden layers."""

    def __init__(self, teacher: CrossEncoder, score: float) -> None:
        """
        Args:
            teacher: gives token vectors, thresholds, tokenizer and template.
            score: the score of an untrained network: the mean of the teacher's.
        """
        nn.Module.__init__(self)
        self.template, self.tokenizer = teacher.template, teacher.tokenizer
        self.gaps = nn.Parameter(teacher.gaps.detach().clone())
        table = teacher.model.get_input_embeddings().weight.detach()
        self.words = nn.Embedding.from_pretrained(table / table.std(), freeze=False)
        self.fresh = ("",)
        sizes = [4 * (self.WIDTH or table.shape[1]), *self.LAYERS]
        layers = [(nn.Linear(*both), nn.ReLU()) for both in itertools.pairwise(sizes)]
        last = nn.Linear(sizes[-1], 1)
        nn.init.constant_(last.bias, score)
        self.score = nn.Sequential(nn.Dropout(DROPOUT), *itertools.chain(*layers), last)

    def vectors(self, ids: Tensor, query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, width) each, from ids (batch, tokens) and which of them are of the query and of the document."""
        raise NotImplementedError

    @property
    def hidden(self) -> int:
        return self.words.embedding_dim

    def read(self, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor, **_states: Any) -> Reading:
        assert token_type_ids is not None
        real, in_document = attention_mask > 0, token_type_ids == self.template.document_type
        first, second = self.vectors(input_ids, real & ~in_document, real & in_document)
        compared = torch.cat([first, second, first * second, (first - second).abs()], dim=1)  # (batch, 4 · width)
        scores = self.score(compared)[:, 0]
        return Reading(scores, scores.new_empty(len(scores), 0, self.hidden), {})

    def read_together(self, batches: Sequence[tuple[Tensor, Tensor, Tensor]], **_states: Any) -> Reading:
        readings = [self.read(*batch) for batch in batches]
        return Reading(*(torch.cat([getattr(each, name) for each in readings]) for name in ("scores", "first")), {})


class FeedForward(SimpleRanker):
    """Mean token vectors and three layers, in the manner of BERT2DNN."""

    EPOCHS = 8
    LAYERS = (256, 128)

    def vectors(self, ids: Tensor, query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
        words = self.words(ids)  # (batch, tokens, embedding)
        of_query, of_document = (
            (words * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True) for kept in (query.float(), document.float())
        )
        return of_query, of_document


class BiLSTM(SimpleRanker):
    """The siamese Distilled BiLSTM: last states of both directions, concatenate-compare, one hidden layer."""

    EPOCHS = 4
    WIDTH = 300
    LAYERS = (200,)

    def __init__(self, teacher: CrossEncoder, score: float) -> None:
        super().__init__(teacher, score)
        self.lstm = nn.LSTM(self.hidden, self.WIDTH // 2, batch_first=True, bidirectional=True)

    def vectors(self, ids: Tensor, query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
        texts = [ids[row][kept[row]] for kept in (query, document) for row in range(len(ids))]
        if len(ids) == 1:  # As exported: two texts at their exact length.
            states = torch.cat([self.lstm(self.words(text[None]))[1][0] for text in texts], dim=1)
        else:
            states = self._states(texts)
        both = states.transpose(0, 1).flatten(1)
        return both[: len(ids)], both[len(ids) :]

    def _states(self, texts: Sequence[Tensor]) -> Tensor:
        """(directions, texts, units); a text that occurs twice, as a query does, is read once."""
        keys = [tuple(text.tolist()) for text in texts]
        first = {key: number for number, key in reversed(list(enumerate(keys)))}
        order = {number: row for row, number in enumerate(first.values())}
        distinct = [texts[number] for number in order]
        lengths = torch.tensor([len(text) for text in distinct])
        words = self.words(nn.utils.rnn.pad_sequence(distinct, batch_first=True))
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states: Tensor = self.lstm(packed)[1][0]
        return states[:, [order[first[key]] for key in keys]]


NETWORKS: Mapping[str, type[SimpleRanker]] = {"feed-forward": FeedForward, "BiLSTM": BiLSTM}


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


def student(study: FinishedStudy, out: Path, network: str, seed: int) -> Artifact:
    """The bundle of a trained network; its metrics are those of the training."""
    config = RankerConfig(**_settings(RankerConfig, study.ranker))
    candidates = CandidatesConfig(**_settings(CandidatesConfig, study.ranker))
    epochs = {"epochs": NETWORKS[network].EPOCHS, "evaluations": NETWORKS[network].EPOCHS}
    loop = dataclasses.replace(config.loop, **epochs, **LOOP, seed=config.loop.seed + seed)
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
        model = NETWORKS[network](teacher, float(targets.scores.mean()))
        objective = Objective(weights=LossWeights.of_config(config, ranker_shape.HARD), targets=targets)
        click_weight, max_list = candidates.click_weight, candidates.max_list
        task = CrossTask(model, table, loop, objective, max_list=max_list, click_weight=click_weight)
        progress = learn(task, label=f"{network}, seed {seed + 1}", staging=staging)
        reader = sample.Reader(model.tokenizer, {"pair": model.template})
        taken = sample.take(inputs["data"], inputs["pairs"], reader, SAMPLE_TOKENS)
        export(model.eval(), study.bundle, staging.folder, taken)
        return progress.metrics(scoring.MEASURE, "pairs")

    settings = {"network": network, "dropout": DROPOUT, "ranker": study.ranker.fingerprint, "loop": to_dict(loop)}
    return artifacts.make(out, "bundle", version=1, config=settings, inputs=inputs, build=build)


def export(model: SimpleRanker, ranker: Artifact, folder: Path, taken: sample.Sample) -> None:
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


def trained(study: FinishedStudy, out: Path, network: str) -> list[Artifact]:
    """The bundles of a network, once a seed."""
    bundles = [student(study, out, network, seed) for seed in range(SEEDS)]
    for seed, bundle in enumerate(bundles):
        print(f"{network}, seed {seed + 1}: {bundle.metrics['seconds']:.0f} s, {bundle.metrics['evaluations']}")
    return bundles


def scored(study: FinishedStudy, out: Path, network: str, bundles: Sequence[Artifact]) -> list[AblationRun]:
    """The scores of a network on the study's pairs, once a seed."""
    judged = {"data": study.input("data"), "pool": study.input("pool")}
    return [
        AblationRun(
            *(network, seed, 0),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, help="holds a finished study; is only read")
    parser.add_argument("out", type=Path, help="another folder, for what is trained here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study, out = FinishedStudy.newest(arguments.workspace), arguments.out
    bundles = {network: trained(study, out, network) for network in NETWORKS}
    runs = [run for network, exported in bundles.items() for run in scored(study, out, network, exported)]
    measured = {METHOD: study.bundle} | {network: exported[0] for network, exported in bundles.items()}
    judged = {"data": study.input("data"), "pool": study.input("pool")}
    artifact = ranker_trials.speeds(out, rankers=list(measured.values()), **judged, precisions=("fp32",))
    rates = json.loads(artifact.file("speeds.json").read_text(encoding="utf-8"))
    speeds = {name: rates[bundle.fingerprint]["fp32"] for name, bundle in measured.items()}
    print("\n".join(["", *table(study, runs, speeds)]))


if __name__ == "__main__":
    main()
