"""One engine for every score and vector outside training: an exported bundle, run by ONNX Runtime.

    texts ─► Tokeniser ─► Item (ids at their exact length) ─► Scheduler ─► run, one item each    on a CPU
                                                                       └─► run, a padded batch   on CUDA

On a CPU nothing is padded and nothing batched, so a score cannot depend on its neighbours: the same pair gives the
same bits in any company and order, in int8 too, whose activations are scaled by the largest value of a whole batch.
One session is shared, each run takes one thread, and there are as many runners as cores.
"""

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline import artifacts, disk
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError, ConfigError
from pipeline.passages import Passages
from pipeline.tokens import PairTemplate, TextTemplate
from serving.errors import InferenceError
from serving.runtime import golden
from serving.runtime.bundle import Bundle
from serving.runtime.deadline import Deadline
from serving.runtime.items import Item, Priority, Throughput
from serving.runtime.job import Job
from serving.runtime.passage_inputs import PassageCutter, PassageInput, TextCutter
from serving.runtime.processor import Device, has_cuda, processor, runners
from serving.runtime.scheduler import Scheduler
from serving.runtime.session import open_session, padded
from serving.runtime.tokenizer import MAX_BYTES, RuntimeTokenizer

Role = Literal["query", "document"]
Check = Callable[[], None]
Vectors = NDArray[np.float32]

BATCH_TOKENS = 16_384
"""Maximum number of tokens, padding included, of one run on CUDA."""
BUCKET_TOKENS = 16
"""Lengths on CUDA are rounded up to a multiple of this, so that few shapes occur."""


log = logging.getLogger(__name__)


