"""docker-compose.yml and Dockerfile, without Docker: checked by schema, and each service's command run by hand.

tests/compose-spec.json is the Compose Specification's own schema (Apache License 2.0), as its first lines say.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import psycopg
import pytest
import yaml
from conftest import ROOT, Run
from psycopg import sql
from sqlalchemy import make_url
from test_dashboard import announced, end, fetch, login

Start = Callable[..., subprocess.Popen[str]]

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("search", "worker", "dashboard", "retrain", "export")

# Characters that would have to be escaped in a URL, as passwords have them.
PASSWORDS = {"POSTGRES_PASSWORD": "p@ss/w:rd #1%", "MMSEARCH_DASHBOARD_PASSWORD": "d@sh:board"}


def interpolate(node: Any, variables: dict[str, str]) -> Any:
    """Fill in `${NAME}`, `${NAME:-default}` and `${NAME:?message}` as Compose does."""
    if isinstance(node, dict):
        return {key: interpolate(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolate(value, variables) for value in node]
    if not isinstance(node, str):
        return node

    def fill(match: re.Match[str]) -> str:
        name, operator, rest = match["name"], match["operator"], match["rest"]
        if value := variables.get(name):
            return value
        if operator == ":?":
            raise KeyError(f"{name}: {rest}")
        return rest or ""

    return re.sub(r"\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\}", fill, node)


@pytest.fixture
def role(postgres: str) -> str:
    """The URL of the test's database for the compose file's user, who must give a password."""
    database = make_url(postgres).database or ""
    user = sql.Identifier("mmsearch")
    with psycopg.connect(postgres, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'mmsearch'").fetchone() is None:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(user))
        password = sql.Literal(PASSWORDS["POSTGRES_PASSWORD"])
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(user, password))
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(database), user))
        connection.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(user))
        shown = connection.execute("SHOW hba_file").fetchone()
        assert shown is not None
        rules = Path(shown[0])
        rules.write_text(f"local {database} mmsearch scram-sha-256\n" + rules.read_text())
        connection.execute("SELECT pg_reload_conf()")
    return re.sub(r"://[^@/]*@", "://mmsearch@", postgres)


def environment_of(service: str, role: str, workspace: Path) -> dict[str, str]:
    """A service's environment, with the test's database and folder for the containers'."""
    found: dict[str, str] = interpolate(SERVICES[service]["environment"], PASSWORDS)
    assert found["MMSEARCH_STORAGE"] == "postgresql://mmsearch@database:5432/mmsearch"
    assert found["MMSEARCH_FOLDER"] == "/storage"
    return {**found, "MMSEARCH_STORAGE": role, "MMSEARCH_FOLDER": str(workspace / "storage")}


