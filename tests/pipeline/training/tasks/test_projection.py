"""The projection that keeps similarities, against the principal directions and against the vectors themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BertTokenizer

from pipeline import artifacts, schema
from pipeline.artifacts import Artifact
from pipeline.config import EncoderConfig
from pipeline.errors import TrainingError
from pipeline.models.bi_encoder import BiEncoder
from pipeline.training.loop import scoring, shards
from pipeline.training.tasks import projection
from pipeline.training.tasks.projection import ProjectionTask

WORDS = tuple(first + second for first in "bdfglmnprst" for second in ("a", "e", "i", "o", "u"))
CONFIG = EncoderConfig(dimensions=6, widths=(3,), max_tokens=20, max_query_tokens=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", *WORDS]
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder


def data(workspace: Path, count: int) -> Artifact:
    draw = np.random.default_rng(1)
    texts = [" ".join(draw.choice(WORDS, size=draw.integers(2, 18))) for _ in range(count)]
    ids = [f"d{number}" for number in range(count)]

    def build(staging: artifacts.Staging) -> dict[str, Any]:
        table = pa.table({"doc_id": ids, "title": [""] * count, "text": texts})
        schema.write(table, staging.folder / "documents.parquet", "documents")
        return {}

    return artifacts.make(workspace, "data", version=1, config={"count": count}, inputs={}, build=build)


def start(base: Path) -> BiEncoder:
    return BiEncoder.start(base, dimensions=6, widths=(3,), max_tokens=20, max_query_tokens=6, seed=0).eval()


def test_more_neighbours_are_kept_and_the_body_is_untouched(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "STEPS", 150)
    model, documents = start(base), data(tmp_path, 200)
    body = {name: value.clone() for name, value in model.model.state_dict().items()}
    figures = projection.fit(model, documents, CONFIG, tmp_path / "first")
    assert figures["neighbours_kept"] > figures["neighbours_kept before"] > 0.1
    assert all(torch.equal(value, body[name]) for name, value in model.model.state_dict().items())

    again = start(base)
    assert projection.fit(again, documents, CONFIG, tmp_path / "again") == figures
    assert torch.equal(again.dense.weight, model.dense.weight)
    other = start(base)
    projection.fit(other, documents, replace(CONFIG, loop=replace(CONFIG.loop, seed=99)), tmp_path / "other")
    assert not torch.equal(other.dense.weight, model.dense.weight)


def test_the_share_of_neighbours_is_counted(base: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    documents, stretches = torch.randn(40, 32, generator=draw), torch.randn(40, 32, generator=draw)
    model = start(base)
    several = torch.stack([stretches, torch.randn(40, 32, generator=draw)])  # The first ones are measured.
    task = ProjectionTask(model.dense, documents, several, CONFIG, learned=30)
    shares = []
    with torch.no_grad():
        for stretch in stretches[30:]:
            full = [float(F.cosine_similarity(stretch, document, dim=0)) for document in documents]
            short = [
                float(F.cosine_similarity(model.dense(stretch), model.dense(document), dim=0)) for document in documents
            ]
            nearest = [set(np.argsort(cosines)[::-1][:10].tolist()) for cosines in (full, short)]
            shares.append(len(nearest[0] & nearest[1]) / 10)
    assert task.evaluate() == pytest.approx(sum(shares) / 10)


def test_each_document_is_learned_from_once_an_epoch_and_none_that_is_measured(base: Path) -> None:
    vectors = torch.zeros(1400, 32)
    task = ProjectionTask(start(base).dense, vectors, torch.stack([vectors, vectors]), CONFIG, learned=1200)
    epochs = [[chunk for step in task.plan(epoch) for chunk in step.chunks] for epoch in (0, 1)]
    first, second = (np.concatenate([indices for indices, _ in chunks]) for chunks in epochs)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(1200))
    assert not np.array_equal(first, second)


def test_a_step_compares_documents_with_the_stretches_that_were_drawn(base: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    documents, stretches = torch.randn(9, 32, generator=draw), torch.randn(2, 9, 32, generator=draw)
    task = ProjectionTask(start(base).dense, documents, stretches, CONFIG, learned=9)
    indices, which = np.array([4, 0, 7]), np.array([1, 0, 1])
    alone = ProjectionTask(task.dense, documents[indices], stretches[which, indices][None], CONFIG, learned=3)
    wanted, _ = alone.loss((np.arange(3), np.zeros(3, np.int64)))
    assert task.loss((indices, which))[0].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert {int(stretch) for step in task.plan(0) for _, drawn in step.chunks for stretch in drawn} == {0, 1}


def test_too_few_documents_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="9 documents with words"):
        projection.fit(start(base), data(tmp_path, 9), CONFIG, tmp_path / "few")


class Killed(BaseException):
    """Ends a fit in the middle, as a kill does."""


def test_a_killed_fit_keeps_vectors_and_steps_and_ends_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "STEPS", 30)
    monkeypatch.setattr(projection, "LOOP", replace(projection.LOOP, checkpoint_s=0.0))
    monkeypatch.setattr(scoring, "CPU_TOKENS", 200)
    monkeypatch.setattr(shards, "SHARD", 20)
    documents, straight = data(tmp_path, 200), start(base)
    metrics = projection.fit(straight, documents, CONFIG, tmp_path / "straight")
    encoded, steps = 0, 0
    vectors, loss = scoring.vectors, ProjectionTask.loss

    def counted(model: BiEncoder, texts: Any, numbers: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal encoded
        if encoded > 300 and not killed:
            killed.append("vectors")
            raise Killed
        encoded += len(numbers)
        return vectors(model, texts, numbers, *args, **kwargs)

    def step(task: ProjectionTask, chunk: Any) -> Any:
        nonlocal steps
        if steps == 20 and len(killed) == 1:
            killed.append("steps")
            raise Killed
        steps += 1
        return loss(task, chunk)

    killed: list[str] = []
    monkeypatch.setattr(scoring, "vectors", counted)
    monkeypatch.setattr(ProjectionTask, "loss", step)
    for _ in range(2):
        with pytest.raises(Killed):
            projection.fit(start(base), documents, CONFIG, tmp_path / "killed")
    resumed = start(base)
    assert projection.fit(resumed, documents, CONFIG, tmp_path / "killed") == metrics
    assert killed == ["vectors", "steps"]
    assert encoded == 600  # 200 documents and two excerpts of each, every one once.
    assert steps == 30
    assert torch.equal(resumed.dense.weight, straight.dense.weight)


def test_a_bound_of_time_reads_fewer_documents_and_a_killed_run_keeps_their_number(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driven clock, on which the trial takes a minute."""
    monkeypatch.setattr(projection, "STEPS", 20)
    now = iter(range(0, 10**6, 60))
    monkeypatch.setattr(projection, "monotonic", lambda: float(next(now)))
    bounded = replace(CONFIG, loop=replace(CONFIG.loop, max_seconds=1e9))
    read: list[int] = []
    real = projection.shards.pooled_vectors

    def counted(folder: Path, name: str, model: BiEncoder, texts: Any, *rest: Any, **more: Any) -> Any:
        read.append(len(texts))
        return real(folder, name, model, texts, *rest, **more)

    monkeypatch.setattr(projection.shards, "pooled_vectors", counted)
    documents = data(tmp_path, 300)
    projection.fit(start(base), documents, bounded, tmp_path / "enough")
    assert read == [300, 600]
    # A minute for 128 documents, as much for their excerpts: 188 documents in 60 % of 294 s.
    short = replace(CONFIG, loop=replace(CONFIG.loop, max_seconds=735.0))
    monkeypatch.setattr(projection, "train", lambda *_, **__: None)
    projection.fit(start(base), documents, short, tmp_path / "short")
    assert read[2:] == [188, 376]
    now = iter(range(0, 10**6, 1))
    projection.fit(start(base), documents, short, tmp_path / "short")
    assert read[4:] == [188, 376], "the number of the first run is kept"
