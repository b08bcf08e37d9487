"""The storage goes away in the middle of a search, and nothing is lost, nor done twice; or it is one sentence."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from conftest import Run
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial
from servers import Proxy, Server, free_port, later, serving

from mmsearch.errors import StorageError, StorageLost, UsageError
from mmsearch.search.database import CREATION_LOCK, creation_lock
from mmsearch.search.outage import is_outage, is_refusal, persist, storage_error
from mmsearch.search.storage import SLOT, Storage, open_storage


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A PostgreSQL server of this file's own."""
    with serving(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def database(server: Server) -> str:
    """The name of an empty database of it."""
    name = f"outage_{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name}")
    return name


@pytest.fixture
def opened(server: Server, database: str) -> Iterator[Storage]:
    storage = make(server.url(database))
    yield storage
    storage.engine.dispose()


def make(url: str, patience: float = 60) -> Storage:
    """A storage with a study s."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(url, create=True, patience=patience)
    storage.owner = {"worker": "w"}
    optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
    return storage


def load(storage: Storage, name: str = "s") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(0))


# What is done to a study in which trial 0 runs, trial 1 waits, and 3 trials fit. Each returns what it was told.
def create(study: optuna.Study, storage: Storage) -> object:
    return storage.get_trial(storage.create_new_trial(study._study_id)).number


def claim(study: optuna.Study, storage: Storage) -> object:
    return storage.set_trial_state_values(ids(study)[1], TrialState.RUNNING)


def finish(study: optuna.Study, storage: Storage) -> object:
    return storage.set_trial_state_values(ids(study)[0], TrialState.COMPLETE, [0.5])


def fail(study: optuna.Study, storage: Storage) -> object:
    return storage.fail(ids(study)[0], "broken", 1, {"worker": "w"})


def fail_for_good(study: optuna.Study, storage: Storage) -> object:
    return storage.fail(ids(study)[0], "broken", 0)


def hand_back(study: optuna.Study, storage: Storage) -> object:
    return storage.hand_back(ids(study)[0])


def hand_back_another_s(study: optuna.Study, storage: Storage) -> object:
    return storage.hand_back(ids(study)[0], {"worker": "another"})


def prune(study: optuna.Study, storage: Storage) -> object:
    return storage.prune(ids(study)[0], "too large", {"memory": 1.0}, {"worker": "w"})


def enqueue(study: optuna.Study, storage: Storage) -> object:
    return storage.enqueue(study._study_id, {"fixed_params": {"x": 0.5}, SLOT: 7})


def add(study: optuna.Study, storage: Storage) -> object:
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=1.0))
    return len(study.trials)


def report(study: optuna.Study, storage: Storage) -> object:
    storage.set_trial_intermediate_value(ids(study)[0], 2, 0.25)
    return storage.get_trial(ids(study)[0]).last_step


def attributes(study: optuna.Study, storage: Storage) -> object:
    study.set_user_attr("of", "study")
    storage.set_trial_user_attr(ids(study)[0], "of", "trial")
    storage.set_trial_system_attr(ids(study)[0], "of", {"trial": 1})
    return storage.get_trial_user_attrs(ids(study)[0])


def parameter(study: optuna.Study, storage: Storage) -> object:
    return optuna.Trial(study, ids(study)[0]).suggest_float("y", 0, 1)


def ask_and_tell(study: optuna.Study, storage: Storage) -> object:
    trial = study.ask()
    trial.report(trial.suggest_float("y", 0, 1), 1)
    study.tell(trial, 2.0)
    return trial.number


OPERATIONS: tuple[Callable[[optuna.Study, Storage], object], ...] = (
    *(create, claim, finish, fail, fail_for_good, hand_back, hand_back_another_s, prune, enqueue, add, report),
    *(attributes, parameter, ask_and_tell),
)


def ids(study: optuna.Study) -> list[int]:
    return [trial._trial_id for trial in study.get_trials(deepcopy=False)]


def prepare(storage: Storage) -> str:
    """A new study of three places in which trial 0 runs and trial 1 waits; its name."""
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(0))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(0.125, 1)
    storage.set_trial_system_attr(trial._trial_id, "completed_rung_0", 0.125)
    study.add_trial(create_trial(state=TrialState.WAITING))
    return study.study_name


def state_of(study: optuna.Study) -> list[object]:
    """All that a study holds, but for times and the names of calls."""

    def plain(attrs: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in attrs.items() if key != "mmsearch:queued"}
        return {key: {**value, "claim": ""} if key == "mmsearch:owner" else value for key, value in kept.items()}

    trials = study.get_trials(deepcopy=False)
    return [study.user_attrs, *(
        (t.number, t.state, t.values, t.params, t.user_attrs, plain(t.system_attrs), t.intermediate_values)
        for t in trials
    )]  # fmt: skip


each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)


def cut_everywhere(operation: Callable[[optuna.Study, Storage], object], url: str, proxy: Proxy, **how: Any) -> None:
    """Do it undisturbed, then with the connection cut at its first message, its second, ...: nothing may differ."""
    port = sa.make_url(url).port
    direct, through = make(url), open_storage(url.replace(f":{port}/", f":{proxy.port}/"), patience=60)
    through.owner, through.budget = direct.owner, 3
    told, state = None, None
    cut = -1  # at first not at all
    while True:
        name = prepare(direct)
        study = load(through, name)
        proxy.arm(cut, **how)
        result = operation(study, through)
        was_cut, sent = proxy.cut, proxy.seen
        proxy.disarm()
        found = state_of(load(direct, name))
        if cut < 0:
            told, state = result, found
            assert sent
        elif not was_cut:
            break  # it had no further message to be cut at
        assert result == told, f"cut at message {cut}"
        assert found == state, f"cut at message {cut}"
        cut += 1
    assert cut
    for storage in (direct, through):
        storage.engine.dispose()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    made = Proxy(server.port)
    yield made
    made.close()


@each_operation
def test_what_was_committed_is_not_done_again_where_the_answer_was_lost(
    operation: Callable[[optuna.Study, Storage], object], server: Server, database: str, proxy: Proxy
) -> None:
    cut_everywhere(operation, server.url(database), proxy, answered=True, holding=b"COMMIT")


@pytest.mark.slow
@each_operation
@pytest.mark.parametrize("answered", [True, False], ids=["answer-lost", "never-asked"])
def test_a_connection_that_is_cut_anywhere_changes_nothing(
    operation: Callable[[optuna.Study, Storage], object], answered: bool, server: Server, database: str, proxy: Proxy
) -> None:
    cut_everywhere(operation, server.url(database), proxy, answered=answered)


STEPS = 20


def train(url: str, trials: int, pause: float) -> None:
    """A worker process of stub trials, each of which reports its steps."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(url, patience=60, patient=True)
    storage.owner = {"worker": str(time.monotonic())}
    pruner = optuna.pruners.MedianPruner(n_startup_trials=100)
    study = optuna.load_study(study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler(), pruner=pruner)
    for _ in range(trials):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        for step in range(STEPS):
            time.sleep(pause)
            trial.report(trial.number + step / 100, step)
            assert not trial.should_prune()
            storage.record_heartbeat(trial._trial_id)
        study.tell(trial, float(trial.number))
    storage.engine.dispose()


