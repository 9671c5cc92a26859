"""The database: one place where everything is written, and threads that read beside it.

What you can rely on: what `write` returned from is committed; it is all there or not at all; writes
happen one after the other, in the order they were asked for, and those that wait share one commit.
On SQLite, a second process that opens the same file is refused.

SQLAlchemy runs in threads of its own here, not on the event loop: each call of its async twin for
SQLite changes threads several times, which on a busy machine costs more than the writing itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, insert, make_url, select

from app.store.errors import StorageFull, StoreUnavailable
from app.store.schema import META

_log = logging.getLogger(__name__)

T = TypeVar("T")
Synchronous = Literal["normal", "full"]

_GROUP = 256
"""So many writes share a commit at most."""

_BUSY = 1.5
"""Seconds to wait for a file that another program has locked, or for a server to answer."""

_SERVER = {"connect_timeout": "2", "tcp_user_timeout": "5000", "application_name": "easel"}


class StoreRefused(Exception):
    """The database cannot be used as it is; the message says why."""


class _Write(NamedTuple):
    work: Callable[[Connection], Any]
    done: asyncio.Future[Any]


class _Outcome(NamedTuple):
    value: Any = None
    error: Exception | None = None


class Database:
    """Made by `at` and then started, or both by `open`.

    `instance` names this database: a copy of it has the same name.
    """

    def __init__(self, writer: Engine, reader: Engine, readers: int, file: Path | None) -> None:
        self.writer = writer
        self._reader = reader
        self._file = file
        self._lock: int | None = None
        self._writing = ThreadPoolExecutor(1, "store-write")
        self._reading = ThreadPoolExecutor(readers, "store-read")
        self._waiting: list[_Write] = []
        self._pump: asyncio.Task[None] | None = None
        self._closed = False
        self.instance = ""

    @classmethod
    async def open(
        cls, url: str, *, synchronous: Synchronous = "normal", readers: int = 3
    ) -> Database:
        """The same as `at` and `start`. Raises StoreRefused, StoreUnavailable."""
        database = cls.at(url, synchronous=synchronous, readers=readers)
        try:
            await database.start()
        except BaseException:
            await database.close()
            raise
        return database

    @classmethod
    def at(cls, url: str, *, synchronous: Synchronous = "normal", readers: int = 3) -> Database:
        """A database that is not connected yet.

        `sqlite:///path` or `postgresql://…`. With `synchronous="normal"` SQLite keeps every commit
        through a crash of this process, and through a power cut all but those of the last moments;
        with "full" those too, at the price of waiting for the disk at every commit. PostgreSQL does
        what its own `synchronous_commit` says.

        Raises StoreRefused.
        """
        try:
            parsed = make_url(url)
        except exc.ArgumentError as error:
            raise StoreRefused("the database's URL cannot be read") from error
        if parsed.get_backend_name() == "sqlite":
            return _on_sqlite(cls, parsed, synchronous, readers)
        if parsed.get_backend_name() == "postgresql":
            return _on_postgresql(cls, parsed, readers)
        raise StoreRefused("the database is neither sqlite:///… nor postgresql://…")

    @property
    def shared(self) -> bool:
        """Whether another process may write to it while this one has it."""
        return self._file is None

    async def start(self) -> None:
        """Connect and bring the schema up to date, once. Raises StoreRefused, StoreUnavailable."""
        if self.instance:
            return
        if self._file is not None:
            self._lock = _locked(self._file)
            if warning := sqlite_warning():
                _log.warning(warning)
        await asyncio.get_running_loop().run_in_executor(self._writing, self._prepare)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Commit what waits, and let go of the file or the server."""
        if self._closed:
            return
        self._closed = True
        if self._pump is not None:
            await self._pump
        await asyncio.to_thread(self._reading.shutdown)
        self._reader.dispose()  # before the writer: the last one to close a file tidies it
        self._writing.submit(self.writer.dispose)
        await asyncio.to_thread(self._writing.shutdown)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, once what it wrote is committed.

        `work` may be run a second time after a rollback. A caller that is cancelled before its turn
        has written nothing.

        Raises StoreUnavailable (it is unknown whether it was committed), StorageFull.
        """
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(work, done))
        if self._pump is None:
            self._pump = asyncio.create_task(self._commit_all())
        return await done

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, from one snapshot. Raises StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reading, self._look, work)

    async def free_bytes(self) -> int | None:
        """How much room the file's disk has; None where nobody knows."""
        if self._file is None:
            return None
        try:
            facts = await asyncio.to_thread(os.statvfs, self._file.parent)
        except OSError:
            return None
        return facts.f_bavail * facts.f_frsize

    async def check(self) -> list[str]:
        """What the database itself finds wrong with its file; nothing, on a server."""
        return await self.write(_faults)

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:_GROUP], self._waiting[_GROUP:]
                outcomes = await loop.run_in_executor(self._writing, self._commit, group)
                for write, outcome in zip(group, outcomes, strict=True):
                    if write.done.done():  # its caller has gone
                        continue
                    if outcome.error is not None:
                        write.done.set_exception(outcome.error)
                    else:
                        write.done.set_result(outcome.value)
        finally:
            self._pump = None

    def _commit(self, group: Sequence[_Write], again: bool = True) -> list[_Outcome]:
        try:
            with self.writer.begin() as connection:
                return [
                    _Outcome() if write.done.cancelled() else _Outcome(write.work(connection))
                    for write in group
                ]
        except Exception as error:  # whatever it is, it belongs to the callers
            if again and _lost(error):
                return self._commit(group, again=False)
            told = _translated(error)
            if len(group) > 1 and not isinstance(told, StoreUnavailable):
                return [outcome for write in group for outcome in self._commit([write])]
            return [_Outcome(error=told)] * len(group)

    def _look(self, work: Callable[[Connection], T], again: bool = True) -> T:
        try:
            with self._reader.connect() as connection:
                return work(connection)
        except (exc.SQLAlchemyError, OSError) as error:
            if again and _lost(error):
                return self._look(work, again=False)
            raise _translated(error) from error

    def _prepare(self) -> None:
        config = Config()
        folder = str(Path(__file__).parent / "migrations")
        config.set_main_option("script_location", folder.replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        try:
            with self.writer.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                name = connection.scalar(select(META.c.value).where(META.c.name == "instance"))
                if name is None:
                    name = secrets.token_hex(16)
                    connection.execute(insert(META).values(name="instance", value=name))
                self.instance = name
        except CommandError as error:
            raise StoreRefused("the database was written by a newer version of Easel") from error
        except (exc.SQLAlchemyError, OSError) as error:
            raise _translated(error) from error


def _lost(error: Exception) -> bool:
    """Whether a connection that was kept for later turned out to be dead."""
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


def _translated(error: Exception) -> Exception:
    if isinstance(error, exc.DBAPIError):
        if "disk is full" in str(error.orig) or getattr(error.orig, "sqlstate", "") == "53100":
            _log.error("the database has no room left")
            return StorageFull("There is no room left for jobs.")
        if isinstance(error, exc.OperationalError | exc.InterfaceError) or _lost(error):
            _log.error("the database does not answer: %s", type(error.orig).__name__)
            return StoreUnavailable("The store does not answer now.")
    if isinstance(error, exc.TimeoutError | OSError):
        return StoreUnavailable("The store does not answer now.")
    return error


# -- SQLite ----------------------------------------------------------------------------------------


def sqlite_warning(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> str | None:
    """What to say of a SQLite whose write-ahead log can lose pages when two connections write."""
    if not (3, 7, 0) <= version <= (3, 51, 2):
        return None
    number = ".".join(map(str, version))
    return (
        f"SQLite {number} has a fault that can damage a database which several programs write to "
        "(fixed in 3.51.3). Easel writes through one connection and locks the file against a second "
        "Easel; let no other program write to it."
    )


def _on_sqlite(kind: type[Database], url: URL, synchronous: Synchronous, readers: int) -> Database:
    if not url.database or url.database == ":memory:":
        raise StoreRefused("a database in memory keeps nothing; give sqlite:///path")
    both = (f"busy_timeout={_BUSY * 1000:.0f}", "foreign_keys=ON", "mmap_size=0")
    arguments = {"check_same_thread": False, "timeout": _BUSY}
    writer = create_engine(url, pool_size=1, max_overflow=0, connect_args=arguments)
    _begin_with(writer, "BEGIN IMMEDIATE")
    # Deleted rows are overwritten, so that deleted data is gone from the file as well.
    own = (*both, "journal_mode=WAL", f"synchronous={synchronous}", "secure_delete=ON")
    _set_up(writer, (*own, "journal_size_limit=67108864"))
    reader = create_engine(url, pool_size=readers, max_overflow=0, connect_args=arguments)
    _begin_with(reader, "BEGIN")
    _set_up(reader, (*both, "query_only=ON", "wal_autocheckpoint=0"))
    return kind(writer, reader, readers, Path(url.database))


def _locked(file: Path) -> int:
    """The handle of a lock that only one process holds, and that ends with it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreRefused(f"{file.parent} cannot be written to: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StoreRefused(f"{file.name} is in use by another process") from error
    return lock


def _set_up(engine: Engine, pragmas: Sequence[str]) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")


def _begin_with(engine: Engine, statement: str) -> None:
    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(statement)


def _faults(connection: Connection) -> list[str]:
    if connection.dialect.name != "sqlite":
        return []
    said = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    found = [str(line) for line in said if line != "ok"]
    found += [str(row) for row in connection.exec_driver_sql("PRAGMA foreign_key_check")]
    connection.exec_driver_sql("INSERT INTO prompts(prompts) VALUES ('integrity-check')")
    return found


# -- PostgreSQL ------------------------------------------------------------------------------------


def _on_postgresql(kind: type[Database], url: URL, readers: int) -> Database:
    url = url.set(drivername="postgresql+psycopg")
    given = {name: value for name, value in _SERVER.items() if name not in url.query}
    writer = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=_BUSY, connect_args=given)
    reader = create_engine(
        url,
        pool_size=readers,
        max_overflow=0,
        pool_timeout=_BUSY,
        connect_args=given,
        isolation_level="REPEATABLE READ",
    )
    return kind(writer, reader, readers, None)
