"""Figures of a retrained model: they show what scikit-learn counts, and hold for any family, class and data."""

from __future__ import annotations

import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from mmsearch.data.dataset import Dataset, Origin, Pixels, Split, statistics
from mmsearch.data.features import feature_shapes, with_features
from mmsearch.data.sources import read_dataset
from mmsearch.hyperparameters import Value
from mmsearch.models.factory import build_model
from mmsearch.results.bundle import Bundle, Member
from mmsearch.results.figures.confidence import coverage_figure, reliability_figure, selective_accuracy
from mmsearch.results.figures.model import model_figures
from mmsearch.results.figures.rasters import coloured, pictures, planes, sheet, shown, uri
from mmsearch.results.figures.rows import Scored, plain, scored, stratified
from mmsearch.results.figures.samples import least_confident, mistakes_figure, most_confident_mistakes, sample_figures
from mmsearch.results.figures.scores import (
    LISTED,
    class_scores,
    confused_pairs_figure,
    confusion_figure,
    modalities_figure,
    per_class_figure,
)
from mmsearch.results.figures.style import Figure, themed
from mmsearch.results.statistics import expected_calibration_error
from mmsearch.spaces import Fixed, Space

NAMES = ("barn owl", "cat", "<b>dog</b> & the name of a very long breed of it")


def data(
    classes: tuple[str, ...] = NAMES,
    *,
    test: int = 24,
    image: tuple[int, int, int] = (1, 9, 7),
    audio: tuple[int, int] = (12, 5),
    rate: int | None = None,
) -> Dataset:
    """Rows of noise; every class has some."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        sound = (
            rng.integers(-9000, 9000, (count, *audio)).astype(np.int16) if rate else rng.normal(1, 3, (count, *audio))
        )
        label = rng.permutation(np.arange(count) % len(classes))
        scale = 1 / 32768 if rate else 1.0
        return Split(rng.random((count, *image)), sound, label, np.arange(count), 1.0, scale)

    ends = (-1.0, 1.0)
    return Dataset("noise", "arrays", split(40), split(test), classes, {}, Pixels(0, 1, 1.0), ends, False, rate=rate)


def bundle_of(dataset: Dataset, members: int = 1, /, **given: Value) -> Bundle:
    """Models that nobody trained."""
    space = Space(
        {name.replace("__", "."): Fixed(value) for name, value in given.items()},
        {"data.audio": "waveforms" if dataset.rate else "features"},
    )
    made = []
    for seed in range(members):
        torch.manual_seed(seed)
        hyperparameters = space.configuration({})
        train = with_features(dataset.train, dataset.rate, hyperparameters, None)
        shapes = feature_shapes(dataset.shapes, dataset.rate, hyperparameters)
        made.append(Member(build_model(hyperparameters, shapes, statistics(train)), hyperparameters))
    return Bundle(tuple(made), dataset.trained, Path("nowhere"))


def said(
    labels: list[int], predicted: list[int], confidence: list[float], classes: tuple[str, ...] = NAMES, **given: Any
) -> Scored:
    """Rows of which this is predicted, with these confidences."""
    dataset = data(classes, test=len(labels))
    assert dataset.test is not None
    count = len(classes)
    rest = (1 - np.array(confidence)) / (count - 1)
    probabilities = np.repeat(rest[:, None], count, axis=1)
    probabilities[np.arange(len(labels)), predicted] = confidence
    split = replace(dataset.test, label=np.array(labels))
    chosen = {"before": probabilities, "after": probabilities, "temperature": 1.0, "abstain_below": None, **given}
    return Scored("test", split, dataset.trained, **chosen)


def at_random(classes: int, rows: int, seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    predicted = np.where(rng.random(rows) < 0.7, labels, rng.integers(0, classes, rows))
    names = tuple(f"class {i}" for i in range(classes))
    return said(labels.tolist(), predicted.tolist(), rng.uniform(0.6, 1, rows).tolist(), names)


def drawn(plot: Any, kind: str) -> list[dict[str, Any]]:
    """The traces of a kind as they are in the plot's JSON, numbers as lists."""
    held = [trace.to_plotly_json() for trace in plot.data if trace.type == kind]
    return [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in trace.items()} for trace in held]


