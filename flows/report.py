"""The flow that judges a release or any run file, on judged queries of any source.

A release is judged on those of the queries that its recipe keeps from training (`split` test), and the recipe of a
release that it is compared with: a recipe cuts by a hash of the query's text, so they are the same in any copy of the
data. `all` judges every query, for queries that training cannot have seen. Ready-made models have learned from no
judgments, so they are judged on all.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flows import judged_sources, judging, runner
from pipeline import recipe as recipes
from pipeline import release_parts
from pipeline.artifacts import Artifact
from pipeline.config import DataConfig, Recipe, SourceConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.runs import RunFile
from pipeline.releases import Releases

log = logging.getLogger(__name__)

Split = Literal["test", "all"]


def report(
    judgments: SourceConfig | Sequence[SourceConfig],
    workspace: Path,
    *,
    split: Split = "test",
    release: str = "live",
    baseline: str = "",
    clicks: bool = False,
    rules: DataConfig | None = None,
    execute: runner.Execute = runner.directly,
) -> Artifact:
    """A report artifact on a release's models, over the queries that a source judges.

    Args:
        judgments: queries and judgments, and their documents; without any, those of the release are taken.
        split: test judges the queries that the recipes of both releases keep from training, all judges every query.
        release: the release whose models rank the judged documents of each query, or those that BM25 and the encoder
            retrieve: `candidates.pool` of its recipe decides.
        baseline: a release to compare with; if empty, the fusion of BM25 and encoder of `release` itself.
        clicks: whether judgments made from clicks count too.
        rules: the section `data` of the recipe that names the judgments, whose rules on unusable rows and on pairs of
            several grades hold; None for those of the release's recipe.

    Raises:
        MissingError: no such source or release.
    """
    stages = runner.Runner(workspace, execute)
    return _of_release(
        Releases(workspace), judged_sources.several(judgments), split, release, baseline, stages, rules, clicks=clicks
    )


def report_on_run(
    judgments: SourceConfig | Sequence[SourceConfig],
    workspace: Path,
    *,
    run: RunFile,
    baseline: RunFile | str = "",
    clicks: bool = False,
    rules: DataConfig | None = None,
    execute: runner.Execute = runner.directly,
) -> Artifact:
    """A report artifact on a run file, over all queries that a source judges.

    Args:
        judgments: queries and judgments, or a TREC qrels file alone; where a release is compared with, texts of queries
            too, and their documents unless the release has them.
        run: TREC text or Parquet.
        baseline: another run file, compared query by query, or a release, whose models rank the source's documents;
            the empty text for none.
        clicks: whether judgments made from clicks count too.
        rules: the section `data` of the recipe that names the judgments, whose rules on unusable rows and on pairs of
            several grades hold; None for the default ones.

    Raises:
        MissingError: no such source, file or release.
        SchemaError: a file is no run.
        ConfigError: the baseline is the run itself.
    """
    stages = runner.Runner(workspace, execute)
    sources = tuple(_as_qrels(source) for source in judged_sources.several(judgments))
    return _of_run(Releases(workspace), sources, run, baseline, stages, rules, clicks=clicks)


def copy_files(report: Artifact, folder: Path) -> None:
    """Copies report.html, report.json and per_query.parquet into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in report.manifest.files:
        shutil.copyfile(report.path / name, folder / name)


def _as_qrels(source: SourceConfig) -> SourceConfig:
    """The source, of format `qrels` where it is a file of that form and nothing else is said."""
    from pipeline.data.formats import qrels_file

    known = source.format == "auto" and not source.columns and qrels_file.is_qrels(Path(source.path))
    return replace(source, format=qrels_file.NAME) if known else source


def _of_release(
    registry: Releases,
    sources: tuple[SourceConfig, ...],
    split: Split,
    release: str,
    baseline: str,
    run: runner.Runner,
    rules: DataConfig | None,
    *,
    clicks: bool,
) -> Artifact:
    from pipeline.evaluation import report as reports
    from pipeline.evaluation import report_stats, systems

    opened = registry.open(release)
    recipe = recipes.parse(Recipe, opened.manifest.config)
    sources = judged_sources.with_documents(sources, registry, opened)
    former = registry.open(baseline) if baseline else None
    learned = _learned([opened, former] if former else [opened])
    split = _fair_split(split, learned)
    config = judged_sources.by_rules(
        held_out(recipe.data, learned) if split == "test" else replace(recipe.data, splits="test"), rules
    )
    data = judged_sources.read(sources, config, run)
    evaluation = replace(recipe.evaluation, clicks=clicks or recipe.evaluation.clicks)
    judged, corpus = judging.judge_release(opened, recipe.index, recipe.candidates, run, data=data)
    live = None
    if former is not None:
        index = recipes.parse(Recipe, former.manifest.config).index
        other, _ = judging.judge_release(former, index, recipe.candidates, run.labelled("baseline"), data=data)
        live = systems.ReleaseScores(features=other.features, fusion=other.fusion)
    ranked = run(systems.make, features=judged.features, fusion=judged.fusion, scores={}, live=live)
    parts = {
        name: release_parts.part(opened, name) for name in release_parts.MODELS if release_parts.has_part(opened, name)
    }
    costs = report_stats.of(parts, corpus.vectors, corpus.index, {})
    costs |= judging.quality_cost(
        recipe.index, run, encoder=parts["encoder"], corpus=corpus, data=data, clicks=evaluation.clicks
    )
    return run(
        reports.make,
        evaluation,
        data=data,
        systems=ranked,
        plan=reports.ReportPlan(
            title=f"Release {opened.fingerprint[:12]}",
            baseline=systems.LIVE if baseline else systems.BOTH,
            subject=systems.FUSED,
        ),
        stats=reports.ReportStats(measured=costs),
    )


