"""Requests of many texts: how many fit into the time that a request has."""

from collections.abc import Callable, Sequence

from serving.runtime.engine import Engine

BULK_TEXTS = 256
"""A request for more vectors works in the batch class, behind the online requests, and for as long as the settings
allow: clients send up to 2,048 texts at once and wait for minutes."""

SAMPLE = 8
"""Texts that are tokenized to estimate the tokens of all."""

SAFETY = 0.8
"""Share of the estimated number that a message suggests."""


def advice(
    engine: Engine, texts: Sequence[str], tokens: Callable[[Sequence[str]], int], unit: str
) -> Callable[[float], str]:
    """A function of seconds that returns a sentence for the client: the number of these texts that would fit into them.

    Args:
        tokens: number of tokens that the model reads of some of the texts, special ones included.
        unit: a name for the texts, in the plural.
    """

    def words(seconds: float) -> str:
        sample = texts[:: max(len(texts) // SAMPLE, 1)][:SAMPLE]
        pace = (engine.pace.tokens_per_s or 0.0) * engine.scheduler.runners
        if not (sample and pace):
            return ""
        text_s = tokens(sample) / len(sample) / pace
        fitting = max(int(SAFETY * seconds / text_s), 1)
        if fitting >= len(texts):
            return ""
        needed_ms = 1000 * text_s * len(texts) / SAFETY
        return (
            f"; about {fitting} of these {len(texts)} {unit} are done in {seconds:g} s, all of them in about "
            f"{needed_ms:.0f} ms: send at most {fitting} at a time, or that number of milliseconds"
        )

    return words
