"""Raw results of runs, each in a file with all that it depends on: measured anew where any of that is another."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from comparison.contestants import HERE, ROOT
from comparison.processes import say
from mmsearch.paths import write_text
from mmsearch.training.provenance import device_name

SHARED = ("pairs", "plain_optuna", "space", "contestants", "processes")  # run for each of them

Result = dict[str, Any]


def kept(
    path: Path,
    name: str,
    of: dict[str, Any],
    measure: Callable[[], Result],
    *,
    still: Callable[[Result], bool] = lambda result: True,
) -> Result:
    """The raw result of a run: that in the file, if it is `of` the same, of this machine and `still` true; or anew."""
    machine = {"device": device_name(torch.device("cpu")), "cores": len(os.sched_getaffinity(0))}
    of = json.loads(json.dumps({**of, **machine, "code": code(name)}))  # as it is read
    if path.exists():
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if held["of"] == of and still(held["result"]):
            say(f"{name}: kept from before")
            return dict(held["result"])
    say(f"{name} ...")
    started = time.monotonic()
    result = measure()
    write_text(path, json.dumps({"of": of, "result": result}, indent=1) + "\n")
    say(f"{name}: {time.monotonic() - started:.0f} s")
    return result


def code(name: str) -> str:
    """A digest of the sources that a run executes: a change of mmsearch does not undo what was measured of others."""
    package = (ROOT / "mmsearch").rglob("*.py")
    if name == "pairs":
        return digest([HERE / "pairs.py", *(ROOT / "mmsearch" / "data").rglob("*.py")])
    shared = [HERE / f"{module}.py" for module in SHARED]
    if "/plain/" in name:
        return digest(shared)
    if "/ray/" in name:
        return digest([*shared, HERE / "ray_tune.py"])
    own = "step" if name.startswith("step/") else "retrain_all"
    return digest([*shared, HERE / f"{own}.py", *package])


def digest(paths: list[Path]) -> str:
    """Of files: what they are called and what they hold; a file that is not there has no content."""
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(paths):
        for part in (path.name.encode(), path.read_bytes() if path.exists() else b""):
            found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()
