"""The impressions of a click log: which document was shown for which query, at which position, and whether clicked."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline import text
from pipeline.data.formats.text_files import STRING
from pipeline.errors import ConfigError, SchemaError
from pipeline.schema import NameRows
from pipeline.text import NO, YES, counted

ROLES = ("position", "clicked", "session", "time")
"""Keys of the map of columns that only a click log has."""

SAME_IMPRESSION = pd.Timedelta(minutes=30)
"""Rows of one session, query, document and position are one impression unless this time lies between them."""

MAX_SECONDS = 1e11
"""Seconds since 1970 until the year 5138: a larger number counts milliseconds or less."""

DATE = r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
"""A date such as 20260131. A column of such values alone holds dates, not seconds since 1970."""

MAX_POSITION = 1_000_000
"""A larger number is no rank in a list that a person saw."""


def usual_spelling(queries: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each query in the most frequent spelling of its normalised text, (rows,); of equally frequent ones the first."""
    spelled = pd.Series(queries.to_pandas(), dtype=object)
    counts = spelled.value_counts(sort=False)  # In order of the first row.
    normal = pd.Series([text.normalise(query) for query in counts.index], index=counts.index, dtype=object)
    usual = counts.groupby(normal, sort=False).idxmax()
    return pa.chunked_array([pa.array(spelled.map(normal).map(usual), STRING)])


@dataclass(frozen=True, slots=True)
class ClickLog:
    """The rows of a click log as texts: an impression or a click each."""

    rows: pa.Table
    """Columns query_id, doc_id, position and clicked; session and time where the log has them."""
    shown: str
    """The source's address, for messages."""
    locations: NameRows
    """The locations of the rows in their files, for messages."""

    def impressions(self) -> pd.DataFrame:
        """A row for each impression: query_id, doc_id, position, clicked (bool).

        Without sessions each row of the log is one. Else the rows of one session, query, document and position are
        one, which is clicked if any of them is; with times only as far as SAME_IMPRESSION does not lie between them.

        Raises:
            ConfigError: a time without a session.
            SchemaError: a position, click, session or time that cannot be read.
        """
        frame: pd.DataFrame = self.rows.select(["query_id", "doc_id"]).to_pandas()
        frame["position"] = self._positions()
        frame["clicked"] = self._clicked()
        names = set(self.rows.column_names)
        if "session" not in names:
            if "time" in names:
                raise ConfigError(
                    f"{self.shown}: columns maps time and no session; time tells impressions of a session apart"
                )
            return frame
        keys = ["query_id", "doc_id", "position", "session"]
        frame["session"] = self._sessions()
        if "time" in names:
            frame["time"] = self._times()
            frame = frame.sort_values("time", kind="stable")
            gap = frame.groupby(keys, sort=False)["time"].diff() > SAME_IMPRESSION
            frame["number"] = gap.groupby([frame[key] for key in keys], sort=False).cumsum()
            frame, keys = frame.sort_index(), [*keys, "number"]
        joined: pd.DataFrame = frame.groupby(keys, sort=False, as_index=False).agg({"clicked": "any"})
        return joined

    def _positions(self) -> npt.NDArray[np.int64]:
        values: pd.Series = self.rows["position"].to_pandas()
        numbers = pd.to_numeric(values, errors="coerce")
        wrong = ~(numbers.ge(0) & (numbers % 1).eq(0) & numbers.le(MAX_POSITION))
        self._refuse_unreadable("position", values, wrong, f"a whole number from 0 to {MAX_POSITION:,}")
        return numbers.to_numpy(np.int64)

    def _clicked(self) -> npt.NDArray[np.bool_]:
        """Whether a row is clicked: true or yes, or a number of clicks above 0."""
        values: pd.Series = self.rows["clicked"].to_pandas()
        folded = values.str.strip().str.casefold()
        numbers = pd.to_numeric(folded, errors="coerce")
        wrong = ~(folded.isin(YES | NO) | (numbers.ge(0) & numbers.lt(np.inf)))
        self._refuse_unreadable("clicked", values, wrong, "true, false, yes, no (是, 否) or a number of clicks")
        return (folded.isin(YES) | numbers.gt(0)).to_numpy(bool)

    def _sessions(self) -> pd.Series:
        """The session of each row. A log with rows that lack one is refused: joined, those of all users would be one
        impression of each result."""
        values: pd.Series = self.rows["session"].to_pandas()
        if wrong := self._wrong_rows(values.str.strip().eq("")):
            raise SchemaError(
                f"{self.shown}: {wrong.number} no session, the first is {wrong.location}; leave out these rows, or map "
                "no session, where each row is an impression of its own"
            )
        return values

    def _times(self) -> pd.Series:
        """Instants from dates and times as ISO 8601 writes them, or from seconds since 1970, milliseconds and so on."""
        values: pd.Series = self.rows["time"].to_pandas()
        seconds = pd.to_numeric(values, errors="coerce").astype(float)
        if values.str.fullmatch(DATE).all():
            seconds[:] = np.nan
        for _ in range(3):  # Milli-, micro- and nanoseconds.
            seconds = seconds.where(seconds.abs() < MAX_SECONDS, seconds / 1000)
        written = pd.to_datetime(values.where(seconds.isna()), errors="coerce", utc=True, format="ISO8601")
        times: pd.Series = written.fillna(pd.to_datetime(seconds, unit="s", errors="coerce", utc=True))
        wanted = "a time such as 2026-01-31T12:00:00, or seconds or milliseconds since 1970"
        self._refuse_unreadable("time", values, times.isna(), wanted)
        return times

    def _refuse_unreadable(self, role: str, values: pd.Series, is_wrong: pd.Series, wanted: str) -> None:
        """Raises SchemaError where a value cannot be read; says what is `wanted` in its place."""
        if wrong := self._wrong_rows(is_wrong):
            raise SchemaError(
                f"{self.shown}: {wrong.number} no {role} that can be read, the first is {wrong.location}: "
                f"{str(values.iloc[wrong.first])[:60]!r} is not {wanted}; mend or leave out these rows"
            )

    def _wrong_rows(self, is_wrong: pd.Series) -> "WrongRows | None":
        """The rows that are wrong; None where none is."""
        indices = np.flatnonzero(is_wrong.to_numpy(bool))
        if not len(indices):
            return None
        first = int(indices[0])
        return WrongRows(first, counted(len(indices), "row", "have"), self.locations([first])[0])


@dataclass(frozen=True, slots=True)
class WrongRows:
    """The rows of a log that lack something, for a message."""

    first: int
    """Index of the first of them."""
    number: str
    """Their number and the verb: "12 rows have"."""
    location: str
    """Where the first of them stands in its file."""
