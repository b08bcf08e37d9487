"""The README keeps its word: its example runs, its made parts are up to date, the wheel carries what it names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import pytest
from conftest import MMSEARCH, ROOT, environment

from mmsearch.config import DataSection, SearchSection
from mmsearch.hyperparameters import TABLE

README = (ROOT / "README.md").read_text()
CHOICES = (
    "image.encoder",
    "audio.encoder",
    "fusion.name",
    "features.name",
    "optimizer.name",
    "schedule.name",
    "loss.name",
)
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def test_the_made_parts_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_has_a_line() -> None:
    done = subprocess.run([MMSEARCH, "--help"], capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^  ([a-z-]+)  ", done.partition("Commands:")[2], re.M)
    assert len(commands) == 18
    for command in commands:
        assert f"| `mmsearch {command}` |" in README
        assert f"<code>mmsearch {command}</code>" in REFERENCE


def test_every_choice_has_a_line() -> None:
    """Each option of an encoder, fusion, feature, loss, sampler, ... is named in the README's table of choices."""
    table = README.partition("## What there is to choose")[2].partition("\n## ")[0]
    options = {str(option) for name in CHOICES for option in TABLE[name].options}
    options |= {name.split(".", 2)[2] for name in TABLE if name.startswith("augment.image.")}
    options |= {name.split(".", 2)[2] for name in TABLE if name.startswith("augment.audio.")}
    for field in (SearchSection.model_fields["sampler"], SearchSection.model_fields["pruner"]):
        options |= set(get_args(field.annotation))
    options |= set(get_args(DataSection.model_fields["validation"].annotation))
    assert [option for option in sorted(options) if f"`{option}`" not in table] == []


def test_every_link_and_picture_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_each_row_of_the_fault_table_names_a_test_that_is_there() -> None:
    table = README.partition("## What survives the night")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"\[(test_\w+)\]\((tests/test_\w+\.py)\)", row.rpartition(" | ")[2])
        assert named, row
        for name, file in named:
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), (name, file)


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", README.partition("## From Python")[2], re.S)
    assert example is not None
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    code = example[1] + "\nassert probabilities.shape == (1000, 10)\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "storage" / "smoke" / "retrained" / "best" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_study_of_the_readme_is_read(tmp_path: Path) -> None:
    from mmsearch.config import load_config

    study = re.search(r"```toml\n(.*?)```", README, re.S)
    assert study is not None
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.toml").write_text(study[1])
    config = load_config(tmp_path / "studies" / "mine.toml")
    assert config.study.trials == 100
    assert len(config.configurations) == 2


@pytest.mark.slow
def test_the_wheel_carries_studies_and_demo_data(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {"mmsearch/studies/digits.toml", "mmsearch/studies/smoke.toml", "mmsearch/py.typed"} <= held
    assert {"mmsearch/data/demo/digits.npz", "mmsearch/data/demo/LICENSE.md"} <= held
    assert not any(name.startswith(("tests/", "storage/")) for name in held)
    assert wheel.stat().st_size < 4_000_000
