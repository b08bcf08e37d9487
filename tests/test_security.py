"""What must never happen: a password where others can read it, code that comes with data, a file outside its folder."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from wsgiref.util import setup_testing_defaults

import pytest
from conftest import ROOT, TINY, Run, environment
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, make_url, text
from sqlalchemy import inspect as schema
from test_compose import role  # noqa: F401 - a fixture
from test_dashboard import login
from test_manifest import encoded, manifest, noise, picture, table, wav
from test_search import wait_for, workers_of

from mmsearch.config import hide_password, load_config
from mmsearch.data.sources import read_dataset
from mmsearch.errors import DataError, UsageError
from mmsearch.paths import RESERVED_NAMES
from mmsearch.search.dashboard import SHOWN_TYPES, guard
from mmsearch.search.samplers import build_pruner, build_sampler
from mmsearch.search.worker import Orders
from mmsearch.texts import hide_passwords

Start = Callable[..., subprocess.Popen[str]]

PASSWORD = "s3cr@t/p:w d"  # what has to be escaped in a URL
SPELLINGS = (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD))


def spelt(held: str | bytes) -> bool:
    """Whether the password stands there, in any spelling."""
    given = held if isinstance(held, bytes) else held.encode(errors="surrogateescape")
    return any(spelling.encode() in given for spelling in SPELLINGS)


# --- nothing is unpickled -------------------------------------------------------------------------------------------

UNPICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas.read_pickle"}


def dangers(source: str) -> list[str]:
    """Each place in a source that runs, or could run, what comes with data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        found += [name for name in names if name in UNPICKLES or name.split(".")[0] in UNPICKLES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        last = called.rpartition(".")[2]
        if last == "load" and called.split(".")[0] == "torch" and given.get("weights_only") != "True":
            found.append(f"{called} without weights_only=True")
        if given.get("allow_pickle", "False") != "False" or (last in ("load", "open_memmap") and None in given):
            found.append(f"{called} that may unpickle")
        if last in ("read_pickle", "to_pickle") or called in ("eval", "exec", "os.system", "os.popen", "yaml.load"):
            found.append(called)
        if given.get("shell", "False") != "False":
            found.append(f"{called} through a shell")
    return found


SOURCES = [path for folder in ("mmsearch", "scripts", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


# A .pt2 is a program, which the user is told to trust before it is loaded.
KNOWN = {"mmsearch/results/runtime.py": ["torch.export.load without weights_only=True"]}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_or_runs_what_comes_with_data(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == KNOWN.get(str(path.relative_to(ROOT)), [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import os, dill as d",
        "from pandas import read_pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, map_location='cpu', weights_only=safe)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, **options)",
        "pandas.read_pickle(path)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_what_is_dangerous_is_found(source: str) -> None:
    assert len(dangers(source)) == 1


def test_checkpoints_are_loaded_somewhere() -> None:
    """Else the rule on `torch.load` would hold for nothing."""
    assert any("torch.load(" in path.read_text(encoding="utf-8") for path in SOURCES)


@pytest.mark.parametrize("name", ["tpe", "gp", "random", "grid", "qmc", "nsga2"])
@pytest.mark.parametrize("pruner", ["median", "percentile", "hyperband", "halving", "patient", "wilcoxon", "none"])
def test_no_sampler_and_no_pruner_keeps_pickles_in_the_database(tmp_path: Path, name: str, pruner: str) -> None:
    """As Optuna's CMA-ES does, which is therefore not offered: whoever writes the database would run code here."""
    study = '[search]\nsampler = "%s"\npruner = "%s"\n%s[space]\n"optimizer.lr" = [1e-3, 1e-2]\n'
    folds = '[data]\nvalidation = "kfold"\n' if pruner == "wilcoxon" else ""
    (tmp_path / "s.toml").write_text(study % (name, pruner, folds))
    config = load_config(tmp_path / "s.toml")
    made = [build_sampler(config), build_pruner(config)]
    make = getattr(made[0], "_make", None)
    if make is not None:  # the sampler that each trial gets
        made.append(make(0))
    modules = {cls.__module__ for held in made for cls in type(held).__mro__ if cls is not object}
    assert any(module.startswith("optuna.") for module in modules)
    for module in modules:
        assert not re.search(r"\b(pickle|joblib|dill)\b", inspect.getsource(importlib.import_module(module))), module


def test_optuna_s_cma_es_is_what_is_meant(tmp_path: Path) -> None:
    source = inspect.getsource(importlib.import_module("optuna.samplers._cmaes"))
    assert "pickle.loads" in source
    (tmp_path / "s.toml").write_text('[search]\nsampler = "cmaes"\n')
    with pytest.raises(UsageError, match="sampler"):
        load_config(tmp_path / "s.toml")


WATCH = """
import os, sys
def watch(event, arguments):
    if event == "pickle.find_class":
        with open(os.environ["PICKLES"], "a") as log:
            log.write(f"{arguments}\\n")
sys.addaudithook(watch)
"""


@pytest.mark.slow
def test_no_process_unpickles_anything(mmsearch: Run, start: Start, workspace: Path, tmp_path: Path) -> None:
    """A search that is stopped and goes on from its checkpoints, and what follows it, while the interpreter tells."""
    site, log = tmp_path / "site", tmp_path / "pickles.log"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WATCH)
    env = {"PYTHONPATH": f"{site}", "PICKLES": str(log)}
    bait = f"import pickle; pickle.loads({pickle.dumps(print)!r})"
    subprocess.run([sys.executable, "-c", bait], env=environment(**env), check=True)
    assert log.read_text() == "('builtins', 'print')\n"  # it sees
    log.unlink()

    longer = TINY.replace("max_epochs = 3", "max_epochs = 8\npatience = 8\ncheckpoint_every = 0.1")
    (workspace / "studies" / "digits.toml").write_text(longer.replace("rows = 400", "rows = 1500"))
    launcher = start("launch", "--trials", 4, "--workers", 2, env=env)
    trials = workspace / "storage" / "digits" / "trials"
    wait_for(lambda: list(trials.glob("*/checkpoint.pt")), 120)
    os.kill(launcher.pid, signal.SIGINT)
    launcher.communicate(timeout=120)
    assert "from its checkpoint" in mmsearch("launch", "--trials", 4, "--workers", 2, env=env).stderr
    for arguments in (("retrain-best",), ("predict", "storage/digits/retrained/best", "demo"), ("replay", 0)):
        mmsearch(*arguments, env=env)
    for arguments in (("export",), ("status",), ("clean",)):
        mmsearch(*arguments, env=env)
    assert not log.exists(), log.read_text()


# --- passwords ------------------------------------------------------------------------------------------------------


def dump(url: str) -> str:
    """All rows of all tables."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            tables = schema(engine).get_table_names()
            rows = [row for name in tables for row in connection.execute(text(f'SELECT * FROM "{name}"'))]
    finally:
        engine.dispose()
    assert len(rows) > 50
    return "\n".join(map(repr, rows))


def family(launcher: subprocess.Popen[str]) -> Iterator[str]:
    """The command lines of a launcher and of the workers that it started."""
    for pid in (launcher.pid, *workers_of(launcher)):
        try:
            yield Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except OSError:  # it has just ended
            continue


@pytest.fixture
def secret_url(role: str) -> str:  # noqa: F811
    """The URL of the test's database with a password, which the server asks for."""
    import psycopg
    from psycopg import sql
    from test_compose import PASSWORDS

    with psycopg.connect(role, password=PASSWORDS["POSTGRES_PASSWORD"], autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER ROLE mmsearch PASSWORD {}").format(sql.Literal(PASSWORD)))
    return role.replace("://mmsearch@", f"://mmsearch:{quote(PASSWORD, safe='')}@")


@pytest.mark.slow
def test_the_password_is_nowhere_but_where_it_was_given(
    mmsearch: Run, start: Start, workspace: Path, secret_url: str
) -> None:
    """A search with a trial that fails and a worker that is killed; then every command; all that they leave."""
    bad = '[[enqueue]]\n"optimizer.lr" = 10.0\n'
    space = TINY.partition("[space]")[0] + '[space]\n"optimizer.lr" = [1e-3, 10.0]\n"optimizer.name" = "sgd"\n'
    space += '"head.dropout" = 0.0\n"image.encoder" = "mlp"\n"audio.encoder" = "mlp"\n"schedule.name" = "constant"\n'
    given = f'[study]\n# storage = "postgresql://old:{PASSWORD}@elsewhere/x"\nstorage = "{secret_url}"'
    (workspace / "studies" / "digits.toml").write_text(space.replace("[study]", given) + bad)
    launcher = start("launch", "--trials", 3, "--workers", 1)
    lines: list[str] = []
    killed = False
    while launcher.poll() is None:
        lines += family(launcher)
        if not killed and list((workspace / "storage").glob("digits/trials/0/metrics.jsonl")):
            for pid in workers_of(launcher):
                os.kill(pid, signal.SIGKILL)
            killed = True
        time.sleep(0.05)
    spoken = list(launcher.communicate())
    assert launcher.returncode == 0, spoken
    assert killed
    assert "failed" in spoken[1]
    assert any("mmsearch.search.worker" in line for line in lines)
    for arguments in (("status",), ("export",), ("replay", 1), ("retrain-best",), ("clean", "--yes"), ("stop",)):
        process = start(*arguments)
        lines += family(process)
        spoken += process.communicate(timeout=120)
    shown = start("dashboard", "--port", 0)
    assert shown.stderr is not None
    spoken.append(shown.stderr.readline())
    lines += family(shown)
    os.killpg(shown.pid, signal.SIGINT)
    spoken += shown.communicate(timeout=60)

    assert not any(map(spelt, (*lines, *spoken)))
    kept = {path: path.read_bytes() for path in (workspace / "storage").rglob("*") if path.is_file()}
    assert {"study.toml", "metrics.jsonl"} <= {path.name for path in kept}
    assert [path for path, held in kept.items() if spelt(held)] == []
    assert not spelt(dump(secret_url))
    assert "***" in (workspace / "storage" / "digits" / "study.toml").read_text()


WRONG_URLS = [
    "postgresql://me:{}@host:port/x",
    "postgresql://me:{}@[::1/x",
    "postgresql://me:{}@127.0.0.1:1/x",
    "postgresql://me:{}@127.0.0.1:1/x?connect_timeout=soon",
    "postgresql://127.0.0.1:1/x?user=me&password={}",
    "postgresql+nothing://me:{}@127.0.0.1/x",
    "mysql://me:{}@127.0.0.1/x",
    "me:{}@127.0.0.1/x",
]


@pytest.mark.parametrize("url", WRONG_URLS)
def test_no_error_shows_it(mmsearch: Run, start: Start, url: str) -> None:
    for spelling in SPELLINGS[:2]:
        process = start("launch", env={"MMSEARCH_STORAGE": url.format(spelling)})
        out, said = process.communicate(timeout=120)
        assert process.returncode in (2, 4), said
        assert len(said.splitlines()) == 1
        assert not spelt(out + said)


@pytest.mark.parametrize(
    "line",
    [
        'storage = ["{}"]',
        'storage = {{ url = "{}" }}',
        'name = "{}"',
        'stroage = "{}"',
        'trials = "{}"',
        'storage = "{}',
    ],
)
def test_no_error_in_a_study_file_shows_it(tmp_path: Path, line: str) -> None:
    url = f"postgresql://me:{quote(PASSWORD, safe='')}@h/d"
    (tmp_path / "s.toml").write_text("[study]\n" + line.format(url) + "\n")
    with pytest.raises(UsageError) as caught:
        load_config(tmp_path / "s.toml")
    assert not spelt(str(caught.value))


def test_no_representation_of_ours_shows_it(tmp_path: Path) -> None:
    url = f"postgresql://me:{quote(PASSWORD, safe='')}@h/d"
    (tmp_path / "s.toml").write_text("")
    config = load_config(tmp_path / "s.toml", {"study.storage": url})
    assert config.storage_url.startswith("postgresql+psycopg://me:")
    assert not spelt(repr(config) + str(config) + repr(Orders(config, "0-x", 0, 1, 1)) + config.command("launch"))


LETTERS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@given(LETTERS)
def test_any_password_is_hidden(drawn: str) -> None:
    password = f"Q{drawn}Q"  # so that it stands nowhere else in the URL
    url = f"postgresql+psycopg://me:{quote(password, safe='')}@host:5432/db?sslmode=require"
    assert make_url(url).password == password
    shown = hide_password(url)
    assert shown == "postgresql+psycopg://me:***@host:5432/db?sslmode=require"
    kept = hide_passwords(f'# see {url}\nstorage = "{url}"\nother = "x?password={quote(password)}&a=b"\n')
    assert "Q" not in kept
    assert kept.splitlines()[0] == "# see postgresql+psycopg://me:***@host:5432/db?sslmode=require"


@given(st.text(max_size=60))
def test_what_holds_no_password_stays_as_it_is(drawn: str) -> None:
    free = drawn.replace("://", "").replace("pass", "")
    if not re.search(r"[?&]\w*pass", free, re.IGNORECASE):
        assert hide_passwords(free) == free


# --- the dashboard --------------------------------------------------------------------------------------------------

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def asked(app: Any, path: str, method: str = "GET", **environ: str) -> tuple[str, dict[str, str], bytes]:
    """Status, headers and body of one request."""
    told: list[Any] = []
    given = {"PATH_INFO": path, "REQUEST_METHOD": method, "HTTP_HOST": "127.0.0.1:8080", **environ}
    answer = app(given, lambda status, headers, *rest: told.append((status, headers)))
    body = b"".join(answer)
    if hasattr(answer, "close"):  # a file
        answer.close()
    status, headers = told[-1]
    return status, {name.lower(): value for name, value in headers}, body


def everything(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Stands for the dashboard: it answers whatever it is asked."""
    start_response("200 OK", [("Content-Type", environ.get("type", "text/html"))])
    return [b"all of it"]


def routes() -> list[str]:
    """Every path that optuna-dashboard answers, with something in the place of each variable."""
    import optuna
    import optuna_dashboard._app

    app = optuna_dashboard._app.create_app(optuna.storages.InMemoryStorage(), artifact_store=None)
    return sorted({re.sub(r"<[^>]*>", "1", route.rule) for route in app.routes})


def test_the_routes_are_found() -> None:
    found = routes()
    assert {"/", "/api/studies", "/api/studies/1", "/csv/1", "/artifacts/1/1/1", "/static/1"} <= set(found)
    assert len(found) > 25


@pytest.mark.parametrize("path", [*routes(), "/elsewhere", "//artifacts/1/1", "", "/%2e%2e/x"])
def test_every_route_is_behind_the_password(path: str) -> None:
    app = guard(everything, PASSWORD)
    for method in METHODS:
        for wrong in ("", login("guess"), login(""), login(PASSWORD[:-1]), login(PASSWORD)[:-1] + "A", "Basic"):
            status, headers, body = asked(app, path, method, HTTP_AUTHORIZATION=wrong)
            assert (status, body) == ("401 Unauthorized", b"a password is needed\n")
            assert headers["www-authenticate"].startswith("Basic ")
        assert asked(app, path, method, HTTP_AUTHORIZATION=login(PASSWORD))[0] == "200 OK"
        foreign = {"HTTP_ORIGIN": "http://evil.example", "HTTP_AUTHORIZATION": login(PASSWORD)}
        assert asked(app, path, method, **foreign)[0] == "403 Forbidden"


@pytest.mark.parametrize("path", ["/", "/api/studies", "/csv/1", "/static/bundle.js", "/artifacts/1/1"])
def test_without_one_every_route_answers_to_this_machine_s_name_only(path: str) -> None:
    app = guard(everything, None)
    for method in METHODS:
        assert asked(app, path, method)[0] == "200 OK"
        for host in (
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8080",
            "0.0.0.0:8080",
            "",
            "[::2]",
        ):
            assert asked(app, path, method, HTTP_HOST=host)[0] == "403 Forbidden"
        for origin in ("null", "http://evil.example", "http://127.0.0.1:9", "127.0.0.1:8080"):
            assert asked(app, path, method, HTTP_ORIGIN=origin)[0] == "403 Forbidden"


def test_it_listens_where_it_says(mmsearch: Run, start: Start) -> None:
    """Without --host, on the loopback interface alone."""
    mmsearch("launch", "--trials", 1, "--workers", 1)
    process = start("dashboard", "--port", 0)
    assert process.stderr is not None
    address = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stderr.readline())
    assert address is not None
    port = int(address[1])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert next(held for held in listening if held.endswith(f":{port:04X}")) == f"0100007F:{port:04X}"
    with socket.socket() as other:
        other.settimeout(5)
        addresses = socket.gethostbyname_ex(socket.gethostname())[2]
        for outward in (held for held in addresses if not held.startswith("127.")):
            assert other.connect_ex((outward, port)) != 0
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert "lets others in" in mmsearch("dashboard", "--host", host, code=2).stderr
        empty = {"MMSEARCH_DASHBOARD_PASSWORD": ""}
        assert "lets others in" in mmsearch("dashboard", "--host", host, env=empty, code=2).stderr


@pytest.mark.parametrize(
    "kind",
    ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/pdf", "text/javascript", "", "x",
     "TEXT/HTML", "text/html; charset=utf-8", "text/csv, text/html", " text/html"],
)  # fmt: skip
def test_an_artifact_of_another_type_is_a_download(kind: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", kind), ("Access-Control-Allow-Origin", "*")])
        return [b"<script>"]

    for path in ("/artifacts/1/1", "/artifacts/1/2/3"):
        _, headers, _ = asked(guard(app, None), path)
        assert headers["content-type"] == "application/octet-stream"
        assert headers["content-disposition"] == "attachment"
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("kind", SHOWN_TYPES)
def test_harmless_types_are_shown(kind: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", f"{kind}; charset=utf-8")])
        return [b"1"]

    _, headers, _ = asked(guard(app, None), "/artifacts/1/1")
    assert headers["content-type"] == f"{kind}; charset=utf-8"
    assert "content-disposition" not in headers


def test_no_other_path_leads_to_an_artifact(tmp_path: Path) -> None:
    """Nor an artifact's name to another file: what is served is named by letters, digits and dashes of a database."""
    import optuna
    import optuna_dashboard
    from optuna.artifacts import FileSystemArtifactStore

    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "secret").write_bytes(b"not yours")
    name = str(uuid.uuid4())
    (tmp_path / "artifacts" / name).write_bytes(b"<script>")
    for key in (name, "../secret"):
        held = {"artifact_id": key, "filename": "../../x.html", "mimetype": "text/html", "encoding": None}
        storage.set_study_system_attr(study._study_id, f"artifacts:{key}", json.dumps(held))
    app = guard(
        optuna_dashboard.wsgi(storage, artifact_store=FileSystemArtifactStore(str(tmp_path / "artifacts"))), None
    )
    number = study._study_id
    extra: dict[str, Any] = {"HTTP_ACCEPT_ENCODING": ""}
    setup_testing_defaults(extra)
    del extra["PATH_INFO"], extra["REQUEST_METHOD"], extra["HTTP_HOST"]
    status, headers, body = asked(app, f"/artifacts/{number}/{name}", **extra)
    assert (status, body, headers["content-type"]) == ("200 OK", b"<script>", "application/octet-stream")
    for path in (
        f"//artifacts/{number}/{name}",
        f"/./artifacts/{number}/{name}",
        f"/dashboard/../artifacts/{number}/{name}",
        f"/artifacts//{number}/{name}",
        f"/Artifacts/{number}/{name}",
        f"/artifacts/{number}/../secret",
        f"/artifacts/{number}/..%2fsecret",
        f"/static/../artifacts/{name}",
        "/static/../../../../etc/passwd",
    ):
        status, headers, body = asked(app, path, **extra)
        assert body != b"not yours"
        assert b"root:" not in body
        if body == b"<script>":
            assert headers["content-type"] == "application/octet-stream"


# --- file names from data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "../../secret.png", "{tmp}/secret.png", "a/../../secret.png", "link/../../secret.png",
     "./../secret.png", "../d2/secret.png", "/etc/hostname", "folder/../../d2/secret.png"],
)  # fmt: skip
def test_a_manifest_reads_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "d" / "folder").mkdir(parents=True)
    (tmp_path / "d2").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "d2", tmp_path / "elsewhere"):
        (place / "secret.png").write_bytes(encoded(picture(6, 8)))
        (place / "secret.wav").write_bytes(wav(noise()))
    (tmp_path / "d" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    wrong = name.format(tmp=tmp_path)
    rows = [("0.png", "0.wav", "a"), ("1.png", "1.wav", "b"), (wrong, "2.wav", "a")]
    rows += [("3.png", wrong.replace(".png", ".wav"), "b"), ("4.png", "4.wav", "a")]
    folder = manifest(tmp_path / "d", {"manifest.csv": table(rows, "image,audio,label")})
    with pytest.raises(DataError, match=r"line 4: .* lies outside the manifest's folder"):
        read_dataset(str(folder), test=0)
    dataset = read_dataset(str(folder), test=0, skip_broken=True)
    assert dataset.train.ids.tolist() == [0, 1, 4]
    assert all("lies outside" in reason for reason in dataset.skipped)
    assert len(dataset.skipped) == 2


def test_a_link_that_the_user_put_there_is_followed(tmp_path: Path) -> None:
    folder = manifest(tmp_path / "d")
    (folder / "0.png").rename(tmp_path / "kept.png")
    (folder / "0.png").symlink_to(tmp_path / "kept.png")
    assert read_dataset(str(folder), test=0).skipped == ()
    (tmp_path / "shortcut").symlink_to(folder)
    (folder / "manifest.csv").write_bytes(
        table([(str(folder / f"{n}.png"), f"{n}.wav", "ab"[n % 2]) for n in range(6)], "image,audio,label")
    )
    assert len(read_dataset(str(tmp_path / "shortcut"), test=0).train) == 6


@given(st.one_of(st.text(max_size=12), st.text("./\\-a\n ", max_size=8), st.sampled_from(["..", ".", "a\n", "a/b"])))
def test_a_study_s_name_is_no_path(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    file = tmp_path_factory.getbasetemp() / "named.toml"
    file.write_text("")
    try:
        config = load_config(file, {"study.name": name})
    except UsageError:
        assert name in RESERVED_NAMES or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name)
    else:
        assert config.paths.folder.parent == config.storage_paths.folder
        assert config.paths.folder.resolve().parent == config.storage_paths.folder.resolve()
        assert name not in RESERVED_NAMES


@pytest.mark.parametrize("name", ["studies.db", "studies.db-wal", "studies.db-shm", "studies.db-journal", "cache"])
def test_a_study_is_not_called_as_what_lies_beside_it(tmp_path: Path, name: str) -> None:
    """A folder of the name of SQLite's own files would keep it from opening the database."""
    (tmp_path / "s.toml").write_text(f'[study]\nname = "{name}"\n')
    with pytest.raises(UsageError, match="a file that all studies share"):
        load_config(tmp_path / "s.toml")


@pytest.mark.slow
def test_labels_are_text_and_nothing_else(mmsearch: Run, workspace: Path) -> None:
    """Through search, retraining, prediction and table: no file has a label's name, wherever it would lead."""
    words = ("../../escaped", "/tmp/mmsearch-escaped", "a/b", "..", "<script>alert(1)</script>")
    rows = [(f"{n}.png", f"{n}.wav", words[n % 5], "test" if n >= 50 else "train") for n in range(60)]
    files = {f"{n}.png": encoded(picture(6, 8, seed=n)) for n in range(60)}
    files |= {f"{n}.wav": wav(noise(seed=n)) for n in range(60)}
    manifest(workspace / "d", {**files, "manifest.csv": table(rows)})
    (workspace / "studies" / "digits.toml").write_text(
        '[study]\ntrials = 1\n[data]\nsource = "../d"\n[search]\nmax_epochs = 1\n[space]\n'
        '"image.encoder" = "mlp"\n"audio.encoder" = "mlp"\n"batch_size" = 16\n'
    )

    def seen() -> set[Path]:
        """All of the workspace but its storage, and what lies beside it: other tests' folders are theirs to fill."""
        paths = {*workspace.rglob("*"), *workspace.parent.iterdir()}
        return {path for path in paths if not path.is_relative_to(workspace / "storage")}

    before = seen()
    mmsearch("launch", "--workers", 1)
    mmsearch("retrain-best")
    mmsearch("predict", "storage/digits/retrained/best", "d", "--out", "p.csv")
    assert seen() - before == {workspace / "p.csv"}
    assert not Path("/tmp/mmsearch-escaped").exists()
    names = {path.name for path in (workspace / "storage").rglob("*")}
    assert not any("escaped" in name or "script" in name for name in names)
    header = (workspace / "p.csv").read_text().splitlines()[0]
    assert "p_../../escaped" in header
