"""Exports the trained models of a release again, in other precisions or with other limits of quality.

It tells what each precision costs and saves, and makes no release, as the index and the report of a release belong to
the bundles that they were made with. `relevance retrain` with the same `--set export.…` makes the same bundles,
indexes, judges and publishes them; what is trained already is not trained again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipeline import artifacts, release_parts
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.command_line import typed
from pipeline.config import ExportConfig, Precision, Recipe
from pipeline.errors import ConfigError, MissingError
from pipeline.releases import Releases

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def export(
    workspace: Path,
    *,
    release: str = "live",
    model: Path | None = None,
    precisions: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Exports the ranker and encoder of a release, or one trained model, and returns the cost of each precision.

    Args:
        release: the release whose models are exported as its recipe says.
        model: the folder of a ranker, teacher or encoder artifact, exported by the defaults instead.
        precisions: precisions beside fp32; those of the recipe when empty.
        overrides: values of the export section, such as `export.min_kendall_tau=0.98`.

    Raises:
        MissingError: no such release, or the workspace no longer holds a model, or the data it is judged on; or the
            model is ready-made and has no such data.
        ConfigError: an override that is not the export's; a precision that is not known.
        WrongKindError: `model` is the folder of another kind of artifact.
        ArtifactError: ONNX gives other scores than PyTorch.
    """
    opened = Releases(workspace).open(release) if model is None else None
    config = _config(opened.manifest.config if opened else {}, precisions, overrides)
    trained = artifacts.load(model) if model is not None else None
    from pipeline.export import bundle  # It imports torch, which what is missing need not wait for.

    if opened:
        names = [name for name in release_parts.MODELS if release_parts.has_part(opened, name)]
        old = [release_parts.part(opened, name) for name in names]
        wanted = [(_input(workspace, exported, "model"), exported) for exported in old]
    else:
        assert trained is not None
        bundle.STAGE.check("model", trained)
        wanted = [(trained, trained)]
    return {
        "release": opened.fingerprint if opened else None,
        "bundles": [_export_one(workspace, config, trained, judged_with) for trained, judged_with in wanted],
    }


def _config(recipe: Mapping[str, Any], precisions: Sequence[str], overrides: Sequence[str]) -> ExportConfig:
    tree = {"export": dict(recipe.get("export", {}))}
    for override in overrides:
        if not override.strip().startswith("export."):
            raise ConfigError(f"--set {override}: only values of export can be set here; retrain for the others")
        recipes.override(tree, override)
    config = recipes.parse(Recipe, tree).export
    known = get_args(Precision)
    if unknown := set(precisions) - set(known):
        raise ConfigError(f"--precisions: '{min(unknown)}' is not one of {', '.join(known)}")
    chosen = tuple(name for name in known if name == "fp32" or name in precisions)
    return replace(config, precisions=chosen) if precisions else config


def _export_one(workspace: Path, config: ExportConfig, model: Artifact, judged_with: Artifact) -> dict[str, Any]:
    from pipeline.evaluation import report_stats
    from pipeline.export import bundle as onnx

    data, pairs = (_input(workspace, judged_with, name) for name in ("data", "pairs"))
    exported = onnx.make(workspace, config, model=model, data=data, pairs=pairs)
    figures = report_stats.bundle(exported)
    return {
        "role": figures["role"],
        "path": str(exported.path),
        "chosen": figures["chosen"],
        "parity": figures["parity"],
        "sample_lists": exported.metrics["sample_lists"],
        "precisions": figures["precisions"],
    }


def _input(workspace: Path, artifact: Artifact, name: str) -> Artifact:
    """The artifact that is an input of another one."""
    if name not in artifact.manifest.inputs:
        raise MissingError(
            f"{artifact.path}: was made from a ready-made model, without the {name} by which a precision is judged; "
            "give --precision, and --judgments where there are any, where the model is opened, by quickstart or serve"
        )
    source = artifacts.input_of(workspace, artifact, name)
    if source is None:
        retrain = typed("retrain RECIPE", workspace)
        raise MissingError(
            f"{artifact.path}: the {name} it was made from is not in {workspace}; `{retrain}` makes it again"
        )
    return source


def render(results: Mapping[str, Any]) -> "RenderableType":
    """A table and its notes for each bundle, for a terminal."""
    from rich.console import Group

    shown: list[RenderableType] = []
    for bundle in results["bundles"]:
        shown += [_table(bundle), *_lines(bundle), ""]
    return Group(*shown)


def _table(bundle: Mapping[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(title=f"{bundle['role']}, on {bundle['sample_lists']} valid lists", title_justify="left", box=None)
    table.add_column("precision")
    for heading in ("texts per CPU-second", "MB", "nDCG@10", "Kendall tau", "largest change"):
        table.add_column(heading, justify="right")
    table.add_column("in fp32")
    table.add_column("chosen for")
    for name, item in bundle["precisions"].items():
        numbers = (
            f"{item['texts_per_cpu_s']:,.0f}",
            f"{item['bytes'] / 1e6:,.1f}",
            "–" if item["ndcg"] is None else f"{item['ndcg']:.4f}",
            f"{item['kendall_tau']:.3f}",
            f"{item['max_change']:.2g}",
        )
        devices = [device for device, chosen in bundle["chosen"].items() if chosen == name]
        table.add_row(name, *numbers, ", ".join(item["fp32_parts"]), ", ".join(devices))
    return table


def _lines(bundle: Mapping[str, Any]) -> list[str]:
    lines = [f"fp32 is {bundle['parity']:.1g} from PyTorch"]
    for name, item in bundle["precisions"].items():
        if item["sensitivity"]:
            parts = sorted(item["sensitivity"].items(), key=lambda part: -part[1])
            lines.append(f"{name} alone in a part changes: " + ", ".join(f"{part} {gap:.2g}" for part, gap in parts))
    return [*lines, f"bundle {bundle['path']}"]
