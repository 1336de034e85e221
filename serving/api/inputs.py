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
    first, end = len(template.before), len(ids) - len(template.after)
    if first <= end and tuple(ids[:first]) == template.before and tuple(ids[end:]) == template.after:
        ids = ids[first:end]
    decoded = engine.tokeniser.text(ids)
    if decoded is None:
        raise InvalidRequestError(
            f"{name}: these token ids are not how the encoder's tokenizer writes a text; send the text, "
            f"or ids made with the tokenizer.json of encoder {engine.digest[:12]}"
        )
    return decoded


def check_texts(engine: Engine, items: Sequence[str], role: Role, field: str, deadline: Deadline) -> None:
    """Raises InvalidRequestError if the encoder would cut a text, DeadlineError if the time is over.

    The encoder reads its prompt before the text, so this takes tokens from the text.
    """
    template = engine.bundle.templates[role]
    assert isinstance(template, TextTemplate)
    room = template.max_tokens - len(template.before) - len(template.after)
    read = f"the prompt {template.prompt[:40]!r} and it" if template.prompt else "it"
    for index, prompted in enumerate(template.prompted(items)):
        _check(engine, prompted, template.max_tokens, room, f"{field}[{index}]", deadline, read)


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


def _check(engine: Engine, item: str, longest: int, room: int, name: str, deadline: Deadline, read: str = "it") -> int:
    """Number of tokens of a text that is not cut.

    Args:
        longest: tokens that the tokenizer gives at most, the same number as when the text is scored.
        room: tokens that the model reads of it.
        read: the text in a message, with the prompt before it if it has one.
    """
    (ids,) = engine.tokeniser.ids([item], longest, check=deadline.check)
    if len(ids) > room:
        raise InvalidRequestError(
            f"{name}: has more than the {room} tokens that the {engine.role} reads of {read}, and truncate is false; "
            "send less, or leave truncate out"
        )
    return len(ids)
