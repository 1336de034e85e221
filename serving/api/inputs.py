"""Token ids in place of texts, and texts that must not be cut: both are questions to a model's tokenizer.

Everything here grows with the request, so it runs in a worker thread and looks at the request's deadline.
"""

from collections.abc import Sequence

from pipeline.passages import Passages
from pipeline.tokens import TextTemplate
from serving.errors import InvalidRequestError
from serving.runtime.deadline import Deadline
from serving.runtime.engine import Engine, Role

Input = str | list[int]


def texts(engine: Engine, inputs: Sequence[Input], role: Role, field: str, deadline: Deadline) -> list[str]:
    """The inputs as texts; token ids as the text that is written with exactly these ids.

    Reading ids back and writing them again tells ours from those of another tokenizer, which would otherwise give a
    vector of nonsense without a word. Special tokens around them are taken off, because they are put on again.

    Args:
        field: name of the request's field, for messages.

    Raises:
        InvalidRequestError: an empty text, or ids that are not how this tokenizer writes anything.
        DeadlineError: the time is over.
    """
    decoded = []
    for index, given in enumerate(inputs):
        deadline.check()
        item = given if isinstance(given, str) else _decode(engine, given, role, f"{field}[{index}]")
        if not item.strip():
            raise InvalidRequestError(f"{field}[{index}] is empty; send texts with at least one character")
        decoded.append(item)
    return decoded


def _decode(engine: Engine, ids: Sequence[int], role: Role, name: str) -> str:
    template = engine.bundle.templates[role]
    before, after = template.before, template.after
    if (
        len(ids) > len(before) + len(after)
        and tuple(ids[: len(before)]) == before
        and tuple(ids[-len(after) :]) == after
    ):
        ids = ids[len(before) : -len(after)]
    decoded = engine.tokeniser.text(ids)
    if decoded is None:
        raise InvalidRequestError(
            f"{name}: these token ids are not how the encoder's tokenizer writes a text; send the text, "
            f"or ids made with the tokenizer.json of encoder {engine.digest[:12]}"
        )
    return decoded


def check_texts(engine: Engine, items: Sequence[str], role: Role, field: str, deadline: Deadline) -> None:
    """Raises InvalidRequestError if the encoder would cut a text, DeadlineError if the time is over."""
    template = engine.bundle.templates[role]
    assert isinstance(template, TextTemplate)
    room = template.max_tokens - len(template.before) - len(template.after)
    for index, item in enumerate(items):
        _check(engine, item, template.max_tokens, room, f"{field}[{index}]", deadline)


def check_pairs(
    engine: Engine, query: str, documents: Sequence[str], deadline: Deadline, passages: Passages | None = None
) -> None:
    """Raises InvalidRequestError if the ranker would cut the query or a document beside it, DeadlineError if the time
    is over.

    Args:
        passages: how documents are read; None cuts them at their end.
    """
    template = engine.pair_template
    used = _check(engine, query, template.max_tokens, template.max_query_tokens, "query", deadline)
    room, longest = template.document_room(used), template.max_tokens
    if passages is not None:
        room = max(room, passages.reach(template.passage_room(used)))
        longest = room + 1
    for index, document in enumerate(documents):
        _check(engine, document, longest, room, f"document {index}", deadline)


def check_limit(engine: Engine, limit: int, field: str) -> None:
    """Raises InvalidRequestError if the ranker may read more of a document than `limit` tokens; it cannot read less."""
    longest = engine.pair_template.max_tokens
    if limit < longest:
        raise InvalidRequestError(
            f"{field} is {limit}; the ranker reads up to {longest} tokens of a query and a document, which the release "
            f"fixes: send {longest} or more, or leave it out"
        )


def _check(engine: Engine, item: str, longest: int, room: int, name: str, deadline: Deadline) -> int:
    """Number of tokens of a text that is not cut.

    Args:
        longest: tokens that the tokenizer gives at most, the same number as when the text is scored.
        room: tokens that the model reads of it.
    """
    (ids,) = engine.tokeniser.ids([item], longest, check=deadline.check)
    if len(ids) > room:
        raise InvalidRequestError(
            f"{name}: has more than the {room} tokens that the {engine.role} reads of it, and truncate is false; send "
            "less, or leave truncate out"
        )
    return len(ids)
