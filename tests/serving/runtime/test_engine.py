"""The engine: equal to PyTorch, independent of company, and clear about what it cannot do."""

import json
import math
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import artifacts, text
from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig
from pipeline.errors import ArtifactError, ConfigError, MissingError
from pipeline.export import bundle as onnx
from pipeline.manifest import Manifest
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.prefixes import FIRST_CHARS_PER_TOKEN
from serving.errors import InferenceError, NotReadyError
from serving.runtime.engine import Engine
from serving.runtime.items import Item
from serving.runtime.processor import has_cuda
from serving.runtime.scheduler import Scheduler
from serving.runtime.session import padded

PRECISIONS = ("fp32", "fp16", "int8", "w8")
CONFIG = ExportConfig(golden=6, max_ndcg_drop=1.0, min_kendall_tau=-1.0)

QUERY = "krt buim"
DOCUMENTS = [
    "rotdror oi",
    "nd adam kbako irsu ea adie " * 6,
    "",
    "kkrts",
    "buim buim buim",
    "ae rarddm boasir\ndrad ttubda krt suid omnet",
    "x" * 5000,
    "\x00 nul and a lone \ud800 surrogate",
]


@pytest.fixture(scope="module")
def ranker(untrained: Any) -> Artifact:
    return onnx.make(untrained.workspace, CONFIG, model=untrained.ranker, data=untrained.data, pairs=untrained.pairs)


@pytest.fixture(scope="module")
def encoder(untrained: Any) -> Artifact:
    return onnx.make(untrained.workspace, CONFIG, model=untrained.encoder, data=untrained.data, pairs=untrained.pairs)


@pytest.fixture(scope="module")
def engines(ranker: Artifact) -> Iterator[dict[str, Engine]]:
    by_precision = {name: Engine(ranker.path, precision=name, threads=3) for name in PRECISIONS}
    yield by_precision
    for engine in by_precision.values():
        engine.close()


@pytest.mark.parametrize("name", ["ranker", "roberta"])
def test_scores_are_those_of_pytorch(untrained: Any, name: str) -> None:
    model = CrossEncoder.load(getattr(untrained, name).path)
    bundle = onnx.make(
        untrained.workspace, CONFIG, model=getattr(untrained, name), data=untrained.data, pairs=untrained.pairs
    )
    engine = Engine(bundle.path, precision="fp32")
    for document, score in zip(DOCUMENTS, engine.scores(QUERY, DOCUMENTS), strict=True):
        pair = [model.tokenizer.encode(text.clean(item), add_special_tokens=False).ids for item in (QUERY, document)]
        ids, types = model.template.assemble(*pair)
        with torch.inference_mode():
            expected = model(torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids), dtype=torch.long))
        assert score == pytest.approx(float(expected[0]), abs=1e-5)


def test_vectors_are_those_of_pytorch(untrained: Any, encoder: Artifact) -> None:
    model = BiEncoder.load(untrained.encoder.path)
    engine = Engine(encoder.path, precision="fp32")
    for role, template in (("query", model.query_template), ("document", model.document_template)):
        vectors = engine.embed(DOCUMENTS, role)  # type: ignore[arg-type]
        assert vectors.shape == (len(DOCUMENTS), engine.dimensions)
        assert vectors.dtype == np.float32
        for document, vector in zip(DOCUMENTS, vectors, strict=True):
            ids = template.assemble(model.tokenizer.encode(text.clean(document), add_special_tokens=False).ids)
            with torch.inference_mode():
                expected = model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0].numpy()
            np.testing.assert_allclose(vector, expected, atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(indices=st.lists(st.integers(0, len(DOCUMENTS) - 1), min_size=1, max_size=20))
@settings(deadline=None, max_examples=20)
def test_a_score_has_the_same_bits_in_any_company(
    engines: dict[str, Engine], precision: str, indices: list[int]
) -> None:
    engine = engines[precision]
    alone = [engine.scores(QUERY, [document])[0] for document in DOCUMENTS]
    assert engine.scores(QUERY, [DOCUMENTS[index] for index in indices]) == [alone[index] for index in indices]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_has_the_same_bits_in_any_company(encoder: Artifact, precision: str) -> None:
    engine = Engine(encoder.path, precision=precision, threads=2)
    together = engine.embed(DOCUMENTS, "document")
    split = [engine.embed(DOCUMENTS[:3], "document"), engine.embed(DOCUMENTS[3:], "document")]
    order = np.random.default_rng(0).permutation(len(DOCUMENTS))
    shuffled = engine.embed([DOCUMENTS[index] for index in order], "document")
    np.testing.assert_array_equal(np.concatenate(split), together)
    np.testing.assert_array_equal(shuffled, together[order])


def test_many_requests_at_once_get_their_own_scores(engines: dict[str, Engine]) -> None:
    engine = engines["int8"]
    queries = [f"krt {word}" for word in ("adam", "buim", "oi", "rotdror", "kkrts")] * 6
    alone = {query: engine.scores(query, DOCUMENTS) for query in queries}
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: engine.scores(query, DOCUMENTS), queries)) == [alone[q] for q in queries]


