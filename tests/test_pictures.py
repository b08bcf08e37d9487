"""A trial's two pictures: what they show is what was counted, and nothing on them is cut off or overlaps."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from conftest import TINY
from PIL import Image

from mmsearch.config import StudyConfig, load_config
from mmsearch.data.sources import load_dataset
from mmsearch.search import artifacts
from mmsearch.search.folds import Preparation, TrialTraining
from mmsearch.search.objective import Objective, Stopped
from mmsearch.search.pictures.canvas import TEXT, Picture, drawable, shorten, width_of
from mmsearch.search.pictures.confusion import COUNTED, RIGHT, WHOLE, Counts, draw_confusion
from mmsearch.search.pictures.curves import HEIGHT, TRAINING, VALIDATION, WIDTH, Row, draw_curves
from mmsearch.search.space import suggest
from mmsearch.search.study import create_study
from mmsearch.training.batches import Batches
from mmsearch.training.fit import evaluate
from mmsearch.training.metrics import macro_f1

CPU = torch.device("cpu")
SMALL = TINY.replace("rows = 400", "rows = 200").replace('"image.encoder" = ["mlp", "cnn"]', '"image.encoder" = "mlp"')
STUDIES = {
    "holdout": SMALL,
    "folds": SMALL.replace("[data]", '[data]\nvalidation = "kfold"\nfolds = 3'),
    "loss": SMALL.replace("[study]", '[study]\nmetrics = ["loss"]'),
}
LONG = "a class whose name is longer than any picture has room for"


def epochs(losses: Sequence[float], fold: int | None = None) -> list[Row]:
    """So many epochs, as metrics.csv has them: F1 rises as the loss falls."""
    lowest, highest = min(losses), max(losses)
    rows: list[Row] = []
    for epoch, loss in enumerate(losses, 1):
        score = 0.9 - 0.5 * (loss - lowest) / (highest - lowest or 1)
        row = {"train_loss": loss * 0.9, "train_macro_f1": score + 0.05, "valid_loss": loss, "valid_macro_f1": score}
        rows.append({**({} if fold is None else {"fold": fold}), "epoch": epoch, **row})
    return rows


def falling(number: int, start: float = 2.3) -> list[float]:
    return [start * math.exp(-2 * epoch / number) for epoch in range(number)]


def counted(classes: int, rows: int = 40, wrong: float = 0.1) -> Counts:
    random = np.random.default_rng(classes)
    truth = np.repeat(np.arange(classes), rows)
    guess = np.where(random.random(len(truth)) < wrong, random.integers(classes, size=len(truth)), truth)
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (truth, guess), 1)
    return matrix


def folds() -> Picture:
    return draw_curves([row for fold in range(1, 6) for row in epochs(falling(9 + fold), fold)], "macro_f1", [7] * 5)


def numbered(classes: int, words: str = "class {}") -> list[str]:
    return [words.format(number) for number in range(classes)]


def classes(number: int) -> Picture:
    return draw_confusion(counted(number), numbered(number), "epoch 7")


PICTURES: dict[str, Callable[[], Picture]] = {
    "1 epoch": lambda: draw_curves(epochs([1.2]), "macro_f1", [1]),
    "2 epochs": lambda: draw_curves(epochs(falling(2)), "macro_f1", [2]),
    "50 epochs": lambda: draw_curves(epochs(falling(50)), "macro_f1", [44]),
    "1000 epochs": lambda: draw_curves(epochs(falling(1000)), "macro_f1", [999]),
    "5 folds": folds,
    "a loss of thousands": lambda: draw_curves(epochs(falling(20, 3e3)), "macro_f1", [7]),
    "a tiny loss": lambda: draw_curves(epochs(falling(20, 1e-4)), "loss", [20]),
    "a loss of many magnitudes": lambda: draw_curves(epochs([10.0 ** (3 - n) for n in range(9)]), "loss", [9]),
    "a loss that stays": lambda: draw_curves(epochs([0.5] * 4), "macro_f1", [1]),
    "a loss of nothing": lambda: draw_curves(epochs([0.0] * 4), "macro_f1", [1]),
    **{f"{number} classes": partial(classes, number) for number in (2, 10, 20, 30, 100, 300)},
    "long names": lambda: draw_confusion(counted(10), numbered(10, LONG + " {}"), "best epochs, folds 1 to 50"),
    "no errors": lambda: draw_confusion(counted(10, wrong=0), numbered(10), "epoch 7"),
    "absent classes": lambda: draw_confusion(counted(10) * (np.arange(10)[:, None] > 4), numbered(10), "epoch 7"),
    "millions": lambda: draw_confusion(counted(20) * 123_456, numbered(20), "epoch 1234"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_is_cut_off_or_overlaps_another(name: str) -> None:
    picture = PICTURES[name]()
    assert len(picture.texts) >= 9
    for text, (left, top, right, bottom) in picture.texts:
        assert 0 <= left < right <= picture.image.width, text
        assert 0 <= top < bottom <= picture.image.height, text
    for (one, a), (other, b) in combinations(picture.texts, 2):
        apart = min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])
        assert apart, (one, a, other, b)
    content = picture.png()
    assert len(content) < 60_000
    assert content == PICTURES[name]().png()  # nothing of chance or time in it
    shown = Image.open(io.BytesIO(content))
    assert (shown.format, shown.size) == ("PNG", picture.image.size)
    assert shown.width / shown.height == pytest.approx(4 / 3, abs=0.01)  # as the dashboard's cards


def ink(picture: Picture, color: str) -> set[tuple[int, int]]:
    """Where a picture has a colour: x and y of its pixels."""
    wanted = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
    found = np.argwhere(np.abs(np.asarray(picture.image).astype(int) - wanted).max(axis=2) < 12)
    return {(int(x), int(y)) for y, x in found}


def test_a_curve_goes_where_its_numbers_go() -> None:
    losses = [2.0, 1.0, 1.5, 0.4]
    picture = draw_curves(epochs(losses), "macro_f1", [4])
    upper = [(x, y) for x, y in ink(picture, VALIDATION) if 50 < y < HEIGHT / 2 - 20]
    left, right = min(x for x, _ in upper), max(x for x, _ in upper)
    height = [
        np.mean([y for x, y in upper if abs(x - (left + share * (right - left))) <= 2]) for share in (0.01, 0.34, 0.66)
    ]
    assert height[0] < height[2] < height[1]  # the greatest loss is the highest on the picture
    scale = (height[1] - height[0]) / (losses[0] - losses[1])
    assert height[2] == pytest.approx(height[0] + scale * (losses[0] - losses[2]), abs=6)
    assert ink(draw_curves(epochs([2.0, 1.5, 1.0, 0.4]), "macro_f1", [4]), VALIDATION) != ink(picture, VALIDATION)
    assert ink(picture, TRAINING)


def test_the_best_epoch_is_marked() -> None:
    rows = epochs(falling(10))
    one, other = (draw_curves(rows, "macro_f1", [best]) for best in (3, 8))
    changed = np.argwhere((np.asarray(one.image) != np.asarray(other.image)).any(axis=2))
    left, right = (WIDTH * 0.1 + share * WIDTH * 0.85 for share in (2 / 9, 7 / 9))
    marks = [x for y, x in changed if not HEIGHT * 0.42 < y < HEIGHT * 0.55]  # beside the words
    assert {side for x in marks for side, at in (("3", left), ("8", right)) if abs(x - at) < 40} == {"3", "8"}
    assert all(min(abs(x - left), abs(x - right)) < 60 for x in marks)
    assert any(text == f"best epoch 3: {rows[2]['valid_macro_f1']:.4f}" for text, _ in one.texts)


def test_axes_tell_what_they_are() -> None:
    texts = {text for text, _ in draw_curves(epochs(falling(10)), "macro_f1", [1]).texts}
    assert {"loss", "macro F1", "epoch", "training", "validation", "1", "9"} <= texts
    many = {text for text, _ in PICTURES["a loss of many magnitudes"]().texts}
    assert "loss (logarithmic)" in many
    matrix = {text for text, _ in draw_confusion(counted(3), ["cat", "dog", "owl"], "epoch 7").texts}
    assert {"true class", "predicted class", "cat", "dog", "owl", "right", "wrong"} <= matrix


def test_cells_hold_their_counts_and_colours() -> None:
    matrix = np.array([[30, 0, 10], [0, 40, 0], [0, 1, 0]], dtype=np.int64)
    picture = draw_confusion(matrix, ["a", "b", "c"], "epoch 7")
    texts = [text for text, _ in picture.texts]
    assert "70 of 81 right, epoch 7" in texts
    assert [text for text in texts if text.isdigit()] == [
        "30",
        "10",
        "40",
        "1",
    ]  # row after row; none where there is none
    boxes = {text: box for text, box in picture.texts if text.isdigit()}

    def color(text: str, aside: int = 30) -> tuple[int, ...]:
        left, top, _, bottom = boxes[text]
        found = picture.image.getpixel((int(left) - aside, int((top + bottom) / 2)))
        assert isinstance(found, tuple)
        return found

    assert color("40") == RIGHT  # all of its class
    assert color("40")[0] < color("30")[0] < 200  # less of its class: lighter
    red, _, blue = color("10")
    assert red > blue + 60  # wrong
    assert color("1")[2] < blue  # all of its class, if only one row


def test_of_many_classes_those_with_most_errors_are_shown() -> None:
    classes = 300
    matrix = np.diag(np.full(classes, 40))
    bad = [7, 100, 299]
    for number, row in enumerate(bad):
        matrix[row, row] -= 10 + number
        matrix[row, (row + 50) % classes] += 10 + number
    picture = draw_confusion(matrix, numbered(classes, "kind {}"), "epoch 7")
    texts = [text for text, _ in picture.texts]
    assert {"kind 7", "kind 100", "kind 299", "others"} <= set(texts)
    assert f"predicted class; the {COUNTED} of 300 with the most errors" in texts
    assert {"10", "11", "12"} <= set(texts)
    assert "kind 20" not in texts
    whole = [text for text, _ in draw_confusion(counted(WHOLE), numbered(WHOLE), "epoch 7").texts]
    assert "predicted class" in whole


def test_names_are_shown_as_far_as_they_can_be() -> None:
    assert drawable("Käse\tund\nBrot", 3) == "Kase und Brot"
    assert drawable("\u4e2d\u6587", 3) == "class 3"
    assert drawable("", 4) == "class 4"
    assert shorten("cat", TEXT, 100) == "cat"
    short = shorten("the animal number 4711", TEXT, 120)
    assert width_of(short, TEXT) <= 120
    assert short.startswith("the")
    assert short.endswith("1")
    assert "…" in short


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., StudyConfig]:
    def make(text: str, name: str = "one") -> StudyConfig:
        folder = tmp_path / name / "studies"
        folder.mkdir(parents=True)
        (folder / "made.toml").write_text(text)
        return load_config(folder / "made.toml")

    return make


def never_pruned() -> optuna.Study:
    return optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())


@pytest.mark.parametrize("kind", STUDIES)
def test_the_confusions_are_those_of_the_best_epoch(
    kind: str, configured: Callable[..., StudyConfig], one_thread: None
) -> None:
    config = configured(STUDIES[kind])
    dataset = load_dataset(config)
    hyperparameters = suggest(config.dimensions, never_pruned().ask())
    prepared = Preparation(config, dataset).prepared(hyperparameters)
    training = TrialTraining(config, prepared, hyperparameters, first_number=0, device=CPU)
    assert training.confusion is None
    seen: list[list[Counts]] = [[] for _ in prepared.folds]
    for fold, _ in training:
        seen[fold - 1].append(evaluate(training.model, Batches(prepared.folds[fold - 1].valid, CPU)).matrix())
    expected = sum(seen[fold - 1][training.best(fold).epoch - 1] for fold in range(1, len(seen) + 1))
    np.testing.assert_array_equal(training.confusion, expected)
    assert training.confusion is not None
    assert training.confusion.dtype == np.int64
    assert training.confusion.sum() == sum(len(fold.valid) for fold in prepared.folds)
    if kind == "holdout":
        assert macro_f1(training.confusion) == training.score("macro_f1")


def left(config: StudyConfig) -> dict[str, bytes]:
    """What trial 0 left for people, as far as it is the same each time; and that the dashboard has the same."""
    found = {path.name: path.read_bytes() for path in config.paths.trial(0).glob("*.png")}
    shown = {path.read_bytes() for path in config.storage_paths.artifacts.iterdir()}
    assert shown == {*found.values(), config.paths.table(0).read_bytes()}
    return found


@pytest.mark.parametrize(("kind", "after"), [("holdout", 1), ("holdout", 2), ("folds", 2), ("folds", 3), ("folds", 7)])
def test_a_trial_that_goes_on_has_the_pictures_of_an_undisturbed_one(
    kind: str, after: int, configured: Callable[..., StudyConfig], one_thread: None
) -> None:
    undisturbed, config = configured(STUDIES[kind], "undisturbed"), configured(STUDIES[kind])
    dataset = load_dataset(config)
    with create_study(undisturbed, dataset.fingerprint)[0] as opened:
        Objective(undisturbed, dataset, CPU)(opened.optuna.ask())
    seen: list[int] = []
    stopped = Objective(
        config,
        dataset,
        CPU,
        on_epoch=lambda number, fold, result, value: seen.append(result.epoch),
        should_stop=lambda: len(seen) == after,
    )
    notes: list[str] = []
    with create_study(config, dataset.fingerprint)[0] as opened:
        trial = opened.optuna.ask()
        with pytest.raises(Stopped):
            stopped(trial)
        assert opened.storage.hand_back(trial._trial_id)
        assert not list(config.paths.trial(0).glob("*.png"))
        torch.manual_seed(1)
        Objective(config, dataset, CPU, on_note=notes.append)(opened.optuna.ask())
    assert "goes on after epoch" in notes[0]
    pictures = left(config)
    assert pictures == left(undisturbed)
    assert set(pictures) == {"curves.png", "confusion.png"}


class Prunes(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True


def test_a_trial_that_is_pruned_or_fails_has_pictures_of_its_epochs(
    configured: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(SMALL.replace("pruner_warmup = 1", "pruner_warmup = 0"))
    made = Objective(config, load_dataset(config), CPU)
    study = optuna.create_study(direction="maximize", pruner=Prunes())
    with pytest.raises(optuna.TrialPruned):
        made(study.ask())

    def breaks(number: int, fold: int, result: object, value: float) -> None:
        raise RuntimeError("a GPU fell off")

    made.on_epoch = breaks
    with pytest.raises(RuntimeError):
        made(study.ask())
    for number in (0, 1):
        assert sorted(path.name for path in config.paths.trial(number).iterdir() if path.suffix != ".jsonl") == [
            "confusion.png",
            "curves.png",
            "metrics.csv",
        ]
        assert len(config.paths.table(number).read_text().splitlines()) == 2


def test_a_picture_that_cannot_be_drawn_is_a_warning(
    configured: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*given: object) -> Picture:
        raise ImportError("Pillow was built without fonts")

    monkeypatch.setattr(artifacts, "draw_curves", fails)
    config = configured(SMALL)
    with caplog.at_level(logging.WARNING, "mmsearch"):
        (value,) = Objective(config, load_dataset(config), CPU)(never_pruned().ask())
    assert 0 <= value <= 1
    assert caplog.messages == [f"{config.paths.curves(0)} was not drawn: ImportError: Pillow was built without fonts"]
    assert config.paths.confusion(0).is_file()
    assert not config.paths.curves(0).exists()
    assert len(list(config.storage_paths.artifacts.iterdir())) == 2


def test_a_full_disk_is_not_hidden(configured: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(artifacts, "write_bytes", full)
    config = configured(SMALL)
    with pytest.raises(OSError, match=r"No space left on device: .*curves\.png"):
        Objective(config, load_dataset(config), CPU)(never_pruned().ask())
