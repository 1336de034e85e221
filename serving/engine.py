"""One engine for every score and vector outside training: an exported bundle, run by ONNX Runtime.

    texts ─► Tokeniser ─► Item (ids at their exact length) ─► runner threads, one item each    on a CPU
                                                          └─► padded batches, long with long   on CUDA

On a CPU nothing is padded and nothing batched, so a score cannot depend on its neighbours: the same pair gives the
same bits in any company and order, in int8 too, whose activations are scaled by the largest value of a whole batch.
One session is shared, each run takes one thread, and there are as many runners as cores.
"""

import ctypes
import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError, ConfigError
from pipeline.tokens import PairTemplate, TextTemplate
from serving.bundle import Bundle
from serving.errors import InferenceError, NotReadyError
from serving.tokenise import Tokeniser

Role = Literal["query", "document"]
Device = Literal["cpu", "cuda"]
Vectors = NDArray[np.float32]

TOLERANCE: Mapping[str, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2, "w8": 5e-2}
"""How far a golden output may be from the stored one, times (1 + its size). Another processor sums in another order;
in int8 and w8 that moves some activations by one step. An int8 product that overflows, or another model, is far beyond."""

BATCH_TOKENS = 16_384
"""Padded tokens of one run on CUDA."""
BUCKET_TOKENS = 16
"""Lengths on CUDA are rounded up to a multiple, so that few shapes occur."""

