"""Repeats, and splits that keep them together; statistics, a fingerprint, and a cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import ROWS, SOUND, TEST_ROWS, at, labels, values, zenodo

from mmsearch.data.dataset import Dataset, Index, Split, statistics
from mmsearch.data.sources import read_dataset
from mmsearch.data.splits import assign, holdout, some
from mmsearch.errors import DataError

QUICK = settings(max_examples=80, deadline=None)
NO_TEST = {"test_image": None, "test_audio": None, "test_labels": None}


@pytest.fixture(scope="module")
def demo() -> Dataset:
    return read_dataset("demo")


def repeats(dataset: Dataset, split: Split, other: Split) -> list[int]:
    """How many rows of `split` have an image, and how many a recording, of `other`."""
    image, audio = dataset.digests["train"]
    return [int(np.isin(digest[split.rows], digest[other.rows]).sum()) for digest in (image, audio)]


@st.composite
def grouped(draw: st.DrawFn) -> tuple[Index, Index]:
    """Labels and groups of some rows; the rows of a group have one label."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=40))
    classes = draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(sum(sizes))
    names = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(sizes)) * 7
    return np.repeat(classes, sizes)[order], np.repeat(names, sizes)[order]


SHARES = st.one_of(
    st.floats(0.05, 0.95).map(lambda share: (1 - share, share)), st.just((0.6, 0.2, 0.2)), st.just((0.25,) * 4)
)


@QUICK
@given(grouped(), SHARES, st.integers(0, 2**32 - 1))
def test_groups_stay_whole_and_classes_get_their_shares(
    rows: tuple[Index, Index], shares: tuple[float, ...], seed: int
) -> None:
    label, group = rows
    part = assign(label, group, shares, np.random.default_rng(seed))
    assert part.shape == label.shape
    assert set(part.tolist()) <= set(range(len(shares)))
    for name in np.unique(group):
        assert len(np.unique(part[group == name])) == 1
    for name in np.unique(label):
        largest = max(np.bincount(group[label == name]))
        total = (label == name).sum()
        for i, share in enumerate(shares):
            given = ((label == name) & (part == i)).sum()
            assert given - share * total <= largest + 1e-9
            assert share * total - given <= largest * (len(shares) - 1) + 1e-9
    np.testing.assert_array_equal(part, assign(label, group, shares, np.random.default_rng(seed)))


@QUICK
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=60), st.integers(0, 9))
def test_groups_of_several_classes_stay_whole_too(rows: list[tuple[int, int]], seed: int) -> None:
    label, group = (np.array(column) for column in zip(*rows, strict=True))
    part = assign(label, group, (0.8, 0.2), np.random.default_rng(seed))
    assert all(len(np.unique(part[group == name])) == 1 for name in np.unique(group))


def test_the_demo_is_real_and_its_test_rows_are_new(demo: Dataset) -> None:
    assert demo.test is not None
    assert (len(demo.train), len(demo.test)) == (4000, 1000)
    assert (demo.shapes.image, demo.shapes.audio, demo.shapes.classes) == ((1, 28, 28), (39, 13), 10)
    for train, test in zip(demo.digests["train"], demo.digests["test"], strict=True):
        assert not set(train.tolist()) & set(test.tolist())
    assert np.bincount(demo.test.labels).tolist() == [100] * 10


def test_validation_shares_nothing_with_training(demo: Dataset) -> None:
    fitted, valid = holdout(demo, 0.2, 0)
    assert repeats(demo, valid, fitted) == repeats(demo, fitted, valid) == [0, 0]
    assert repeats(demo, demo.train, fitted)[1] == len(fitted)  # yet recordings do repeat within a side
    assert len(np.unique(demo.digests["train"][1][fitted.rows])) < len(fitted)
    np.testing.assert_array_equal(np.sort(np.concatenate([fitted.rows, valid.rows])), demo.train.rows)
    assert np.bincount(valid.labels).tolist() == pytest.approx([80] * 10, abs=2)
    assert fitted.image is demo.train.image
    assert fitted.audio is demo.train.audio


