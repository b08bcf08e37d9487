"""A set that has nothing to do with digits: colour pictures, stereo sounds, classes with names."""

from __future__ import annotations

import csv
import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from PIL import Image

ANIMALS = ("barn owl", "cat", "dog")
RATE = 16_000

STUDY = """
[study]
trials = 4
[data]
source = "../animals"
[search]
max_epochs = 10
startup_trials = 2
pruner = "none"
[space]
"optimizer.lr" = { low = 1e-3, high = 1e-2, log = true, default = 3e-3 }
"batch_size" = 16
"augment.image.flip_horizontal" = 0.5
"image.encoder" = "cnn"
"image.cnn.depth" = 2
"image.cnn.filters_1" = 8
"image.cnn.filters_2" = 16
"features.name" = ["log_mel", "mfcc"]
"features.log_mel.hop_ms" = 20
"features.log_mel.bands" = [20, 32]
"features.mfcc.hop_ms" = 20
"audio.encoder" = ["conv1d", "rnn"]
"audio.conv1d.depth" = 1
"audio.rnn.cell" = "gru"
"audio.rnn.units" = 16
"""


def sound(animal: int, rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """(samples, 2): a tone of the animal's own, 0.2 to 3 s, in noise; the right channel is softer."""
    time = np.arange(int(RATE * rng.uniform(0.2, 3.0))) / RATE
    tone = np.sin(2 * np.pi * (300 * 2**animal) * rng.uniform(0.97, 1.03) * time)
    left = 0.3 * tone + rng.normal(0, 0.1, len(time))
    return (np.stack([left, left / 2], axis=1) * 20_000).astype("<i2")


def picture(animal: int, rng: np.random.Generator) -> Image.Image:
    """40 x 60: a bar whose colour tells little and whose direction tells the animal, in noise."""
    pixels = rng.normal(110, 25, (60, 40, 3))
    at = int(rng.integers(12, 28))
    colour = rng.uniform(60, 120, 3)
    match animal:
        case 0:
            pixels[at : at + 8] += colour
        case 1:
            pixels[:, at : at + 8] += colour
        case _:
            rows = np.arange(60)
            for shift in range(8):
                pixels[rows, (rows + at + shift) % 40] += colour
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 rows to train on, of 30 keepers, and 30 to test."""
    folder = tmp_path_factory.mktemp("animals")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        animal, split = number % 3, "train" if number < 90 else "test"
        image, audio = f"{number}.{'png' if number % 2 else 'jpg'}", f"{number}.wav"
        picture(animal, rng).save(folder / image)
        with wave.open(str(folder / audio), "wb") as handle:
            handle.setnchannels(2)
            handle.setsampwidth(2)
            handle.setframerate(RATE)
            handle.writeframes(sound(animal, rng).tobytes())
        rows.append((ANIMALS[animal], audio, image, split, f"keeper {number % 30}"))
    with (folder / "manifest.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("label", "audio", "image", "split", "group"), *rows])
    return folder


@pytest.mark.slow
def test_animals_are_searched_retrained_and_predicted(workspace: Path, mmsearch: Run, animals: Path) -> None:
    (workspace / "animals").symlink_to(animals)
    (workspace / "studies" / "animals.toml").write_text(STUDY)

    told = mmsearch("data", "animals").stdout
    assert "3x60x40" in told
    assert "barn owl" in told

    mmsearch("launch", "studies/animals.toml", "--workers", "2")
    done = mmsearch("retrain-best", "studies/animals.toml")
    assert "30 test rows" in done.stdout
    best = workspace / "storage" / "animals" / "retrained" / "best"
    metrics = json.loads((best / "metrics.json").read_text())
    assert metrics["test"]["macro_f1"] > 0.9, metrics["test"]  # either modality tells them apart
    assert set(metrics["test"]["per_class"]) == set(ANIMALS)

    kept = list(csv.DictReader(io.StringIO((best / "predictions.csv").read_text())))
    assert [row["image"] for row in kept] == [f"{n}.{'png' if n % 2 else 'jpg'}" for n in range(90, 120)]
    assert {row["label"] for row in kept} == set(ANIMALS)

    # new files, without labels, of another rate and size
    rng = np.random.default_rng(1)
    new = workspace / "new"
    new.mkdir()
    for animal in range(3):
        picture(animal, rng).convert("RGB").save(new / f"{animal}.bmp")
        with wave.open(str(new / f"{animal}.wav"), "wb") as handle:
            handle.setnchannels(1)
            handle.setsampwidth(2)
            handle.setframerate(2 * RATE)
            mono = sound(animal, rng)[:, 0].repeat(2)  # every sample twice, at twice the rate
            handle.writeframes(mono.tobytes())
    lines = ["image,audio", *(f"{animal}.bmp,{animal}.wav" for animal in range(3))]
    (new / "manifest.csv").write_text("\n".join(lines) + "\n")
    found = list(csv.DictReader(io.StringIO(mmsearch("predict", best, new).stdout)))
    assert [row["predicted"] for row in found] == list(ANIMALS)
    assert [row["row_id"] for row in found] == ["0", "1", "2"]
    assert "label" not in found[0]
    assert sum(float(found[0][f"p_{name}"]) for name in ANIMALS) == pytest.approx(1, abs=1e-5)
