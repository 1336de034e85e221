"""The graph of the stages, as they declare it: which kind of artifact is made from which, where, by which section."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.stage import Stage, stage_of

if TYPE_CHECKING:
    from rich.table import Table

MODULES = (
    "pipeline.data.judgments",
    "pipeline.data.corpus",
    "pipeline.data.followed",
    "index.lexical_build",
    "index.lexical",
    "pipeline.data.candidates",
    "pipeline.data.unlabelled",
    "pipeline.training.pretrain",
    "pipeline.training.augmentation",
    "pipeline.training.general",
    "pipeline.training.teacher",
    "pipeline.training.teacher_scores",
    "pipeline.training.external_teacher",
    "pipeline.training.fused_teacher",
    "pipeline.training.bm25_teacher",
    "pipeline.training.ranker",
    "pipeline.training.encoder",
    "pipeline.models.import_stage",
    "pipeline.training.negatives",
    "pipeline.export.bundle",
    "index.documents",
    "index.vectors",
    "index.semantic_build",
    "index.semantic",
    "serving.runtime.offline",
    "pipeline.training.fusion",
    "pipeline.training.rank_fusion",
    "pipeline.evaluation.systems",
    "pipeline.evaluation.report",
    "flows.retrain",
    "serving.runtime.ranker_trials",
    "pipeline.evaluation.ablation",
    "pipeline.evaluation.study",
    "index.shards",
)
"""The files that declare stages, in the order of a retraining; a new stage's file is added here."""

COMPARISONS = (
    "serving.runtime.ranker_trials",
    "pipeline.evaluation.ablation",
    "pipeline.evaluation.study",
    "pipeline.training.rank_fusion",
    "index.shards",
)
"""The files of stages that no retraining runs: they compare students, serve ready-made models or divide documents."""


@dataclass(frozen=True, slots=True)
class StageEntry:
    """One stage of the graph."""

    stage: Stage
    module: str
    function: str

    @property
    def file(self) -> str:
        """The file that declares the stage, from the root of the repository."""
        return self.module.replace(".", "/") + ".py"


def graph() -> list[StageEntry]:
    """All stages in the order of a retraining; those of one file stand in the order of its functions."""
    entries = []
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute, value in vars(module).items():
            stage = stage_of(value) if callable(value) else None
            if stage is not None and value.__module__ == name:
                entries.append(StageEntry(stage, name, attribute))
    return entries


def function(entry: StageEntry) -> Callable[..., Artifact]:
    """The function that makes a stage's artifact."""
    make: Callable[..., Artifact] = getattr(importlib.import_module(entry.module), entry.function)
    return make


def plain(entries: list[StageEntry]) -> list[dict[str, Any]]:
    """The graph as plain values."""
    return [
        {
            "kind": entry.stage.kind,
            "stage": entry.stage.name,
            "version": entry.stage.version,
            "inputs": {name: list(entry.stage.kinds(name)) for name in entry.stage.inputs},
            "file": entry.file,
            "function": entry.function,
            "section": entry.stage.section,
        }
        for entry in entries
    ]


def table(entries: list[StageEntry]) -> "Table":
    """The graph as a table for a terminal: kind ← inputs, file, section of the recipe."""
    from rich.table import Table

    shown = Table(box=None)
    for heading in ("kind", "← inputs", "file", "recipe section"):
        shown.add_column(heading)
    for entry in entries:
        stage = entry.stage
        inputs = ", ".join(_input(name, stage.kinds(name)) for name in stage.inputs) or "–"
        shown.add_row(stage.kind, f"← {inputs}", f"{entry.file}: {entry.function}", stage.section or "–")
    return shown


def _input(name: str, kinds: tuple[str, ...]) -> str:
    return name if kinds == (name,) else f"{name} ({' or '.join(kinds)})"


def mermaid() -> str:
    """The graph of a retraining as a Mermaid picture: a box for each kind of artifact, an arrow for each input.

    An arrow is left out where a longer path joins the same two boxes. A dotted arrow leads to a box further left: some
    kinds are made more than once, as when the first ranker scores the pairs that a smaller one learns from.
    """
    entries = [entry for entry in graph() if entry.module not in COMPARISONS]
    order = {kind: number for number, kind in enumerate(dict.fromkeys(entry.stage.kind for entry in entries))}
    arrows = dict.fromkeys(
        (kind, entry.stage.kind)
        for entry in entries
        for name in entry.stage.inputs
        for kind in entry.stage.kinds(name)
        if kind != entry.stage.kind
    )
    forward = [(source, kind) for source, kind in arrows if order[source] < order[kind]]
    longer = _reached_by_two_steps(forward)
    lines = _lines([arrow for arrow in forward if arrow not in longer], "-->")
    lines += _lines([(source, kind) for source, kind in arrows if order[source] > order[kind]], "-.->")
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```"])


def _lines(arrows: list[tuple[str, str]], arrow: str) -> list[str]:
    """Lines of Mermaid that draw these (from, to) pairs: boxes with the same origins share a line."""
    origins: dict[str, list[str]] = {}
    for source, kind in arrows:
        origins.setdefault(kind, []).append(source)
    alike: dict[tuple[str, ...], list[str]] = {}
    for kind, sources in origins.items():
        alike.setdefault(tuple(sources), []).append(kind)
    return [f"    {' & '.join(sources)} {arrow} {' & '.join(kinds)}" for sources, kinds in alike.items()]


def _reached_by_two_steps(arrows: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """The (from, to) pairs of an acyclic graph that a path of two arrows or more joins."""
    after: dict[str, set[str]] = {}
    for source, kind in arrows:
        after.setdefault(source, set()).add(kind)

    def reached(source: str) -> set[str]:
        return set().union(*({kind, *reached(kind)} for kind in after.get(source, set())))

    return {(source, far) for source in after for kind in after[source] for far in reached(kind)}
