"""The studies that come with the program: each is what it says, and runs."""

from __future__ import annotations

import csv
import io
import re
from itertools import product
from pathlib import Path

import pytest
from conftest import ROOT, Run

from mmsearch.config import load_config

STUDIES = sorted(path.stem for path in (ROOT / "studies").glob("*.toml"))


def shipped(name: str) -> str:
    return (ROOT / "studies" / f"{name}.toml").read_text(encoding="utf-8")


def test_the_write_ups_have_a_study_each() -> None:
    assert {"conv_lstm", "digits", "dual_conv", "dual_conv_random", "smoke", "three_conv", "wide"} == set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_nothing_of_a_study_is_without_use(name: str) -> None:
    config = load_config(ROOT / "studies" / f"{name}.toml")
    assert [unused for unused in config.dimensions.unused() if not unused.startswith("features.")] == []
    waveforms = load_config(ROOT / "studies" / f"{name}.toml", {"data.sample_rate": 8000})
    assert waveforms.dimensions.unused() == []


def test_the_grid_of_dual_conv_is_the_write_ups() -> None:
    config = load_config(ROOT / "studies" / "dual_conv.toml")
    assert set(config.dimensions.varying()) == {"optimizer.lr", "batch_size"}
    first = config.configurations[0]
    assert (first["optimizer.lr"], first["batch_size"]) == (5e-4, 32)


def test_three_conv_begins_with_what_the_write_up_found() -> None:
    first = load_config(ROOT / "studies" / "three_conv.toml").configurations[0]
    assert first.under("image.cnn")["filters"] == (48, 128, 64)
    assert first.under("audio.conv1d")["filters"] == (64, 64, 128)
    assert (first["head.units"], first["head.dropout"], first["optimizer.lr"]) == (128, 0.42, 7.63e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trials"), [("dual_conv", 9), ("dual_conv_random", 4), ("three_conv", 3), ("conv_lstm", 3)]
)
def test_a_write_ups_search_runs(name: str, trials: int, workspace: Path, mmsearch: Run) -> None:
    """On a few rows, for one epoch: what is tried, not how well it does."""
    text = re.sub(r"^max_epochs = \d+", "max_epochs = 1", shipped(name), flags=re.M)
    text = text.replace("[data]\n", "[data]\nrows = 300\n")
    file = workspace / "studies" / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    mmsearch("launch", file, "--trials", trials, "--workers", "2")
    rows = list(csv.DictReader(io.StringIO(mmsearch("export", file).stdout)))
    assert len(rows) == trials
    assert {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
    if name == "dual_conv":
        points = {(float(row["optimizer.lr"]), int(row["batch_size"])) for row in rows}
        assert points == set(product((2e-4, 5e-4, 1e-3), (32, 64, 128)))
    assert "macro F1" in mmsearch("retrain-best", file).stdout
