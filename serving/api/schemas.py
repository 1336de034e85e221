"""Base classes that all request and answer models share.

Unknown fields and nulls are accepted, because real clients send both. What each known client sends is written down
beside the request model, as a `ClientShape`: a field is honoured, ignored for a stated reason, or refused.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo

from serving.errors import BodyTooLargeError, InvalidRequestError

OTHER_NAMES = dict.fromkeys(("limit", "k", "top_k", "topk", "size", "n", "count", "num_results", "per_page"), "top_n")
"""Names of fields in other search engines and the field here."""
SHOWN_NAME = 40
"""Characters of a client's name for a field that a message shows."""

OTHER_MODEL = "any name is taken; the live release answers"
"""The reason why a client's `model` is ignored."""

OTHER_PRIORITY = "requests are served by deadline, and those for very many vectors after the others"
"""The reason why a client's `priority` is ignored."""


@dataclass(frozen=True, slots=True)
class RefusedField:
    """A field that a client may send only with a value that changes nothing."""

    reason: str
    """The service's behaviour, and what to send instead; completes "FIELD is VALUE; "."""
    accepted: tuple[Any, ...] = ()
    """Values beside null that ask for what the service does anyway."""

    def accepts(self, value: Any) -> bool:
        return value is None or any(type(value) is type(item) and value == item for item in self.accepted)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientShape:
    """Every field that one kind of client sends to an endpoint, and what becomes of it."""

    client: str
    honoured: frozenset[str]
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Field → why ignoring it does no harm."""
    refused: Mapping[str, RefusedField] = field(default_factory=dict)

    @property
    def fields(self) -> frozenset[str]:
        return self.honoured | self.ignored.keys() | self.refused.keys()


class RequestBody(BaseModel):
    """A body that a client sends."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    shapes: ClassVar[tuple[ClientShape, ...]] = ()
    """The clients whose requests this model reads."""
    known_only: ClassVar[bool] = False
    """Whether an unknown field is refused; for endpoints of our own, whose clients have no fields of other vendors."""

    @classmethod
    def refuse(cls, body: Mapping[str, Any]) -> None:
        """Checks the fields before their values are read; null asks for nothing, so it is taken under any name.

        Raises:
            InvalidRequestError: some client's shape refuses a field with this value, a field is unknown where only
                known ones are taken, or true or false stands in place of a number.
        """
        if cls.known_only:
            check_names({name: value for name, value in body.items() if value is not None}, cls.model_fields)
        if any(isinstance(value, bool) for value in body.values()):
            for name, known in cls.model_fields.items():
                if isinstance(body.get(name), bool) and {int, float} & {known.annotation, *get_args(known.annotation)}:
                    raise InvalidRequestError(f"{name} is {shown(body[name])}; send a number")
        for shape in cls.shapes:
            if shape.refused.keys().isdisjoint(body):
                continue  # Nearly always, and quicker than looking for each field that is refused.
            for name, rule in shape.refused.items():
                if name in body and not rule.accepts(body[name]):
                    raise InvalidRequestError(f"{name} is {shown(body[name])}; {rule.reason}")


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raises InvalidRequestError for the first name that is not known; says which known one is nearest."""
    known = list(known)
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        return
    same = OTHER_NAMES.get(unknown.lower(), "")
    near = [same] if same in known else difflib.get_close_matches(unknown[:SHOWN_NAME], known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise InvalidRequestError(f"{unknown[:SHOWN_NAME]!r} is not known; {hint}")


def check_parameters(given: Sequence[tuple[str, str]], known: Sequence[str], repeated: Collection[str] = ()) -> None:
    """Checks the parameters of a link, of which a router takes the last of several and leaves out those it lacks.

    Args:
        given: name and value of each, as they stand in the link.
        known: the names that the endpoint has.
        repeated: names that may stand there several times.

    Raises:
        InvalidRequestError: a name is unknown, or stands twice and has one value.
    """
    names = [name for name, _ in given]
    check_names(names, known)
    for name, count in Counter(names).items():
        if count > 1 and name not in repeated:
            raise InvalidRequestError(f"{name} stands {count} times in the link; send one")


def shown(value: Any) -> str:
    """A JSON value as a message shows it: its kind where it may be long."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return repr(value[:40])
    return "null" if value is None else str(value).lower()[:40] if isinstance(value, bool) else repr(value)[:40]


def check_length(value: Any, info: ValidationInfo, setting: str, what: str) -> None:
    """Raises BodyTooLargeError if a list has more items than a setting allows; no item has been looked at yet.

    Args:
        info: its context are the settings; without them there is no limit.
        setting: name of the setting.
        what: the items, in the plural.
    """
    limit = getattr(info.context, setting, None)
    if limit is not None and isinstance(value, list) and len(value) > limit:
        raise BodyTooLargeError(
            f"{len(value)} {what}; at most {limit} are taken in one request (RELEVANCE_{setting.upper()}): "
            f"send at most {limit} at a time"
        )


class ErrorAnswer(BaseModel):
    """The body of every failed request; on OpenAI's routes `error` is an object."""

    error: str | dict[str, Any]
    message: str
    detail: str
    type: str


ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is refused."},
    "5XX": {"model": ErrorAnswer, "description": "The service failed, or the deadline passed."},
}
"""Status → the answer that every endpoint gives to a failed request, for the OpenAPI page."""
