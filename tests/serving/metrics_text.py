"""Reads what /metrics answers."""


def series(text: str) -> dict[str, float]:
    """Name of each series with its labels, as the text of /metrics has it → its value."""
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in rows}