def train_through(url: str, *disturb: Callable[[], object]) -> None:
    """Two workers of three trials each, disturbed after a second: each report and each trial must be there."""
    storage = make(url)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=train, args=(url, 3, 0.05)) for _ in range(2)]
    for worker in workers:
        worker.start()
    study = load(storage)
    while not any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        time.sleep(0.05)
    thread = later(0.5, *disturb)
    for worker in workers:
        worker.join(240)
        assert worker.exitcode == 0
    thread.join()
    trials = study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(6))
    for trial in trials:
        assert trial.state == TrialState.COMPLETE
        assert trial.intermediate_values == {step: trial.number + step / 100 for step in range(STEPS)}
        assert trial.value == trial.number
    storage.engine.dispose()


def test_workers_go_on_when_postgresql_is_restarted_in_mid_trial(server: Server, database: str) -> None:
    train_through(server.url(database), lambda: server.restart("immediate"), lambda: server.restart("fast"))


@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_workers_go_on_when_postgresql_was_down(seconds: float, server: Server, database: str) -> None:
    train_through(server.url(database), server.stop, lambda: time.sleep(seconds), server.start)


def test_a_storage_that_stays_away_is_lost_after_its_patience(server: Server, database: str) -> None:
    storage = make(server.url(database), patience=2)
    told: list[str] = []
    storage.on_outage = told.append
    study = load(storage)
    trial = study.ask()
    server.stop()
    try:
        storage.record_heartbeat(trial._trial_id)  # in a thread of its own, and never a reason to end
        with pytest.raises(StorageLost, match=r"away for 2 s \(.*Connection refused.*same command goes on"):
            trial.report(0.5, 1)
        with pytest.raises(StorageError, match="Connection refused"):
            open_storage(server.url(database))
    finally:
        server.start()
    assert [text.split(" (")[0] for text in told] == ["the storage is away"]
    trial.report(0.75, 2)
    assert load(storage).trials[0].intermediate_values == {2: 0.75}
    storage.engine.dispose()