def test_it_is_what_the_specification_says() -> None:
    schema = json.loads((ROOT / "tests" / "compose-spec.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    for variables in (PASSWORDS, {**PASSWORDS, "MMSEARCH_DATA_DIR": "/somewhere", "MMSEARCH_WORKER_CPUS": "2"}):
        found = [
            f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(interpolate(COMPOSE, variables))
        ]
        assert not found
    misspelt = {**COMPOSE, "services": {"worker": {"comand": ["launch"]}}}
    assert not validator.is_valid(misspelt)  # the schema itself bites


@pytest.mark.parametrize("missing", PASSWORDS)
def test_a_password_that_is_missing_is_asked_for(missing: str) -> None:
    with pytest.raises(KeyError, match=rf"{missing}: set it in \.env"):
        interpolate(COMPOSE, {name: value for name, value in PASSWORDS.items() if name != missing})


def test_no_password_is_written_down_or_on_a_command_line() -> None:
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or re.fullmatch(r"\$\{\w*PASSWORD:\?[\w .]+\}", value)
        for words in (service.get("command", []), service.get("healthcheck", {}).get("test", [])):
            assert "PASSWORD" not in " ".join(words)
    assert not re.search(r"://[^@\s]*:[^@\s]*@", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def test_what_belongs_together_agrees() -> None:
    assert set(SERVICES) == {"database", *OURS}
    database = SERVICES["database"]
    url = make_url(SERVICES["search"]["environment"]["MMSEARCH_STORAGE"])
    assert (url.host, url.username, url.database) == (
        "database",
        database["environment"]["POSTGRES_USER"],
        database["environment"]["POSTGRES_DB"],
    )
    assert database["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert "ports" not in database  # nobody but the services reaches it
    mounted = {volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert {name for name in mounted if name.isidentifier()} == set(COMPOSE["volumes"])
    for name in OURS:
        service = SERVICES[name]
        assert service["depends_on"] == {"database": {"condition": "service_healthy"}}
        assert "storage:/storage" in service["volumes"]
        assert service["environment"]["PGPASSWORD"] == database["environment"]["POSTGRES_PASSWORD"]
        assert (ROOT / service["command"][1]).is_file()
    assert [name for name in SERVICES if "profiles" in SERVICES[name]] == ["retrain", "export"]


def test_the_dashboard_is_published_to_this_machine_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert interpolate(published, {}) == {"dashboard": ["127.0.0.1:8080:8080"]}


@pytest.mark.slow
def test_each_service_s_command_does_its_work(role: str, workspace: Path, mmsearch: Run, start: Start) -> None:
    def command(service: str) -> list[str]:
        return list(interpolate(SERVICES[service]["command"], PASSWORDS))

    def env(service: str) -> dict[str, str]:
        return environment_of(service, role, workspace)

    spoken: list[str] = []

    # A wrong password, or no study yet: exit 4, with which Docker starts the service again.
    said = mmsearch(*command("search"), env={**env("search"), "PGPASSWORD": "wrong"}, code=4).stderr
    assert "password authentication failed" in said
    early = mmsearch(*command("dashboard"), env=env("dashboard"), code=4).stderr
    assert "there is no study yet" in early
    spoken += [said, early]

    # `up`: a worker that is there first waits. Each has a core, as `cpus: 1` gives it.
    assert interpolate(SERVICES["search"]["cpus"], {}) == interpolate(SERVICES["worker"]["cpus"], {}) == "1"
    usable = os.sched_getaffinity(0)
    started = []
    try:
        for service, core in zip(("worker", "search"), (*usable, *usable), strict=False):
            os.sched_setaffinity(0, {core})
            started.append(start(*command(service), env=env(service)))
            if service == "worker":
                assert started[0].stderr is not None
                spoken.append(started[0].stderr.readline())
                assert "waiting 10 min at most: " in spoken[-1]
    finally:
        os.sched_setaffinity(0, usable)
    for process in started:
        out, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert "Traceback" not in said
        assert "1 worker of 1 thread on 1 core" in said
        assert out.startswith("trials    6 of 6 (")
        spoken += [out, said]
    stories = " ".join(spoken)
    assert sorted(map(int, re.findall(r"trial (\d+) (?:complete|pruned)", stories))) == list(range(6))

    table = mmsearch(*command("export"), env=env("export")).stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [int(row["number"]) for row in rows] == list(range(6))
    states = Counter(row["state"] for row in rows)
    assert states["COMPLETE"] + states["PRUNED"] == 6
    assert states["COMPLETE"] >= 1
    study = workspace / "storage" / "digits"
    assert len(list((workspace / "storage" / "artifacts").iterdir())) == 3 * 6  # a table and two pictures a trial
    for row in rows:  # trained once: no epoch twice
        epochs = (study / "trials" / row["number"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in epochs] == list(range(1, int(row["epochs"]) + 1))

    # Whoever comes later finds nothing left to do.
    for service in ("search", "worker"):
        assert "nothing was left to do" in mmsearch(*command(service), env=env(service)).stdout
    assert mmsearch(*command("export"), env=env("export")).stdout == table

    # The same command but for the port, which may be taken here.
    listening = [*command("dashboard")[:-1], "0"]
    assert command("dashboard")[-2:] == ["--port", "8080"]
    dashboard = start(*listening, env=env("dashboard"))
    port = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/dashboard/studies/\d+", announced(dashboard))
    assert port is not None
    url, host = f"http://127.0.0.1:{port[1]}/api/studies", f"127.0.0.1:{port[1]}"
    inside = login(PASSWORDS["MMSEARCH_DASHBOARD_PASSWORD"])
    assert fetch(url).status == 401
    assert fetch(url, Authorization=login(PASSWORDS["POSTGRES_PASSWORD"])).status == 401
    reply = fetch(url, Authorization=inside, Origin=f"http://{host}")
    assert (reply.status, '"study_name": "digits"' in reply.text) == (200, True)
    assert fetch(url, Authorization=inside, Origin="http://evil.example").status == 403
    assert end(dashboard) == (0, "")

    retrained = mmsearch(*command("retrain"), env=env("retrain"))
    spoken += [retrained.stdout, retrained.stderr]
    best = max((row for row in rows if row["state"] == "COMPLETE"), key=lambda row: float(row["value"]))
    assert retrained.stdout.startswith(f"trial       {best['number']} (")
    assert (study / "retrained" / "best" / "model.safetensors").is_file()
    assert (study / "retrained" / "best" / "predictions.csv").is_file()

    kept = [path.read_bytes() for path in (workspace / "storage").rglob("*") if path.is_file()]
    for password in PASSWORDS.values():
        assert not any(password in text for text in spoken)
        assert not any(password.encode() in text for text in kept)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, in order."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0].upper(), line.split(maxsplit=1)[1].strip()) for line in text.splitlines() if line.strip()]


def position(instruction: str, part: str) -> int:
    (found,) = (i for i, (name, rest) in enumerate(instructions()) if name == instruction and part in rest)
    return found


def test_the_dockerfile_starts_mmsearch_as_somebody_without_rights() -> None:
    found = dict(instructions())  # the last one of each name counts
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert set(found) == known
    assert found["FROM"] == "python:3.11-slim"
    assert json.loads(found["ENTRYPOINT"]) == ["mmsearch"]
    assert json.loads(found["CMD"]) == ["--help"]
    assert (found["WORKDIR"], found["USER"]) == ("/work", "mmsearch")
    assert position("USER", "mmsearch") > position("RUN", "useradd")
    for _, rest in instructions():
        if "&&" in rest or "pip" in rest:
            checked = subprocess.run(["sh", "-n"], input=rest, text=True, capture_output=True, check=False)
            assert checked.returncode == 0, checked.stderr


def test_the_image_s_default_command_works(mmsearch: Run) -> None:
    assert "Usage: mmsearch" in mmsearch(*json.loads(dict(instructions())["CMD"])).stdout


def test_a_change_of_the_source_does_not_install_dependencies_again() -> None:
    dependencies = position("RUN", "-r requirements.txt")
    before = " ".join(rest for name, rest in instructions()[:dependencies] if name == "COPY")
    assert before == "pyproject.toml constraints.txt ./"
    listed = shlex.split(instructions()[dependencies][1].partition(">")[0])
    assert listed[:2] == ["python", "-c"]


def test_the_dependencies_layer_installs_what_the_project_needs() -> None:
    (script,) = re.findall(r'python -c "([^"]*)"', instructions()[position("RUN", "-r requirements.txt")][1])
    printed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert printed == project["dependencies"] + project["optional-dependencies"]["postgres"]


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in allowed  # everything else stays out: data, storage, .env
    sources = [source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in allowed


def test_what_is_copied_makes_the_whole_wheel(tmp_path: Path) -> None:
    """Study files and demo data are in it, without anything that the image does not get."""
    pytest.importorskip("hatchling")
    source = tmp_path / "source"
    source.mkdir()
    for name, rest in instructions():
        if name == "COPY":
            for part in rest.split()[:-1]:
                if (ROOT / part).is_dir():
                    shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / part, source / part)
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {f"mmsearch/studies/{path.name}" for path in (ROOT / "studies").glob("*.toml")} <= held
    assert {"mmsearch/data/demo/digits.npz", "mmsearch/data/demo/LICENSE.md", "mmsearch/cli.py"} <= held
