"""Starts the service: sets up the log, binds the port, then supervises the processes that answer."""

import ipaddress
import logging

from serving.api import keys
from serving.process.listener import listen
from serving.process.logs import write_log
from serving.process.supervisor import Supervisor
from serving.settings import Settings, unknown_variables

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish for at most `drain_s`.

    Raises:
        MissingError: there is no such release, or the file of API keys cannot be read.
        ConfigError: the file of API keys holds none, or something else.
        ArtifactError: the release is damaged or does not fit this machine.
        InputError: the port is in use, or the address is not of this machine.
    """
    write_log(settings.log)
    if names := unknown_variables():
        log.warning("no such setting, so ignored: %s; serving/settings.py lists them", ", ".join(names))
    keys.hashes(settings)  # Else each worker would refuse every request.
    with listen(settings) as listener:
        host = listener.getsockname()[0]
        if not (settings.api_keys or settings.api_keys_file or ipaddress.ip_address(host).is_loopback):
            log.warning("%s: open to the network without a key; `relevance key` makes one for RELEVANCE_API_KEYS", host)
        Supervisor(settings, listener).run()