class Engine:
    """A ranker or an encoder, ready to run; safe to use from many threads."""

    def __init__(
        self,
        bundle_path: Path,
        *,
        precision: str = "auto",
        threads: int | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        verify: bool | Literal["golden"] = True,
        scheduler: Scheduler | None = None,
        token_bytes: int = MAX_BYTES,
    ) -> None:
        """Loads a bundle.

        Args:
            bundle_path: folder of the bundle artifact.
            precision: one that the bundle holds; auto is the one its own measurements chose for the device.
            threads: runners of its own; `runners` says how many when None or 0.
            device: auto is cuda where there is one.
            verify: compare the files that are read with their sha256, and the outputs for the golden inputs with the
                stored ones; "golden" compares the outputs only, as the files were verified with their release.
            scheduler: the scheduler whose runners this engine shares with others; one of its own when None.
            token_bytes: memory for the token ids of the texts seen last.

        Raises:
            MissingError: no such folder.
            ArtifactError: a file is damaged, or the model does not give its golden outputs on this machine.
            ConfigError: the bundle has no such precision.
        """
        began = time.monotonic()
        artifact = artifacts.load(bundle_path, "bundle", verify=False)
        if verify is True:
            _verify(artifact, ["bundle.json", "tokenizer.json", "golden.json"])
        self.bundle = Bundle.of(artifact)
        self.role = self.bundle.role
        self.digest = self.bundle.digest
        self.dimensions = self.bundle.dimensions
        self.device: Device = "cuda" if device == "cuda" or (device == "auto" and has_cuda()) else "cpu"
        self.precision = self._precision(precision, bundle_path)
        if self.precision in ("int8", "w8"):
            self.device = "cpu"  # Their nodes exist, or give these numbers, on the CPU only.
        self.identity = f"{self.digest} {self.precision} {self.device} {ort.__version__} {processor()}"
        """Identity of the engine's outputs: engines of one identity give the same outputs, bit for bit on a CPU."""
        self.tokeniser = RuntimeTokenizer.load(artifact.file("tokenizer.json"), max_bytes=token_bytes)
        file = self.bundle.precisions[self.precision]["file"]
        if verify is True:
            _verify(artifact, [file])
        self._session = open_session(artifact.file(file), self.device)
        self._longest = max(template.max_tokens for template in self.bundle.templates.values())
        self._ones = np.ones((1, self._longest), np.int64)
        self._zeros = np.zeros((1, self._longest), np.int64)
        self._one_run = threading.Lock()
        self.pace = Throughput()
        self.run_tokens = BATCH_TOKENS if self.device == "cuda" else 0
        self.bucket_tokens = BUCKET_TOKENS
        self.scheduler = scheduler or Scheduler(threads or runners(self.device))
        # Runners of its own end with its last reference, or with the process, if it is not closed.
        self._end = None if scheduler else weakref.finalize(self, self.scheduler.stop)
        if verify:
            golden.check(artifact.file("golden.json"), self._golden_output, self.precision, self.device)
        log.debug(
            "%s %s: %s on %s, %d runners, loaded in %.2f s",
            *(self.role, self.digest[:12], self.precision, self.device),
            *(self.scheduler.runners, time.monotonic() - began),
        )

    def scores(
        self,
        query: str,
        documents: Sequence[str],
        deadline: Deadline | None = None,
        priority: Priority = Priority.ONLINE,
    ) -> list[float]:
        """The ranker's raw score of the query with each document, in their order.

        A document that does not fit beside the query is read as the bundle says: as passages, or cut at its end.

        Raises:
            InferenceError: the model raised or gave no finite number; names the document's index.
            ConfigError: the bundle is an encoder.
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
        """
        passages = self.passages
        if passages is None:
            return self._all(self.pairs(query, documents), "document", deadline, priority)
        inputs = self.cut(query, documents, passages)
        items = [part.item() for document in inputs for part in document]
        scores = iter(self._all(items, "passage", deadline, priority))
        return [passages.join([next(scores) for _ in document]) for document in inputs]

    def embed(
        self,
        texts: Sequence[str],
        role: Role,
        deadline: Deadline | None = None,
        priority: Priority = Priority.ONLINE,
    ) -> Vectors:
        """The encoder's vectors of texts, (texts, dimensions), of unit length.

        Raises:
            InferenceError: the model raised or gave no finite number; names the text's index.
            ConfigError: the bundle is a ranker, or the role unknown.
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
        """
        vectors = self._all(self.texts(texts, role), "text", deadline, priority)
        return np.stack(vectors) if vectors else np.zeros((0, self.dimensions), np.float32)

    def pairs(
        self, query: str, documents: Sequence[str], *, remember: bool = True, check: Check | None = None
    ) -> list[Item]:
        """The ranker's inputs for one query, which is tokenised once.

        Args:
            remember: keep the texts' ids for the next request, and use those kept.
            check: called between pieces of the work; raises when the request's deadline has passed.

        Raises:
            InvalidRequestError: a text is too long; see `RuntimeTokenizer.ids`.
        """
        template = self.pair_template
        query_ids, *document_ids = self.tokeniser.ids(
            [query, *documents], template.max_tokens, remember=remember, check=check
        )
        return [Item(*template.assemble(query_ids, ids)) for ids in document_ids]

    @property
    def passages(self) -> Passages | None:
        """The passages of a document that does not fit beside a query; None where the ranker cuts it at its end."""
        return self.pair_template.passages

    @property
    def pair_template(self) -> PairTemplate:
        """The shape of the ranker's inputs; raises ConfigError for an encoder."""
        template = self._template("pair")
        assert isinstance(template, PairTemplate)
        return template

    def cut(
        self,
        query: str,
        documents: Sequence[str],
        passages: Passages,
        *,
        remember: bool = True,
        check: Check | None = None,
    ) -> list[list[PassageInput]]:
        """Each document whole, where it fits beside the query, else its passages; arguments and errors as `pairs`."""
        return PassageCutter(self.tokeniser, self.pair_template, passages, remember, check).cut(query, documents)

    def text_cutter(self, passages: Passages) -> TextCutter:
        """A cutter of long documents into passages that the encoder can read.

        Raises:
            ConfigError: the bundle is a ranker, or a passage does not fit into the encoder's input.
        """
        template = self._template("document")
        assert isinstance(template, TextTemplate)
        return TextCutter(self.tokeniser, template, passages)

    def pair_tokens(
        self, query: str, documents: Sequence[str], passages: Passages | None = None, *, remember: bool = True
    ) -> int:
        """Number of tokens that the ranker reads of all pairs together, special ones included."""
        template = self.pair_template
        if passages is not None:
            inputs = self.cut(query, documents, passages, remember=remember)
            return sum(part.tokens for document in inputs for part in document)
        query_ids, *document_ids = self.tokeniser.ids([query, *documents], template.max_tokens, remember=remember)
        return sum(template.special_tokens + sum(template.lengths(len(query_ids), len(ids))) for ids in document_ids)

    def texts(
        self, texts: Sequence[str], role: Role, *, remember: bool = True, check: Check | None = None
    ) -> list[Item]:
        """The encoder's inputs; arguments and errors are those of `pairs`."""
        template = self._template(role)
        assert isinstance(template, TextTemplate)
        text_ids = self.tokeniser.ids(template.prompted(texts), template.max_tokens, remember=remember, check=check)
        return [Item(template.assemble(ids)) for ids in text_ids]

    def job(self, deadline: Deadline, priority: Priority = Priority.ONLINE) -> Job:
        """An empty job for this model: add inputs, iterate over their outcomes; see `serving.runtime.scheduler`."""
        return self.scheduler.job(self, deadline, priority)

    def run(self, items: Sequence[Item]) -> Sequence[Any]:
        """The outputs of one run in the calling thread, for the scheduler: one item on a CPU, a batch on CUDA.

        A ranker's output is a float, an encoder's a vector (dimensions,) of its own memory. An item whose output is
        no finite number has an InferenceError in its place.

        Raises:
            InferenceError: the run failed as a whole.
        """
        for item in items:
            if not 0 < len(item.ids) <= self._longest:
                raise InferenceError(f"{len(item.ids)} tokens, but the model reads from 1 to {self._longest}")
        if self.run_tokens:
            feeds = padded(items, self.bundle.inputs, self.bucket_tokens, self._longest)
            with self._one_run:  # Two at once would only share the device, and take its memory twice.
                outputs = self._run_bound(feeds)
        else:
            (item,) = items
            outputs = self._run_exact(item)
        # One number tells whether all are finite, and is cheaper than asking each.
        if math.isfinite(outputs.sum()):
            return outputs.tolist() if self.role == "ranker" else [row.copy() for row in outputs]
        error = InferenceError(f"the {self.role} gave no finite number in {self.precision}")
        return [self._output(row) if np.isfinite(row).all() else error for row in outputs]

    def close(self) -> None:
        """Ends this engine's own runners after their present runs, for good; those it shares with others go on."""
        if self._end is not None:
            self._end()

    def _precision(self, wanted: str, path: Path) -> str:
        held = self.bundle.precisions
        chosen = self.bundle.chosen.get(self.device, "fp32") if wanted == "auto" else wanted
        if chosen not in held:
            raise ConfigError(f"{path}: no precision '{chosen}' in this bundle; it has {', '.join(held)}")
        return chosen

    def _template(self, name: str) -> PairTemplate | TextTemplate:
        if name not in self.bundle.templates:
            held, call = {
                "ranker": ("a ranker", "scores(query, documents)"),
                "encoder": ("an encoder", "embed(texts, 'query' or 'document')"),
            }[self.role]
            raise ConfigError(f"the bundle is {held}, which has no inputs for '{name}'; call {call}")
        return self.bundle.templates[name]

    def _all(self, items: Sequence[Item], what: str, deadline: Deadline | None, priority: Priority) -> list[Any]:
        """The outputs of all items, in their order."""
        outputs: list[Any] = [None] * len(items)
        with self.job(deadline or Deadline.never(), priority) as job:
            job.add(items)
            for number, outcome in job:
                if isinstance(outcome, Exception):
                    raise InferenceError(f"{what} {number}: {outcome}") from outcome
                outputs[number] = outcome
        return outputs

    def _output(self, row: Any) -> Any:
        return float(row) if self.role == "ranker" else row.copy()

    def _run_exact(self, item: Item) -> Any:
        """The output, (1, ...), of one item at its exact length."""
        tokens = len(item.ids)
        feeds = {"input_ids": np.array([item.ids], np.int64), "attention_mask": self._ones[:, :tokens]}
        if "token_type_ids" in self.bundle.inputs:
            feeds["token_type_ids"] = np.array([item.types], np.int64) if item.types else self._zeros[:, :tokens]
        try:
            return self._session.run([self.bundle.output], feeds)[0]
        except Exception as error:  # ONNX Runtime's errors share no class of their own.
            raise InferenceError(f"the {self.role} failed: {error}") from error

    def _run_bound(self, feeds: Mapping[str, NDArray[np.int64]]) -> Any:
        """The outputs, (items, ...), of a padded batch, with the device's memory bound for the run."""
        try:
            binding = self._session.io_binding()
            for name, values in feeds.items():
                binding.bind_cpu_input(name, values)
            binding.bind_output(self.bundle.output)
            self._session.run_with_iobinding(binding)
            return binding.copy_outputs_to_cpu()[0]
        except Exception as error:
            raise InferenceError(f"the {self.role} failed: {error}") from error

    def _golden_output(self, item: Mapping[str, Any], deadline: Deadline) -> Vectors:
        """The output, (1,) or (dimensions,), for a golden input."""
        if self.role == "encoder":
            (vector,) = self.embed([item["text"]], item["role"], deadline, Priority.BATCH)
            return np.asarray(vector)
        # The exporter saw one input, whose document was cut at its end.
        inputs = self.pairs(item["query"], [item["document"]])
        return np.array(self._all(inputs, "document", deadline, Priority.BATCH))


def _verify(artifact: Artifact, names: Sequence[str]) -> None:
    for name in names:
        if disk.sha256(artifact.file(name)) != artifact.manifest.files[name].sha256:
            raise ArtifactError(f"{artifact.path / name}: its content is not what was written; export the model again")