def _learned(releases: Sequence[Artifact]) -> list[DataConfig]:
    """The sections `data` of the releases that learned from judgments, as ready-made models without a refit did not."""
    return [
        recipes.parse(Recipe, release.manifest.config).data
        for release in releases
        if "ready_made" not in release.metrics or "refit" in release.metrics
    ]


def _fair_split(split: Split, learned: Sequence[DataConfig]) -> Split:
    """The split to judge by; all queries in place of the test queries where no release learned from judgments.

    Args:
        learned: the sections `data` of the releases that did.
    """
    if split != "test":
        return split
    if not learned:
        log.info("no model here learned from judgments, so all queries are judged")
        return "all"
    log.info("judged are the test queries alone, which the recipe keeps from training; --all judges all")
    return "test"


def held_out(config: DataConfig, learned: Sequence[DataConfig]) -> DataConfig:
    """The section `config`, by which the test queries are those that no release learned from.

    Of recipes that cut by one hash, the smaller test split is part of the larger. Where they cut otherwise, the first
    decides, and a warning says that the figures of the other release are too good.

    Args:
        config: the section of the release that is judged.
        learned: the sections of the releases here that learned from judgments, at least one.
    """
    first = learned[0]
    if any((other.splits, other.seed) != (first.splits, first.seed) for other in learned):
        log.warning(
            "the two releases have other test queries (data.splits, data.seed), so the --baseline learned from some of "
            "those that are judged, and its figures are too good"
        )
        smallest = first
    else:
        smallest = min(learned, key=lambda data: data.test_share)
    return replace(
        config,
        splits=smallest.splits,
        seed=smallest.seed,
        valid_share=smallest.valid_share,
        test_share=smallest.test_share,
    )


def _of_run(
    registry: Releases,
    sources: tuple[SourceConfig, ...],
    run_file: RunFile,
    baseline: RunFile | str,
    run: runner.Runner,
    rules: DataConfig | None,
    *,
    clicks: bool,
) -> Artifact:
    from pipeline.evaluation import report as reports
    from pipeline.evaluation import systems

    config = replace(Recipe().evaluation, clicks=clicks)
    if isinstance(baseline, str) and baseline:
        sources = judged_sources.with_documents(sources, registry, registry.open(baseline))
    data = judged_sources.read(sources, judged_sources.by_rules(DataConfig(splits="test"), rules), run)
    name, other, title = run_file.name, baseline, f"Run {run_file.path.name}"
    if isinstance(baseline, str) and baseline:
        opened = registry.open(baseline)
        recipe = recipes.parse(Recipe, opened.manifest.config)
        judged, _ = judging.judge_release(opened, recipe.index, recipe.candidates, run, data=data)
        ranked = run(systems.make, features=judged.features, fusion=judged.fusion, scores={})
        other = RunFile(ranked.file("run.parquet"), systems.FUSED)
    files = {name: run_file}
    if isinstance(other, RunFile):
        if other == run_file:
            raise ConfigError(f"{run_file}: is compared with itself; name another run file as the baseline")
        names = (other.name, name) if other.name != name else (str(other), str(run_file))
        files = {names[0]: other, names[1]: run_file}
        title = f"{names[1]} against {names[0]}"
    plan = reports.ReportPlan(title=title, split=None)
    return run(reports.make_from_run, config, data=data, systems=files, plan=plan)


def rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Systems with their means, for a table of plain values; None for a mean that no query could give.

    Args:
        report: what report.json holds.
    """
    return [
        {"system": name, **{measure: _rounded(item["mean"]) for measure, item in system["measures"].items()}}
        for name, system in report["systems"].items()
    ]


def _rounded(mean: float | None) -> float | None:
    return None if mean is None else round(mean, 4)