def test_who_waits_is_told_of_the_outage_and_of_its_end(server: Server, database: str) -> None:
    storage = make(server.url(database))
    told: list[str] = []
    storage.on_outage = told.append
    server.stop()
    thread = later(2, server.start)
    assert load(storage).trials == []
    thread.join()
    assert [text.split(" (")[0].rstrip("0123456789 s") for text in told] == [
        "the storage is away",
        "the storage is back after",
    ]
    storage.engine.dispose()


def test_opening_waits_where_it_is_asked_to(server: Server, database: str) -> None:
    make(server.url(database)).engine.dispose()
    server.stop()
    with pytest.raises(StorageError, match="Connection refused") as raised:
        open_storage(server.url(database), patience=30)
    assert not isinstance(raised.value, StorageLost)
    with pytest.raises(StorageLost):
        open_storage(server.url(database), patience=1, patient=True)
    thread = later(1, server.start)
    open_storage(server.url(database), patience=60, patient=True).engine.dispose()
    thread.join()


HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("COMMIT")
"""


def hold(path: Path, seconds: float) -> None:
    """Have the database to itself, as another process, for some seconds."""
    with subprocess.Popen([sys.executable, "-c", HOLD, path, str(seconds)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
    assert process.returncode == 0


@pytest.mark.parametrize("seconds", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_workers_go_on_when_sqlite_was_locked(seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    train_through(f"sqlite:///{path}", lambda: hold(path, seconds))


def test_a_call_is_repeated_where_sqlite_waits_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.search.database.SQLITE_TIMEOUT_S", 0.1)
    path = tmp_path / "a.db"
    storage = make(f"sqlite:///{path}", patience=60)
    trial = load(storage).ask()
    holding = later(0, lambda: hold(path, 3))
    time.sleep(1)
    trial.report(0.5, 1)
    holding.join()
    assert load(storage).trials[0].intermediate_values == {1: 0.5}
    storage.patience = 0.5
    holding = later(0, lambda: hold(path, 4))
    time.sleep(1)
    with pytest.raises(StorageLost, match="locked"):
        trial.report(0.5, 2)
    holding.join()
    storage.engine.dispose()


def test_opening_waits_for_a_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.search.database.SQLITE_TIMEOUT_S", 0.1)
    path = tmp_path / "a.db"
    optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()  # without a write-ahead log readers wait too
    holding = later(0, lambda: hold(path, 3))
    time.sleep(1)
    open_storage(f"sqlite:///{path}", patience=60).engine.dispose()
    holding.join()


def broken(code: int) -> sa.exc.DBAPIError:
    """What SQLAlchemy makes of one of SQLite's errors."""
    error = sqlite3.OperationalError("words")
    error.sqlite_errorcode = code
    return sa.exc.OperationalError("SELECT 1", {}, error)


@pytest.mark.parametrize(
    ("code", "outage", "refusal"),
    [
        (sqlite3.SQLITE_BUSY, True, False),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, True, False),
        (sqlite3.SQLITE_LOCKED, True, False),
        (sqlite3.SQLITE_FULL, False, True),
        (sqlite3.SQLITE_READONLY_DBMOVED, False, True),
        (sqlite3.SQLITE_IOERR_WRITE, False, True),
        (sqlite3.SQLITE_CORRUPT, False, True),
        (sqlite3.SQLITE_CANTOPEN, False, True),
        (sqlite3.SQLITE_ERROR, False, False),
        (sqlite3.SQLITE_TOOBIG, False, False),
    ],
)
def test_what_sqlite_s_codes_mean(code: int, outage: bool, refusal: bool) -> None:
    error = broken(code)
    assert (is_outage(error), is_refusal(error)) == (outage, refusal)


