"""Administration: lists the releases, starts and ends trials, promotes and rolls back.

GET    /admin/releases            lists the live release, those kept for a rollback, those on trial and their counts
PUT    /admin/canary              starts a canary: a release that answers a share of the requests, within bounds
DELETE /admin/canary              ends the canary
POST   /admin/canary/promote      makes the canary live
PUT    /admin/shadow              starts a shadow: a release that gets copies of a share of the requests
DELETE /admin/shadow              ends the shadow
POST   /admin/rollback            makes the previous live release live again

There are no such paths without `admin_keys`, nor, unless the settings say otherwise, for other machines. What changes
here is written to the workspace, so all processes and machines that share it follow.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Security
from fastapi.security import HTTPBearer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pipeline.errors import ConflictError, MissingError, RelevanceError
from serving.api import schemas
from serving.api.json_io import Json
from serving.errors import InvalidRequestError, NotFoundError, ServingError, StateError
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.trials import Bounds, Canary, Kind, Trial

T = TypeVar("T")

MAX_COUNT = 2**53 - 1
"""Largest whole number that every reader of JSON holds exactly. A larger one could be written to the trials' file, but
not into the answer."""

BY_ADMIN = "by an administrator"

_bearer = HTTPBearer(auto_error=False, description="One of the keys whose hashes are admin_keys.")
"""Documents the key on the OpenAPI page; `serving.api.access` checks it, before a body is read."""


def _lifecycle(request: Request) -> Lifecycle:
    lifecycle: Lifecycle = request.app.state.service.lifecycle
    return lifecycle


ERRORS = schemas.ERROR_ANSWERS | {
    status: {"model": schemas.ErrorAnswer, "description": words}
    for status, words in (
        (401, "no administrator's key"),
        (404, "nothing there"),
        (409, "not possible as things stand"),
        (422, "a value is wrong"),
    )
}

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Security(_bearer)], responses=ERRORS)


class _Body(BaseModel):
    """A body that an administrator sends. A misspelt field is an error, as a bound that is ignored would be worse."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_booleans(cls, values: Any) -> Any:
        """Refuses true and false, which would otherwise be taken for the numbers 1 and 0."""
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool):
                raise ValueError(f"{name[: schemas.SHOWN_NAME]} is {schemas.shown(value)}; send a number or a text")
        return values


_DEFAULT = Bounds()


def _one_line(value: str) -> str:
    """Refuses control characters, line ends and lone surrogates, because the history has one line for each record."""
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in value):
        raise ValueError("must be one line of text without control characters")
    return value


