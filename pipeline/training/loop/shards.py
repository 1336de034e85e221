"""Finished parts of a long inference, kept until its artifact is complete, so that a killed run goes on after them.

    <folder>/<name>-<sha256>.safetensors    the arrays of one part

As with checkpoints, the file's name holds the sha256 of its content and appears in one step. A damaged part is named in
the log and computed again.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline import disk
from pipeline.models.bi_encoder import BiEncoder
from pipeline.temporary import temporary_file
from pipeline.tokens import TextTemplate
from pipeline.training.loop import scoring
from pipeline.training.loop.pair_tokens import Ragged

Arrays = Mapping[str, NDArray[Any]]

SHARD = 4096
"""Inputs of one part, about; a few minutes of a large model on a CPU."""

log = logging.getLogger(__name__)


def kept(
    folder: Path, name: str, compute: Callable[[], Arrays], valid: Callable[[Arrays], bool] = lambda _: True
) -> Arrays:
    """The arrays that an earlier run stored under this name, or those that `compute` gives, which are then stored.

    Args:
        folder: the artifact's checkpoint folder; made if it does not exist.
        name: name of the part; the same name must stand for the same inputs.
        compute: computes the arrays.
        valid: whether stored arrays can be used; where not, they are computed again.

    Raises:
        ArtifactError: a stored part cannot be read, though its content may be whole.
    """
    arrays = stored(folder, name, valid)
    if arrays is None:
        arrays = compute()
        store(folder, name, arrays)
    return arrays


def stored(folder: Path, name: str, valid: Callable[[Arrays], bool] = lambda _: True) -> Arrays | None:
    """The arrays that an earlier run stored under this name; None where there are none that can be used.

    Arguments are those of `kept`.
    """
    for file in sorted(folder.glob(f"{name}-*.safetensors")):
        try:
            with disk.kept_if_unreadable(file):
                arrays = _read(file)
        except (SafetensorError, ValueError) as error:
            log.warning("%s: a damaged part (%s); it is computed again", file, error)
        else:
            if valid(arrays):
                return arrays
            log.warning("%s: does not fit the files beside it; it is computed again", file)
        file.unlink()
    return None


def pooled_vectors(
    folder: Path, name: str, model: BiEncoder, texts: Ragged, template: TextTemplate, *, label: str
) -> scoring.Floats:
    """(texts, hidden) vectors of all texts before the projection; finished parts are kept in `folder`.

    A part is a run of the batches that all texts at once would make, so the vectors are the same, bit by bit.

    Args:
        folder: the artifact's checkpoint folder.
        name: name of these texts within the folder.
        model: the model, in eval mode.
        texts: tokens of all texts.
        template: special tokens and maximum length.
        label: shown beside the progress bar.

    Raises:
        TrainingError: a vector is not finite, or memory runs out.
    """
    special = len(template.before) + len(template.after)
    parts = scoring.shards(np.minimum(texts.lengths + special, template.max_tokens), SHARD)
    vectors = np.zeros((len(texts), model.dense.in_features), dtype=np.float32)
    for number, rows in enumerate(parts, start=1):

        def compute(rows: NDArray[np.int64] = rows, number: int = number) -> Arrays:
            part_label = f"{label} {number}/{len(parts)}"
            return {"vectors": scoring.vectors(model, texts, rows, template, label=part_label, pooled=True)}

        vectors[rows] = kept(folder, rows_name(f"{name}-{number:06}", rows), compute)["vectors"]
    return vectors


def rows_name(name: str, rows: NDArray[np.int64]) -> str:
    """A name for the part with these rows; other rows have another name."""
    return f"{name}-{hashlib.blake2b(rows.tobytes(), digest_size=6).hexdigest()}"


def _read(file: Path) -> Arrays:
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.stem.rpartition("-")[2]:
        raise ValueError("its content is not what was written: the checksum in its name differs")
    return load(content)


def store(folder: Path, name: str, arrays: Arrays) -> None:
    """Stores the arrays of a part, for `stored` to find."""
    folder.mkdir(parents=True, exist_ok=True)
    content = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
    with temporary_file(folder / name) as temporary:
        temporary.write_bytes(content)
        disk.fsync(temporary)
        os.replace(temporary, folder / f"{name}-{hashlib.sha256(content).hexdigest()}.safetensors")
        disk.fsync(folder)
