"""Passwords of addresses are hidden wherever an address is shown or written down."""

import io
import logging
import random
import sqlite3
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline import recipe
from pipeline.config import DataConfig, SourceConfig
from pipeline.data import judgments, sources
from pipeline.data.formats import sql, sql_address
from pipeline.errors import InputError
from pipeline.secrets import hide_passwords, hide_passwords_in_logs, is_secret, secrets_as_variables

NAMES = (
    "password",
    "sslpassword",
    "passwd",
    "pwd",
    "PWD",
    "secret",
    "client_secret",
    "token",
    "api_key",
    "access_key",
    "sig",
    "X-Amz-Signature",
    "x-amz-security-token",
    "odbc_connect",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_no_parameter_that_holds_a_password_is_shown(name: str, seed: int) -> None:
    rng = random.Random(seed)
    secret = "".join(rng.choices(string.ascii_letters + string.digits + "%+-._~", k=12))
    before, after = rng.sample(["?", "?a=b&", "?table=shop&"], 1)[0], rng.choice(["", "&sslmode=require", " and more"])
    address = f"postgresql://user:{secret}@host/shop{before}{name}={secret}{after}"
    assert is_secret(name)
    shown = hide_passwords(f"cannot read {address}")
    assert secret not in shown
    assert shown.endswith(f"{name}=***{after}")
    assert "host/shop" in shown


@pytest.mark.parametrize("name", ["table", "sslmode", "host", "passenger", "tokens"])
def test_other_parameters_stay(name: str) -> None:
    assert not is_secret(name)
    assert hide_passwords(f"sqlite:///shop.db?{name}=value") == f"sqlite:///shop.db?{name}=value"


@pytest.mark.filterwarnings("ignore:Query string argument:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_database_that_cannot_be_read_is_named_without_its_secrets(tmp_path: Path, name: str) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table documents (doc_id text)")
    for query in ("table=missing&", ""):
        config = SourceConfig(path=f"sqlite:///shop.db?{query}{name}=hunter2")
        with pytest.raises(InputError) as error:
            sources.read(config, tmp_path)
        assert "hunter2" not in str(error.value)
    plain = recipe.to_dict(DataConfig(sources=(config,)))
    assert "hunter2" not in str(plain)


@pytest.mark.filterwarnings("ignore:Query string argument:sqlalchemy.exc.SAWarning")
def test_a_driver_that_repeats_a_secret_does_not_give_it_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise sa.exc.OperationalError("connect", {}, Exception("key of hunter2 is wrong"))

    monkeypatch.setattr(sql, "_rows", fail)
    (tmp_path / "shop.db").touch()
    with pytest.raises(InputError, match=r"key of \*\*\* is wrong") as error:
        sql.read(SourceConfig(path="sqlite:///shop.db?sslpassword=hunter2"), tmp_path)
    assert "hunter2" not in str(error.value)


def test_the_data_artifact_of_a_database_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table rated (q text, name text, grade integer)")
        connection.executemany("insert into rated values (?, ?, ?)", [("lamp", "red lamp", 1), ("chair", "chair", 1)])
    real = sql_address.locate

    def locate(url: str, root: Path) -> tuple[sa.URL, str]:
        """SQLite takes no such parameter; another database would."""
        address, name = real(url, root)
        return address.difference_update_query(["sslpassword"]), name

    monkeypatch.setattr(sql_address, "locate", locate)
    columns = {"query": "q", "title": "name", "grade": "grade"}
    source = SourceConfig(path="sqlite:///shop.db?table=rated&sslpassword=hunter2", columns=columns)
    data = judgments.make(tmp_path / "work", DataConfig(root=str(tmp_path), sources=(source,), splits="test"))
    assert data.metrics["judgments"] == 2
    for file in (tmp_path / "work").rglob("*"):
        assert file.is_dir() or b"hunter2" not in file.read_bytes(), file


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:hun@ter2@host/shop",
        "host=db user=shop password=hunter2 port=5432",
        "Driver=x;UID=shop;PWD=hunter2;Server=db",
        "{'user': 'shop', 'password': 'hun ter2', 'port': 5432}",
        '{"db_password": "hunter2"}',
        "PASſWORD: hunter2",
        "DB_PASSWD=hunter2",
        "https://hunter2hunter2hunter2hunter2@example.org/model",
        "GET /rerank?api_key=hunter2",
        "abfs://a-container-with-a-long-name@account/folder?sv=1&sig=hunter2",
        "Authorization: Bearer hunter2hunter2hunter2",
        "aws_secret_access_key=hunter2 region=x",
    ],
)
def test_a_password_in_any_form_of_address_is_hidden(text: str) -> None:
    shown = hide_passwords(text)
    assert "ter2" not in shown
    assert "***" in shown
    assert hide_passwords(shown) == shown