def opened(source: str) -> npt.NDArray[np.uint8]:
    """(height, width, 4) the pixels of a picture in a plot."""
    head, _, text = source.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGBA"))


# Scores


@pytest.mark.parametrize(("classes", "rows"), [(2, 30), (10, 400), (60, 500)])
def test_the_confusion_matrix_is_scikit_learns(classes: int, rows: int) -> None:
    seen = at_random(classes, rows)
    expected = confusion_matrix(seen.labels, seen.predicted, labels=range(classes))
    plot = confusion_figure(seen).plot
    (cells,) = drawn(plot, "scatter")
    counts = np.zeros((classes, classes), dtype=int)
    for x, y, text in zip(cells["x"], cells["y"], cells["text"], strict=True):
        counts[y, x] = int(text.split("<")[0])
    assert (counts == expected).all()
    right, wrong = (np.nan_to_num(np.array(trace["z"], dtype=float)) for trace in drawn(plot, "heatmap"))
    assert np.allclose(right + wrong, expected / np.maximum(expected.sum(1, keepdims=True), 1))
    assert (np.diag(wrong) == 0).all()
    assert cells["mode"] == ("markers" if classes == 60 else "text")


def test_the_scores_of_each_class_are_scikit_learns() -> None:
    seen = at_random(7, 90)
    labels, predicted = np.where(seen.labels == 3, 2, seen.labels), np.where(seen.predicted == 5, 4, seen.predicted)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(7), zero_division=0)
    assert np.allclose(class_scores(labels, predicted, 7), expected[:3])


def test_intervals_of_each_class_hold_the_score_and_are_a_point_where_nothing_is_wrong() -> None:
    seen = said([0] * 20 + [1] * 20 + [2] * 20, [0] * 20 + [1] * 15 + [2] * 25, [0.9] * 60)
    traces = drawn(per_class_figure(seen).plot, "scatter")
    assert [trace["name"] for trace in traces] == ["precision", "recall", "F1"]
    assert traces[1]["x"] == [1.0, 0.75, 1.0]
    for trace in traces:
        value = np.array(trace["x"])
        low, high = value - trace["error_x"]["arrayminus"], value + trace["error_x"]["array"]
        assert (low >= 0).all()
        assert (high <= 1 + 1e-12).all()
        assert low[0] == high[0] == 1
    assert traces[1]["error_x"]["arrayminus"][1] > 0.05


def test_of_many_classes_those_with_the_lowest_f1_are_listed() -> None:
    seen = at_random(60, 700)
    figure = per_class_figure(seen)
    f1 = drawn(figure.plot, "scatter")[2]["x"]
    assert f1 == sorted(class_scores(seen.labels, seen.predicted, 60)[2])[:LISTED]
    assert f"{LISTED} of 60 classes" in figure.caption


def test_the_most_confused_pairs_come_first() -> None:
    figure = confused_pairs_figure(said([0, 0, 0, 1, 1, 2], [1, 1, 0, 0, 1, 2], [0.9] * 6))
    assert figure is not None
    assert list(figure.plot.data[0].x) == [2, 1]
    assert list(figure.plot.layout.yaxis.ticktext) == ["barn owl → cat", "cat → barn owl"]
    assert confused_pairs_figure(said([0, 1], [0, 1], [0.9] * 2)) is None


def test_the_account_of_modalities_is_drawn_as_it_was_measured() -> None:
    part = {"macro_f1": 0.9, "interval": [0.85, 0.93]}
    account: dict[str, Any] = dict.fromkeys(("both", "image_alone", "audio_alone", "audio_shuffled"), part)
    account |= {"rows": 1000, "fusion_gain": {"macro_f1": 0.01, "interval": [-0.01, 0.02]}}
    figure = modalities_figure({"modalities": {"scored_on": "test", "account": account}})
    assert figure is not None
    assert [bar.x[0] for bar in figure.plot.data] == [0.9] * 4
    assert figure.plot.data[0].error_x.arrayminus[0] == pytest.approx(0.05)
    assert "+0.0100" in figure.caption
    assert "no gain" in figure.caption
    old = modalities_figure({"modalities": {"scored_on": "test", "both": 0.9, "image_alone": 0.8}})
    assert old is not None
    assert [(bar.x[0], bar.error_x.array) for bar in old.plot.data] == [(0.9, None), (0.8, None)]
    assert modalities_figure({}) is None