def test_a_long_text_holds_up_nobody(engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners take what is next when they are free: while one sits on a slow item, the others do all the rest."""
    engine, done, released = engines["fp32"], [], threading.Event()

    def slow(items: list[Item]) -> list[float]:
        (item,) = items
        if len(item.ids) > 20:
            assert released.wait(60)
        done.append(len(item.ids))
        if len(done) == 9:
            released.set()
        return [0.0]

    monkeypatch.setattr(engine, "run", slow)
    assert engine.scores(QUERY, ["buim " * 40] + ["a"] * 9) == [0.0] * 10
    assert done[-1] > 20


def test_nothing_is_answered_with_nothing(engines: dict[str, Engine], encoder: Artifact) -> None:
    assert engines["fp32"].scores(QUERY, []) == []
    engine = Engine(encoder.path)
    assert engine.embed([], "query").shape == (0, engine.dimensions)


def test_a_million_characters_cost_no_more_than_a_page(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is counted in characters that are tokenised and tokens that the model reads."""
    engine, prefixes = engines["fp32"], engines["fp32"].tokeniser._prefixes
    encode, read = prefixes._encode, Counter[str]()

    def counted(pieces: list[str]) -> Any:
        read.update({piece[:1]: len(piece) for piece in pieces})
        return encode(pieces)

    monkeypatch.setattr(prefixes, "_encode", counted)
    query, words, spaces = "q" * 1_000_000, "buim " * 200_000, "\x00" * 1_000_000
    items = engine.pairs(query, [words, spaces], remember=False)
    max_tokens = engine.bundle.templates["pair"].max_tokens
    assert all(len(item.ids) <= max_tokens for item in items)
    # Words end at spaces, so the first piece is enough. One endless word or space has no end before that of the text.
    assert 0 < read["b"] <= 2 * FIRST_CHARS_PER_TOKEN * max_tokens
    assert len(query) <= read["q"] <= len(query) * 7 / 3
    assert len(spaces) <= read[" "] <= len(spaces) * 7 / 3
    assert all(math.isfinite(score) for score in engine.scores(query, [words, spaces]))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_no_number_names_its_document(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch, broken: float
) -> None:
    engine, session = engines["fp32"], engines["fp32"]._session
    (wrong,) = engine.pairs(QUERY, ["buim"])

    class Session:
        def run(self, names: list[str], feeds: Any) -> Any:
            output = session.run(names, feeds)
            return [np.full(1, broken, np.float32)] if feeds["input_ids"].tolist() == [wrong.ids] else output

    monkeypatch.setattr(engine, "_session", Session())
    with pytest.raises(InferenceError, match="document 2: the ranker gave no finite number in fp32"):
        engine.scores(QUERY, ["adam", "oi", "buim", "krt"])
    assert len(engine.scores(QUERY, ["adam", "oi", "krt"])) == 3


def test_an_error_of_the_runtime_names_the_document_and_stops_the_rest(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Session:
        def run(self, *given: Any) -> Any:
            calls.append(given)
            time.sleep(0.005)
            raise RuntimeError("out of memory")

    monkeypatch.setattr(engines["int8"], "_session", Session())
    with pytest.raises(InferenceError, match=r"document \d: the ranker failed: out of memory"):
        engines["int8"].scores(QUERY, ["adam"] * 500)
    assert len(calls) < 250


@pytest.mark.parametrize("ids", [[], [1] * 49])
def test_an_input_of_an_impossible_length_is_refused(engines: dict[str, Engine], ids: list[int]) -> None:
    with pytest.raises(InferenceError, match=f"{len(ids)} tokens, but the model reads from 1 to 48"):
        engines["fp32"].run([Item(ids)])


def test_the_bundle_chooses_where_nobody_does(ranker: Artifact) -> None:
    engine = Engine(ranker.path, device="cpu")
    chosen = json.loads(ranker.file("bundle.json").read_text())["chosen"]["cpu"]
    assert (engine.precision, engine.device) == (chosen, "cpu")
    assert engine.digest == ranker.metrics["digest"]


def test_a_precision_that_is_not_there_is_refused_with_those_that_are(ranker: Artifact) -> None:
    with pytest.raises(ConfigError, match="no precision 'bf16' in this bundle; it has fp32, fp16, int8"):
        Engine(ranker.path, precision="bf16")


def test_a_role_asked_for_the_other_is_refused(engines: dict[str, Engine], encoder: Artifact) -> None:
    with pytest.raises(ConfigError, match=r"the bundle is a ranker.*call scores"):
        engines["fp32"].embed(["a"], "query")
    engine = Engine(encoder.path)
    with pytest.raises(ConfigError, match=r"the bundle is an encoder.*call embed"):
        engine.scores(QUERY, ["a"])
    with pytest.raises(ConfigError, match="no inputs for 'title'"):
        engine.embed(["a"], "title")  # type: ignore[arg-type]


def test_a_closed_engine_says_so(ranker: Artifact) -> None:
    engine = Engine(ranker.path)
    engine.close()
    engine.close()
    with pytest.raises(NotReadyError, match="was closed"):
        engine.scores(QUERY, ["a"])


def test_no_folder_and_another_artifact_are_refused(untrained: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nowhere"):
        Engine(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="ranker"):
        Engine(untrained.ranker.path)


@pytest.mark.parametrize("name", ["bundle.json", "tokenizer.json", "golden.json", "model.fp32.onnx"])
def test_a_damaged_file_is_named(ranker: Artifact, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(ranker.path, tmp_path / "bundle"))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}: its content is not what was written"):
        Engine(folder, precision="fp32")


def resealed(bundle: Artifact, folder: Path, name: str, content: bytes) -> Path:
    """A bundle with another file, its manifest in order: what a wrong export would leave."""
    shutil.copytree(bundle.path, folder / "partial")
    (folder / "partial" / name).write_bytes(content)
    (folder / "partial" / artifacts.MANIFEST).unlink()
    manifest: Manifest = replace(bundle.manifest, files={})
    return artifacts.seal(folder / "partial", manifest, folder / bundle.fingerprint).path


def test_a_model_that_does_not_give_its_golden_scores_is_refused(
    untrained: Any, ranker: Artifact, tmp_path: Path
) -> None:
    source = onnx.ExportSource.load(untrained.ranker.path)
    other = replace(source, weights={**source.weights, "head.out.bias": source.weights["head.out.bias"] + 0.3})
    path = resealed(ranker, tmp_path, "model.int8.onnx", other.graph("int8").SerializeToString())
    with pytest.raises(ArtifactError, match=r"golden\.json, item 0: int8 on this cpu is 0\.\d+ from"):
        Engine(path, precision="int8")
    assert Engine(path, precision="int8", verify=False).scores(QUERY, ["a"])
    assert Engine(path, precision="fp32").scores(QUERY, ["a"])


def test_a_full_precision_model_is_held_to_pytorchs_scores(untrained: Any, ranker: Artifact, tmp_path: Path) -> None:
    source = onnx.ExportSource.load(untrained.ranker.path)
    for index, (shift, refused) in enumerate([(1e-6, False), (1e-4, True)]):
        other = replace(source, weights={**source.weights, "head.out.bias": source.weights["head.out.bias"] + shift})
        folder = tmp_path / str(index)
        folder.mkdir()
        path = resealed(ranker, folder, "model.fp32.onnx", other.graph("fp32").SerializeToString())
        if refused:
            with pytest.raises(ArtifactError, match=r"golden\.json, item 0: fp32 on this cpu is \d"):
                Engine(path, precision="fp32")
        else:
            assert Engine(path, precision="fp32").scores(QUERY, ["a"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("bundle.json", b"[]", r"bundle\.json: not a readable bundle"),
        ("bundle.json", b'{"format": 2}', r"format 2, this version reads 1"),
        ("model.fp32.onnx", b"not a model", r"model\.fp32\.onnx: ONNX Runtime cannot load it"),
    ],
)
def test_a_bundle_of_another_kind_is_refused(
    ranker: Artifact, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    with pytest.raises(ArtifactError, match=says):
        Engine(resealed(ranker, tmp_path, name, content), precision="fp32")


def test_padded_batches_give_the_scores_of_exact_lengths(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a CUDA device, run on this one."""
    engine = engines["fp32"]
    exact = engine.scores(QUERY, DOCUMENTS)
    items = engine.pairs(QUERY, DOCUMENTS)
    feeds = padded(items, engine.bundle.inputs, 16, 48)
    assert all(value.shape == (len(DOCUMENTS), 48) for value in feeds.values())
    monkeypatch.setattr(engine, "run_tokens", 200)
    assert engine.run(items) == pytest.approx(exact, abs=1e-5)
    runs = []
    real = engine._run_bound
    monkeypatch.setattr(engine, "_run_bound", lambda feeds: runs.append(feeds["input_ids"].shape) or real(feeds))
    assert engine.scores(QUERY, DOCUMENTS * 4) == pytest.approx(exact * 4, abs=1e-5)
    assert sum(rows for rows, _ in runs) == 4 * len(DOCUMENTS)
    assert max(rows for rows, _ in runs) > 1
    assert all(rows == 1 or rows * width <= 200 for rows, width in runs)


def test_of_a_padded_batch_only_what_is_no_number_fails(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines["fp32"]
    items = engine.pairs(QUERY, ["buim", "a " * 40, "oi", "a " * 40])
    exact = [engine.run([item])[0] for item in items]
    monkeypatch.setattr(engine, "run_tokens", 200)
    real = engine._run_bound

    def broken(feeds: Any) -> Any:
        return np.where(feeds["attention_mask"].sum(axis=1) < 20, np.float32(np.nan), real(feeds))

    monkeypatch.setattr(engine, "_run_bound", broken)
    results = engine.run(items)
    assert [results[1], results[3]] == pytest.approx([exact[1], exact[3]], abs=1e-5)
    assert all(isinstance(results[index], InferenceError) for index in (0, 2))
    with pytest.raises(InferenceError, match=r"document [02]: the ranker gave no finite number"):
        engine.scores(QUERY, ["buim", "a " * 40, "oi", "a " * 40])


def test_tokens_are_counted_as_the_inputs_hold_them(engines: dict[str, Engine]) -> None:
    for query in (QUERY, "", "buim " * 60):
        items = engines["fp32"].pairs(query, DOCUMENTS)
        assert engines["fp32"].pair_tokens(query, DOCUMENTS) == sum(len(item.ids) for item in items)


def test_engines_of_one_scheduler_share_its_runners(ranker: Artifact, encoder: Artifact) -> None:
    scheduler = Scheduler(2)
    first, second = Engine(ranker.path, scheduler=scheduler), Engine(encoder.path, scheduler=scheduler)
    alone = Engine(ranker.path).scores(QUERY, DOCUMENTS)
    before = scheduler.stats().runs
    assert first.scores(QUERY, DOCUMENTS) == alone
    assert len(second.embed(DOCUMENTS, "query")) == len(DOCUMENTS)
    assert scheduler.stats().runs == before + 2 * len(DOCUMENTS)
    first.close()
    assert second.embed(["a"], "query").shape == (1, second.dimensions)
    assert first.pace.tokens_per_s
    scheduler.stop()


def test_runners_end_with_the_last_reference_to_their_engine(ranker: Artifact) -> None:
    engine = Engine(ranker.path, threads=2)
    engine.scores(QUERY, DOCUMENTS)
    threads = engine.scheduler._threads
    assert len(threads) == 2
    del engine
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_the_identity_tells_models_precisions_and_processors_apart(
    engines: dict[str, Engine], ranker: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len({engine.identity for engine in engines.values()}) == len(engines)
    assert Engine(ranker.path, precision="int8").identity == engines["int8"].identity
    monkeypatch.setattr("serving.runtime.engine.processor", lambda: "another")
    assert Engine(ranker.path, precision="int8").identity != engines["int8"].identity


@pytest.mark.skipif(not has_cuda(), reason="no CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_gives_the_scores_of_the_cpu(ranker: Artifact, precision: str) -> None:
    expected = Engine(ranker.path, precision="fp32", device="cpu").scores(QUERY, DOCUMENTS)
    engine = Engine(ranker.path, precision=precision, device="cuda")
    assert engine.device == "cuda"
    assert engine.scores(QUERY, DOCUMENTS) == pytest.approx(expected, abs={"fp32": 1e-4, "fp16": 2e-2}[precision])


def test_torch_and_transformers_stay_out(ranker: Artifact) -> None:
    code = (
        "import sys; from pathlib import Path; from serving.runtime.engine import Engine\n"
        f"engine = Engine(Path({str(ranker.path)!r})); engine.scores('a', ['b']); engine.close()\n"
        "print([name for name in ('torch', 'transformers', 'pandas', 'scipy', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