@pytest.mark.parametrize("text", ["unexpected token: ']'", "max_tokens=128;pad=1&x?", "https://user@host/x?a=b", ""])
def test_what_is_no_secret_stays(text: str) -> None:
    assert hide_passwords(text) == text


@pytest.mark.parametrize(
    ("address", "expected", "names"),
    [
        ("postgresql://shop:hunter2@db/shop", "postgresql://shop:${PW}@db/shop", ["PW"]),
        ("postgresql://shop:${MINE}@db/shop", "postgresql://shop:${MINE}@db/shop", []),
        ("postgresql://shop:${MINE}@db/s?password=${ITS}", "postgresql://shop:${MINE}@db/s?password=${ITS}", []),
        ("mysql://a:b@db/s?sslpassword=c&t=d", "mysql://a:${PW}@db/s?sslpassword=${PW_2}&t=d", ["PW", "PW_2"]),
        ("sqlite:///shop.db?table=rated", "sqlite:///shop.db?table=rated", []),
    ],
)
def test_variables_take_the_place_of_secrets(address: str, expected: str, names: list[str]) -> None:
    assert secrets_as_variables(address, "PW") == (expected, names)


@pytest.mark.parametrize(
    "text",
    [
        "password: an access token",
        "no password is given",
        "passwords = 3",
        "https://user@host/x",
        "a pwd command",
        "abfs://a-container-with-a-long-name@account/folder",
        "what does Bearer mean?",
    ],
)
def test_what_only_mentions_passwords_keeps_its_sense(text: str) -> None:
    assert hide_passwords(text).startswith(text.split(":", maxsplit=1)[0].split("=", maxsplit=1)[0])


@pytest.fixture
def hiding() -> Iterator[None]:
    """Log records hide passwords until the test ends."""
    before = logging.getLogRecordFactory(), sys.excepthook
    hide_passwords_in_logs()
    hide_passwords_in_logs()  # A second call changes nothing.
    yield
    logging.setLogRecordFactory(before[0])
    sys.excepthook = before[1]


@pytest.mark.usefixtures("hiding")
@pytest.mark.parametrize("seed", range(20))
def test_no_log_line_holds_a_password_wherever_it_came_in(seed: int) -> None:
    rng = random.Random(seed)
    secret = "".join(rng.choices(string.ascii_letters + string.digits + "%+-._~@!$&*", k=12))
    scheme = rng.choice(["postgresql", "mysql+pymysql", "redis", "https"])
    address = f"{scheme}://{rng.choice(['', 'user'])}:{secret}@host:5432/shop"
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    logger = logging.getLogger(f"of a library {seed}")
    logger.addHandler(handler)
    logger.error("cannot reach %s: %d tries", address, 3)
    logger.error(f"cannot reach {address}")
    logger.error("cannot reach %(url)s", {"url": address})
    logger.error(ConnectionError(address))
    try:
        raise ConnectionError(address)
    except ConnectionError:
        logger.exception("failed on %s", {"url": address})
    written = lines.getvalue()
    assert secret not in written
    assert written.count("***") == 6
    assert "cannot reach" in written
    assert "3 tries" in written
    assert "Traceback" in written


def test_a_traceback_that_nobody_caught_holds_no_password() -> None:
    code = (
        "import threading; from pipeline.secrets import hide_passwords_in_logs; hide_passwords_in_logs()\n"
        "def fail(): raise ConnectionError('postgresql://user:hunter2@host/shop')\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join(); fail()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("postgresql://user:***@host/shop") == 2
    assert "hunter2'" not in done.stderr


def test_an_error_that_no_command_expects_is_shown_without_passwords() -> None:
    code = (
        "import sys; from flows import init; from flows.cli import command\n"
        "def fail(*arguments): raise ValueError('cannot reach postgresql://user:hunter2@host/shop')\n"
        "init.write = fail; sys.argv = ['relevance', 'init', '.']; command.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: cannot reach postgresql://user:***@host/shop\n")