@pytest.mark.parametrize(
    ("state", "outage", "refusal"),
    [
        ("08006", True, False),
        ("40001", True, False),
        ("40P01", True, False),
        ("55P03", True, False),
        ("57P01", True, False),
        ("57P02", True, False),
        ("57P03", True, False),
        ("53300", True, False),
        ("25P03", True, False),
        ("53100", False, True),
        ("28P01", False, True),
        ("3D000", False, True),
        ("42501", False, True),
        ("57P04", False, False),
        ("42P01", False, False),
        ("22001", False, False),
    ],
)
def test_what_postgresql_s_states_mean(state: str, outage: bool, refusal: bool) -> None:
    from psycopg.errors import lookup

    error = sa.exc.OperationalError("SELECT 1", {}, lookup(state)("words"))
    wrapped = StorageInternalError("An exception is raised during the commit.")
    wrapped.__cause__ = error
    for found in (error, wrapped):
        assert (is_outage(found), is_refusal(found)) == (outage, refusal)


@pytest.mark.parametrize("share", [0.5, 0.64, 1.0])
def test_however_the_attempts_fall_an_outage_is_told(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mmsearch.search.outage.random.uniform", lambda low, high: share
    )  # 0.64: attempts after 0.99 s and 2.02 s
    told: list[str] = []

    def fails() -> None:
        raise broken(sqlite3.SQLITE_BUSY)

    with pytest.raises(StorageLost):
        persist(fails, "sqlite:///a.db", patience=2, on_outage=told.append)
    assert [text.split(" (")[0] for text in told] == ["the storage is away"]


def test_what_follows_from_a_lost_connection_is_an_outage_too() -> None:
    """SQLAlchemy raises this one where a statement follows in a transaction whose connection broke."""
    later_one = sa.exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")
    assert not is_outage(later_one)
    later_one.__context__ = broken(sqlite3.SQLITE_BUSY)
    assert is_outage(later_one)


def test_a_name_in_an_error_is_not_taken_for_its_kind() -> None:
    text = 'connection to server at "certificate-db.lan", port 5432 failed: Connection refused'
    error = sa.exc.OperationalError("connect", {}, Exception(text))
    assert (is_outage(error), is_refusal(error)) == (True, False)
    error = sa.exc.OperationalError("connect", {}, Exception("SSL error: certificate verify failed"))
    assert (is_outage(error), is_refusal(error)) == (False, True)


def test_the_states_of_another_driver_are_read_too() -> None:
    class Full(Exception):
        pgcode = "53100"

    error = sa.exc.OperationalError("INSERT", {}, Full("no space"))
    assert (is_outage(error), is_refusal(error)) == (False, True)


