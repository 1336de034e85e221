"""The teacher scores stage: scores of every pair and first-token states of chosen layers, computed once.

`score` gives the scores of any cross-encoder without states, by which a report judges it. Both are the longest
inferences of the chain, so finished parts are kept and a killed run goes on after them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import compute, disk, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.compute import ComputeEngine, PinnedArtifact
from pipeline.errors import ConfigError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.stage import Stage
from pipeline.training.loop import pair_passages, pair_tokens, scoring, shards
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.pair_passages import PassagePairs
from pipeline.training.loop.pair_tokens import Pairs, read_pairs
from pipeline.training.tasks.teacher_targets import joined

STAGE = Stage(
    "teacher_scores",
    version=1,
    inputs={"teacher": ("teacher", "ranker"), "data": "data", "pairs": ("pairs", "mined")},
)
SCORES = Stage("scores", version=1, inputs={"model": ("teacher", "ranker"), "data": "data", "pairs": ("pairs", "pool")})

MEAN = Stage(
    "teacher_scores",
    version=1,
    inputs={"first": "teacher_scores", "others": "teacher_scores"},
    title="mean of several teachers",
)

DIRECTIONS_SAMPLE = 4096
"""Number of pairs from whose states the principal directions are computed."""

log = logging.getLogger(__name__)


@STAGE
def make(
    workspace: Path,
    *,
    teacher: Artifact,
    data: Artifact,
    pairs: Artifact,
    layers: Sequence[int],
    width: int,
    engine: ComputeEngine = compute.LOCAL,
) -> Artifact:
    """The `teacher_scores` artifact: the scores and states of all pairs.

    scores.parquet   row_id, score (raw, float32)
    states.npy       (rows, layers, width) float16, in the order of scores.parquet; absent without layers
    states.json      layers, width, share of the states' square that the projection keeps, for each layer
    passages.npy     (rows, 2) int32, where the teacher reads long documents in passages: first token, and the one
                     behind the last, of the passage with the highest score; 0, 0 for a document that it read whole

    The score of a document in passages is joined from theirs; its states are those of the best passage.

    Args:
        workspace: the folder that holds `artifacts/`.
        teacher: the trained teacher.
        data: documents and queries.
        pairs: all pairs that students learn from.
        layers: teacher layers, from 1, whose first-token states are stored.
        width: the student's width; wider states are projected on their principal directions, which keep inner
            products best, so that a narrower student can be compared with them.
        engine: where the pairs are scored.

    Raises:
        ConfigError: a layer that the teacher does not have, or states narrower than `width`.
        TrainingError: a score is not a number.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        model, table = _opened(teacher, data, pairs)
        if any(not 1 <= layer <= model.layers for layer in layers):
            raise ConfigError(f"ranker.layer_map {list(layers)}: the teacher has layers 1 to {model.layers}")
        if layers and model.hidden < width:
            raise ConfigError(
                f"the student is {width} wide and the teacher {model.hidden}; set ranker.hidden_weight to 0, as the "
                "states of a narrower teacher cannot be matched"
            )
        joined_scores: scoring.Floats | None = None
        stats: dict[str, int] = {}
        if model.template.passages is not None:
            inputs = pair_passages.cut(table, model.template)
            scorer = PartScorer(teacher, loaded=model)
            passages = _score_in_shards(
                scorer, inputs.inputs, staging.checkpoint, label="teacher scores", name="passages", engine=engine
            )
            joined_scores, table = inputs.joined(passages), _best_passages(inputs, passages, staging.folder)
            stats = inputs.stats
        states = about_states = project = None
        if layers:
            project, kept = _projection(model, table, layers, width, staging.checkpoint)
            states = _StateFile.opened(staging.checkpoint, (len(table), len(layers), width))
            about_states = {"layers": list(layers), "width": width, "kept": [round(share, 4) for share in kept]}
        scores = joined_scores
        if scores is None or states is not None:
            scorer = PartScorer(teacher, layers=layers if states else (), project=project, loaded=model)
            scores = _score_in_shards(
                scorer, table, staging.checkpoint, label="teacher scores", states=states, engine=engine
            )
        _write(staging.folder, table.rows, scores if joined_scores is None else joined_scores)
        if states is not None:
            states.link(staging.folder)
            disk.write_atomically(staging.folder / "states.json", json.dumps(about_states) + "\n", json.loads)
        return {"pairs": len(table), **stats, **(about_states or {})}

    return STAGE.make(
        workspace,
        config={"layers": list(layers), "width": width},
        inputs={"teacher": teacher, "data": data, "pairs": pairs},
        build=build,
    )


