"""Where a study's database is and how it is connected to: URLs, drivers, settings, and who may make its tables."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from mmsearch.config import hide_password
from mmsearch.errors import NoStudy, StorageError, UsageError
from mmsearch.search.mounts import network_file_system
from mmsearch.search.outage import storage_error

SQLITE_TIMEOUT_S = 10  # for which SQLite itself waits for a lock, before the call is repeated
CREATION_LOCK = 0x6D6D7365  # any number that others do not use for an advisory lock

# libpq's own settings, unless the URL has them: a server that is cut off is noticed within half a minute.
CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# The server's settings of each connection: nobody waits for ever for a lock, nor holds one when its machine is gone.
SESSION = "-c lock_timeout=30s -c idle_in_transaction_session_timeout=60s -c tcp_keepalives_idle=30"


def engine_settings(url: str) -> dict[str, Any]:
    """What the budget, the heartbeats and the waits rely on, whatever the server's or the user's defaults are."""
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": SQLITE_TIMEOUT_S}}
    query = sa.make_url(url).query
    given = query.get("options", "")
    options = f"{SESSION} {given if isinstance(given, str) else ' '.join(given)} -c timezone=UTC"
    return {
        "pool_pre_ping": True,
        "isolation_level": "READ COMMITTED",
        "connect_args": {**_connection(url), "options": " ".join(options.split())},
    }


def _connection(url: str) -> dict[str, Any]:
    given = sa.make_url(url).query
    return {name: value for name, value in CONNECTION.items() if name not in given}


def use_write_ahead_log(engine: sa.Engine, url: str) -> None:
    """Let SQLite's readers not wait for its writer, and a commit cost no flush of the disk's cache.

    Each connection raises `StorageError` where the file system has no write-ahead log.
    """

    def prepare(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        try:
            mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                raise StorageError(
                    f"{hide_password(url)}: SQLite cannot keep its write-ahead log there (journal_mode is {mode}), "
                    "without which workers wait for each other; use a folder on a local disk, or PostgreSQL"
                )
            cursor.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            connection.close()
            raise
        cursor.close()

    sa.event.listen(engine, "connect", prepare)
    engine.dispose()  # connections that were made before the listener was


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Let what goes wrong with a connection be said to the user.

    Raises `UsageError` for a URL that names no driver that is installed, and `StorageError` for the database's errors.
    """
    try:
        yield
    except (ImportError, ValueError, sa.exc.ArgumentError) as error:
        raise _url_error(url, error) from None
    except (sa.exc.SQLAlchemyError, StorageInternalError) as error:
        raise storage_error(url, error) from None


def _url_error(url: str, error: Exception) -> UsageError:
    """What is wrong with a storage's URL, for the user."""
    if isinstance(error, ImportError):
        return UsageError(
            f"{hide_password(url)}: the database's driver is not installed; pip install 'mmsearch[postgres]' brings it"
        )
    return UsageError("the storage URL cannot be read: it must look like postgresql://user@host:port/name")


def must_be_made(url: str) -> None:
    """Raise `NoStudy` where somebody has yet to make the tables, or is about to.

    Optuna writes its version into a database that has none, also where it is only to read, and whoever makes the
    tables at that moment fails.
    """
    path = sqlite_path(url)
    made = path is None or path.exists()
    if made:
        engine = sa.create_engine(url, poolclass=sa.NullPool, **engine_settings(url))
        with engine.connect() as connection:
            made = sa.inspect(connection).has_table("alembic_version") and bool(
                connection.execute(sa.text("SELECT version_num FROM alembic_version")).first()
            )
    if not made:
        raise NoStudy(f"{path or hide_password(url)}: there is no study yet; `mmsearch launch` makes one")


def must_be_current(storage: RDBStorage, url: str) -> None:
    """Raise `StorageError` where the tables are of another version of Optuna than the one that is installed."""
    found, wanted = storage.get_current_version(), storage.get_head_version()
    if found != wanted:
        known = found in storage.get_all_versions()
        then = "`optuna storage upgrade` brings them up to date" if known else "use the mmsearch that made them"
        what = f"its tables are of another version of Optuna ({found}, not {wanted})"
        raise StorageError(f"{hide_password(url)}: {what}; {then}")


def must_be_local(url: str) -> None:
    """Raise `StorageError` for SQLite on a network file system, which loses its locks."""
    path = sqlite_path(url)
    kind = None if path is None else network_file_system(path)
    if kind is not None:
        raise StorageError(
            f"{path}: SQLite does not work on a network file system ({kind}), where processes do not see each other's "
            "locks; use PostgreSQL (--storage postgresql://user@host/name), or a folder on a local disk"
        )


@contextmanager
def creation_lock(url: str) -> Iterator[None]:
    """One process at a time makes tables and studies: without it most of those that start together would crash.

    Raises as `open_storage` does.
    """
    path = sqlite_path(url)
    if path is not None:
        must_be_local(url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path.parent, os.O_RDONLY)
        except OSError as error:
            raise StorageError(f"{path.parent}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
        return
    with explained(url):
        # without a transaction, which a server may end for being idle, and the lock with it; and however long it takes
        engine = sa.create_engine(
            url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT", connect_args=_connection(url)
        )
        connection = engine.connect()
        connection.execute(sa.select(sa.func.set_config("lock_timeout", "0", False)))
        connection.execute(sa.select(sa.func.pg_advisory_lock(CREATION_LOCK)))  # ends with the connection
    try:
        yield
    finally:
        with suppress(sa.exc.SQLAlchemyError):  # it was cut meanwhile
            connection.close()


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite database; None for another database."""
    return Path(sa.make_url(url).database or "") if url.startswith("sqlite") else None