def test_making_a_study_holds_its_lock_though_the_server_ends_idle_transactions(
    server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.execute(f"ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '200ms'")
    with creation_lock(server.url(database)):
        time.sleep(0.6)
        engine = sa.create_engine(server.url(database), poolclass=sa.NullPool)
        with engine.connect() as connection:
            free = connection.execute(sa.select(sa.func.pg_try_advisory_lock(CREATION_LOCK))).scalar_one()
        assert not free


def test_making_a_study_is_waited_for_however_short_the_server_s_patience(server: Server, database: str) -> None:
    server.execute(f"ALTER DATABASE {database} SET lock_timeout = '200ms'")
    entered: list[float] = []

    def enter() -> None:
        with creation_lock(server.url(database)):
            entered.append(time.monotonic())

    with creation_lock(server.url(database)):
        thread = later(0, enter)
        time.sleep(1)
        left = time.monotonic()
    thread.join()
    assert entered[0] >= left


def test_an_error_without_an_end_is_read_to_its_end() -> None:
    one, other = StorageInternalError("one"), StorageInternalError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_outage(one)


def full(storage: Storage) -> None:
    with storage.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    storage.engine.dispose()
    sa.event.listen(storage.engine, "connect", lambda c, _: c.execute(f"PRAGMA max_page_count={pages}"))


def read_only(storage: Storage) -> None:
    storage.engine.dispose()
    sa.event.listen(storage.engine, "connect", lambda c, _: c.execute("PRAGMA query_only=ON"))


@pytest.mark.parametrize(
    ("wrong", "words"), [(full, "disk is full; free some space"), (read_only, "readonly database; make the file")]
)
def test_a_full_or_read_only_disk_is_said_at_once(wrong: Callable[[Storage], None], words: str, tmp_path: Path) -> None:
    storage = make(f"sqlite:///{tmp_path / 'a.db'}", patience=600)
    trial = load(storage).ask()
    wrong(storage)
    with pytest.raises(StorageError, match=words) as raised:
        trial.set_user_attr("long", "x" * 1_000_000)
    assert not isinstance(raised.value, StorageLost)
    assert "\n" not in str(raised.value)
    assert load(storage).trials[0].user_attrs == {}
    storage.engine.dispose()


def test_another_error_is_raised_as_it_is(tmp_path: Path) -> None:
    storage = make(f"sqlite:///{tmp_path / 'a.db'}", patience=600)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE trial_user_attributes")
    trial = load(storage)
    with pytest.raises(sa.exc.OperationalError, match="no such table"):
        trial.ask()
    storage.engine.dispose()


def test_a_password_that_is_refused_is_one_sentence(server: Server, database: str, mmsearch: Run) -> None:
    user = f"user_{database}"
    server.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'right-one'", f"ALTER DATABASE {database} OWNER TO {user}")
    right, wrong = (server.url(database, f"{user}:{password}") for password in ("right-one", "secret-but-wrong"))
    make(right).engine.dispose()
    with pytest.raises(StorageError, match=r"password authentication failed .*; look at the user and the password"):
        open_storage(wrong, patience=600, patient=True)  # without waiting
    for command in ("launch", "status"):
        done = mmsearch(command, code=4, env={"MMSEARCH_STORAGE": wrong})
        assert "password authentication failed" in done.stderr
        assert "secret-but-wrong" not in done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_database_that_is_not_there_is_one_sentence(server: Server, mmsearch: Run) -> None:
    for command in ("launch", "status"):
        done = mmsearch(command, code=4, env={"MMSEARCH_STORAGE": server.url("nowhere")})
        assert 'database "nowhere" does not exist; create the database first' in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_url_without_its_driver_is_a_usage_error(mmsearch: Run) -> None:
    done = mmsearch("status", code=2, env={"MMSEARCH_STORAGE": "postgresql+pg8000://u:secret@127.0.0.1/d"})
    assert "driver is not installed" in done.stderr
    assert "secret" not in done.stderr


def test_a_server_that_is_not_there_is_one_sentence(mmsearch: Run) -> None:
    done = mmsearch("launch", code=4, env={"MMSEARCH_STORAGE": f"postgresql://u:secret@127.0.0.1:{free_port()}/d"})
    assert "Connection refused" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("version", "advice"), [("v3.0.0.d", "`optuna storage upgrade`"), ("v99.0.0.a", "use the mmsearch that made them")]
)
def test_tables_of_another_version_are_one_sentence(
    version: str, advice: str, server: Server, database: str, tmp_path: Path
) -> None:
    for url in (f"sqlite:///{tmp_path / 'a.db'}", server.url(database)):
        storage = make(url)
        with storage.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
        storage.engine.dispose()
        for create in (False, True):
            with pytest.raises(StorageError, match=advice) as raised:
                open_storage(url, create=create)
            assert version in str(raised.value)
            assert "\n" not in str(raised.value)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"no database, whatever its name says\n" * 100)
    with pytest.raises(StorageError, match="not a database; use another file with --storage"):
        open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


def test_a_password_is_in_no_message() -> None:
    error = broken(sqlite3.SQLITE_FULL)
    assert "secret" not in str(storage_error("postgresql+psycopg://u:secret@h/d", error))
    with pytest.raises(UsageError) as raised:
        open_storage("postgresql+pg8000://u:secret@127.0.0.1/d")
    assert "secret" not in str(raised.value)
