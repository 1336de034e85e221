"""What the service is told at its start; the only place in serving that reads the environment.

Each field of `Settings` may be given as an argument, else as a variable `RELEVANCE_` + its name in capitals
(`RELEVANCE_PORT=9000`), else it has the default below.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

PRECISIONS = ("auto", "fp32", "fp16", "int8", "w8")
LOGS = ("auto", "json", "plain")
ADMINS = ("loopback", "anywhere")
HASH = re.compile("[0-9a-fA-F]{64}")
ROOT_PATH = re.compile(r"(/[\w.~-]+)+", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a release is served."""

    workspace: Path = Path("workspace")
    """The folder that holds `artifacts/` and `releases/`."""
    release: str = "live"
    """live follows the pointer as it moves; another name, or the first digits of a release, stays at that one."""
    host: str = "127.0.0.1"
    """Only this machine; 0.0.0.0 opens it to the network: set api_keys then."""
    port: int = 8080
    """0 takes a free one and logs it."""
    precision: str = "auto"
    """auto is what the release's own measurements chose for this device."""
    workers: int = 1
    """Processes behind the one port, each with the models in its own memory; one that dies is started again."""
    threads: int = 0
    """Runners in each process, for all its models; 0 divides the cores among the processes. A CUDA device has two."""
    cache_bytes: int = 256 * 2**20
    """Memory for scores of pairs and vectors of texts, of all processes together; each loaded model remembers token ids
    in up to a sixteenth of it beside."""
    redis_url: str = field(default="", repr=False)
    """A Redis that processes and machines share as a second cache, such as redis://localhost:6379/0; empty for none."""
    redis_ttl_s: float = 7 * 86_400.0
    """How long a value stays there."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the Host header by which clients may call, beside IP addresses, localhost and names without a dot;
    `*.example.com` allows all names below one, `*` any. Left empty, the names are checked only while no API key
    protects the service: a web page elsewhere could reach it under a name of its own."""
    root_path: str = ""
    """Path below which a proxy publishes the service, such as /relevance; a proxy may send it as X-Forwarded-Prefix."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """SHA-256 hashes, in hex, of the keys that open the service; with none here and in the file it is open. `relevance
    key` makes a key and its hash. Separated by commas in the environment."""
    api_keys_file: str = ""
    """A file with such a hash at the start of each line, and perhaps a name after it; # begins a comment."""
    max_body_bytes: int = 16 * 2**20
    """Of one request; more gets 413."""
    max_held_bytes: int = 256 * 2**20
    """Of the bodies of all requests under way in each process; more get 429."""
    max_documents: int = 1000
    """Documents of one rerank request; more get 413."""
    max_texts: int = 2048
    """Texts of one embeddings request, as many as OpenAI's service takes; more get 413."""
    max_results: int = 100
    """The largest `top_n` of a search; more are neither retrieved nor reranked."""
    retrieve: int = 20
    """Documents that BM25 and the encoder each bring to a search before reranking."""
    deadline_s: float = 2.0
    """A request that cannot be answered in so long gets 429, or 504 when that shows later; a client may ask for another
    time with `x-request-timeout-ms`."""
    max_deadline_s: float = 30.0
    """The most that a client may ask for."""
    concurrency: int = 256
    """Requests worked on at once in each process, most of which wait for the models; further ones wait for a place,
    their deadline running."""
    read_s: float = 10.0
    """A request whose head, or whose body, has not arrived after so long gets 408; a client that reads nothing of its
    answer for so long is cut off."""
    connection_requests: int = 1000
    """Requests of one connection; the answer to the last closes it."""
    connection_s: float = 60.0
    """Age of a connection whose next answer closes it, so that clients spread over all workers again."""
    silent_s: float = 30.0
    """A worker whose event loop, or one of whose model runs, does not come back for so long is replaced."""
    poll_s: float = 1.0
    """How often the pointer to the live release and the trials are looked at."""
    kept_releases: int = 1
    """Releases that were live before and stay in memory, so that a rollback takes no loading."""
    canary: str = ""
    """A release that answers a share of the requests from the start, as `PUT /admin/canary` begins it; not again once
    it was withdrawn."""
    canary_share: float = 0.05
    shadow: str = ""
    """A release that gets copies of a share of the requests from the start, as `PUT /admin/shadow` begins it."""
    shadow_share: float = 0.05
    judgments: str = ""
    """A folder with `queries.parquet` and `judgments.parquet`, for a canary's nDCG on the judged queries among the
    searches; train queries are left out."""
    admin_keys: tuple[str, ...] = field(default=(), repr=False)
    """Hashes, as of api_keys, of the keys that open `/admin/`; without any there is no such path."""
    admin_from: str = "loopback"
    """Who may ask `/admin/`: loopback is this machine only, anywhere any that has the key."""
    drain_s: float = 30.0
    """How long running requests may take to finish after SIGTERM."""
    log: str = "auto"
    """json, plain, or auto: plain where standard error is a terminal. Texts of requests are in neither."""

    otlp_endpoint: str = ""
    """Where spans are sent with OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; none are made without it."""

    def __post_init__(self) -> None:
        for name, known in (("precision", PRECISIONS), ("log", LOGS), ("admin_from", ADMINS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be between 0 and 65535")
        for name in ("threads", "cache_bytes", "kept_releases"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        sizes = (
            "workers",
            "max_body_bytes",
            "max_documents",
            "max_texts",
            "max_results",
            "retrieve",
            "concurrency",
            "connection_requests",
        )
        seconds = (
            "deadline_s",
            "max_deadline_s",
            "redis_ttl_s",
            "read_s",
            "connection_s",
            "silent_s",
            "poll_s",
            "drain_s",
        )
        for name in (*sizes, *seconds):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a number above 0")
        for least, most in (("deadline_s", "max_deadline_s"), ("max_body_bytes", "max_held_bytes")):
            if getattr(self, most) < getattr(self, least):
                raise ConfigError(
                    f"{most} is {getattr(self, most)}, less than {least}, {getattr(self, least)}; raise the one or "
                    "lower the other"
                )
        for name in ("canary_share", "shadow_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        _check_root_path(self.root_path)
        for name in ("api_keys", "admin_keys"):
            _hashes(name, getattr(self, name))

    def share(self, cores: int) -> "Settings":
        """What one of the `workers` processes gets: its part of the cores and of the memory."""
        return dataclasses.replace(
            self,
            workers=1,
            threads=self.threads or max(1, cores // self.workers),
            cache_bytes=self.cache_bytes // self.workers,
        )


def _check_root_path(root_path: str) -> None:
    if root_path and not ROOT_PATH.fullmatch(root_path):
        raise ConfigError(f"root_path is {root_path!r}; it must be a path such as /search, without a slash at its end")


def _hashes(name: str, keys: tuple[str, ...]) -> None:
    if not all(HASH.fullmatch(key) for key in keys):
        raise ConfigError(
            f"{name} holds something that is not a SHA-256 in hex; `relevance key` makes a key for a client and "
            "the hash that belongs here"
        )


def from_environment(environ: Mapping[str, str] = os.environ, **given: Any) -> Settings:
    """Settings from arguments (None counts as not given), then the environment, then the defaults.

    Raises:
        ConfigError: an impossible value; names the variable or the field.
    """
    values = {name: value for name, value in given.items() if value is not None}
    for knob in dataclasses.fields(Settings):
        variable = f"RELEVANCE_{knob.name.upper()}"
        if knob.name not in values and environ.get(variable, "").strip():
            values[knob.name] = _parse(variable, environ[variable].strip(), knob.type)
    return Settings(**values)


def strange(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that are nearly ours but no setting: to be warned of, as a misspelt key leaves a service open.

    Not refused, as Kubernetes sets such ones for a service of that name.
    """
    known = {f"RELEVANCE_{knob.name.upper()}" for knob in dataclasses.fields(Settings)}
    return sorted(name for name in environ if name.startswith("RELEVANCE_") and name not in known)


def _parse(variable: str, text: str, kind: Any) -> Any:
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return kind(text)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{variable} is {text!r}; it must be {wanted}") from error
