"""Addresses of databases: SQLAlchemy URLs, with a table's name and environment variables in them.

    sqlite:///shop.db                                                   the table `documents`
    postgresql+psycopg://user:${DB_PASSWORD}@host/shop?table=articles   another table or view

`${NAME}` stands for an environment variable, so that a recipe, a schedule or a release holds no password.
"""

import difflib
import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from pipeline.errors import ConfigError, MissingError
from pipeline.secrets import HIDDEN, hide_passwords, is_secret
from pipeline.storage import SCHEMES

_ENCODED = re.compile(r"(?:%[89A-Fa-f][0-9A-Fa-f])+")
"""Percent-encoded bytes of characters beyond ASCII."""
DATABASES = ("sqlite", "postgresql", "mysql", "mariadb", "mssql", "oracle")
"""Databases that SQLAlchemy knows without another package."""
_OTHER_NAMES = {"postgres": "postgresql", "sqlserver": "mssql"}
"""Beginnings of addresses that other programs write → those of SQLAlchemy."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def locate(url: str, root: Path) -> tuple[sa.URL, str]:
    """The database and the name of the table; an SQLite file is looked for below `root`.

    Raises:
        ConfigError: not a SQLAlchemy URL, an environment variable that is not set, or a password that was hidden.
        MissingError: no such SQLite file.
    """
    address = _address(url)
    if HIDDEN in secrets_of(address):
        raise ConfigError(
            f"{hide_passwords(url)}: its password was hidden when this address was written down; put it into an "
            "environment variable, and write ${NAME} in its place in the recipe"
        )
    name = address.query.get("table", "documents")
    address = address.difference_update_query(["table"])
    named = address.database or address.host or ":memory:"
    if address.get_backend_name() == "sqlite" and named != ":memory:":
        file = root / named
        if address.host or not file.is_file():
            raise MissingError(f"{file}: no such SQLite file{_slashes(address)}")
        address = address.set(database=str(file))
    return address, str(name)


def _slashes(address: sa.URL) -> str:
    """The address that an SQLite file's was most likely meant to be, with the slashes that it lacks; empty for none."""
    relative = "/".join(filter(None, (address.host, address.database)))
    if Path("/", relative).is_file():
        return f"; an absolute path follows four slashes: sqlite:////{relative}"
    return f"; a path follows three slashes, an absolute one four: sqlite:///{relative}" if address.host else ""


def without_driver(address: sa.URL, error: Exception) -> ConfigError:
    """The error for an address whose kind of database or driver is not known here, with what to write or install."""
    scheme = address.get_backend_name() if "+" in address.drivername else address.drivername
    near = [_OTHER_NAMES[scheme]] if scheme in _OTHER_NAMES else difflib.get_close_matches(scheme, DATABASES, 1, 0.6)
    if scheme in ("http", "https", "ftp"):
        advice = "download the file and name it"
    elif isinstance(error, ImportError) or scheme in DATABASES:
        advice = "install the driver, or name one that is there, as in mysql+pymysql://"
    elif near:
        advice = f"did you mean {near[0]}://?"
    else:
        advice = (
            f"known are {', '.join(DATABASES)}, others with a package of their own, and the storage of "
            f"{', '.join(f'{name}://' for name in SCHEMES[:4])}"
        )
    return ConfigError(f"{readable(address)}: no driver for this database ({error}); {advice}")


def short_name(url: str) -> str:
    """The table that a URL names, or its database where it names none; no user, host or password.

    Raises:
        ConfigError: see `locate`.
    """
    address = _address(url)
    table = address.query.get("table", "")
    return str(table) or Path(address.database or "").stem


def database_name(url: str) -> str:
    """The database that a URL names; no user, host or password."""
    return Path(_address(url).database or "").stem or "own"


def _address(url: str) -> sa.URL:
    """The address of a URL with the values of the environment variables that it names; see `locate` for the errors."""
    try:
        return sa.make_url(_VARIABLE.sub(_value_of, url))
    except (ArgumentError, ValueError) as error:
        shown = hide_passwords(re.sub(r"//.*@", f"//{HIDDEN}@", url))
        raise ConfigError(f"{shown}: not a SQLAlchemy URL; write it as sqlite:///shop.db?table=documents") from error


def _value_of(variable: re.Match[str]) -> str:
    """The value of an environment variable as it is written in a URL."""
    value = os.environ.get(variable[1])
    if value is None:
        raise ConfigError(f"the environment variable {variable[1]} is not set; a database's address names it")
    return quote(value, safe="")


def readable(address: sa.URL) -> str:
    """An address without its password, for messages: names that are not ASCII as a person writes them."""
    shown = hide_passwords(address.render_as_string(hide_password=True))
    return _ENCODED.sub(lambda coded: unquote(coded[0]), shown)


def shown_as(address: sa.URL, source: str) -> str:
    """An address without its password, and the table or query that is read, for messages."""
    return f"{readable(address)}, {source}"


def secrets_of(address: sa.URL) -> list[str]:
    """The password of an address and the values of its parameters that hold one; drivers repeat them in errors."""
    values = [str(address.password or "")]
    for name, value in address.query.items():
        if is_secret(name):
            values += [value] if isinstance(value, str) else value
    return [value for value in values if value]
