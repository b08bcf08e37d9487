"""Workers and launchers that misbehave on purpose: code that Python runs when one of them starts."""

from __future__ import annotations

import textwrap
from pathlib import Path

WORKER = """
import sys
if "mmsearch.search.worker" in sys.orig_argv:
    import os, signal, time
    from pathlib import Path
    from mmsearch.search.objective import Objective

    def before(trial):
        pass

    def after(number, epoch):
        pass

{body}

    made, called = Objective.__init__, Objective.__call__

    def make(self, *args, on_epoch, **rest):
        def told(number, fold, result, value):
            on_epoch(number, fold, result, value)
            after(number, result.epoch)
        made(self, *args, on_epoch=told, **rest)

    def call(self, trial):
        before(trial)
        return called(self, trial)

    Objective.__init__, Objective.__call__ = make, call
"""
LAUNCHER = """
import sys
commands = {{"launch", "worker", "status", "retrain-best"}} & set(sys.orig_argv)
if commands and "mmsearch.search.worker" not in sys.orig_argv:
    import os, signal, time
    from pathlib import Path
    import mmsearch.search.launcher as launcher
    import mmsearch.search.supervisor as supervisor

{body}
"""


def scripted(folder: Path, *, worker: str = "", launcher: str = "") -> dict[str, str]:
    """The environment in which a worker defines `before(trial)` and `after(trial number, epoch)`, and a launcher runs
    what it is given, with its modules at hand.
    """
    site = folder / "site"
    site.mkdir(exist_ok=True)
    text = ""
    for body, template in ((worker, WORKER), (launcher, LAUNCHER)):
        if body:
            text += template.format(body=textwrap.indent(textwrap.dedent(body), "    "))
    (site / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": str(site)}
