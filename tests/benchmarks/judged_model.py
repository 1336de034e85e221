"""A model of a workspace and the valid lists by which its graphs are judged and timed, for benchmarks of precisions."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import artifacts
from pipeline.config import ExportConfig
from pipeline.export import precision, sample
from pipeline.export.bundle import ExportSource
from pipeline.export.precision import Measured

TURNS = 3
"""Times that each graph is measured, all in turn; the median speed counts."""


@dataclass(frozen=True, slots=True)
class JudgedModel:
    """A cross-encoder or encoder, and the sample of valid lists that an export would judge it by."""

    source: ExportSource
    sample: sample.Sample

    @classmethod
    def of_arguments(cls, description: str) -> "JudgedModel":
        """The model that the command line names: the newest teacher of a workspace, or the artifact of --model."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("workspace", type=Path)
        parser.add_argument("--model", help="Fingerprint of a ranker, teacher or encoder; else the newest teacher.")
        parser.add_argument(
            "--tokens", type=int, default=ExportConfig().sample_tokens, help="Tokens of valid lists to judge by."
        )
        arguments = parser.parse_args()
        workspace: Path = arguments.workspace
        teacher = artifacts.load(artifacts.finished(workspace, "teacher")[-1])
        model = artifacts.folder_of(workspace, arguments.model) if arguments.model else teacher.path
        assert model is not None, f"{workspace}: no artifact {arguments.model}"
        source = ExportSource.load(model)
        data, pairs = (artifacts.input_of(workspace, teacher, name) for name in ("data", "pairs"))
        assert data is not None, f"{workspace}: the data of {teacher.path} is gone"
        assert pairs is not None, f"{workspace}: the pairs of {teacher.path} are gone"
        taken = sample.take(data, pairs, sample.Reader(source.tokenizer, source.templates), arguments.tokens)
        print(f"{source.role} {model.name}: {len(taken.lists)} lists, {len(taken.inputs)} inputs")
        return cls(source, taken)

    def by_turns(self, paths: Mapping[str, Path], fp32: Measured) -> dict[str, tuple[Measured, float]]:
        """Name of a graph → its quality beside fp32, and its inputs per CPU-second on one thread."""
        turns = [
            {name: precision.measure(path, self.sample, fp32.outputs, 1) for name, path in paths.items()}
            for _ in range(TURNS)
        ]
        rates = {name: float(np.median([turn[name].texts_per_cpu_s for turn in turns])) for name in paths}
        return {name: (turns[0][name], rates[name]) for name in paths}
