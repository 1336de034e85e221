"""Two nodes train as one process does, also after losses; a process whose neighbour is gone ends and says why."""

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.config import LoopConfig
from pipeline.errors import ConfigError, GateError, TrainingError, UnavailableError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.loop import distributed, loop, peers
from pipeline.training.loop.pair_tokens import Pairs, Ragged
from pipeline.training.losses.cross_encoder_terms import LossWeights
from pipeline.training.tasks.cross_encoder import CrossTask, PairChunk
from pipeline.training.tasks.objective import Objective
from tests import nodes
from tests.small_models import WORDS, write_base

QUERIES = 30
LOST_AFTER = 25
"""Number of pairs after which a process is lost, where it is; it sees about 120."""
CONFIG = LoopConfig(epochs=2, learning_rate=1e-3, evaluations=0, tokens_per_batch=256, precision="fp32", checkpoint_s=0)
LOSSES = LossWeights(ordinal=1.0, pairwise=1.0, listnet=0.5)


class RecordedTask(CrossTask):
    """A task that writes down which pairs it gets, and may kill its process in the middle."""

    seen: ClassVar[list[int]] = []
    module: nn.Module
    lost = -1
    """The process that is lost."""

    def loss(self, chunk: PairChunk) -> tuple[Tensor, Mapping[str, Tensor]]:
        RecordedTask.module = self.learner
        self.seen.extend(chunk.indices.tolist())
        if distributed.process() == self.lost and len(self.seen) > LOST_AFTER:
            if self.lost == 0:
                os.kill(os.getppid(), signal.SIGKILL)  # The torchrun with the store, as the machine is gone.
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(chunk)


def train(base: Path, checkpoint: Path | None) -> list[float]:
    """Trains in float64 without dropout, where sums in another order differ by far less than any mistake would.

    Returns:
        The history of the loss.
    """
    rng = np.random.default_rng(7)
    query = np.repeat(np.arange(QUERIES), rng.integers(2, 7, size=QUERIES))
    words = range(5, 5 + len(WORDS))
    pairs = Pairs(
        rows=np.arange(len(query)),
        query=query,
        document=np.arange(len(query)),
        grades=rng.integers(0, 3, size=len(query)),
        split=np.full(len(query), "train"),
        queries=Ragged.of([rng.choice(words, size=rng.integers(1, 5)) for _ in range(QUERIES)]),
        documents=Ragged.of([rng.choice(words, size=rng.integers(2, 20)) for _ in query]),
    )
    model = CrossEncoder.start(base, thresholds=[-1.0, 1.0], max_tokens=32, max_query_tokens=8, seed=1).double()
    task = RecordedTask(model, pairs, CONFIG, Objective(weights=LOSSES), max_list=16)
    progress = loop.train(task.learner.double(), task, CONFIG, label="nodes", checkpoint=checkpoint)
    return [point["loss"] for point in progress.history]


def run_node(base: Path, out: Path, lost: int) -> None:
    """The work of one node's process, which keeps a short beat."""
    peers.BEAT_S, peers.SILENT_BEATS = 0.1, 2400
    RecordedTask.lost, history = lost, []
    Tensor.float = Tensor.double  # type: ignore[method-assign]  # A model rounds its scores to float32.
    with peers.watched():
        distributed.join(0)
        if distributed.process():
            distributed.follow(loop.follow)
        else:
            history = train(base, out / "checkpoint")
            distributed.leave()
        rank = int(os.environ["RANK"])
        torch.save((history, RecordedTask.seen, RecordedTask.module.state_dict()), out / f"{rank}.pt")


def on_nodes(base: Path, out: Path, name: str, lost: int = -1) -> list[str]:
    """Trains on two nodes, which both end, and fail only where a process is lost; returns what each wrote."""
    codes = nodes.finish(nodes.start(run_node, [(base, out, lost)] * 2, out / name))
    texts = nodes.logs(out / name)
    assert all(codes) if lost >= 0 else not any(codes), texts
    return texts