# Confidence


def test_the_reliability_diagram_has_every_row_before_and_after() -> None:
    before = at_random(4, 300)
    after = before.after**0.5 / (before.after**0.5).sum(1, keepdims=True)
    seen = replace(before, after=after, temperature=2.0)
    plot = reliability_figure(seen).plot
    names = [trace["name"] for trace in drawn(plot, "scatter")]
    for name, probabilities in zip(names[1:], (seen.before, seen.after), strict=True):
        error = expected_calibration_error(probabilities.max(1), probabilities.argmax(1) == seen.labels)
        assert f"ECE {error:.4f}" in name
    assert [sum(bar["y"]) for bar in drawn(plot, "bar")] == [300, 300]
    assert len(drawn(reliability_figure(before).plot, "bar")) == 1


def test_a_bin_of_few_rows_has_wilsons_interval() -> None:
    seen = said([0] * 10, [0] * 8 + [1] * 2, [0.9] * 10)
    points = drawn(reliability_figure(seen).plot, "scatter")[1]
    assert points["y"] == [0.8]
    assert points["error_y"]["arrayminus"][0] == pytest.approx(0.8 - 0.4902, abs=1e-4)
    assert points["error_y"]["array"][0] == pytest.approx(0.9433 - 0.8, abs=1e-4)


def test_coverage_and_accuracy_at_every_threshold() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.integers(5, 11, 60) / 10, (rng.random(60) < 0.8).astype(float)
    thresholds, coverage, accuracy = selective_accuracy(confidence, correct)
    assert thresholds.tolist() == sorted(set(confidence.tolist()), reverse=True)
    for threshold, covered, right in zip(thresholds, coverage, accuracy, strict=True):
        kept = confidence >= threshold
        assert covered == pytest.approx(kept.mean())
        assert right == pytest.approx(correct[kept].mean())


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(None, "no threshold"), (0.85, "abstains below 0.85: 66.7 % answered, 100.00 % of them right"), (0.99, "no row")],
)
def test_the_threshold_is_marked(threshold: float | None, expected: str) -> None:
    figure = coverage_figure(said([0, 1, 2], [0, 1, 1], [0.9, 0.95, 0.8], abstain_below=threshold))
    assert expected in " ".join([figure.caption, *(str(trace.name) for trace in figure.plot.data)])
    assert "66.67 % right" in figure.alternative


# Rows as they are


def test_mistakes_are_the_mistakes_and_the_most_confident_comes_first() -> None:
    seen = said([0, 1, 2, 0, 1, 2], [0, 2, 1, 1, 1, 2], [0.99, 0.5, 0.9, 0.7, 0.6, 0.4])
    assert most_confident_mistakes(seen).tolist() == [2, 3, 1]
    assert most_confident_mistakes(seen, 2).tolist() == [2, 3]
    assert least_confident(seen).tolist() == [5, 4, 0]
    figure = mistakes_figure(seen)
    assert "All mistakes (3)" in figure.caption
    assert len(figure.plot.layout.images) == 6
    texts = [note.text for note in figure.plot.layout.annotations]
    assert texts[1].startswith("<b>barn owl</b> taken for <b>cat</b>, at 0.700")
    assert "&lt;b&gt;dog" in texts[0]
    assert "row 3" in texts[1]


def test_where_nothing_is_wrong_the_least_confident_rows_are_shown() -> None:
    figure = mistakes_figure(said([0, 1, 2], [0, 1, 2], [0.9, 0.5, 0.7]))
    assert "No row is wrong" in figure.caption
    assert [note.text.split("at ")[1][:5] for note in figure.plot.layout.annotations] == ["0.500", "0.700", "0.900"]


