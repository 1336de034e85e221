"""One contract for both compute engines: in this process, and on a Ray cluster of two nodes that lose processes."""

import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from index import vectors
from pipeline import compute, ray_cluster, ray_engine
from pipeline.compute import ComputeEngine, PinnedArtifact
from pipeline.config import ComputeConfig, ExportConfig, Recipe
from pipeline.errors import ArtifactError, ConfigError, SchemaError, UnavailableError
from pipeline.export import bundle
from pipeline.recipe import parse
from pipeline.training import teacher_scores
from pipeline.training.loop import scoring, shards
from pipeline.training.loop.loop import bf16_is_native
from serving.runtime import offline
from tests.conftest import Untrained

ray = pytest.importorskip("ray")

# Ray leaves files and processes to the end of its own process.
pytestmark = pytest.mark.filterwarnings("ignore")


LOOPBACK = "127.0.0.2"
"""Ray takes 127.0.0.1 for another name of the machine's outer address."""


class TwoNodes:
    """A Ray cluster of two nodes with one CPU each, on the loopback address."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 << 20, "node_ip_address": LOOPBACK}
        self.cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        self.cluster.add_node(**node)
        self.address = self.cluster.address

    def kill_head(self) -> None:
        for processes in self.cluster.head_node.all_processes.values():
            for item in processes:
                item.process.kill()

    def end(self) -> None:
        if not ray_cluster._lost:
            ray.shutdown()
        for node in self.cluster.list_all_nodes():
            with contextlib.suppress(Exception):  # Some of its processes were killed by a test.
                node.kill_all_processes(check_alive=False, allow_graceful=False)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    nodes = TwoNodes()
    yield nodes
    nodes.end()


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> ComputeEngine:
    if request.param == "local":
        return compute.engine_of(ComputeConfig())
    return on(request.getfixturevalue("two_nodes"), workers=1)  # The start of each takes seconds.


def on(nodes: TwoNodes, workers: int = 0) -> ComputeEngine:
    return compute.engine_of(ComputeConfig(engine="ray", address=nodes.address, workers=workers))


class Squares:
    """The square of a number, and the process that computed it."""

    def __call__(self, number: int) -> tuple[int, int]:
        time.sleep(0.02 * (number % 3))  # Later batches are ready before earlier ones.
        return number**2, os.getpid()


class SquaresOfSeveral(Squares):
    """Squares that wait until a number of processes compute some; each leaves a file in a folder."""

    def __init__(self, processes: int, folder: Path) -> None:
        self.processes, self.folder = processes, folder

    def __call__(self, number: int) -> tuple[int, int]:
        (self.folder / str(os.getpid())).touch()
        until = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < self.processes and time.monotonic() < until:
            time.sleep(0.01)
        return super().__call__(number)


class RefusesSeven(Squares):
    def __call__(self, number: int) -> tuple[int, int]:
        if number == 7:
            raise SchemaError("seven is refused")
        return super().__call__(number)


class DiesOnFive(Squares):
    """Kills its own process when it is given 5, as often as there are files to remove in a folder."""

    def __init__(self, lives: Path) -> None:
        self.lives = lives

    def __call__(self, number: int) -> tuple[int, int]:
        if number == 5 and (left := sorted(self.lives.iterdir())):
            left[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(number)


class DyingEmbedder:
    """An embedder whose process is killed before it embeds the text that begins with a word, once."""

    def __init__(self, embed: Callable[[Sequence[str]], np.ndarray], word: str, file: Path) -> None:
        self.embed, self.word, self.file = embed, word, file

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if self.file.exists() and any(text.startswith(self.word) for text in texts):
            self.file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.embed(texts)


@pytest.fixture(scope="module")
def encoder(untrained: Untrained) -> Any:
    config = ExportConfig(precisions=("fp32",), golden=2)
    return bundle.make(untrained.workspace, config, model=untrained.encoder, data=untrained.data, pairs=untrained.pairs)


def content(artifact: Any) -> dict[str, str]:
    return {name: record.sha256 for name, record in artifact.manifest.files.items()}


@pytest.mark.parametrize("workers", [0, 2], ids=["local", "two workers"])
def test_results_come_in_order_and_batches_are_drawn_a_bounded_number_ahead(
    workers: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    engine = on(request.getfixturevalue("two_nodes"), workers) if workers else compute.LOCAL
    drawn = 0

    def numbers() -> Iterator[int]:
        nonlocal drawn
        while drawn < 60:
            drawn += 1
            yield drawn

    processes = set()
    for given, (square, process) in enumerate(
        engine.map(SquaresOfSeveral(workers or 1, tmp_path), numbers(), label="squares"), start=1
    ):
        assert square == given**2
        assert drawn - given <= 2 * ray_engine.DEPTH * ray_engine.AHEAD
        processes.add(process)
    assert drawn == given == 60
    assert len(processes) == (workers or 1)
    assert list(engine.map(Squares(), [], label="nothing")) == []


def test_an_error_of_the_model_is_raised_as_it_is(engine: ComputeEngine) -> None:
    results = engine.map(RefusesSeven(), range(20), label="squares")
    with pytest.raises(SchemaError, match="seven is refused"):
        list(results)


def test_vectors_are_the_same_bytes_though_a_worker_is_killed(
    engine: ComputeEngine, encoder: Any, untrained: Untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "BATCH", 9)
    embed = offline.embedder(encoder)
    here = vectors.make(tmp_path / "here", vectors.DocumentEncoder("encoder", embed), data=untrained.data)
    once = tmp_path / "once"
    if not isinstance(engine, compute.LocalEngine):
        once.touch()
    word = _table(untrained.data.file("documents.parquet")).column("title")[40].as_py().split()[0]
    dying = DyingEmbedder(embed, word, once)
    there = vectors.make(
        tmp_path / "there", vectors.DocumentEncoder("encoder", dying, engine=engine), data=untrained.data
    )
    assert not once.exists()
    assert here.fingerprint == there.fingerprint
    assert content(here) == content(there)


def test_teacher_scores_and_states_are_those_of_one_process(
    two_nodes: TwoNodes, untrained: Untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = on(two_nodes, workers=1)  # Each would load PyTorch.
    monkeypatch.setattr(shards, "SHARD", 20)
    monkeypatch.setattr(scoring, "CPU_TOKENS", 256)
    inputs = {"teacher": untrained.ranker, "data": untrained.data, "pairs": untrained.pairs}
    here = teacher_scores.make(tmp_path / "here", **inputs, layers=(1, 2), width=16)
    there = teacher_scores.make(tmp_path / "there", **inputs, layers=(1, 2), width=16, engine=engine)
    assert here.fingerprint == there.fingerprint
    first, second = (np.load(item.file("states.npy")).astype(np.float32) for item in (here, there))
    scores = [_table(item.file("scores.parquet")).column("score").to_numpy() for item in (here, there)]
    if bf16_is_native(torch.device("cpu")):  # It has 8 bits: a sum in another order may round to its neighbour.
        np.testing.assert_allclose(first, second, rtol=0.02, atol=0.02)
        np.testing.assert_allclose(*scores, rtol=0.02, atol=0.02)
        assert (first == second).mean() > 0.9
    else:
        np.testing.assert_allclose(first, second, rtol=2e-3, atol=1e-6)  # float16: the last bit may differ.
        np.testing.assert_allclose(*scores, rtol=0, atol=1e-6)


def _table(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path)


def test_a_batch_that_kills_every_worker_is_given_up(two_nodes: TwoNodes, tmp_path: Path) -> None:
    for life in range(ray_engine.LOSSES):
        (tmp_path / str(life)).touch()
    results = on(two_nodes, workers=1).map(DiesOnFive(tmp_path), range(30), label="squares")
    with pytest.raises(UnavailableError, match="squares: 3 workers of the Ray cluster died with the same batch"):
        list(results)


def test_workers_refuse_a_model_that_is_not_the_one_here(two_nodes: TwoNodes, encoder: Any, tmp_path: Path) -> None:
    copied = type(encoder)(Path(shutil.copytree(encoder.path, tmp_path / "bundle")), encoder.manifest)
    embed = offline.embedder(copied)
    (model,) = copied.path.glob("*.onnx")
    content_of_model = bytearray(model.read_bytes())
    content_of_model[len(content_of_model) // 2] ^= 1
    model.write_bytes(content_of_model)
    with pytest.raises(ArtifactError, match=model.name):
        list(on(two_nodes, workers=1).map(embed, [["a text"]], label="embedding"))


def test_a_file_of_another_artifact_is_named(encoder: Any, tmp_path: Path) -> None:
    absent = PinnedArtifact(tmp_path / "absent", encoder.manifest.kind, {})
    with pytest.raises(ArtifactError, match="keep the workspace on storage that all machines"):
        absent.opened(verify=False)
    digests = {name: record.sha256 for name, record in encoder.manifest.files.items()}
    other = PinnedArtifact(encoder.path, encoder.manifest.kind, {**digests, "tokenizer.json": "0" * 64})
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: another file on"):
        other.opened(verify=False)


def test_impossible_settings_are_refused(two_nodes: TwoNodes) -> None:
    with pytest.raises(ConfigError, match=r"compute\.engine"):
        parse(Recipe, {"compute": {"workers": 2}})
    with pytest.raises(ConfigError, match="HOST:PORT"):
        ComputeConfig(engine="ray", address="ray://host:1")
    too_large = ComputeConfig(engine="ray", address=two_nodes.address, cpus_per_worker=3)
    with pytest.raises(ConfigError, match="has 3 CPUs and 0 GPUs for a worker; the largest has 1"):
        list(compute.engine_of(too_large).map(Squares(), [1], label="squares"))
    nobody = ComputeConfig(engine="ray", address="127.0.0.1:1")
    with pytest.raises(UnavailableError, match="no head of a Ray cluster answers"):
        list(compute.engine_of(nobody).map(Squares(), [1], label="squares"))


def test_a_head_that_is_gone_is_told_and_the_next_run_goes_on(  # Last: it ends the cluster.
    two_nodes: TwoNodes, encoder: Any, untrained: Untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "BATCH", 4)
    monkeypatch.setattr(vectors, "SHARD_S", 0.0)
    monkeypatch.setattr(ray_cluster, "HEAD_S", 2.0)
    embed = offline.embedder(encoder)
    here = vectors.make(tmp_path / "here", vectors.DocumentEncoder("encoder", embed), data=untrained.data)
    original, written = vectors._write_shard, 0

    def write_shard(*args: Any) -> None:
        nonlocal written
        original(*args)
        written += 1
        if written == 2:
            two_nodes.kill_head()

    monkeypatch.setattr(vectors, "_write_shard", write_shard)
    slow = Slow(embed)
    with pytest.raises(UnavailableError, match=r"the head of the Ray cluster, .* is gone"):
        vectors.make(
            tmp_path / "there", vectors.DocumentEncoder("encoder", slow, engine=on(two_nodes)), data=untrained.data
        )
    resumed = vectors.make(tmp_path / "there", vectors.DocumentEncoder("encoder", embed), data=untrained.data)
    assert resumed.metrics["resumed"] >= 8
    assert resumed.metrics["resumed"] + resumed.metrics["embedded"] == here.metrics["embedded"]
    assert content(here) == content(resumed)


@pytest.mark.parametrize("workers", range(1, 101))
def test_a_device_that_workers_share_is_shared_by_all_that_fit(workers: int) -> None:
    """With whole division of floats, 1 // 0.2 is 4."""
    resources = {"CPU": 1000.0, "GPU": 1.0}
    ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": resources}])
    assert ray_cluster.fit(ray, ComputeConfig(engine="ray", gpus_per_worker=1 / workers), "squares") == workers
    more = ComputeConfig(engine="ray", gpus_per_worker=1 / workers + 0.001)
    assert workers == 1 or ray_cluster.fit(ray, more, "squares") < workers


