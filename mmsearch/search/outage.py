"""When a study's storage is away: which errors say so, and calls that wait until it is back."""

from __future__ import annotations

import functools
import logging
import random
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

from mmsearch.config import hide_password
from mmsearch.errors import StorageError, StorageLost

PATIENCE_S = 120.0  # how long a call waits for a storage that is away, unless its study says otherwise
FIRST_DELAY_S, LAST_DELAY_S = 0.05, 2.0  # between two attempts: each is up to twice as long as the one before
QUIET_S = 1.0  # nothing is said of an outage that is over sooner

# PostgreSQL's states (SQLSTATE): a connection broke (08), a lock or a transaction had to give way (40001, 40P01, 55P03,
# 57014), the server stops, starts, recovers, is a replica for a while (57P01 to 57P05, 25006), ended a transaction that
# was idle (25P03, 25P04), or has no room for another connection (53200, 53300).
AWAY = re.compile(r"08...|40001|40P01|55P03|57014|57P0[1235]|25006|25P0[34]|53[23]00")
REFUSED = re.compile(r"28...|3D000|42501|53100|58030|XX00[012]")
# A failed connection has no state, only words, which the server may say in another language: then it counts as away.
REFUSED_IN_WORDS = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|does not exist|not permitted to log in|"
    r"permission denied|SSL was required|certificate|unrecognized configuration parameter|unsupported startup parameter"
)
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

# What the user can do about an error that no waiting ends: by PostgreSQL's state, or words, and by SQLite's code.
ADVICE = (
    ("53100", None, "free some space on the server's disk, and run the same command again"),
    ("28...", "authentication failed|password", "look at the user and the password in the URL, or in ~/.pgpass"),
    ("3D000", "database .* does not exist", "create the database first, as createdb does"),
    ("42501", "permission denied|not permitted", "give the user its rights on the database"),
)
SQLITE_ADVICE = {
    sqlite3.SQLITE_FULL: "free some space on its disk, and run the same command again",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_PERM: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "its folder must be there, and writable",
    sqlite3.SQLITE_IOERR: "its disk fails, or is full",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: put a copy in its place, or use another with --storage",
    sqlite3.SQLITE_NOTADB: "use another file with --storage",
}

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the database is away or locked, so that the same call may succeed later."""
    found = _database_error(error)
    if found is None:
        return False
    if isinstance(found.orig, sqlite3.Error):
        return _sqlite_code(found.orig) in LOCKED
    state = _state(found)
    if state is not None:
        return found.connection_invalidated or AWAY.fullmatch(state) is not None
    broken = found.connection_invalidated or isinstance(found, sa.exc.OperationalError | sa.exc.InterfaceError)
    return broken and not REFUSED_IN_WORDS.search(_words(found))


def is_locked(error: BaseException) -> bool:
    """Whether an error says that another process has a SQLite database to itself."""
    found = _database_error(error)
    return found is not None and isinstance(found.orig, sqlite3.Error) and is_outage(error)


def is_refusal(error: BaseException) -> bool:
    """Whether an error says that waiting is of no use: a full disk, a read-only file, a wrong password."""
    found = _database_error(error)
    if found is None or is_outage(error):
        return False
    if isinstance(found.orig, sqlite3.Error):
        return _sqlite_code(found.orig) in SQLITE_ADVICE
    state = _state(found)
    return bool(REFUSED.fullmatch(state) if state is not None else REFUSED_IN_WORDS.search(_words(found)))


def storage_error(url: str, error: BaseException) -> StorageError:
    """What a database error means to the user, in one sentence and without a password."""
    advice = _advice(error)
    return StorageError(f"{hide_password(url)}: {database_message(error)}{f'; {advice}' if advice else ''}")


def database_message(error: BaseException) -> str:
    """The database's own words, in one line."""
    found = _database_error(error)
    text = str(error if found is None else found.orig or found)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@dataclass
class Call:
    """One call of a storage, over all its attempts.

    `token` is a name that no other call has. `again` says that an earlier attempt may have been written down though its
    answer was lost. `owners` are the owners that the first attempt found trials to have, by the trials' ids.
    """

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    again: bool = False
    owners: dict[int, dict[str, Any]] = field(default_factory=dict)