def test_pictures_show_the_pixels() -> None:
    split = data().train
    for image, pixels in (
        (np.arange(24).reshape(2, 1, 3, 4) * 10, Pixels(0, 255, 1 / 255)),
        (np.arange(24).reshape(2, 1, 3, 4) / 11.5 - 1, Pixels(-1, 1, 0.5)),
        (np.arange(72).reshape(2, 3, 3, 4) / 71, Pixels(0, 1, 1.0)),
    ):
        some = replace(split, image=image, rows=np.arange(2), image_scale=pixels.scale)
        found = pictures(some, np.array([1]), pixels)[0]
        low = min(0.0, pixels.low)
        expected = (image[1] - low) / ((pixels.high - low) if low else 1 / pixels.scale) * 255
        assert np.abs(found.transpose(2, 0, 1) - expected).max() <= 0.5
        big = opened(uri(shown(found, 8)))[::2, ::2, : found.shape[2]]
        assert np.abs(big.astype(int) - np.minimum(found, 254 if found.shape[2] == 1 else 255)).max() <= 1


def test_the_page_shows_between_samples_and_in_empty_places() -> None:
    tile = coloured(np.ones((3, 5)), (5, 3))
    pixels = opened(uri(sheet([tile, tile, tile, None], 2, 4)))
    assert pixels.shape == (10, 14, 4)
    alpha = pixels[:, :, 3]
    assert alpha[:3, :5].min() == alpha[:3, 9:].min() == alpha[7:, :5].min() == 255
    assert alpha[3:7].max() == alpha[:, 5:9].max() == alpha[7:, 9:].max() == 0
    bright, dark = (opened(uri(coloured(np.full((3, 5), value), (5, 3))))[0, 0, :3].sum() for value in (1.0, 0.0))
    assert bright > 3 * dark


