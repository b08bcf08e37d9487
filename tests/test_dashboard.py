"""The dashboard as people meet it: over HTTP and in a real browser, and shut to everybody else."""

from __future__ import annotations

import base64
import csv
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import MMSEARCH, Run, environment, require
from PIL import Image

Start = Callable[..., subprocess.Popen[str]]

PASSWORD = "correct horse: battery"
BROWSER_ARGUMENTS = [
    "--no-sandbox",  # as root in a container there is none to be had
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class Reply:
    status: int
    content: bytes
    headers: dict[str, str]

    @property
    def text(self) -> str:
        return self.content.decode()


def fetch(url: str, method: str = "GET", **headers: str) -> Reply:
    """One request, with exactly these headers, to whatever address the URL names."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        connection.request(method, parts.path, headers=headers)
        response = connection.getresponse()
        return Reply(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})
    finally:
        connection.close()


def login(password: str) -> str:
    return "Basic " + base64.b64encode(f"mmsearch:{password}".encode()).decode()


def announced(process: subprocess.Popen[str]) -> str:
    """The address that a dashboard prints once it listens."""
    assert process.stderr is not None
    limit = threading.Timer(60, process.kill)
    limit.start()
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("dashboard at "):
                return line.split()[2]
    finally:
        limit.cancel()
    raise AssertionError(f"no dashboard: {lines}")


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Press Ctrl-C; the exit code and what was said last."""
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@dataclass(frozen=True)
class Served:
    """A finished search of six trials with its retrained best, and a dashboard on it."""

    folder: Path
    study_url: str

    @property
    def base(self) -> str:
        return self.study_url.partition("/dashboard/")[0]

    @property
    def number(self) -> str:
        return self.study_url.rpartition("/")[2]

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder / 'storage' / 'studies.db'}"

    def json(self, path: str) -> Any:
        reply = fetch(self.base + path)
        assert reply.status == 200, reply
        return json.loads(reply.text)

    def study(self) -> Any:
        return self.json(f"/api/studies/{self.number}")

    def artifacts(self, trial: Any) -> dict[str, Reply]:
        """What the dashboard has beside a trial, by its name."""
        at = f"{self.base}/artifacts/{self.number}/{trial['trial_id']}"
        return {held["filename"]: fetch(f"{at}/{held['artifact_id']}") for held in trial["artifacts"]}


