"""What a client may send in place of a text, and whether a text is cut: both are questions to a model's tokenizer."""

from collections.abc import Sequence

from pipeline.tokens import PairTemplate, TextTemplate
from serving.errors import InvalidRequestError
from serving.runtime.engine import Engine, Role

Input = str | list[int]


def texts(engine: Engine, inputs: Sequence[Input], role: Role, field: str) -> list[str]:
    """The inputs as texts; token ids as the text that is written with exactly these ids.

    Reading ids back and writing them again is what tells ours from those of another tokenizer, which would else give
    a vector of nonsense without a word. Special tokens around them are taken off, as they are put on again.

    Raises:
        InvalidRequestError: an empty text, or ids that are not how this tokenizer writes anything.
    """
    found = []
    for place, given in enumerate(inputs):
        item = given if isinstance(given, str) else _read(engine, given, role)
        if item is None:
            raise InvalidRequestError(
                f"{field}[{place}]: these token ids are not how the encoder's tokenizer writes a text; send the text, "
                f"or ids made with the tokenizer.json of encoder {engine.digest[:12]}"
            )
        if not item.strip():
            raise InvalidRequestError(f"{field}[{place}] is empty; send texts with at least one character")
        found.append(item)
    return found


def _read(engine: Engine, ids: Sequence[int], role: Role) -> str | None:
    template = engine.bundle.templates[role]
    before, after = template.before, template.after
    if (
        len(ids) > len(before) + len(after)
        and tuple(ids[: len(before)]) == before
        and tuple(ids[-len(after) :]) == after
    ):
        ids = ids[len(before) : -len(after)]
    return engine.tokeniser.text(ids)


def check_texts(engine: Engine, items: Sequence[str], role: Role, field: str) -> None:
    """Nothing, when the encoder reads each of these to its end.

    Raises:
        InvalidRequestError: it would cut one; says which.
    """
    template = engine.bundle.templates[role]
    assert isinstance(template, TextTemplate)
    room = template.max_tokens - len(template.before) - len(template.after)
    for place, item in enumerate(items):
        _check(engine, item, template.max_tokens, room, f"{field}[{place}]")


def check_pairs(engine: Engine, query: str, documents: Sequence[str]) -> None:
    """Nothing, when the ranker reads the query and each document beside it to their ends.

    Raises:
        InvalidRequestError: it would cut one; says which.
    """
    template = engine.bundle.templates["pair"]
    assert isinstance(template, PairTemplate)
    used = _check(engine, query, template.max_tokens, template.max_query_tokens, "query")
    for place, document in enumerate(documents):
        _check(engine, document, template.max_tokens, template.document_room(used), f"document {place}")


def check_limit(engine: Engine, limit: int, field: str) -> None:
    """Nothing, when the ranker reads no more of a document than `limit` tokens anyway.

    Raises:
        InvalidRequestError: it may read more, and cannot be told to read less.
    """
    read = engine.bundle.templates["pair"].max_tokens
    if limit < read:
        raise InvalidRequestError(
            f"{field} is {limit}; the ranker reads up to {read} tokens of a query and a document, which the release "
            f"fixes: send {read} or more, or leave it out"
        )


def _check(engine: Engine, item: str, read: int, room: int, name: str) -> int:
    """How many tokens it has; `read` is how many the tokeniser is asked for, as when it is scored."""
    (ids,) = engine.tokeniser.ids([item], read)
    if len(ids) > room:
        raise InvalidRequestError(
            f"{name}: has more than the {room} tokens that the {engine.role} reads of it, and truncate is false; send "
            "less, or leave truncate out"
        )
    return len(ids)