def test_the_seed_decides_the_split(demo: Dataset) -> None:
    first, again, other = (holdout(demo, 0.2, seed)[1].rows for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("count", [37, 400, 1500, 3999])
def test_some_rows_keep_the_balance(demo: Dataset, count: int) -> None:
    dataset = read_dataset("demo", rows=count)
    assert np.bincount(dataset.train.labels, minlength=10).tolist() == pytest.approx([count / 10] * 10, abs=1)
    assert len(dataset.train) == count
    assert dataset.test is not None
    assert len(dataset.test) == 1000
    assert dataset.fingerprint == demo.fingerprint
    assert not np.array_equal(dataset.train.rows, read_dataset("demo", rows=count, seed=1).train.rows)
    fitted, valid = holdout(dataset, 0.2, 0)
    assert repeats(dataset, valid, fitted) == [0, 0]
    assert some(dataset.train, count, 0) is dataset.train


def test_data_without_a_test_split_gets_a_grouped_fifth(tmp_path: Path) -> None:
    sound = values(80, 507)
    sound[1::2] = sound[::2]  # each recording twice
    files = {"train_image": values(80, 784), "train_audio": sound, "train_labels": labels(40).repeat(2)}
    folder = str(zenodo(tmp_path / "d", **files, **NO_TEST))
    dataset = read_dataset(folder)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (64, 16)
    assert repeats(dataset, dataset.test, dataset.train) == [0, 0]
    assert np.bincount(dataset.test.labels).tolist() == [4] * 4
    fitted, valid = holdout(dataset, 0.25, 0)
    assert repeats(dataset, valid, fitted) == [0, 0]
    assert len(fitted) + len(valid) == 64
    half = read_dataset(folder, test=0.5).test
    assert half is not None
    assert len(half) == 40
    whole = read_dataset(folder, test=0)
    assert whole.test is None
    assert len(whole.train) == 80


def test_what_is_all_linked_cannot_be_split(tmp_path: Path) -> None:
    chain = values(ROWS, 507)
    chain[1::2] = chain[::2]  # rows 0 and 1, 2 and 3, ... by their recordings
    image = values(ROWS, 784)
    image[2::2] = image[1:-1:2]  # 1 and 2, 3 and 4, ... by their images
    folder = str(zenodo(tmp_path / "d", train_image=image, train_audio=chain, **NO_TEST))
    with pytest.raises(DataError, match=rf"no test split of 0.2 .* {ROWS} of the {ROWS} training rows into one group"):
        read_dataset(folder)
    with pytest.raises(DataError, match=r"no validation split of 0.3 "):
        holdout(read_dataset(folder, test=0), 0.3, 0)


def test_too_few_rows_are_not_blamed_on_repeats(tmp_path: Path) -> None:
    files = {"train_image": values(2, 784), "train_audio": values(2, 507), "train_labels": np.array([0, 1])}
    folder = zenodo(tmp_path / "d", **files, **NO_TEST)
    with pytest.raises(DataError, match=r"no test split of 0.2 is possible") as caught:
        read_dataset(str(folder))
    assert "identical" not in str(caught.value)


def test_data_says_what_repeats_and_what_leaks(mmsearch: Run, workspace: Path) -> None:
    image, sound = values(ROWS, 784, dtype="uint8", high=255), values(ROWS, 507, dtype="float32", high=2)
    test_image, test_sound = values(TEST_ROWS, 784, dtype="uint8", high=255, seed=1), values(TEST_ROWS, 507, seed=1)
    image[1] = image[0]
    sound[2] = sound[1]  # 0, 1 and 2 are one group
    sound[[11, 12]] = sound[10]  # and so are 10, 11 and 12
    test_image[3] = image[7]
    test_sound = test_sound.astype("float32")
    test_sound[[4, 5]] = sound[10]
    zenodo(
        workspace / "d", train_image=image, train_audio=sound, train_labels=np.minimum(labels(ROWS), 2),
        test_image=test_image, test_audio=test_sound, test_labels=labels(TEST_ROWS) % 3,
    )  # fmt: skip
    assert mmsearch("data", "d").stdout.splitlines() == [
        "source    d",
        "layout    zenodo",
        "image     1x28x28 (channels x height x width), uint8, values 0 to 255",
        "audio     39x13 (frames x coefficients), float32, values 0 to 2",
        f"train     {ROWS} rows: 0: 6, 1: 6, 2: 12",
        f"test      {TEST_ROWS} rows: 0: 4, 1: 2, 2: 2",
        f"repeats   {ROWS - 1} different images and {ROWS - 3} different recordings in train; "
        f"{ROWS - 4} groups that a split keeps whole",
        "leaks     1 test rows have an image of train, 2 a recording of train",
        f"problem   3 of {TEST_ROWS} test rows have an image, a recording or a group that train has too: "
        "the test score will be too good",
    ]
    zenodo(workspace / "e", **NO_TEST)
    assert "test      none; a study takes one off (test = 0.2 in [data])" in mmsearch("data", "e").stdout


def test_data_says_what_the_demo_holds(mmsearch: Run) -> None:
    out = mmsearch("data").stdout
    assert out == mmsearch("data", "demo").stdout
    assert "layout    demo\n" in out
    assert "train     4000 rows: 0: 400, 1: 400" in out
    assert "test      1000 rows: 0: 100, 1: 100" in out
    assert "4000 different images and 2400 different recordings in train; 2400 groups" in out
    assert "leaks     0 test rows have an image of train, 0 a recording of train" in out


def test_statistics_are_those_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, sound = values(ROWS, 5, 5, 3, dtype="uint8", high=255), values(ROWS, 6, 4) * 10 + 100
    image[..., 1], sound[..., 2] = 51, 3  # what never varies is not divided by 0
    files = {"train_image": image, "train_audio": sound, "test_image": image[:8], "test_audio": sound[:8]}
    dataset = read_dataset(str(zenodo(tmp_path / "d", **files)))
    rows = np.array([1, 2, 3, 5, 8, 13, 21])
    monkeypatch.setattr("mmsearch.data.dataset.CHUNK_ROWS", 3)
    found = statistics(dataset.train.only(rows))
    pixels, sound = image[rows].transpose(0, 3, 1, 2) / 255, sound[rows]
    expected = {
        "image_mean": pixels.mean((0, 2, 3)),
        "image_std": np.where([True, False, True], pixels.std((0, 2, 3)), 1),
        "audio_mean": sound.mean((0, 1)),
        "audio_std": np.where([True, True, False, True], sound.std((0, 1)), 1),
        "mean_image": pixels.mean(0),
        "mean_audio": sound.mean(0),
    }
    for name, array in expected.items():
        assert getattr(found, name).dtype == np.float32
        np.testing.assert_allclose(getattr(found, name), array, rtol=1e-5, err_msg=name)


def test_the_cache_spares_a_pass_and_notices_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = zenodo(tmp_path / "d"), tmp_path / "cache"
    plain, first = read_dataset(str(folder)), read_dataset(str(folder), cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr("mmsearch.data.arrays.CHUNK_ROWS", 0)  # a pass would fail
        with pytest.raises(ValueError):
            read_dataset(str(folder))
        second = read_dataset(str(folder), cache=cache)
    for read in (first, second):
        assert (read.fingerprint, read.pixels, read.classes) == (plain.fingerprint, plain.pixels, plain.classes)
        np.testing.assert_array_equal(read.groups, plain.groups)
    zenodo(folder, train_audio=at(SOUND, 3, 5.0))
    os.utime(folder / "data_sp_train.npy", ns=(1, 1))
    changed = read_dataset(str(folder), cache=cache)
    assert changed.fingerprint == read_dataset(str(folder)).fingerprint != plain.fingerprint
    assert changed.audio_range[1] == 5
    zenodo(folder, train_audio=at(SOUND, 3, np.nan))
    with pytest.raises(DataError, match="row 3 "):
        read_dataset(str(folder), cache=cache)


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    folder, cache = zenodo(tmp_path / "d"), tmp_path / "cache"
    plain = read_dataset(str(folder), cache=cache)
    for entry in cache.iterdir():
        entry.write_bytes(entry.read_bytes()[:40])
    assert read_dataset(str(folder), cache=cache).fingerprint == plain.fingerprint


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    folder = zenodo(tmp_path / "d")
    print_of = {read_dataset(str(folder)).fingerprint}
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert {read_dataset(str(copy)).fingerprint} == print_of
    for name in sorted(path.name for path in folder.iterdir()):
        array = np.load(folder / name)
        array.flat[5] = array.flat[5] + 1 if array.flat[5] < 3 else 0
        np.save(copy / name, array)
        print_of.add(read_dataset(str(copy)).fingerprint)
        shutil.copy(folder / name, copy / name)
    assert len(print_of) == 7


@pytest.mark.parametrize(("classes", "rows", "parts"), [(30, 6, 5), (10, 12, 5), (100, 4, 5), (200, 2, 5)])
def test_folds_of_classes_with_few_rows_are_as_large(classes: int, rows: int, parts: int) -> None:
    labels = np.repeat(np.arange(classes), rows)
    part = assign(labels, np.arange(len(labels)), (1 / parts,) * parts, np.random.default_rng(0))
    sizes = np.bincount(part, minlength=parts)
    assert sizes.max() - sizes.min() <= 2
    for label in range(classes):
        held = np.bincount(part[labels == label], minlength=parts)
        assert held.max() - held.min() <= 1


def test_a_holdout_of_classes_with_two_rows_has_its_share() -> None:
    labels = np.repeat(np.arange(300), 2)
    part = assign(labels, np.arange(600), (0.8, 0.2), np.random.default_rng(0))
    assert np.bincount(part).tolist() == [480, 120]
