"""Access control: decides who may call an endpoint from the head of a request, before its body is read."""

import functools
import ipaddress

from starlette.datastructures import Headers
from starlette.types import Scope

from serving.api import keys
from serving.api.paths import Access, Endpoint, no_such_path
from serving.errors import AuthenticationError, HostError, NotFoundError
from serving.settings import Settings

KEY_HEADERS = ("x-api-key", "api-key")
"""Headers beside Authorization in which a client may send its key."""


class AccessControl:
    """Checks the host name, then the key that the endpoint asks for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = keys.KeyRing(settings)
        self._admin_keys = [bytes.fromhex(key) for key in settings.admin_keys]

    def check(self, scope: Scope, endpoint: Endpoint, headers: Headers) -> None:
        """Lets a request through.

        Raises:
            HostError: the Host header holds a name that is not the service's.
            NotFoundError: the administrators' endpoints do not exist for this client.
            AuthenticationError: no key, or none that is known.
        """
        self._check_host(headers)
        if endpoint.access is Access.ADMIN:
            client = scope.get("client")
            if not admin_exists_for(self._settings, client[0] if client else ""):
                raise NotFoundError(no_such_path(scope["path"]))
            if not any(keys.matches(key, self._admin_keys) for key in keys.candidates(headers, *KEY_HEADERS)):
                raise AuthenticationError("an administrator's key is missing; send it as Authorization: Bearer KEY")
        elif endpoint.access is Access.API_KEY and (known := self._keys.known()):
            sent = keys.candidates(headers, *KEY_HEADERS)
            if not any(keys.matches(key, known) for key in sent):
                problem = "the API key is not known" if sent else "an API key is missing"
                raise AuthenticationError(f"{problem}; send it as Authorization: Bearer KEY")

    def _check_host(self, headers: Headers) -> None:
        """Stops DNS rebinding: a web page that points a name of its own at this machine could read the answers of a
        service that asks for no key."""
        if self._keys.known() and not self._settings.allowed_hosts:
            return
        host = _host_name(headers.get("host", ""))
        if not (_cannot_be_rebound(host) or any(_fits(host, name) for name in self._settings.allowed_hosts)):
            raise HostError(
                f"the service does not answer as {host[:100]!r}; call it by its address, or add the name to "
                "RELEVANCE_ALLOWED_HOSTS"
            )


def admin_exists_for(settings: Settings, client: str) -> bool:
    """Whether there are administrators' endpoints for a client of this address."""
    return bool(settings.admin_keys) and (settings.admin_from != "loopback" or _is_loopback(client))


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def _host_name(header: str) -> str:
    """The name of a Host header in lower case, without its port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


@functools.lru_cache(maxsize=16)  # A service is called by few names, with every request.
def _cannot_be_rebound(host: str) -> bool:
    """Whether a stranger's web page cannot have this host name: an address, localhost, or a name of the local network
    only, which has no dot. A request without a Host header comes from no browser."""
    if "." not in host and ":" not in host:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.endswith(".localhost")
    return True


def _fits(host: str, allowed: str) -> bool:
    allowed = allowed.lower()
    return allowed in ("*", host) or (allowed.startswith("*.") and host.endswith(allowed[1:]))