def run_until_refused(head: ray_cluster.HeadWatch, step: Callable[[], object]) -> None:
    """Runs a step again and again, until the watch raises."""
    while True:
        head.run(step)


@pytest.mark.parametrize("ends", [True, False], ids=["step that ends", "step that waits for ever"])
def test_a_step_gives_up_when_nothing_listens_at_the_head(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise SchemaError("an error of the step")

    with socket.create_server((LOOPBACK, 0)) as server:
        address = f"{LOOPBACK}:{server.getsockname()[1]}"
        monkeypatch.setattr(ray_cluster, "_address", lambda _: address)
        monkeypatch.setattr(ray_cluster, "CHECK_S", 0.01)
        monkeypatch.setattr(ray_cluster, "HEAD_S", 0.05)
        monkeypatch.setattr(ray_cluster, "_lost", False)
        head = ray_cluster.HeadWatch(None, "squares")
        assert head.run(lambda: 3) == 3
        with pytest.raises(SchemaError, match="of the step"):
            head.run(refuse)
    ended = threading.Event()
    with pytest.raises(UnavailableError, match=rf"squares: the head of the Ray cluster, {address}, is gone"):
        run_until_refused(head, (lambda: None) if ends else ended.wait)
    ended.set()
    if not ends:
        assert ray_cluster._lost
        with (
            pytest.raises(UnavailableError, match="this process has lost its Ray cluster"),
            ray_cluster.connected(ComputeConfig(engine="ray")),
        ):
            pass


class Slow:
    """An embedder that takes its time."""

    def __init__(self, embed: Callable[[Sequence[str]], np.ndarray]) -> None:
        self.embed = embed

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        time.sleep(0.3)
        return self.embed(texts)
