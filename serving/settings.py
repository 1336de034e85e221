"""The settings of the service. No other file of serving reads the environment.

A field of `Settings` comes from an argument, else from the variable `RELEVANCE_` + its name in capitals
(`RELEVANCE_PORT=9000`), else from its default below.
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
SIZES = (
    "workers",
    "max_body_bytes",
    "max_documents",
    "max_passages",
    "max_texts",
    "max_results",
    "retrieve",
    "concurrency",
    "connection_requests",
)
"""Counts that must be above 0."""
SECONDS = (
    "deadline_s",
    "max_deadline_s",
    "redis_ttl_s",
    "read_s",
    "connection_s",
    "silent_s",
    "poll_s",
    "drain_s",
)
"""Times that must be above 0."""
HASH = re.compile("[0-9a-fA-F]{64}")
"""The form of an API key's SHA-256 hash."""
HOST_NAME = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*", re.ASCII)
"""The form of a name in `allowed_hosts`; a Host header is compared without its port."""
ROOT_PATH = re.compile(r"(/[\w.~-]+)+", re.ASCII)
"""The form of a path that a proxy puts before all others."""

SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+")
"""The form of the addresses of services that Kubernetes sets as variables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings with which a release is served."""

    workspace: Path = Path("workspace")
    """The folder that holds `artifacts/` and `releases/`."""
    release: str = "live"
    """live follows the pointer as it moves; another name, or the first digits of a release, stays at that one."""
    host: str = "127.0.0.1"
    """Address to listen at. The default is reached from this machine only; 0.0.0.0 opens the service to the network,
    which wants `api_keys`."""
    port: int = 8080
    """Port to listen at; 0 takes a free one and logs it."""
    precision: str = "auto"
    """Number format of the models; auto is what the release's own measurements chose for this device."""
    workers: int = 1
    """Processes behind the one port, each with the models in its own memory; one that dies is started again."""
    threads: int = 0
    """Threads that run models in each process; 0 divides the cores among the processes. A CUDA device has two."""
    cache_bytes: int = 256 * 2**20
    """Memory of all processes together for scores of pairs and vectors of texts. Beside it, each loaded model keeps
    token ids in up to a sixteenth of it."""
    redis_url: str = field(default="", repr=False)
    """Redis server that processes and machines share as a second cache, such as redis://localhost:6379/0; empty for
    none."""
    redis_ttl_s: float = 7 * 86_400.0
    """Seconds that a value stays in Redis."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the Host header by which clients may call, beside IP addresses, localhost and names without a dot;
    `*.example.com` allows all names below one, `*` any. Left empty, the names are checked only while no API key
    protects the service: a web page elsewhere could reach it under a name of its own."""
    root_path: str = ""
    """Path below which a proxy publishes the service, such as /relevance; a proxy may send it as X-Forwarded-Prefix."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """SHA-256 hashes, in hex, of the keys of clients. Without any here or in the file, the service needs no key.
    `relevance key` makes a key and its hash. The environment separates them by commas."""
    api_keys_file: str = ""
    """File with the SHA-256 of a key at the start of each line, and perhaps a name after it; # begins a comment. It is
    read again when it changes."""
    max_body_bytes: int = 16 * 2**20
    """Largest body of a request; a larger one gets 413."""
    max_held_bytes: int = 256 * 2**20
    """Largest sum of the bodies of all requests under way in each process; a request beyond it gets 429."""
    max_documents: int = 1000
    """Most documents of one rerank request; more get 413."""
    max_passages: int = 4000
    """Most passages of all documents of one rerank request, where documents are read in passages; more get 413."""
    max_texts: int = 2048
    """Most texts of one embeddings request, the same as OpenAI's; more get 413."""
    max_results: int = 100
    """The largest `top_n` of a search; more are neither retrieved nor reranked."""
    shards: tuple[str, ...] = ()
    """Addresses of the services that each hold a shard of the documents, such as http://10.0.0.7:8080. The release is
    then that of the models, and a search asks them all; see `relevance reindex --shards`."""
    shards_key: str = field(default="", repr=False)
    """API key that the shards are asked with."""
    retrieve: int = 20
    """Documents that BM25 and the encoder each bring to a search before reranking."""
    deadline_s: float = 2.0
    """Seconds that a request may take. One that cannot be answered in time gets 429 at once, or 504 when that shows
    later. A client may ask for another time with `x-request-timeout-ms`."""
    max_deadline_s: float = 30.0
    """Most seconds that a client may ask for."""
    concurrency: int = 256
    """Requests in work at once in each process, most of which wait for the models. Further requests wait for a thread
    while their deadline runs."""
    read_s: float = 10.0
    """Seconds for the head of a request, and for its body, to arrive; then the answer is 408. A client that reads
    less than 256 KiB of a longer answer in this time is cut off."""
    connection_requests: int = 1000
    """Most requests of one connection; the answer to the last closes it."""
    connection_s: float = 60.0
    """Seconds after which the next answer closes a connection, so that clients spread over all workers again."""
    silent_s: float = 30.0
    """Seconds after which a worker is replaced whose event loop, or one of whose model runs, does not come back."""
    poll_s: float = 1.0
    """Seconds between two looks at the pointer to the live release and at the trials."""
    kept_releases: int = 1
    """Number of earlier live releases that stay in memory, so that a rollback loads nothing."""
    canary: str = ""
    """Release that answers a share of the requests from the start, as after `PUT /admin/canary`; once withdrawn, it
    does not begin again."""
    canary_share: float = 0.05
    """Share of the requests that the canary answers, from 0 to 1."""
    shadow: str = ""
    """Release that gets copies of a share of the requests from the start, as after `PUT /admin/shadow`."""
    shadow_share: float = 0.05
    """Share of the requests that are copied to the shadow, from 0 to 1."""
    compare: str = ""
    """Release that is loaded beside the live one, so that the page can show both orders; it answers a search that names
    it as `release`, and no other request."""
    judgments: str = ""
    """Folder with `queries.parquet` and `judgments.parquet`, for a canary's nDCG on the judged queries among the
    searches; training queries are left out."""
    thumbs: str = ""
    """Folder to whose file `thumbs.jsonl` the page's thumbs are written, for reports and retraining; without one the
    page has no thumbs. The file holds queries, and grows to 64 MiB at most."""
    admin_keys: tuple[str, ...] = field(default=(), repr=False)
    """Hashes, like those of `api_keys`, of the keys that open `/admin/`; without any, `/admin/` does not exist."""
    admin_from: str = "loopback"
    """Addresses from which `/admin/` may be called: loopback is this machine only, anywhere is any with the key."""
    drain_s: float = 30.0
    """Seconds that running requests have to finish after SIGTERM."""
    log: str = "auto"
    """Form of log lines: json, plain, or auto, which is plain where standard error is a terminal. Neither holds texts
    of requests."""
    otlp_endpoint: str = ""
    """Address that gets spans by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; without it no spans are
    made."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", tuple(address.rstrip("/") for address in self.shards))
        _check_choices(self)
        _check_numbers(self)
        _check_root_path(self.root_path)
        _check_shards(self.shards)
        _check_host_names(self.allowed_hosts)
        for name in ("api_keys", "admin_keys"):
            _check_hashes(name, getattr(self, name))

    def share(self, cores: int) -> "Settings":
        """The settings of one of the `workers` processes: its share of the cores and of the memory."""
        return dataclasses.replace(
            self,
            workers=1,
            threads=self.threads or max(1, cores // self.workers),
            cache_bytes=self.cache_bytes // self.workers,
        )


def _check_choices(settings: Settings) -> None:
    for name, allowed in (("precision", PRECISIONS), ("log", LOGS), ("admin_from", ADMINS)):
        if getattr(settings, name) not in allowed:
            raise ConfigError(f"{name} is {getattr(settings, name)!r}; it must be one of {', '.join(allowed)}")


def _check_numbers(settings: Settings) -> None:
    if not 0 <= settings.port <= 65535:
        raise ConfigError(f"port is {settings.port}; it must be between 0 and 65535")
    for name in ("threads", "cache_bytes", "kept_releases"):
        if getattr(settings, name) < 0:
            raise ConfigError(f"{name} is {getattr(settings, name)}; it must be 0 or more")
    for name in (*SIZES, *SECONDS):
        if not 0 < getattr(settings, name) < math.inf:
            raise ConfigError(f"{name} is {getattr(settings, name)}; it must be a number above 0")
    for smaller, larger in (("deadline_s", "max_deadline_s"), ("max_body_bytes", "max_held_bytes")):
        if getattr(settings, larger) < getattr(settings, smaller):
            raise ConfigError(
                f"{larger} is {getattr(settings, larger)}, less than {smaller}, {getattr(settings, smaller)}; raise "
                "the one or lower the other"
            )
    for name in ("canary_share", "shadow_share"):
        if not 0 <= getattr(settings, name) <= 1:
            raise ConfigError(f"{name} is {getattr(settings, name)}; it must be between 0 and 1")


def _check_root_path(root_path: str) -> None:
    if root_path and not ROOT_PATH.fullmatch(root_path):
        raise ConfigError(f"root_path is {root_path!r}; it must be a path such as /search, without a slash at its end")


def _check_shards(addresses: tuple[str, ...]) -> None:
    for address in addresses:
        if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", address):
            raise ConfigError(f"shards has {address!r}; write addresses such as http://10.0.0.7:8080")
    if len(set(addresses)) < len(addresses):
        raise ConfigError("shards names an address twice; each shard is asked once")


def _check_host_names(names: tuple[str, ...]) -> None:
    for name in names:
        if not HOST_NAME.fullmatch(name):
            raise ConfigError(
                f"allowed_hosts has {name!r}, which no client can call by; write names such as search.example.com or "
                "*.example.com, without http://, port or path, and other letters as browsers send them (xn--…)"
            )


def _check_hashes(name: str, keys: tuple[str, ...]) -> None:
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
    for variable, setting in _variables().items():
        text = environ.get(variable, "").strip()
        if setting.name not in values and text and not _is_of_kubernetes(variable, text):
            values[setting.name] = _parse(variable, text, setting.type)
    return Settings(**values)


def _variables() -> dict[str, dataclasses.Field[Any]]:
    """Environment variable → the field of `Settings` that it sets."""
    return {f"RELEVANCE_{setting.name.upper()}": setting for setting in dataclasses.fields(Settings)}


def _is_of_kubernetes(variable: str, text: str) -> bool:
    """Whether Kubernetes set a variable of ours: for a service called relevance it sets RELEVANCE_PORT in each pod."""
    return variable == "RELEVANCE_PORT" and bool(SERVICE_ADDRESS.fullmatch(text))


def listed(text: str) -> tuple[str, ...]:
    """The values of a setting that is a list, written with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that begin like ours and name no setting, for a warning: a misspelt key leaves a service open.

    They are not refused, because Kubernetes sets such variables for a service called relevance. One of them has the
    name of a setting, RELEVANCE_PORT; it is among these when its value is an address and no number.
    """
    known = _variables()
    return sorted(
        name
        for name, value in environ.items()
        if name.startswith("RELEVANCE_") and (name not in known or _is_of_kubernetes(name, value.strip()))
    )


def _parse(variable: str, text: str, kind: Any) -> Any:
    if kind == tuple[str, ...]:
        return listed(text)
    try:
        return kind(text)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{variable} is {text!r}; it must be {wanted}") from error
