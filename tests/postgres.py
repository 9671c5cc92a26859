"""A real PostgreSQL server of its own for the tests, and the URL of a fresh database in it."""

from __future__ import annotations

import glob
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

_COUNT = itertools.count(1)


def _program(name: str) -> str | None:
    """Debian keeps the server's programs out of the PATH."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)  # noqa: PTH207
    return found[0] if found else shutil.which(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One PostgreSQL server on 127.0.0.1, in a folder that goes with it."""

    def __init__(self) -> None:
        initdb, self._postgres = _program("initdb"), _program("postgres")
        if initdb is None or self._postgres is None:
            if os.environ.get("CI"):
                pytest.fail("PostgreSQL is not installed; .ci/run should have done that")
            pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        self.folder = Path(tempfile.mkdtemp(prefix="easel-pg-"))
        # The server refuses to run as root.
        self._user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        if self._user:
            shutil.chown(self.folder, **self._user)
        self.port = free_port()
        self._data = str(self.folder / "data")
        subprocess.run(
            [initdb, "-D", self._data, "-U", "easel", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            **self._user,  # type: ignore[call-overload]
        )
        self.start()

    def start(self) -> None:
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",  # the machine is not going to lose power on purpose
            "max_connections": 200,
        }
        settings = [part for pair in options.items() for part in ("-c", "{}={}".format(*pair))]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._postgres), "-D", self._data, *settings],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **self._user,  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.do("SELECT 1")
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """At once: connections break."""
        self._process.send_signal(3)  # immediate shutdown
        self._process.wait(30)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def do(self, statement: str) -> None:
        place = f"postgresql://easel@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(place, autocommit=True) as connection:
            connection.execute(statement.encode())

    def fresh(self) -> str:
        """The URL of an empty schema: as good as a database, and made in no time."""
        name = f"easel_{next(_COUNT)}"
        self.do(f"CREATE SCHEMA {name}")
        place = f"postgresql://easel@127.0.0.1:{self.port}/postgres"
        return f"{place}?options=-csearch_path%3D{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'easel.db'}"
    server: Server = request.getfixturevalue("postgres")
    return server.fresh()