@MEAN
def mean(workspace: Path, *, first: Artifact, others: Sequence[Artifact]) -> Artifact:
    """The `teacher_scores` artifact of several teachers: the mean of their scores, and the states of the first.

    Each other teacher's scores are brought to the mean and spread of the first's, whose thresholds they are read with.

    Args:
        workspace: the folder that holds `artifacts/`.
        first: scores and states of the first teacher.
        others: scores of the same pairs by the others; at least one.

    Raises:
        ArtifactError: the others lack a pair.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        table = pq.read_table(first.file("scores.parquet"))
        rows = table.column("row_id").to_numpy()
        own = table.column("score").to_numpy().astype(np.float64)
        scores = [own]
        for other in others:
            values = joined(other, rows)[0].astype(np.float64)
            spread = values.std() or 1.0
            scores.append((values - values.mean()) / spread * own.std() + own.mean())
        for name in ("states.npy", "states.json", "passages.npy"):
            if name in first.manifest.files:
                disk.link_or_copy(first.file(name), staging.folder / name)
        _write(staging.folder, rows, np.mean(scores, axis=0).astype(np.float32))
        agreement = np.corrcoef(np.stack(scores))[0, 1:].round(4).tolist()
        return {"pairs": len(rows), "teachers": len(scores), "correlation_with_first": agreement}

    inputs: dict[str, Artifact | str] = {"scores": first, "teacher": first.manifest.inputs["teacher"]}
    inputs |= {f"others {number}": other for number, other in enumerate(others)}
    return MEAN.make(workspace, config={}, inputs=inputs, build=build)


@SCORES
def score(
    workspace: Path,
    *,
    model: Artifact,
    data: Artifact,
    pairs: Artifact,
    split: str,
    engine: ComputeEngine = compute.LOCAL,
) -> Artifact:
    """The `scores` artifact: scores.parquet (row_id, score) of any cross-encoder on one split of a table of pairs."""

    def build(staging: Staging) -> Mapping[str, Any]:
        loaded, table = _opened(model, data, pairs, split)
        label = f"scores of the {model.manifest.kind}"
        read = pair_passages.cut(table, loaded.template)
        scorer = PartScorer(model, loaded=loaded)
        scores = _score_in_shards(scorer, read.inputs, staging.checkpoint, label=label, engine=engine)
        _write(staging.folder, table.rows, read.joined(scores))
        return {"pairs": len(table), **read.stats}

    inputs = {"model": model, "data": data, "pairs": pairs}
    return SCORES.make(workspace, config={"split": split}, inputs=inputs, build=build)


@dataclass(frozen=True, slots=True)
class _StateFile:
    """The states of all pairs in one file of the checkpoint folder, filled part by part.

    A part's record holds the sha256 of its states, so states that did not reach the disk are noticed. The finished file
    is linked into the artifact, not copied: it may be tens of gigabytes.
    """

    path: Path
    states: "np.memmap[Any, np.dtype[np.float16]]"
    """(pairs, layers, width)"""

    @classmethod
    def opened(cls, folder: Path, shape: tuple[int, ...]) -> "_StateFile":
        """The file of an earlier run, or a new one whose blocks are reserved: a full disk is an error here."""
        path = folder / "states.npy"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            states = np.lib.format.open_memmap(path, mode="r+")
            if states.shape == shape and states.dtype == np.float16:
                return cls(path, states)
        except (OSError, ValueError):
            log.debug("%s: not there or damaged; a new one is made", path)
        states = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        if path.stat().st_size > states.offset:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return cls(path, states)

    def write(self, rows: Ints, states: NDArray[np.float16]) -> None:
        """Stores states, (rows, layers, width), on the disk."""
        self.states[rows] = states
        self.states.flush()

    def digest(self, rows: Ints) -> NDArray[np.uint8]:
        """(32,) sha256 of the states of these rows."""
        return np.frombuffer(hashlib.sha256(self.states[rows].tobytes()).digest(), dtype=np.uint8)

    def link(self, folder: Path) -> None:
        """Gives the finished file a second name in the artifact's folder; copies where links are not supported."""
        self.states.flush()
        disk.link_or_copy(self.path, folder / self.path.name)


