"""The impressions of a click log: spellings that are one query, and rows that are one impression."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.config import SourceConfig
from pipeline.data import sources
from pipeline.data.clicks.impressions import ClickLog
from pipeline.errors import ConfigError, SchemaError
from pipeline.schema import row_names
from tests.pipeline.data.clicks.simulated_log import COLUMNS, graded, read, simulate


def test_spellings_of_one_query_are_one_query(tmp_path: Path) -> None:
    frame, _ = simulate(5, queries=4, impressions=3_000)
    other = frame["q"].where(frame.index % 3 != 0, frame["q"].str.upper() + " ")
    assert graded(read(tmp_path / "a.csv", frame.assign(q=other))) == graded(read(tmp_path / "b.csv", frame))


def test_rows_of_one_impression_are_joined_by_session_and_time(tmp_path: Path) -> None:
    """A log that writes a row for what is shown and one more for a click, and shows the same again an hour later."""
    frame, _ = simulate(6, queries=6, impressions=3_000)
    frame["s"] = [f"session {row // 6}" for row in range(len(frame))]
    frame["t"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(len(frame)), unit="s")
    clicked = frame[frame["hit"]].assign(t=lambda rows: rows["t"] + pd.Timedelta(minutes=5))
    both = pd.concat([frame.assign(hit=False), clicked])
    later = both.assign(t=lambda rows: rows["t"] + pd.Timedelta(hours=1))
    columns = {**COLUMNS, "session": "s", "time": "t"}

    def stats(rows: pd.DataFrame, columns: dict[str, str]) -> dict[str, Any]:
        rows.to_csv(tmp_path / "log.csv", index=False)
        [counts] = sources.read(SourceConfig(path=str(tmp_path / "log.csv"), columns=columns), Path()).clicks
        return dict(counts)

    once = stats(both, columns)
    assert (once["impressions"], once["clicks"]) == (len(frame), int(frame["hit"].sum()))
    twice = stats(pd.concat([both, later]), columns)
    assert (twice["impressions"], twice["clicks"]) == (2 * len(frame), 2 * int(frame["hit"].sum()))
    seconds = both.assign(
        t=both["t"].astype("int64") // 10**6 if both["t"].dt.unit == "us" else both["t"].astype("int64") // 10**9
    )
    for unit in (1, 10**3, 10**6, 10**9):  # JavaScript counts milliseconds, BigQuery microseconds.
        assert stats(seconds.assign(t=seconds["t"] * unit), columns) == once
    with pytest.raises(ConfigError, match="maps time and no session"):
        stats(both, {**COLUMNS, "time": "t"})


def test_dates_of_eight_digits_are_no_seconds() -> None:
    """Read as seconds since 1970, two days lie one second apart, or a minute over the end of a month."""

    def impressions(times: list[str]) -> int:
        columns = {"query_id": "q", "doc_id": "d", "position": "1", "clicked": "0", "session": "s"}
        rows = pa.table({name: [value] * len(times) for name, value in columns.items()} | {"time": times})
        return len(ClickLog(rows, "log.csv", row_names).impressions())

    dates = ["20260130", "20260131", "20260201", "20260201"]
    assert impressions(dates) == impressions([f"{date[:4]}-{date[4:6]}-{date[6:]}" for date in dates]) == 3
    assert impressions(["20260130", "20260131", "20260132"]) == 1  # Not all are dates, so these are seconds.


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_without_a_session_are_refused_as_they_would_be_one_impression(tmp_path: Path, suffix: str) -> None:
    frame, _ = simulate(6, queries=6, impressions=3_000)
    frame["s"] = [f"session {row // 6}" if row % 2 else None for row in range(len(frame))]
    path = tmp_path / f"log{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    with pytest.raises(SchemaError, match=rf"{len(frame) // 2:,} rows have no session, the first is .*; leave out"):
        sources.read(SourceConfig(path=str(path), columns={**COLUMNS, "session": "s"}), Path())
