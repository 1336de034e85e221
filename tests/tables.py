"""Artifacts of tables, as a stage would leave them, for tests that begin in the middle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import artifacts, schema
from pipeline.artifacts import Artifact, Staging


def stage(workspace: Path, kind: str, tables: Mapping[str, pa.Table]) -> Artifact:
    """An artifact whose fingerprint is its content: `NAME.parquet` for each table, checked by the schema NAME."""

    def build(staging: Staging) -> dict[str, Any]:
        for name, table in tables.items():
            schema.write(table, staging.folder / f"{name}.parquet", name)
        return {}

    digest = str({name: table.to_pydict() for name, table in tables.items()})
    return artifacts.make(workspace, kind, version=1, config={"content": digest}, inputs={}, build=build)