@pytest.fixture(scope="module")
def served(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(searched, folder, symlinks=True, dirs_exist_ok=True)
    common: dict[str, Any] = {"cwd": folder, "env": environment(), "stdin": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(
        [MMSEARCH, "dashboard", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **common,
    ) as process:
        try:
            yield Served(folder, announced(process))
            code, said = end(process)
            assert (code, said) == (0, "")  # after all that the tests asked of it
        finally:
            process.kill()


def test_shows_the_study_with_its_metric_and_its_note(served: Served) -> None:
    listed = served.json("/api/studies")["study_summaries"]
    assert [(study["study_name"], study["directions"]) for study in listed] == [("digits", ["maximize"])]
    study = served.study()
    assert study["objective_names"] == ["macro_f1"]
    note = study["note"]["body"]
    assert "Data: `demo`" in note
    assert "| `optimizer.lr` | 0.001 to 0.01, logarithmic | 0.003 |" in note
    assert '| `image.encoder` | "mlp", "cnn" | "cnn" |' in note
    assert "| `image.mlp.units_1` | 16, 32 | 32 |" in note
    assert "batch_size" not in note  # fixed
    for command in ("launch", "confirm", "retrain-best", "report", "export", "dashboard"):
        assert f"\nmmsearch {command}\n" in note
    best = max((trial for trial in study["trials"] if trial["state"] == "Complete"), key=lambda t: t["values"][0])
    assert f"- **Best**: macro_f1 {best['values'][0]:.4f} (trial {best['number']}, epoch " in note
    assert f"{best['values'][0] - study['trials'][0]['values'][0]:+.4f} over the defaults (trial 0)\n" in note
    assert "- **Trials**: 6 of 6 (" in note
    assert f"- **Retrained**: trial {best['number']}, macro F1 0." in note


def test_every_trial_has_its_epochs_as_a_table(served: Served) -> None:
    trials = served.study()["trials"]
    assert [trial["number"] for trial in trials] == list(range(6))
    for trial in trials:
        assert trial["state"] in ("Complete", "Pruned")
        reply = served.artifacts(trial)["metrics.csv"]
        assert (reply.status, reply.headers["content-type"]) == (200, "text/csv")
        rows = list(csv.DictReader(io.StringIO(reply.text)))
        attributes = {attribute["key"]: attribute["value"] for attribute in trial["user_attrs"]}
        assert len(rows) == int(attributes["epochs"])
        reported = {value["step"]: value["value"] for value in trial["intermediate_values"]}
        assert {int(row["epoch"]): float(row["valid_macro_f1"]) for row in rows} == pytest.approx(reported)


def test_every_trial_has_its_pictures(served: Served) -> None:
    for trial in served.study()["trials"]:
        found = served.artifacts(trial)
        assert sorted(found) == ["confusion.png", "curves.png", "metrics.csv"]
        for name in ("confusion.png", "curves.png"):
            reply = found[name]
            assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
            with Image.open(io.BytesIO(reply.content)) as picture:
                assert picture.width >= 600
            kept = served.folder / "storage" / "digits" / "trials" / str(trial["number"]) / name
            assert kept.read_bytes() == reply.content


def test_an_artifact_that_could_run_is_sent_as_a_download(served: Served) -> None:
    page = base64.b64encode(b"<script>alert(1)</script>").decode()
    body = json.dumps({"file": f"data:text/html;base64,{page}", "filename": "x.html"}).encode()
    address = urlsplit(served.base)
    connection = http.client.HTTPConnection(address.netloc)
    connection.request("POST", "/api/artifacts/1", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    held = json.loads(reply.read())
    assert reply.status == 201, held
    connection.request("GET", f"/artifacts/1/{held['artifact_id']}")
    sent = connection.getresponse()
    assert sent.read() == b"<script>alert(1)</script>"
    assert sent.headers["Content-Type"] == "application/octet-stream"
    assert sent.headers["Content-Disposition"] == "attachment"
    assert sent.headers["X-Content-Type-Options"] == "nosniff"
    assert sent.headers["Access-Control-Allow-Origin"] is None
    connection.close()


def test_a_note_that_was_edited_stays(mmsearch: Run, workspace: Path) -> None:
    import optuna
    import optuna_dashboard

    from mmsearch.search.storage import open_storage

    mmsearch("launch", "--trials", 1, "--workers", 1)
    storage = open_storage(f"sqlite:///{workspace}/storage/studies.db")
    study = optuna.load_study(study_name="digits", storage=storage)
    first = optuna_dashboard.get_note(study)
    assert "--trials 1" in str(first)
    mmsearch("launch", "--trials", 2, "--workers", 1)
    assert "--trials 2" in str(optuna_dashboard.get_note(study))  # ours: kept up to date
    optuna_dashboard.save_note(study, "mine")
    mmsearch("launch", "--trials", 3, "--workers", 1)
    assert optuna_dashboard.get_note(study) == "mine"
    storage.engine.dispose()


def test_the_trial_table_downloads(served: Served) -> None:
    reply = fetch(f"{served.base}/csv/{served.number}")
    assert reply.status == 200
    assert [row["Number"] for row in csv.DictReader(io.StringIO(reply.text))] == list("012345")


@pytest.mark.parametrize("host", ["evil.example:{port}", "evil.example", "127.0.0.1.evil.example:{port}", ""])
def test_another_host_name_gets_nothing(served: Served, host: str) -> None:
    """A page elsewhere can point its own name at this machine (DNS rebinding); the name gives it away."""
    port = str(urlsplit(served.base).port)
    reply = fetch(f"{served.base}/api/studies", Host=host.format(port=port))
    assert (reply.status, "digits" in reply.text) == (403, False)


def test_this_machine_s_own_names_are_welcome(served: Served) -> None:
    port = urlsplit(served.base).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert fetch(f"{served.base}/api/studies", Host=host).status == 200
        assert fetch(f"{served.base}/api/studies", Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "https://localhost", "null"])
def test_another_site_s_page_can_neither_read_nor_delete(served: Served, origin: str) -> None:
    assert fetch(f"{served.base}/api/studies", Origin=origin).status == 403
    assert fetch(f"{served.base}/api/studies/{served.number}", "DELETE", Origin=origin).status == 403
    assert served.study()["name"] == "digits"


def test_a_password_keeps_others_out(served: Served, start: Start) -> None:
    process = start(
        "dashboard", "--port", "0", "--storage", served.database, env={"MMSEARCH_DASHBOARD_PASSWORD": PASSWORD}
    )
    url = announced(process).partition("/dashboard/")[0] + "/api/studies"
    refused = fetch(url)
    assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Basic realm="mmsearch"')
    assert "digits" not in refused.text
    for wrong in (login("guess"), login(""), "Basic", "Basic \u00e9", f"Bearer {PASSWORD}"):
        assert fetch(url, Authorization=wrong).status == 401
    assert fetch(url, Authorization=login(PASSWORD)).status == 200
    assert fetch(url, Authorization=login(PASSWORD), Host="dashboard.example").status == 200  # behind a proxy
    assert fetch(url, Authorization=login(PASSWORD), Origin="http://evil.example").status == 403
    code, said = end(process)
    assert (code, said) == (0, "")


def test_ctrl_c_ends_it_well(served: Served, start: Start) -> None:
    process = start("dashboard", "--port", "0", "--storage", served.database)
    announced(process)
    assert end(process) == (0, "")


def test_beyond_this_machine_only_with_a_password(mmsearch: Run) -> None:
    said = mmsearch("dashboard", "--host", "0.0.0.0", code=2).stderr
    assert said.startswith("mmsearch: --host 0.0.0.0 lets others in")
    assert "MMSEARCH_DASHBOARD_PASSWORD" in said
    assert len(said.splitlines()) == 1


def test_without_a_study_it_says_so(mmsearch: Run, workspace: Path) -> None:
    said = mmsearch("dashboard", "--port", "0", code=4).stderr
    assert "there is no study yet; `mmsearch launch` makes one" in said
    assert not (workspace / "storage" / "studies.db").exists()


def test_a_port_that_is_taken(served: Served, mmsearch: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = mmsearch("dashboard", "--port", port, "--storage", served.database, code=1).stderr
    assert said == f"mmsearch: the dashboard cannot listen on 127.0.0.1:{port}: Address already in use; try --port\n"


@pytest.mark.slow
def test_in_a_browser(served: Served) -> None:
    chromium = require("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(60_000)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda reply: wrong.append(reply.url) if reply.status >= 400 else None)
        given_up = "net::ERR_ABORTED"  # by a page that is left
        page.on("requestfailed", lambda request: wrong.append(request.url) if request.failure != given_up else None)
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)

        page.goto(f"{served.base}/dashboard")
        page.get_by_text(f"{served.number}. digits").click()
        page.get_by_text("digits (id=").first.wait_for()
        assert page.url.partition("?")[0] == served.study_url  # as announced
        page.get_by_text("Hyperparameter Importance").first.wait_for()
        page.get_by_text("macro_f1").first.wait_for()

        page.goto(f"{served.study_url}/note")
        page.get_by_role("heading", name="digits").wait_for()
        page.get_by_role("cell", name="optimizer.lr").wait_for()
        page.get_by_text("Best: macro_f1 0.").wait_for()
        assert "mmsearch launch" in page.inner_text("body")

        page.goto(f"{served.study_url}/trials")
        page.get_by_text("6 Trials").wait_for()
        page.get_by_text("Best Trial").first.wait_for()
        page.get_by_text("Trial 1", exact=True).click()
        page.get_by_role("heading", name="Trial 1 (trial_id=").wait_for()
        for name in ("curves.png", "confusion.png"):
            shown = page.get_by_role("img", name=name)
            shown.wait_for()
            shown.scroll_into_view_if_needed()
            page.wait_for_function("image => image.complete && image.naturalWidth > 600", arg=shown.element_handle())
            assert shown.bounding_box() is not None
        page.get_by_text("metrics.csv").wait_for()
        with page.expect_download() as download:
            page.locator("a[download='metrics.csv']").click()
        assert download.value.suggested_filename == "metrics.csv"
        rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
        browser.close()
    trial = served.study()["trials"][1]
    assert [int(row["epoch"]) for row in rows] == [value["step"] for value in trial["intermediate_values"]]
    assert not wrong
