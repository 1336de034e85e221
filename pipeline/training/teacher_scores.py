"""What the teacher says about every pair, computed once: its scores, and first-token states of chosen layers.

Also `score`, the same without states, by which a report judges any cross-encoder.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline import artifacts, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ConfigError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.stage import Stage
from pipeline.training.loop import scoring
from pipeline.training.loop.batches import Ints, Pairs, read_pairs

STAGE = Stage(
    "teacher_scores",
    version=1,
    inputs={"teacher": ("teacher", "ranker"), "data": "data", "pairs": ("pairs", "mined")},
)
SCORES = Stage("scores", version=1, inputs={"model": ("teacher", "ranker"), "data": "data", "pairs": ("pairs", "pool")})

DIRECTIONS_SAMPLE = 4096
"""Pairs from whose states the principal directions are found."""


@STAGE
def make(
    workspace: Path, *, teacher: Artifact, data: Artifact, pairs: Artifact, layers: Sequence[int], width: int
) -> Artifact:
    """The `teacher_scores` artifact.

    scores.parquet   row_id, score (raw, float32)
    states.npy       (rows, layers, width) float16, rows as in scores.parquet; absent without layers
    states.json      layers, width, share of the states' square that the projection keeps, by layer

    Args:
        layers: teacher layers whose first-token states are kept, from 1; none keeps none.
        width: states wider than this are projected on their principal directions, which keep inner products
            best; so a narrower student can be compared with them.

    Raises:
        ConfigError: a layer that the teacher does not have, or states narrower than `width`.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        model, table = _opened(teacher, data, pairs)
        if any(not 1 <= layer <= model.layers for layer in layers):
            raise ConfigError(f"ranker.layer_map {list(layers)}: the teacher has layers 1 to {model.layers}")
        if not layers:
            scores = scoring.cross_scores(model, table, np.arange(len(table)), label="teacher scores")
            _write(staging.folder, table.rows, scores)
            return {"pairs": len(table)}

        hidden = int(model.model.config.hidden_size)
        if hidden < width:
            raise ConfigError(
                f"the student is {width} wide and the teacher {hidden}; set ranker.hidden_weight to 0, as the states "
                "of a narrower teacher cannot be matched"
            )
        project, kept = _directions(model, table, layers, width) if hidden > width else (None, [1.0] * len(layers))
        states = _reserved(staging.folder / "states.npy", (len(table), len(layers), width))

        def keep(chosen: Ints, found: Tensor) -> None:
            if project is not None:
                found = torch.einsum("blh,lhw->blw", found, project)
            states[chosen] = found.cpu().numpy().astype(np.float16)

        scores = scoring.cross_scores(
            model, table, np.arange(len(table)), label="teacher scores", layers=layers, keep_states=keep
        )
        states.flush()
        _write(staging.folder, table.rows, scores)
        facts = {"layers": list(layers), "width": width, "kept": [round(share, 4) for share in kept]}
        artifacts.write_atomically(staging.folder / "states.json", json.dumps(facts) + "\n")
        return {"pairs": len(table), **facts}

    return STAGE.make(
        workspace,
        config={"layers": list(layers), "width": width},
        inputs={"teacher": teacher, "data": data, "pairs": pairs},
        build=build,
    )


@SCORES
def score(workspace: Path, *, model: Artifact, data: Artifact, pairs: Artifact, split: str) -> Artifact:
    """The `scores` artifact: scores.parquet (row_id, score) of any cross-encoder on one split of a table of pairs."""

    def build(staging: Staging) -> Mapping[str, Any]:
        loaded, table = _opened(model, data, pairs, split)
        label = f"scores of the {model.manifest.kind}"
        _write(staging.folder, table.rows, scoring.cross_scores(loaded, table, np.arange(len(table)), label=label))
        return {"pairs": len(table)}

    inputs = {"model": model, "data": data, "pairs": pairs}
    return SCORES.make(workspace, config={"split": split}, inputs=inputs, build=build)


def _reserved(path: Path, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.float16]]":
    """A float16 array on disk whose blocks are taken at once: a full disk is an error here, not a signal later."""
    states = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    if path.stat().st_size > states.offset:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return states


def _opened(model: Artifact, data: Artifact, pairs: Artifact, split: str = "") -> tuple[CrossEncoder, Pairs]:
    """The model, and all pairs or those of one split in its tokens."""
    loaded = CrossEncoder.load(model.path).to(scoring.device())
    template = loaded.template
    table = read_pairs(
        data,
        pairs,
        loaded.tokenizer,
        max_query_tokens=template.max_query_tokens,
        max_tokens=template.max_tokens,
        split=split,
    )
    return loaded, table


def _write(folder: Path, rows: Ints, scores: scoring.Floats) -> None:
    columns = {"row_id": pa.array(rows, pa.int64()), "score": pa.array(scores, pa.float32())}
    schema.write(pa.table(columns), folder / "scores.parquet", "scores")


def _directions(model: CrossEncoder, table: Pairs, layers: Sequence[int], width: int) -> tuple[Tensor, list[float]]:
    """The leading directions of each layer's states, (layers, hidden, width), and the share of their square kept."""
    places = np.random.default_rng(0).permutation(len(table))[:DIRECTIONS_SAMPLE]
    found: list[Tensor] = []
    scoring.cross_scores(
        model,
        table,
        np.sort(places),
        label="principal directions",
        layers=layers,
        keep_states=lambda _, states: found.append(states.double().cpu()),
    )
    sample = torch.cat(found)  # (sample, layers, hidden)
    moments = torch.einsum("nlh,nlk->lhk", sample, sample)
    values, vectors = torch.linalg.eigh(moments)  # ascending
    kept = values[:, -width:].sum(1) / values.sum(1)
    where = next(model.parameters()).device
    return vectors[:, :, -width:].flip(2).float().to(where), kept.tolist()