def _best_passages(inputs: PassagePairs, scores: scoring.Floats, folder: Path) -> Pairs:
    """The pairs with the best passage in place of each long document; the spans of these passages are written."""
    best = inputs.best(scores)
    np.save(folder / "passages.npy", inputs.spans[best].astype(np.int32))
    return pair_passages.rows_of(inputs.inputs, best)


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """Pairs that are scored together, with the texts that they name."""

    pairs: Pairs
    label: str


class PartScorer:
    """A cross-encoder as a function from a part to its scores.

    It gives `scores` (pairs,) and, where there are layers, `states` (pairs, layers, width).

    It is sent to other machines as a path with digests, and loads the model there.
    """

    def __init__(
        self,
        model: Artifact,
        *,
        layers: Sequence[int] = (),
        project: Tensor | None = None,
        loaded: CrossEncoder | None = None,
    ) -> None:
        """A scorer.

        Args:
            model: the cross-encoder's artifact.
            layers: layers, from 1, whose first-token states are given too, as float16.
            project: (layers, hidden, width) what the states are multiplied with; None keeps the full width.
            loaded: the model, where it is loaded already.
        """
        self._pinned, self._layers, self._project, self._loaded = PinnedArtifact.of(model), layers, project, loaded

    def __getstate__(self) -> dict[str, Any]:
        project = None if self._project is None else self._project.cpu()
        return {"_pinned": self._pinned, "_layers": self._layers, "_project": project, "_loaded": None}

    @property
    def model(self) -> CrossEncoder:
        """The model; loaded, after its files were checked, when it is first asked for."""
        if self._loaded is None:
            self._loaded = CrossEncoder.load(self._pinned.opened(verify=True).path).to(scoring.device())
        return self._loaded

    def __call__(self, part: ScoredPart) -> shards.Arrays:
        states: list[tuple[Ints, NDArray[np.float16]]] = []
        indices = np.arange(len(part.pairs))
        keep = (lambda chosen, batch: states.append((chosen, self._stored(batch)))) if self._layers else None
        scores = scoring.cross_scores(
            self.model, part.pairs, indices, label=part.label, layers=self._layers, keep_states=keep
        )
        if not self._layers:
            return {"scores": scores}
        ordered = np.empty((len(scores), *states[0][1].shape[1:]), np.float16)
        for chosen, values in states:
            ordered[chosen] = values
        return {"scores": scores, "states": ordered}

    def _stored(self, states: Tensor) -> NDArray[np.float16]:
        """States (batch, layers, hidden) as they are stored."""
        if self._project is not None:
            states = torch.einsum("blh,lhw->blw", states, self._project.to(states.device))
        return states.cpu().numpy().astype(np.float16)


