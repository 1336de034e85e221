"""Lower precisions: each is measured on valid queries beside fp32, and only a harmless one is chosen for serving.

int8 and w8 store weights as 8-bit integers and quantise activations at run time: int8 with one scale for each column of
weights and each input, w8 with one for each block of `quantisation.BLOCK` numbers.

An int8 or w8 model that loses too much gets its most sensitive parts back in fp32, one after another, before it is
given up.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pipeline import progress
from pipeline.config import ExportConfig, Precision
from pipeline.errors import ArtifactError
from pipeline.evaluation.metrics import ndcg
from pipeline.export import sensitivity
from pipeline.export.parity import outputs, runner
from pipeline.export.sample import Floats, Sample
from pipeline.export.sensitivity import Build

WHOLE_NUMBERS = ("int8", "w8")
"""Precisions in which each part of a model can be stored as integers or as fp32."""

log = logging.getLogger(__name__)


class OverflowingError(ArtifactError):
    """The model's numbers do not fit the precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The measured quality, size and speed of a model in one precision."""

    file: str
    bytes: int
    ndcg: float | None
    """nDCG@10 on the sample; None where nothing of it is judged relevant."""
    kendall_tau: float
    """Agreement with fp32 on the order within a list, the mean over lists; 1 is the same order."""
    max_change: float
    """Largest change of a score or cosine against fp32."""
    min_cosine: float
    """Smallest cosine between a text's vector in this precision and in fp32; 1 for a ranker."""
    texts_per_cpu_s: float
    """Number of the sample's inputs in a second of one core."""
    mean_tokens: float
    fp32_parts: tuple[str, ...] = ()
    """Parts of an int8 or w8 model that stay in fp32."""
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    """Part → mean change of the outputs when that part alone is quantised; int8 and w8 only."""
    outputs: Floats = field(repr=False, compare=False)

    @property
    def quality(self) -> str:
        """nDCG, where it is known, and tau, for a log line."""
        known = "" if self.ndcg is None else f"nDCG {self.ndcg:.4f}, "
        return f"{known}tau {self.kendall_tau:.3f}"

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        del fields["outputs"]
        return fields


def measure(path: Path, sample: Sample, reference: Floats | None, threads: int, keep: Sequence[str] = ()) -> Measured:
    """Runs the sample through a model file.

    Args:
        reference: the outputs of fp32; None when this is fp32.

    Raises:
        OverflowingError: an output is not a finite number.
    """
    run = runner(path)
    run(sample.inputs[0])
    tokens = sum(len(item.ids) for item in sample.inputs)
    name = path.name.removeprefix("model.").removesuffix(".onnx")
    with progress.bar(f"measure {name}", tokens, "tokens") as advance:
        began = time.process_time()
        values = outputs(run, sample.inputs, threads, advance)
        seconds = time.process_time() - began
    if not np.isfinite(values).all():
        raise OverflowingError(f"{path.name}: an output is not a finite number; train the model again")
    reference = values if reference is None else reference
    ours, theirs = sample.scores(values), sample.scores(reference)
    pairs = zip(sample.lists, ours, strict=True)
    gains = [ndcg(item.grades, scores, k=10, ids=item.doc_ids) for item, scores in pairs] if sample.judged else []
    return Measured(
        file=path.name,
        bytes=path.stat().st_size,
        ndcg=float(np.mean(gains)) if gains else None,
        kendall_tau=agreement(ours, theirs),
        max_change=float(max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))),
        min_cosine=float(np.sum(values * reference, axis=1).min()) if values.ndim == 2 else 1.0,
        texts_per_cpu_s=round(len(sample.inputs) / max(seconds, 1e-9), 1),
        mean_tokens=round(tokens / len(sample.inputs), 1),
        fp32_parts=tuple(keep),
        outputs=values,
    )