CleanText = Annotated[str, AfterValidator(_one_line)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


class BoundsBody(_Body):
    """Bounds at which the canary is withdrawn; a bound that is left out has its default."""

    min_requests: Annotated[Count, Field(description="Requests before rates of errors count.")] = _DEFAULT.min_requests
    max_errors: Annotated[
        Share,
        Field(description="Share of requests on which its model alone may fail, beyond that of the live release."),
    ] = _DEFAULT.max_errors
    max_latency: Annotated[
        float,
        Field(gt=0, lt=1e6, description="Median over compared requests of its time divided by the live release's."),
    ] = _DEFAULT.max_latency
    compare: Annotated[Share, Field(description="Share of its requests that both releases answer, to be compared.")] = (
        _DEFAULT.compare
    )
    min_compared: Annotated[Count, Field(description="Compared requests before overlap and latency count.")] = (
        _DEFAULT.min_compared
    )
    min_overlap: Annotated[
        Share, Field(description="Mean share of the first results that both releases have in common.")
    ] = _DEFAULT.min_overlap
    min_judged: Annotated[Count, Field(description="Different judged queries before nDCG counts.")] = (
        _DEFAULT.min_judged
    )
    max_ndcg_drop: Annotated[Share, Field(description="Mean nDCG@10 that it may lose.")] = _DEFAULT.max_ndcg_drop


class ShadowBody(_Body):
    """A release, and its share of the requests."""

    release: CleanText = Field(
        min_length=1, max_length=200, description="A release, the first digits of one, or previous."
    )
    share: float = Field(default=0.05, ge=0, le=1, description="Share of the rerank and search requests.")


class CanaryBody(ShadowBody):
    """A release, its share of the requests, and its bounds."""

    bounds: BoundsBody = Field(default_factory=BoundsBody)


class MoveBody(_Body):
    """The reason for changing the live release, and the generation (number of changes so far) that was seen."""

    reason: CleanText = Field(
        default=BY_ADMIN, max_length=500, description="Text that the history of the live pointer keeps."
    )
    expected: int | None = Field(
        default=None,
        ge=0,
        le=MAX_COUNT,
        description="The pointer's generation that was seen; 409 where it has moved since.",
    )


@router.get("/releases")
async def releases(request: Request) -> Response:
    """All releases, each with its roles here (live, kept, compared, canary, shadow), and the state of the trials."""
    return Json(await _work(lambda: _releases(_lifecycle(request))))


@router.put("/canary")
async def put_canary(request: Request, body: CanaryBody) -> Response:
    """Starts a canary in place of any other: it answers a share of the requests. Returns once it runs here."""
    bounds = Bounds(**body.bounds.model_dump())
    return Json(
        await _work(
            lambda: _begin(
                _lifecycle(request),
                "canary",
                lambda release: Canary(release=release, share=body.share, bounds=bounds),
                body.release,
            )
        )
    )


@router.put("/shadow")
async def put_shadow(request: Request, body: ShadowBody) -> Response:
    """Has a release get copies of a share of the requests, in place of another shadow."""
    return Json(
        await _work(
            lambda: _begin(
                _lifecycle(request), "shadow", lambda release: Trial(release=release, share=body.share), body.release
            )
        )
    )


Reason = Annotated[CleanText, Query(max_length=500, description="Text that the log and /readyz show.")]


@router.delete("/canary")
async def delete_canary(request: Request, reason: Reason = BY_ADMIN) -> Response:
    """Takes the canary back: the live release answers everything again."""
    schemas.check_parameters(request.query_params.multi_items(), ("reason",))
    return Json(await _work(lambda: _end(_lifecycle(request), "canary", reason)))


@router.delete("/shadow")
async def delete_shadow(request: Request, reason: Reason = BY_ADMIN) -> Response:
    """Takes the shadow back."""
    schemas.check_parameters(request.query_params.multi_items(), ("reason",))
    return Json(await _work(lambda: _end(_lifecycle(request), "shadow", reason)))


@router.post("/canary/promote")
async def promote(request: Request, body: MoveBody | None = None) -> Response:
    """Makes the canary live; it is loaded already, so the next request has it."""
    return Json(await _work(lambda: _promote(_lifecycle(request), body or MoveBody())))


@router.post("/rollback")
async def rollback(request: Request, body: MoveBody | None = None) -> Response:
    """Makes the release live that was live before: at once if this process still holds it, else after loading it."""
    return Json(await _work(lambda: _rollback(_lifecycle(request), body or MoveBody())))


async def _work(call: Callable[[], T]) -> T:
    """Runs `call` in a thread outside the worker pool, because it reads and writes files and may load a release."""

    def translated() -> T:
        with _errors():
            return call()

    return await run_in_threadpool(translated)


@contextmanager
def _errors() -> Iterator[None]:
    """Turns exceptions of the pipeline, raised in the `with` block, into those of the service, which have a status."""
    try:
        yield
    except ServingError:
        raise
    except ConflictError as error:
        raise StateError(str(error)) from error
    except MissingError as error:
        raise InvalidRequestError(str(error)) from error
    except (RelevanceError, OSError) as error:
        raise ServingError(str(error)) from error


def _releases(lifecycle: Lifecycle) -> Mapping[str, Any]:
    live = lifecycle.releases.pointer_file.recover()
    stats = lifecycle.stats()
    loaded = lifecycle.loaded
    roles: dict[str, list[str]] = {name: [] for name in lifecycle.releases.ids()}
    for role, names in (
        ("live", [loaded.release] if loaded else []),
        ("kept", stats["kept"]),
        ("compared", [held.searcher.release for held in lifecycle.held if "compared" in held.roles]),
        *((kind, [stats[kind]["release"]] if stats[kind] else []) for kind in ("canary", "shadow")),
    ):
        for name in names:
            roles.setdefault(name, []).append(role)
    return {
        "pointer": asdict(live) if live else None,
        "releases": [{"release": name, "roles": held} for name, held in roles.items()],
        **stats,
    }


def _begin(lifecycle: Lifecycle, kind: Kind, trial: Callable[[str], Trial], name: str) -> Mapping[str, Any]:
    release = lifecycle.releases.resolve(name)
    if release == lifecycle.current.release:
        raise StateError(f"release {release[:12]} is live; name another as {kind}")
    begun = lifecycle.rollout.active.file.begin(kind, trial(release))
    lifecycle.poll()
    ended = lifecycle.rollout.active.trials.withdrawn
    running = lifecycle.stats()[kind]
    if not (running and running["runs_here"]):
        why = f": {ended.reason}" if ended and ended.release == release else ""
        if running and running["waits_for"]:
            why = f" yet, and is tried again until it does or is taken back: {running['waits_for']}"
        raise StateError(f"release {release[:12]} does not run as {kind} {begun.count}{why}")
    stats: Mapping[str, Any] = running
    return stats


def _end(lifecycle: Lifecycle, kind: Kind, reason: str) -> Mapping[str, Any]:
    trial = _running(lifecycle, kind)
    lifecycle.rollout.active.file.end(kind, trial.number, reason)
    lifecycle.poll()
    withdrawn = lifecycle.rollout.active.trials.withdrawn
    return {"withdrawn": asdict(withdrawn) if withdrawn else None}


def _promote(lifecycle: Lifecycle, body: MoveBody) -> Mapping[str, Any]:
    seen = _following(lifecycle)
    canary = _running(lifecycle, "canary")
    expected = body.expected if body.expected is not None else seen
    pointer = lifecycle.releases.promote(canary.release, reason=body.reason, expected=expected)
    lifecycle.rollout.active.file.end("canary", canary.number, None)
    lifecycle.poll()
    return asdict(pointer)


def _rollback(lifecycle: Lifecycle, body: MoveBody) -> Mapping[str, Any]:
    _following(lifecycle)
    try:
        pointer = lifecycle.releases.rollback(reason=body.reason, expected=body.expected)
    except MissingError as error:
        raise StateError(str(error)) from error
    lifecycle.poll()
    return asdict(pointer)


def _running(lifecycle: Lifecycle, kind: Kind) -> Trial:
    seen = lifecycle.rollout.active.file.read()
    trial = seen.canary if kind == "canary" else seen.shadow
    if trial is None:
        raise NotFoundError(f"no {kind} runs; PUT /admin/{kind} begins one")
    return trial


def _following(lifecycle: Lifecycle) -> int:
    """The generation of the live pointer; 0 if none is set.

    Raises:
        StateError: this service does not follow the pointer.
    """
    if lifecycle.settings.release != "live":
        raise StateError(f"this service stays at release {lifecycle.settings.release}; start it without --release")
    return lifecycle.releases.generation()