def results(out: Path) -> list[tuple[list[float], list[int], dict[str, Tensor]]]:
    """History, pairs and last weights of both processes."""
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "bert"
    return write_base(folder, "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def test_two_nodes_train_as_one_process_and_go_on_after_losses(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and weights are those of one process within 1e-9, the same bits on both nodes and after losses."""
    straight, lossy = tmp_path / "straight", tmp_path / "lossy"
    for folder in (straight, lossy):
        folder.mkdir()
    on_nodes(base, straight, "all")
    (history, seen, weights), (_, seen_there, weights_there) = results(straight)

    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(RecordedTask, "seen", [])
    history_alone = train(base, None)
    assert min(len(seen), len(seen_there)) > LOST_AFTER * 3
    assert sorted(seen + seen_there) == sorted(RecordedTask.seen)
    assert history == pytest.approx(history_alone, rel=1e-9)
    for name, alone in RecordedTask.module.state_dict().items():
        assert torch.equal(weights[name], weights_there[name]), name
        assert torch.allclose(weights[name], alone, rtol=1e-9, atol=1e-9), name

    survivor, _ = on_nodes(base, lossy, "without-1", lost=1)
    assert "relevance: process 1 on" in survivor
    assert "has given no sign of life" in survivor
    _, survivor = on_nodes(base, lossy, "without-0", lost=0)
    assert "relevance: torchrun's store at 127.0.0.1:" in survivor
    assert peers.RESUME in survivor
    for text in on_nodes(base, lossy, "last"):
        assert "relevance:" not in text
    (history_resumed, seen, weights_resumed), _ = results(lossy)
    assert len(seen) < sum(map(len, (seen, seen_there))) / 2
    assert history_resumed == history
    for name, value in weights.items():
        assert torch.equal(value, weights_resumed[name]), name


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    """The store of process 0 of two, for whom half a second is long."""
    shared = dist.HashStore()
    monkeypatch.setattr(peers, "meet", lambda: (shared, 0, 2))
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("MASTER_PORT", "29400")
    for name, value in (("BEAT_S", 0.01), ("SILENT_BEATS", 50), ("LOST_BEATS", 10)):
        monkeypatch.setattr(peers, name, value)
    return shared


def say(store: dist.Store, beat: int, end: str | None) -> None:
    """Writes the state of process 1."""
    store.set("peers/1", json.dumps(["second", beat, end]))


Act = Callable[[threading.Event], object]


@pytest.fixture
def last_words(store: dist.Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The message with which the watch ends this process while it acts; empty where it lets it end by itself."""

    def watch(act: Act) -> str:
        left = threading.Event()
        monkeypatch.setattr(peers.os, "_exit", lambda code: left.set())
        with peers.watched():
            act(left)
        return capsys.readouterr().err if left.is_set() else ""

    return watch


def wait(left: threading.Event) -> None:
    assert left.wait(60)


def test_the_watch_ends_a_process_that_waits_for_one_that_is_gone(store: dist.Store, last_words: Any) -> None:
    assert "process 1 on a machine that" in last_words(wait)
    say(store, 1, None)
    message = last_words(wait)
    assert "process 1 on second has given no sign of life" in message
    assert peers.RESUME in message
    say(store, 2, "memory ran out")
    assert "process 1 on second ended: memory ran out" in last_words(wait)
    say(store, 3, "")  # It has done its work, so that its silence means nothing.
    assert last_words(lambda _: time.sleep(1)) == ""


def test_a_process_with_many_open_files_is_watched_too(store: dist.Store, last_words: Any) -> None:
    """`select` takes no descriptor from 1,024 on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert max(held) > 1024
        assert "has given no sign of life" in last_words(wait)
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_that_torchrun_stops_says_why_even_where_no_handler_runs(store: dist.Store, last_words: Any) -> None:
    say(store, 1, "")
    handler = signal.getsignal(signal.SIGTERM)

    def stop(left: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait(left)

    assert "relevance: torchrun stopped this process" in last_words(stop)
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("fault", ["hangs", "is lost"])
def test_a_store_that_does_not_answer_is_named(
    store: dist.Store, last_words: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    ended = threading.Event()

    def check(*_: object) -> None:
        if fault == "is lost":
            raise RuntimeError("Connection reset by peer")
        ended.wait(60)

    say(store, 1, "")
    monkeypatch.setattr(dist.PrefixStore, "check", check)
    assert "torchrun's store at first:29400 has not answered" in last_words(wait)
    ended.set()


def test_an_error_after_a_lost_connection_names_the_process_that_is_gone(
    store: dist.Store, last_words: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "SILENT_BEATS", 10**9)
    say(store, 1, None)

    def fail(left: threading.Event) -> None:
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError, match="Connection closed"):  # It would not come so far, were `_exit` the real one.
        last_words(fail)
    assert "process 1 on second has given no sign of life" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrainingError("the loss is nan"), "the loss is nan"),
        (SystemExit(2), "exit code 2; see what it printed"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (OSError("sql://me:s3cret@db is gone"), "sql://me:***@db is gone"),
        (GateError("worse"), ""),
        (SystemExit(0), ""),
    ],
)
def test_a_process_tells_the_other_ones_why_it_ends(store: dist.Store, error: BaseException, reason: str) -> None:
    say(store, 1, "")
    with pytest.raises(type(error)), peers.watched():
        raise error
    assert json.loads(store.get("peers/0"))[2] == reason


def test_facts_that_differ_are_named_and_counted(store: dist.Store, tmp_path: Path) -> None:
    ours = dict.fromkeys("abcdefgh", "1")
    same = {"the workspace": str(tmp_path), **ours}
    store.set("settings/1", json.dumps(["second", same]))
    peers.agree(tmp_path, ours)
    store.set(
        "settings/1", json.dumps(["second", {**same, "b": "2", "i": "2", "a": "1"} | dict.fromkeys("cdefg", "3")])
    )
    with pytest.raises(ConfigError, match=r"process 1 on second differs .*: b is 2, not 1; .*; and 2 more") as refused:
        peers.agree(tmp_path, ours)
    assert "a is" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_reached_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(peers, "MEETING", peers.timedelta(seconds=1))
    with pytest.raises(UnavailableError, match=r"torchrun's store at 127.0.0.1:1 cannot be reached"):
        peers.meet()
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UnavailableError, match="MASTER_ADDR"):
        peers.meet()
