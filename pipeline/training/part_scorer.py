"""Scores many pairs with a cross-encoder, part by part, so that a killed run goes on where it ended.

The parts may be computed on other machines. Besides its score, each pair can give states: the hidden states of its
first token after some layers, which a student learns from.

pairs ─► parts ─► those stored by an earlier run ───────────────────────────┐
              └─► the others ─► ComputeEngine.map(PartScorer) ─► stored ────┴─► scores, states.npy
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import array_files, disk
from pipeline.artifacts import Artifact
from pipeline.compute import ComputeEngine, PinnedArtifact
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.loop import pair_passages, pair_tokens, scoring, shards
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.pair_tokens import Pairs

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StateFile:
    """The first-token states of all pairs in one file of the checkpoint folder, filled part by part.

    A part's record holds the sha256 of its states, so states that did not reach the disk are noticed. The finished file
    is linked into the artifact, not copied: it may be tens of gigabytes.
    """

    path: Path
    states: "np.memmap[Any, np.dtype[np.float16]]"
    """(pairs, layers, width)"""

    @classmethod
    def opened(cls, folder: Path, shape: tuple[int, ...]) -> "StateFile":
        """The file of an earlier run, or a new one.

        Its room on the disk is reserved, so that a full disk is an error before anything is computed, and no SIGBUS.

        Args:
            folder: the checkpoint folder.
            shape: (pairs, layers, width); a file of another shape is replaced.

        Raises:
            ArtifactError: there is a file, and it cannot be read now.
            OSError: the disk has no room.
        """
        path = folder / "states.npy"
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            try:
                with disk.kept_if_unreadable(path):
                    states: Any = array_files.load(path, "r+")
                if states.shape == shape and states.dtype == np.float16:
                    _reserve(path)  # An earlier run may have ended before it had all of it.
                    return cls(path, states)
            except ValueError as error:
                log.warning("%s: damaged (%s); its states are computed again", path, error)
        states = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        _reserve(path)
        return cls(path, states)

    def write(self, rows: Ints, states: NDArray[np.float16]) -> None:
        """Writes the states, (rows, layers, width), of these rows to the disk."""
        self.states[rows] = states
        self.states.flush()

    def digest(self, rows: Ints) -> NDArray[np.uint8]:
        """(32,) sha256 of the states of these rows."""
        return np.frombuffer(hashlib.sha256(self.states[rows].tobytes()).digest(), dtype=np.uint8)

    def link(self, folder: Path) -> None:
        """Gives the finished file a second name in the artifact's folder; copies where links are not supported."""
        self.states.flush()
        disk.link_or_copy(self.path, folder / self.path.name)


def _reserve(path: Path) -> None:
    """Gives a file all the room on the disk that its size says; what is written there stays.

    Raises:
        OSError: the disk has no room.
    """
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """Pairs that are scored together, with their texts alone, so that a part can be sent to another machine."""

    pairs: Pairs
    label: str
    """Text beside the progress bar."""


class PartScorer:
    """A cross-encoder as a function from a part to its arrays: `scores` (pairs,) and, where there are layers, `states`.

    States are (pairs, layers, width). Pickled for another machine, the scorer is the path of the model with digests of
    its files; it loads the model there.
    """

    def __init__(
        self,
        model: Artifact,
        *,
        layers: Sequence[int] = (),
        project: Tensor | None = None,
        loaded: CrossEncoder | None = None,
    ) -> None:
        """Remembers the model; it is loaded when it is first needed.

        Args:
            model: the cross-encoder's artifact.
            layers: layers, from 1, whose first-token states are returned too, as float16; empty for scores alone.
            project: (layers, hidden, width) matrices that make the states narrower, one for each layer; None keeps
                their width.
            loaded: the model of the artifact where this process has loaded it already.
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
        """Projects states, (batch, layers, hidden), and returns them in the form that is stored: float16 on the CPU."""
        if self._project is not None:
            states = torch.einsum("blh,lhw->blw", states, self._project.to(states.device))
        return states.cpu().numpy().astype(np.float16)


@dataclass(frozen=True, slots=True)
class ScoringRun:
    """The place where pairs are scored, and the folder that keeps what is finished."""

    checkpoint: Path
    """Folder of the finished parts."""
    label: str
    """Name of the run, for the log and the progress bar."""
    engine: ComputeEngine
    """The processes or machines that compute."""


def score_in_parts(
    scorer: PartScorer, table: Pairs, run: ScoringRun, *, states: StateFile | None = None, name: str = "scores"
) -> scoring.Floats:
    """(pairs,) scores of all pairs; finished parts are kept, and a killed run goes on after them.

    A part is a run of the batches that scoring all pairs at once would make, so the scores are the same, bit by bit.

    Args:
        scorer: the scorer of a part; it must return states where `states` is given.
        table: the pairs.
        run: the folder that keeps parts, and the engine that computes them.
        states: the file that takes the states; None for scores alone.
        name: beginning of the names of the parts; two tables of one run need two names.

    Raises:
        ArtifactError: a stored part cannot be read, though its content may be whole.
        TrainingError: a score is not a finite number, or memory runs out.
    """
    scores = np.zeros(len(table), dtype=np.float32)
    parts = scoring.shards(pair_tokens.pair_lengths(table, scorer.model.template), shards.SHARD)
    names = [shards.rows_name(f"{name}-{number:06}", rows) for number, rows in enumerate(parts, start=1)]
    missing = []
    for number, rows in enumerate(parts):

        def valid(arrays: shards.Arrays, rows: Ints = rows) -> bool:
            return states is None or np.array_equal(arrays["states_sha256"], states.digest(rows))

        arrays = shards.stored(run.checkpoint, names[number], valid)
        if arrays is None:
            missing.append(number)
        else:
            scores[rows] = arrays["scores"]
    inputs = (
        ScoredPart(pair_passages.compact(table, parts[number]), f"{run.label} {number + 1}/{len(parts)}")
        for number in missing
    )
    for number, arrays in zip(missing, run.engine.map(scorer, inputs, label=run.label), strict=True):
        scores[parts[number]] = arrays["scores"]
        kept = {"scores": arrays["scores"]}
        if states is not None:
            states.write(parts[number], arrays["states"])
            kept["states_sha256"] = states.digest(parts[number])
        shards.store(run.checkpoint, names[number], kept)
    return scores
