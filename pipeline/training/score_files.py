"""The files of a `teacher_scores` artifact, as each kind of teacher writes them; `teacher_targets` reads them.

scores.parquet           row_id and score of each pair
head.json                grade thresholds of the scores, where they are not those of our own teacher
states.npy, states.json  first-token states, see `teacher_scores.make`
passages.npy             the best passage of each document that was read in passages
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import disk, schema
from pipeline.artifacts import Artifact
from pipeline.training.loop.batches import Ints
from pipeline.training.loop.pair_passages import PassagePairs
from pipeline.training.loop.scoring import Floats

BESIDE_SCORES = ("states.npy", "states.json", "passages.npy")
"""Files that scores made from another teacher's scores take over from it."""


def write_scores(folder: Path, rows: Ints, scores: Floats) -> None:
    """Writes scores.parquet.

    Args:
        folder: the artifact's folder.
        rows: (pairs,) row ids.
        scores: (pairs,) raw.
    """
    columns = {"row_id": pa.array(rows, pa.int64()), "score": pa.array(scores, pa.float32())}
    schema.write(pa.table(columns), folder / "scores.parquet", "scores")


def write_thresholds(folder: Path, thresholds: Sequence[float]) -> None:
    """Writes head.json with thresholds between the grades, (grades,) ascending."""
    head = json.dumps({"thresholds": list(thresholds)}, indent=1) + "\n"
    disk.write_atomically(folder / "head.json", head, json.loads)


def write_best_passages(folder: Path, passages: PassagePairs, scores: Floats) -> Ints:
    """Writes passages.npy, (pairs, 2): the span of each pair's best passage. Returns its index, (pairs,).

    Args:
        folder: the artifact's folder.
        passages: the pairs, cut into passages.
        scores: (inputs,) of the passages.
    """
    best = passages.best(scores)
    np.save(folder / "passages.npy", passages.spans[best].astype(np.int32))
    return best


def link_states_and_passages(scores: Artifact, folder: Path) -> None:
    """Gives the states and best passages of another `teacher_scores` artifact a second name in a folder."""
    for name in BESIDE_SCORES:
        if name in scores.manifest.files:
            disk.link_or_copy(scores.file(name), folder / name)
