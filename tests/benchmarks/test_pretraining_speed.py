"""Measures masked pre-training against each padded batch read alone and a plain loop; run by `make bench`.

All sides train the model of the recipe `chinese` (4 layers of 256, a vocabulary of 8,000) on one thread, turn by turn
in one run, as the machine's speed drifts. The first two read the same steps of real texts (qbqtc, about 2,048 tokens a
step); the plain loop reads one batch of 88 texts of 23 tokens, in which no token is padding, and its head sees only
the masked tokens, as ours does. The first two keep freed memory as our training loop does, the plain loop does not.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import DataConfig, LoopConfig, PretrainConfig, ScratchConfig, SourceConfig
from pipeline.training.loop import batches, memory
from pipeline.training.loop.loop import Step, autocast
from pipeline.training.tasks import masked_lm, vocabulary
from pipeline.training.tasks.masked_lm import MaskedChunk, MaskedCorpus, MaskedTask
from pipeline.training.tasks.masked_model import MaskedModel

pytestmark = [pytest.mark.benchmark, pytest.mark.data]

CONFIG = PretrainConfig(
    max_tokens=64,
    scratch=ScratchConfig(layers=4, hidden=256, heads=4, intermediate=1024, positions=128, vocab_size=8000),
    loop=LoopConfig(learning_rate=1e-3, tokens_per_batch=2048),
)
DOCUMENTS = 6000
STEPS = 6
"""Steps of each side in a turn; the first is not timed."""
TURNS = 7
PLAIN = (88, 23)
"""Texts and tokens of the plain loop's batch."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def task(tmp_path: Path, shared_data: Path) -> MaskedTask:
    from pipeline.data import judgments
    from pipeline.training import pretrain

    sources = (SourceConfig(path="qbqtc_v1"),)
    data = judgments.make(tmp_path, DataConfig(root=str(shared_data), sources=sources, conflicts="max", splits="hash"))
    corpus = pretrain.read_corpus(data, seed=1)
    kept = corpus.pairs[corpus.pairs[:, 1] < DOCUMENTS]
    held_out = corpus.held_out[corpus.held_out < DOCUMENTS]
    small = MaskedCorpus(corpus.documents[:DOCUMENTS], corpus.queries, kept, held_out)
    tokenizer = vocabulary.train([*small.documents, *small.queries], CONFIG.scratch)
    pretrain.new_model(tmp_path / "start", CONFIG.scratch, tokenizer, seed=1)
    return MaskedTask(MaskedModel.start(tmp_path / "start", CONFIG), small, CONFIG)


def _batches(task: MaskedTask, step: Step[MaskedChunk]) -> int:
    """The number of padded batches of a step."""
    return len(batches.length_groups(task.lengths[step.chunks[0].examples]))


def each_batch_alone(task: MaskedTask, chunk: MaskedChunk) -> Tensor:
    """The loss of a chunk, whose padded batches go through body and head one after the other."""
    loss = torch.zeros(())
    for group in batches.length_groups(task.lengths[chunk.examples]):
        part = task.masked_batch(chunk.examples[group], chunk.starts[group])
        logits = task.model([part.shown], [part.chosen], together=False)
        loss = loss + F.cross_entropy(logits, part.wanted, reduction="sum") / chunk.masked
    return loss


def plain_batch(task: MaskedTask) -> masked_lm.MaskedBatch:
    ids = torch.randint(5, len(task.model.hub_tokenizer), PLAIN, generator=torch.Generator().manual_seed(1))
    counts = torch.full(PLAIN[:1], round(PLAIN[1] * CONFIG.mask_share))
    content = torch.ones(PLAIN, dtype=torch.bool)
    shown, chosen = masked_lm.mask(ids, content, counts, task.mask_id, task.ordinary)
    inputs = batches.PaddedBatch(shown, torch.zeros_like(ids), torch.ones_like(ids))
    return masked_lm.MaskedBatch(inputs, chosen, ids[chosen])


def seconds(task: MaskedTask, losses: list[Callable[[], Tensor]]) -> float:
    """CPU seconds of these optimizer steps without the first."""
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-5)
    began = 0.0
    for number, loss in enumerate(losses):
        if number == 1:
            began = time.process_time()
        with autocast(CONFIG.loop.precision, torch.device("cpu")):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.process_time() - began


def test_pretraining_against_a_plain_loop(task: MaskedTask, record_property: Callable[[str, object], None]) -> None:
    planned: list[Step[MaskedChunk]] = task.plan(0)
    plain = plain_batch(task)
    rows: list[tuple[float, ...]] = []

    def plain_loss() -> Tensor:
        return F.cross_entropy(task.model([plain.shown], [plain.chosen], together=False), plain.wanted)

    for turn in range(TURNS):
        steps = planned[turn * STEPS : (turn + 1) * STEPS]
        chunks = [list(step.chunks) for step in steps]
        assert all(len(each) == 1 for each in chunks)
        tokens, padded = (sum(getattr(step, name) for step in steps[1:]) for name in ("tokens", "padded"))
        with memory.kept_between_steps():
            together, apart = (
                seconds(task, losses)
                for losses in (
                    [lambda each=each: task.loss(each[0])[0] for each in chunks],  # type: ignore[misc]
                    [lambda each=each: each_batch_alone(task, each[0]) for each in chunks],  # type: ignore[misc]
                )
            )
            kept = seconds(task, [plain_loss] * STEPS)
        loop = seconds(task, [plain_loss] * STEPS)
        plain_rates = [PLAIN[0] * PLAIN[1] * (STEPS - 1) / each for each in (loop, kept)]
        rows.append((tokens / together, tokens / apart, padded / together, *plain_rates))
    table: Any = np.array(rows)
    speeds = np.median(table, axis=0)
    over_apart = float(np.median(table[:, 0] / table[:, 1]))
    over_plain, over_kept = (float(np.median(table[:, 2] / table[:, column])) for column in (3, 4))
    print(
        f"\npre-training, real tokens per CPU-second: together {speeds[0]:,.0f}, each batch alone {speeds[1]:,.0f} "
        f"({over_apart:.2f} times as fast); padded tokens: together {speeds[2]:,.0f}, plain loop {speeds[3]:,.0f} "
        f"({over_plain:.2f} of it), with kept memory {speeds[4]:,.0f} ({over_kept:.2f}); "
        f"precision {CONFIG.loop.precision}, {np.mean([_batches(task, step) for step in planned]):.1f} batches a step"
    )
    record_property("over each batch alone", over_apart)
    record_property("share of the plain loop", over_plain)
    assert np.isfinite(table).all()
