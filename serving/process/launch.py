"""Starts the service: sets up the log, binds the port, then supervises the processes that answer."""

import contextlib
import ipaddress
import logging
import resource

from serving.api import keys
from serving.process.listener import listen
from serving.process.logs import write_log
from serving.process.supervisor import Supervisor
from serving.settings import Settings, unknown_variables

MOST_FILES = 2**16
"""Files and connections that a process of the service may have open, where the system allows more."""

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM, SIGINT or SIGHUP, then lets running requests finish for at most `drain_s`.

    Raises:
        MissingError: there is no such release, or the file of API keys cannot be read.
        ConfigError: the file of API keys holds none, or something else.
        ArtifactError: the release is damaged or does not fit this machine.
        InputError: the port is in use, or the address is not of this machine.
    """
    write_log(settings.log)
    if names := unknown_variables():
        log.warning("no settings of the service, so ignored: %s; serving/settings.py lists them", ", ".join(names))
    allow_files()
    keys.hashes(settings)  # Else each worker would refuse every request.
    with listen(settings) as listener:
        host = listener.getsockname()[0]
        if not (settings.api_keys or settings.api_keys_file or ipaddress.ip_address(host).is_loopback):
            log.warning("%s: open to the network without a key; `relevance key` makes one for RELEVANCE_API_KEYS", host)
        Supervisor(settings, listener).run()


def allow_files() -> None:
    """Lets this process and its workers open as many files as the system allows, up to MOST_FILES.

    A connection is an open file. The usual limit of 1,024 is meant for programs that call `select`; idle clients
    would reach it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