def test_a_tone_is_bright_at_its_frequency() -> None:
    rate, samples = 8000, 8000
    dataset = data(audio=(samples, 1), rate=rate)
    wave = np.sin(2 * np.pi * 1000 * np.arange(samples) / rate) * 9000
    wave[: samples // 2] = 0
    split = replace(dataset.train, audio=np.tile(wave.astype(np.int16)[:, None], (40, 1, 1)))
    found = planes(split, np.array([0, 5]), dataset.trained)
    assert found.across == ("time (s)", 0.0, 1.0)
    assert found.up == ("frequency (kHz)", 0.0, 4.0)
    frequency, time = np.unravel_index(found.values[1].argmax(), found.values[1].shape)
    assert frequency / (found.values.shape[1] - 1) * 4 == pytest.approx(1, abs=0.05)
    assert time / found.values.shape[2] > 0.5


def test_features_are_shown_each_coefficient_in_its_own_range() -> None:
    dataset = data(audio=(6, 3))
    audio = np.random.default_rng(0).normal(0, 1, (40, 6, 3)) * np.array([1.0, 100.0, 0.0])
    found = planes(replace(dataset.train, audio=audio), np.arange(40), dataset.trained)
    assert found.values.shape == (40, 3, 6)
    assert found.values[:, :2].std(axis=(0, 2)) == pytest.approx([0.22, 0.22], abs=0.06)
    assert found.span == "frames 1 to 6 rightwards, coefficients 1 to 3 upwards"


def test_sample_grids_have_some_rows_of_each_class() -> None:
    dataset = data(image=(3, 10, 20), test=15)
    assert dataset.test is not None
    images, sounds = sample_figures(scored(bundle_of(dataset), "test", dataset.test))
    for figure in (images, sounds):
        (held,) = figure.plot.layout.images
        pixels = opened(held.source)
        assert pixels.shape[:2] == (held.sizey, held.sizex)
        assert len(figure.plot.layout.yaxis.ticktext) == 3
        assert (pixels[:, -1, 3] == 0).all()  # five rows a class leave three places of eight empty
        assert (pixels[0, : pixels.shape[1] // 2, 3] == 255).any()


def test_a_sample_keeps_the_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    chosen = stratified(labels, 100)
    assert np.bincount(labels[chosen]).tolist() == [60, 30, 10]
    assert (np.diff(chosen) > 0).all()
    assert stratified(labels, 1000).tolist() == list(range(1000))


def test_what_users_write_stands_in_a_plot_as_it_is() -> None:
    assert plain("<b>a & b</b>") == "&lt;b&gt;a &amp; b&lt;/b&gt;"
    assert plain("<<<<<<", 4) == "&lt;&lt;…&lt;"
    assert plain("a class of owls, 12", 10) == "a clas…12"
    assert plain("two\n lines") == "two lines"


# All of them


def check(figures: list[Figure]) -> None:
    """What holds for every figure: it can be written, drawn on any page, and read."""
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        held = json.loads(figure.plot.to_json())
        assert not {"title", "paper_bgcolor", "plot_bgcolor"} & set(held["layout"]), f"{figure.name} is not bare"
        assert figure.caption.endswith(".")
        assert figure.alternative.endswith("."), figure.alternative
        titles = [value.get("title", {}).get("text") for key, value in held["layout"].items() if "axis" in key]
        assert any(titles) or figure.name == "architecture", f"{figure.name} has no axis titles"
        assert themed(figure, "dark").layout.width == figure.width


@pytest.mark.parametrize(
    ("dataset", "given"),
    [
        (data(), {"image__encoder": "vit", "audio__encoder": "rnn", "fusion__name": "late"}),
        (data(("no", "yes"), image=(3, 8, 8), audio=(30, 1)), {"image__encoder": "mlp", "fusion__name": "attention"}),
        (data(audio=(2000, 1), rate=4000, image=(2, 5, 5)), {"features__name": "mfcc", "audio__encoder": "mlp"}),
        (data(tuple(f"class {i}" for i in range(35)), test=70), {"image__encoder": "mlp", "audio__encoder": "mlp"}),
        (data(test=1, audio=(1, 1)), {"image__encoder": "mlp", "audio__encoder": "mlp"}),
        (data(test=4), {"image__encoder": "mlp", "audio__encoder": "mlp"}),
        (replace(data(), test=None), {"image__encoder": "mlp", "audio__encoder": "mlp"}),
    ],
    ids=["one of each", "two classes", "waveforms", "many classes", "one row", "few rows", "training rows only"],
)
def test_all_figures_of_any_model_and_data(dataset: Dataset, given: dict[str, Value]) -> None:
    figures = model_figures(replace(bundle_of(dataset, **given), temperature=1.5, abstain_below=0.3), dataset)
    check(figures)
    names = [figure.name for figure in figures]
    assert ("confused_pairs" in names) == (len(dataset.classes) > 30)
    assert ("embedding_fused" in names) == (dataset.test is None or len(dataset.test) >= 10)
    if dataset.test is None:
        assert "flatter" in figures[0].caption


def test_all_figures_of_a_retrained_model(searched: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(searched / "storage" / "digits" / "retrained" / "best", tmp_path / "best")
    bundle, dataset = Bundle.load(folder), read_dataset("demo")
    assert dataset.test is not None
    dataset = replace(dataset, test=dataset.test.only(dataset.test.rows[:60]))
    figures = model_figures(bundle, dataset)
    check(figures)
    assert [figure.name for figure in figures] == [
        "confusion", "per_class", "reliability", "coverage", "modalities", "mistakes", "sample_images", "sample_sounds",
        "embedding_fused", "embedding_image", "embedding_audio", "clusters", "architecture",
    ]  # fmt: skip
    assert "60 test rows" in figures[0].caption


@pytest.mark.slow
def test_the_demos_figures_are_light(searched: Path) -> None:
    bundle = Bundle.load(searched / "storage" / "digits" / "retrained" / "best")
    figures = model_figures(bundle, read_dataset("demo"))
    assert sum(len(figure.plot.to_json()) for figure in figures) < 1_500_000
    expected = bundle.metrics["test"]["confusion_matrix"]
    (cells,) = drawn(figures[0].plot, "scatter")
    assert sum(int(text.split("<")[0]) for text in cells["text"]) == 1000
    right = [int(t.split("<")[0]) for x, y, t in zip(cells["x"], cells["y"], cells["text"], strict=True) if x == y]
    assert right == [expected[i][i] for i in range(10) if expected[i][i]]


def test_files_are_named_where_there_are_some() -> None:
    seen = at_random(3, 5)
    origin = Origin(np.arange(10, 15), tuple(f"{i}.png" for i in range(5)), tuple(f"{i}.wav" for i in range(5)))
    assert seen.row(2) == "row 2"
    assert replace(seen, split=replace(seen.split, origin=origin)).row(2) == "row 12 (2.png, 2.wav)"
