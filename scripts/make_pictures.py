#!/usr/bin/env python3
"""Make docs/live.png and docs/dashboard.png from a real search on the demo data. Needs chromium and the dev extra."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console

from mmsearch import launch, load_config
from mmsearch.search.progress import Event, Progress, Snapshot, describe, render

DOCS = Path(__file__).resolve().parent.parent / "docs"
CHROMIUM = {
    "executable_path": "/usr/bin/chromium",
    "args": ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
}
SHOWN_AFTER = 12  # finished trials


class Recorder(Progress):
    """Keeps what a terminal showed at one moment of the search."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.kept: tuple[list[str], Snapshot] | None = None

    def event(self, event: Event) -> None:
        if event.fields["event"] == "finished" and (text := describe(event)):
            self.lines.append(text)

    def show(self, snapshot: Snapshot) -> None:
        busy = all(worker.trial is not None and worker.value is not None for worker in snapshot.workers)
        if self.kept is None and snapshot.counts.finished >= SHOWN_AFTER and busy:
            self.kept = (self.lines[-6:], snapshot)


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        study = Path("studies/digits.toml")
        config = load_config(study, {"study.folder": folder})
        recorder = Recorder()
        launch(config, workers=2, progress=recorder)
        assert recorder.kept is not None
        lines, snapshot = recorder.kept
        console = Console(record=True, width=96, highlight=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
        console.print("$ mmsearch launch --trials 20 --workers 2", markup=False)
        for line in lines:
            console.print(line, markup=False)
        console.print(render(snapshot, config.study.name))
        page = f"<body style='margin:0;background:#fff'>{console.export_svg(title='mmsearch')}</body>"
        server = subprocess.Popen(
            [sys.executable, "-m", "mmsearch", "dashboard", str(study), "--port", "0"],
            env={"MMSEARCH_FOLDER": folder, "PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stderr is not None
            found = re.search(r"http://\S+", server.stderr.readline())
            assert found is not None
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(**CHROMIUM)  # type: ignore[arg-type]
                tab = browser.new_page(viewport={"width": 1190, "height": 400}, device_scale_factor=1)
                tab.set_content(page)
                tab.wait_for_timeout(500)
                tab.locator("svg").screenshot(path=DOCS / "live.png")
                tab.set_viewport_size({"width": 1280, "height": 900})
                tab.goto(found[0])
                tab.wait_for_timeout(6000)
                tab.screenshot(path=DOCS / "dashboard.png")
                browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