class Patient:
    """A storage whose calls wait while its database is away.

    `patience` is how many seconds a call waits before `StorageLost`. `on_outage(text)` is told that the database is
    away, and that it is back.
    """

    patience = PATIENCE_S

    def __init__(self) -> None:
        self.on_outage: Callable[[str], None] = log_outage
        self._calls = threading.local()

    @property
    def _call(self) -> Call:
        """What this thread is doing."""
        call: Call = self._calls.current
        return call


def survives(method: Method) -> Method:
    """Let a method of a `Patient` wait through outages; of calls inside calls only the outermost does.

    Raises `StorageLost` where the database stays away, and `StorageError` where waiting is of no use: a full disk, a
    wrong password. All else is raised as it is.
    """

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self._calls, "current", None) is not None:
            return method(self, *args, **kwargs)
        self._calls.current = Call()

        def again() -> None:
            self._calls.current.again = True

        try:
            return persist(
                lambda: method(self, *args, **kwargs),
                str(self.url),
                patience=self.patience,
                on_outage=self.on_outage,
                again=again,
            )
        finally:
            self._calls.current = None

    return cast(Method, call)


def log_outage(text: str) -> None:
    """A line in the log."""
    logging.getLogger("mmsearch").warning("%s", text)


def persist(
    attempt: Callable[[], T],
    url: str,
    *,
    patience: float,
    on_outage: Callable[[str], None] = log_outage,
    again: Callable[[], None] = lambda: None,
    waits_for: Callable[[BaseException], bool] = is_outage,
) -> T:
    """Return what `attempt` does, which is repeated for `patience` seconds where an error of it is one to wait for.

    `again` is called before each further attempt. Raises `StorageLost` where the time is up, and `StorageError` where
    waiting is of no use; other errors are raised as they are.
    """
    started, delay, told = time.monotonic(), FIRST_DELAY_S, False
    while True:
        try:
            result = attempt()
        except (sa.exc.SQLAlchemyError, StorageInternalError) as error:
            if is_refusal(error):
                raise storage_error(url, error) from None
            if not waits_for(error):
                raise
            words, away = database_message(error), time.monotonic() - started
        else:
            if told:
                on_outage(f"the storage is back after {time.monotonic() - started:.0f} s")
            return result
        if away >= patience:
            raise StorageLost(
                f"{hide_password(url)}: away for {away:.0f} s ({words}); when it is back, the same command goes on"
            )
        if away >= QUIET_S and not told:
            told = True
            on_outage(f"the storage is away ({words}); waiting for it, {patience:.0f} s at most")
        again()
        until = patience if told else min(patience, QUIET_S)  # so that it is always told
        time.sleep(min(delay * random.uniform(0.5, 1.0), until - away))
        delay = min(2 * delay, LAST_DELAY_S)


def _advice(error: BaseException) -> str | None:
    found = _database_error(error)
    if found is None:
        return None
    if isinstance(found.orig, sqlite3.Error):
        return SQLITE_ADVICE.get(_sqlite_code(found.orig))
    state = _state(found)
    for states, words, advice in ADVICE:
        if re.fullmatch(states, state) if state else words and re.search(words, _words(found)):
            return advice
    return None


def _database_error(error: BaseException) -> sa.exc.DBAPIError | None:
    """The database's own error behind one of Optuna's or SQLAlchemy's, which follow from it."""
    return next((found for found in _chain(error) if isinstance(found, sa.exc.DBAPIError)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _state(error: sa.exc.DBAPIError) -> str | None:
    """PostgreSQL's state, as psycopg or psycopg2 has it."""
    state: str | None = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return state


def _words(error: sa.exc.DBAPIError) -> str:
    """What the driver says, without the names that it quotes, such as a host's."""
    return re.sub(r'"[^"]*"', '""', str(error.orig))


def _sqlite_code(error: sqlite3.Error) -> int:
    """The primary one of SQLite's result codes."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