def agreement(ours: Sequence[Floats], theirs: Sequence[Floats]) -> float:
    """Kendall's tau-b within each list, the mean over those whose documents differ in score; 1 when there is none."""
    from scipy.stats import kendalltau

    taus = []
    for a, b in zip(ours, theirs, strict=True):
        if len(np.unique(a)) > 1 or len(np.unique(b)) > 1:
            tau = float(kendalltau(a, b).statistic)
            taus.append(0.0 if np.isnan(tau) else tau)  # NaN: one of the two has lost all differences.
    return float(np.mean(taus)) if taus else 1.0


def bearable(measured: Measured, fp32: Measured, config: ExportConfig) -> bool:
    """Whether a precision keeps the recipe's bounds."""
    drop = 0.0 if fp32.ndcg is None or measured.ndcg is None else fp32.ndcg - measured.ndcg
    return drop <= config.max_ndcg_drop and measured.kendall_tau >= config.min_kendall_tau


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionBaseline:
    """The fp32 model, the sample and the bounds that every lower precision of a model is measured against."""

    build: Build
    folder: Path
    fp32: Measured
    sample: Sample
    config: ExportConfig
    threads: int

    def measure(self, path: Path, precision: Precision, keep: Sequence[str] = ()) -> Measured:
        """Writes the model in a precision, these parts in fp32, and measures it.

        Raises:
            OverflowingError: an output is not a finite number.
        """
        onnx.save(self.build(precision, keep), path)
        return measure(path, self.sample, self.fp32.outputs, self.threads, keep)

    def bearable(self, measured: Measured) -> bool:
        """Whether a precision keeps the recipe's bounds."""
        return bearable(measured, self.fp32, self.config)


def lower(against: PrecisionBaseline, parts: Sequence[str]) -> dict[str, Measured]:
    """Writes the lower precisions that the recipe asks for and measures them, int8 and w8 part by part.

    Where an int8 or w8 model breaks the recipe's bounds, its most sensitive parts go back to fp32 one by one until it
    keeps them, at most half of all. Where that is not enough, the model stays quantised throughout and is not chosen.
    """
    measured: dict[str, Measured] = {}
    for precision in against.config.precisions:
        if precision == "fp32":
            continue
        path = against.folder / f"model.{precision}.onnx"
        try:
            complete = against.measure(path, precision)
        except OverflowingError as error:
            log.warning("%s is left out of the bundle: %s", precision, error)
            path.unlink()
            continue
        if precision in WHOLE_NUMBERS:
            harm = sensitivity.scan(
                against.build, precision, parts, against.sample, against.fp32.outputs, against.threads
            )
            if not against.bearable(complete):
                complete = _relieved(against, precision, path, complete, harm)
            complete = replace(complete, sensitivity=harm)
        measured[precision] = complete
    return measured


def _relieved(
    against: PrecisionBaseline, precision: Precision, path: Path, complete: Measured, harm: Mapping[str, float]
) -> Measured:
    """The model with as few of its most sensitive parts in fp32 as keep the bounds.

    Args:
        complete: the model with every part quantised; the result where half of the parts in fp32 are not enough.
        harm: part → mean change of the outputs when that part alone is quantised.
    """
    log.info("%s costs too much (%s): its most sensitive parts go back to fp32", precision, complete.quality)
    trial = path.with_name("model.trial.onnx")
    order = sorted(harm, key=lambda part: -harm[part])
    try:
        for count in range(1, len(order) // 2 + 1):
            relieved = against.measure(trial, precision, order[:count])
            if against.bearable(relieved):
                trial.replace(path)
                return replace(relieved, file=path.name)
        return complete
    finally:
        trial.unlink(missing_ok=True)


def choose(measured: Mapping[str, Measured], config: ExportConfig) -> dict[str, str]:
    """The fastest bearable precision on a CPU, and the one for CUDA, where half precision is always the faster."""
    good = [name for name, item in measured.items() if name == "fp32" or bearable(item, measured["fp32"], config)]
    fastest = max((name for name in good if name != "fp16"), key=lambda name: measured[name].texts_per_cpu_s)
    return {"cpu": fastest, "cuda": "fp16" if "fp16" in good else "fp32"}