def _score_in_shards(
    scorer: PartScorer,
    table: Pairs,
    checkpoint: Path,
    *,
    label: str,
    engine: ComputeEngine,
    states: _StateFile | None = None,
    name: str = "scores",
) -> scoring.Floats:
    """(pairs,) scores of all pairs; finished parts are kept in `checkpoint`, and a killed run goes on after them.

    A part is a run of the batches that scoring all pairs at once would make, so the scores are the same, bit by bit.

    Args:
        states: where the states go that the scorer gives.
        name: begins the names of the parts; another one for another table.
    """
    scores = np.zeros(len(table), dtype=np.float32)
    parts = scoring.shards(pair_tokens.pair_lengths(table, scorer.model.template), shards.SHARD)
    names = [shards.rows_name(f"{name}-{number:06}", rows) for number, rows in enumerate(parts, start=1)]
    missing = []
    for number, rows in enumerate(parts):

        def valid(arrays: shards.Arrays, rows: Ints = rows) -> bool:
            return states is None or np.array_equal(arrays["states_sha256"], states.digest(rows))

        arrays = shards.stored(checkpoint, names[number], valid)
        if arrays is None:
            missing.append(number)
        else:
            scores[rows] = arrays["scores"]
    inputs = (
        ScoredPart(pair_passages.compact(table, parts[number]), f"{label} {number + 1}/{len(parts)}")
        for number in missing
    )
    for number, arrays in zip(missing, engine.map(scorer, inputs, label=label), strict=True):
        scores[parts[number]] = arrays["scores"]
        kept = {"scores": arrays["scores"]}
        if states is not None:
            states.write(parts[number], arrays["states"])
            kept["states_sha256"] = states.digest(parts[number])
        shards.store(checkpoint, names[number], kept)
    return scores


def _opened(model: Artifact, data: Artifact, pairs: Artifact, split: str = "") -> tuple[CrossEncoder, Pairs]:
    """The model, and its tokens of all pairs or of those of one split."""
    loaded = CrossEncoder.load(model.path).to(scoring.device())
    template = loaded.template
    table = read_pairs(
        data,
        pairs,
        loaded.tokenizer,
        max_query_tokens=template.max_query_tokens,
        max_tokens=template.document_tokens,
        split=split,
    )
    return loaded, table


def _write(folder: Path, rows: Ints, scores: scoring.Floats) -> None:
    columns = {"row_id": pa.array(rows, pa.int64()), "score": pa.array(scores, pa.float32())}
    schema.write(pa.table(columns), folder / "scores.parquet", "scores")


def _projection(
    model: CrossEncoder, table: Pairs, layers: Sequence[int], width: int, checkpoint: Path
) -> tuple[Tensor | None, list[float]]:
    """The leading directions of each layer's states, (layers, hidden, width), and the share of their square kept.

    The directions are None where the states are not wider than `width`. They are kept in `checkpoint`.
    """
    if model.hidden <= width:
        return None, [1.0] * len(layers)
    arrays = shards.kept(checkpoint, "directions", lambda: _directions(model, table, layers, width))
    where = next(model.parameters()).device
    return torch.from_numpy(arrays["directions"].copy()).to(where), arrays["kept"].tolist()


def _directions(model: CrossEncoder, table: Pairs, layers: Sequence[int], width: int) -> shards.Arrays:
    """`directions` (layers, hidden, width) float32 and `kept` (layers,), from a sample of the pairs."""
    sample = np.sort(np.random.default_rng(0).permutation(len(table))[:DIRECTIONS_SAMPLE])
    parts: list[Tensor] = []
    scoring.cross_scores(
        model,
        table,
        sample,
        label="principal directions",
        layers=layers,
        keep_states=lambda _, states: parts.append(states.double().cpu()),
    )
    states = torch.cat(parts)  # (sample, layers, hidden)
    moments = torch.einsum("nlh,nlk->lhk", states, states)
    values, vectors = torch.linalg.eigh(moments)  # ascending
    kept = values[:, -width:].sum(1) / values.sum(1)
    return {"directions": vectors[:, :, -width:].flip(2).float().contiguous().numpy(), "kept": kept.numpy()}