# ONNX Runtime's fused kernel is slower on a CPU than the two nodes it replaces: 170 against 207 pairs per CPU-second
# in int8, 73 against 79 in fp32 (6 layers, 384 wide, 64 tokens, Zen 4).
SLOW_ON_CPU = ["SkipLayerNormFusion"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a model at its exact length."""

    ids: Sequence[int]
    """(tokens,), special tokens included."""
    types: Sequence[int] = ()
    """(tokens,) segments; empty where all are 0."""


class Engine:
    """A ranker or an encoder, ready to run; safe to use from many threads."""

    def __init__(
        self,
        bundle_path: Path,
        *,
        precision: str = "auto",
        threads: int | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        verify: bool = True,
    ) -> None:
        """Loads a bundle.

        Args:
            bundle_path: folder of the bundle artifact.
            precision: one that the bundle holds; auto is the one its own measurements chose for the device.
            threads: runners on a CPU; one for each core that this process may use when None or 0.
            device: auto is cuda where there is one.
            verify: compare the files that are read with their sha256, and the golden inputs' outputs with the stored.

        Raises:
            MissingError: no such folder.
            ArtifactError: a file is damaged, or the model does not give its golden outputs on this machine.
            ConfigError: the bundle has no such precision.
        """
        began = time.monotonic()
        artifact = artifacts.load(bundle_path, "bundle", verify=False)
        if verify:
            _verify(artifact, ["bundle.json", "tokenizer.json", "golden.json"])
        self.bundle = Bundle.of(artifact)
        self.role = self.bundle.role
        self.digest = self.bundle.digest
        self.dimensions = self.bundle.dimensions
        self.device: Device = "cuda" if device == "cuda" or (device == "auto" and has_cuda()) else "cpu"
        self.precision = self._precision(precision, bundle_path)
        if self.precision in ("int8", "w8"):
            self.device = "cpu"  # Their nodes exist, or give these numbers, on the CPU only.
        self.threads = threads or cores()
        self.tokeniser = Tokeniser.load(artifact.file("tokenizer.json"))
        file = self.bundle.precisions[self.precision]["file"]
        if verify:
            _verify(artifact, [file])
        self._session = _session(artifact.file(file), self.device)
        self._longest = max(template.max_tokens for template in self.bundle.templates.values())
        self._ones = np.ones((1, self._longest), np.int64)
        self._zeros = np.zeros((1, self._longest), np.int64)
        self._one_batch = threading.Lock()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix=f"{self.role}-runner")
        self._closed = False
        if verify:
            self._check(artifact)
        log.info(
            "%s %s: %s on %s, %d runners, loaded in %.2f s",
            *(self.role, self.digest[:12], self.precision, self.device, self.threads, time.monotonic() - began),
        )

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """The ranker's raw score of the query with each document, in their order.

        Raises:
            InferenceError: the model raised or gave no finite number; names the document's place.
            ConfigError: the bundle is an encoder.
        """
        return [float(score) for score in self._run(self.pairs(query, documents), "document")]

    def embed(self, texts: Sequence[str], role: Role) -> Vectors:
        """The encoder's vectors of texts, (texts, dimensions), of unit length.

        Raises:
            InferenceError: the model raised or gave no finite number; names the text's place.
            ConfigError: the bundle is a ranker, or the role unknown.
        """
        found = self._run(self.texts(texts, role), "text")
        return np.stack(found) if found else np.zeros((0, self.dimensions), np.float32)

    def pairs(self, query: str, documents: Sequence[str]) -> list[Item]:
        """The ranker's inputs for one query, which is tokenised once."""
        template = self._template("pair")
        assert isinstance(template, PairTemplate)
        (query_ids,) = self.tokeniser.ids([query], template.max_tokens)
        return [Item(*template.assemble(query_ids, ids)) for ids in self.tokeniser.ids(documents, template.max_tokens)]

    def texts(self, texts: Sequence[str], role: Role) -> list[Item]:
        """The encoder's inputs."""
        template = self._template(role)
        assert isinstance(template, TextTemplate)
        return [Item(template.assemble(ids)) for ids in self.tokeniser.ids(texts, template.max_tokens)]

    def score_ids(self, ids: Sequence[int], types: Sequence[int] = ()) -> float:
        """The score of one assembled input, computed in the calling thread; for a scheduler with runners of its own.

        Raises:
            InferenceError: the model raised or gave no finite number.
        """
        return float(self._one(Item(ids, types), "the input"))

    def embed_ids(self, ids: Sequence[int]) -> Vectors:
        """The vector (dimensions,) of one assembled input, computed in the calling thread.

        Raises:
            InferenceError: the model raised or gave no finite number.
        """
        vector: Vectors = self._one(Item(ids), "the input")
        return vector

    def close(self) -> None:
        """Waits for what is running and frees the runners; later calls raise NotReadyError. May be called again."""
        self._closed = True
        self._pool.shutdown()

    def _precision(self, wanted: str, path: Path) -> str:
        held = self.bundle.precisions
        found = self.bundle.chosen.get(self.device, "fp32") if wanted == "auto" else wanted
        if found not in held:
            raise ConfigError(f"{path}: no precision '{found}' in this bundle; it has {', '.join(held)}")
        return found

    def _template(self, name: str) -> PairTemplate | TextTemplate:
        if name not in self.bundle.templates:
            known = "scores(query, documents)" if self.role == "ranker" else "embed(texts, 'query' or 'document')"
            raise ConfigError(f"the bundle is a {self.role}, which has no inputs for '{name}'; call {known}")
        return self.bundle.templates[name]

    def _run(self, items: Sequence[Item], what: str) -> list[Any]:
        """The outputs of all items, in their order."""
        if self._closed:
            raise NotReadyError(f"this {self.role} was closed; load the release again")
        if self.device == "cuda":
            return self._batches(items, what)
        outputs: list[Any] = [None] * len(items)
        waiting = deque(range(len(items)))

        def work() -> None:
            # Each runner takes the next item when it is free, so a long text holds up nobody.
            while waiting:
                try:
                    place = waiting.popleft()
                except IndexError:
                    return
                try:
                    outputs[place] = self._one(items[place], f"{what} {place}")
                except InferenceError:
                    waiting.clear()
                    raise

        runners = [self._pool.submit(work) for _ in range(min(self.threads, len(items)))]
        for runner in runners:
            runner.result()
        return outputs

    def _one(self, item: Item, what: str) -> Any:
        """The output of one item at its exact length, in this thread."""
        tokens = len(item.ids)
        if not 0 < tokens <= self._longest:
            raise InferenceError(f"{what}: {tokens} tokens, but the model reads from 1 to {self._longest}")
        feeds = {"input_ids": np.array([item.ids], np.int64), "attention_mask": self._ones[:, :tokens]}
        if "token_type_ids" in self.bundle.inputs:
            feeds["token_type_ids"] = np.array([item.types], np.int64) if item.types else self._zeros[:, :tokens]
        return self._outputs(feeds, [what])[0]

    def _batches(self, items: Sequence[Item], what: str) -> list[Any]:
        outputs: list[Any] = [None] * len(items)
        for places in batches([len(item.ids) for item in items], BATCH_TOKENS, BUCKET_TOKENS):
            feeds = padded([items[place] for place in places], self.bundle.inputs, BUCKET_TOKENS, self._longest)
            with self._one_batch:  # Two at once would only share the device, and take its memory twice.
                found = self._outputs(feeds, [f"{what} {place}" for place in places])
            for place, output in zip(places, found, strict=True):
                outputs[place] = output
        return outputs

    def _outputs(self, feeds: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> Any:
        try:
            outputs = self._session.run([self.bundle.output], feeds)[0]
        except Exception as error:  # ONNX Runtime's errors share no class of their own.
            raise InferenceError(f"{_listed(names)}: the {self.role} failed: {error}") from error
        # One number tells whether all are finite, and is cheaper than asking each.
        if not math.isfinite(outputs.sum()):
            broken = [name for name, output in zip(names, outputs, strict=True) if not np.isfinite(output).all()]
            raise InferenceError(f"{_listed(broken)}: the {self.role} gave no finite number in {self.precision}")
        return outputs

    def _check(self, artifact: Artifact) -> None:
        """Holds this machine's outputs for the golden inputs against the stored ones."""
        path = artifact.file("golden.json")
        golden = json.loads(path.read_text(encoding="utf-8"))
        for place, item in enumerate(golden):
            if self.role == "ranker":
                wanted = np.array([item["scores"][self.precision]])
                found = np.array(self.scores(item["query"], [item["document"]]))
            else:
                wanted = np.array(item["vectors"][self.precision])
                found = self.embed([item["text"]], item["role"])[0]
            gap = float((np.abs(found - wanted) / (1 + np.abs(wanted))).max())
            if not gap <= TOLERANCE[self.precision]:
                raise ArtifactError(
                    f"{path}, item {place}: {self.precision} on this {self.device} is {gap:.2g} from what was "
                    f"exported, more than {TOLERANCE[self.precision]}; export the model on such a machine, or "
                    "serve another precision"
                )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_cuda() -> bool:
    """Whether ONNX Runtime has its CUDA part and the driver finds a device."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def batches(lengths: Sequence[int], budget: int, bucket: int) -> list[list[int]]:
    """Places of inputs in batches, long with long, none over `budget` padded tokens unless one input is so alone.

    Args:
        lengths: (inputs,) tokens of each.
        budget: most padded tokens of a batch.
        bucket: padded lengths are multiples of it.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    found: list[list[int]] = []
    width = 0  # Of the batch that is being filled: that of its first, longest input.
    for place in order:
        if not found or width * (len(found[-1]) + 1) > budget:
            found.append([])
            width = _rounded(lengths[place], bucket)
        found[-1].append(place)
    return found


def padded(items: Sequence[Item], inputs: Sequence[str], bucket: int, longest: int) -> dict[str, NDArray[np.int64]]:
    """The feeds of one padded batch, each (items, tokens); padding stands at the end and the mask is 0 there."""
    width = min(_rounded(max(len(item.ids) for item in items), bucket), longest)
    feeds = {name: np.zeros((len(items), width), np.int64) for name in inputs}
    for row, item in enumerate(items):
        feeds["input_ids"][row, : len(item.ids)] = item.ids
        feeds["attention_mask"][row, : len(item.ids)] = 1
        if "token_type_ids" in feeds and item.types:
            feeds["token_type_ids"][row, : len(item.ids)] = item.types
    return feeds


def _rounded(length: int, bucket: int) -> int:
    return -(-length // bucket) * bucket


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _session(path: Path, device: Device) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False  # It keeps a plan for every length ever seen, and saves no time here.
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without TF32, whose products have ten bits; with memory asked for as needed.
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"})
    try:
        if device == "cuda":
            session = ort.InferenceSession(str(path), options, providers=[cuda, "CPUExecutionProvider"])
        else:
            session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_ON_CPU
            )
    except Exception as error:  # ONNX Runtime's errors share no class of their own.
        raise ArtifactError(f"{path}: ONNX Runtime cannot load it ({error}); export the model again") from error
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise ConfigError(
            f"{path}: ONNX Runtime cannot use the CUDA device; install the CUDA and cuDNN that its version needs, or "
            "serve on the CPU"
        )
    return session


def _verify(artifact: Artifact, names: Sequence[str]) -> None:
    for name in names:
        if artifacts.sha256(artifact.file(name)) != artifact.manifest.files[name].sha256:
            raise ArtifactError(f"{artifact.path / name}: its content is not what was written; export the model again")
