"""Data folders as people have them: any shape, type and range of values; and what is said of those that are wrong."""

from __future__ import annotations

import io
import mmap
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run

from mmsearch.data.arrays import wave_scale
from mmsearch.data.dataset import Dataset
from mmsearch.data.sources import load_rows, read_dataset, rows_from_arrays
from mmsearch.errors import DataError

ROWS, TEST_ROWS = 24, 8
Content = Any  # an array, or the bytes of a file, or None for no file


def values(*shape: int, dtype: str = "float64", high: float = 1, seed: int = 0) -> np.ndarray:
    """Random values from 0 to `high`, both of which occur."""
    drawn = np.random.default_rng([seed, *shape]).random(shape) * high
    drawn.flat[0], drawn.flat[-1] = 0, high
    return (drawn if dtype.startswith("f") and high <= 1 else drawn.round()).astype(dtype)


def labels(rows: int) -> np.ndarray:
    return np.arange(rows) % 4


def put(folder: Path, files: dict[str, Content]) -> Path:
    """A data folder that holds these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif content is not None:
            np.save(folder / name, content)
    return folder


def zenodo(folder: Path, **replaced: Content) -> Path:
    """A folder in the zenodo layout; `train_image=...` and so on put something else in a file's place."""
    files = {
        "train_image": values(ROWS, 784, dtype="uint8", high=255),
        "train_audio": values(ROWS, 507) - 0.5,
        "train_labels": labels(ROWS),
        "test_image": values(TEST_ROWS, 784, dtype="uint8", high=255, seed=1),
        "test_audio": values(TEST_ROWS, 507, seed=1) - 0.5,
        "test_labels": labels(TEST_ROWS),
    }
    assert set(replaced) <= set(files)
    names = {"image": "data_wr_{}.npy", "audio": "data_sp_{}.npy", "labels": "labels_{}.npy"}
    content = {**files, **replaced}
    return put(folder, {names[key.split("_")[1]].format(key.split("_")[0]): content[key] for key in content})


def kaggle(folder: Path, csv: str | bytes) -> Path:
    """A folder in the kaggle layout, of five training rows and two test rows."""
    sizes = {"train": 5, "test": 2}
    arrays = {f"x_{name}_wr.npy": values(rows, 784, seed=rows) for name, rows in sizes.items()}
    arrays |= {f"x_{name}_sp.npy": values(rows, 507, seed=rows) for name, rows in sizes.items()}
    return put(folder, {**arrays, "y_train.csv": csv if isinstance(csv, bytes) else csv.encode()})


def pixels(dataset: Dataset) -> np.ndarray:
    return np.concatenate([image for image, _ in dataset.train.chunks()])


def backed_by_a_file(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


@pytest.mark.parametrize(
    ("dtype", "high"),
    [
        *(("uint8", 255), ("int64", 255), ("float32", 255), ("float64", 1), ("float16", 1), ("bool", 1), ("uint8", 1)),
        *(("int32", 65535), ("uint16", 65535), ("float32", 1000), (">f4", 1), (">i2", 255)),
    ],
)
def test_pixels_of_any_type_and_range_lie_between_0_and_1(tmp_path: Path, dtype: str, high: float) -> None:
    image = values(ROWS, 784, dtype=dtype, high=high)
    test = values(TEST_ROWS, 784, dtype=dtype, high=high, seed=1)
    dataset = read_dataset(str(zenodo(tmp_path / "d", train_image=image, test_image=test)))
    found = pixels(dataset)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(ROWS, 784), image.astype(np.float64) / high, atol=1e-3)
    assert (found.min(), found.max()) == (0, pytest.approx(1))
    assert (dataset.pixels.low, dataset.pixels.high) == (0, high)


@pytest.mark.parametrize(
    ("image", "audio", "shapes"),
    [
        ((784,), (507,), ((1, 28, 28), (39, 13))),
        ((28, 28), (39, 13), ((1, 28, 28), (39, 13))),
        ((28, 28, 3), (100,), ((3, 28, 28), (100, 1))),
        ((3, 28, 28), (13,), ((3, 28, 28), (1, 13))),
        ((28, 20, 1), (50, 2), ((1, 28, 20), (50, 2))),
    ],
)
def test_rows_of_any_shape_are_read_and_not_copied(
    tmp_path: Path, image: tuple[int, ...], audio: tuple[int, ...], shapes: tuple[Any, Any]
) -> None:
    held, sound = values(ROWS, *image), values(ROWS, *audio, seed=2)
    folder = zenodo(
        tmp_path / "d", train_image=held, train_audio=sound,
        test_image=values(TEST_ROWS, *image, seed=1), test_audio=values(TEST_ROWS, *audio, seed=1),
    )  # fmt: skip
    dataset = read_dataset(str(folder))
    assert (dataset.shapes.image, dataset.shapes.audio, dataset.shapes.classes) == (*shapes, 4)
    expected = held.transpose(0, 3, 1, 2) if image[-1] in (1, 3) else held.reshape(ROWS, *shapes[0])
    np.testing.assert_array_equal(dataset.train.image, expected)
    np.testing.assert_array_equal(dataset.train.audio, sound.reshape(ROWS, *shapes[1]))
    assert dataset.test is not None
    for array in (dataset.train.image, dataset.train.audio, dataset.test.image, dataset.test.audio):
        assert backed_by_a_file(array)
    # what a model that was trained on these shapes is given to predict is the same
    again = load_rows(str(folder), "train", dataset.trained)
    np.testing.assert_array_equal(again.image, expected)
    np.testing.assert_array_equal(again.labels, dataset.train.labels)
    np.testing.assert_array_equal(rows_from_arrays(held, sound, dataset.trained).image, expected)


@pytest.mark.parametrize(
    ("dtype", "bright", "dark"), [("float32", 1000, 200), ("uint16", 60000, 200), ("uint8", 255, 1)]
)
def test_rows_to_predict_are_scaled_as_in_training(tmp_path: Path, dtype: str, bright: float, dark: float) -> None:
    train, test = (values(n, 784, dtype=dtype, high=h) for n, h in ((ROWS, bright), (TEST_ROWS, dark)))
    folder = str(zenodo(tmp_path / "d", train_image=train, test_image=test))
    dataset = read_dataset(folder)
    again = load_rows(folder, "test", dataset.trained)
    assert dataset.test is not None
    assert again.image_scale == dataset.test.image_scale == dataset.train.image_scale


@pytest.mark.parametrize(
    "form",
    [
        lambda found: found.astype("int8"),
        lambda found: found.astype("float32"),
        lambda found: found[:, None],
        lambda found: np.eye(4)[found],
        lambda found: np.eye(4, dtype=bool)[found],
        lambda found: found.astype("uint64"),
    ],
)
def test_labels_may_be_whole_numbers_or_one_hot(tmp_path: Path, form: Callable[[np.ndarray], np.ndarray]) -> None:
    folder = zenodo(tmp_path / "d", train_labels=form(labels(ROWS)), test_labels=form(labels(TEST_ROWS)))
    dataset = read_dataset(str(folder))
    assert dataset.classes == ("0", "1", "2", "3")
    np.testing.assert_array_equal(dataset.train.labels, labels(ROWS))
    assert dataset.test is not None
    np.testing.assert_array_equal(dataset.test.labels, labels(TEST_ROWS))


@pytest.mark.parametrize("dtype", ["U", "S", ">U9"])
def test_labels_may_be_words(tmp_path: Path, dtype: str) -> None:
    words = np.array(["dog", "barn owl", "cat", "10"]).astype(dtype)
    folder = zenodo(tmp_path / "d", train_labels=words[labels(ROWS)], test_labels=words[labels(TEST_ROWS)][:, None])
    dataset = read_dataset(str(folder))
    assert dataset.classes == ("10", "barn owl", "cat", "dog")
    np.testing.assert_array_equal(dataset.train.labels, np.array([3, 1, 2, 0])[labels(ROWS)])
    assert dataset.test is not None
    np.testing.assert_array_equal(dataset.test.labels, np.array([3, 1, 2, 0])[labels(TEST_ROWS)])
    # as text they are numbers all the same
    numbers = read_dataset(str(zenodo(tmp_path / "e", train_labels=(labels(ROWS) + 8).astype("U"), test_labels=None)))
    assert numbers.classes == ("8", "9", "10", "11")


def test_kaggle_labels_may_be_words(tmp_path: Path) -> None:
    dataset = read_dataset(str(kaggle(tmp_path / "d", 'row_id,label\n1, owl\n0,"cat, big"\n2,5\n3,owl \n4,ü\n')))
    assert dataset.classes == ("5", "cat, big", "owl", "ü")
    assert dataset.train.labels.tolist() == [1, 2, 0, 2, 3]


@pytest.mark.parametrize("start", ["row_id,label\n", "\ufeffrow_id,label\r\n"])
def test_kaggle_rows_may_stand_in_any_order(tmp_path: Path, start: str) -> None:
    dataset = read_dataset(str(kaggle(tmp_path / "d", f"{start}4,9\n2,3\n0,9\n\n3,5\n1,3\n")))
    assert dataset.classes == ("3", "5", "9")
    assert dataset.train.labels.tolist() == [2, 0, 0, 1, 2]
    assert dataset.test is not None
    assert (dataset.competition, dataset.test.label, len(dataset.test)) == (True, None, 2)
    with pytest.raises(ValueError, match="no labels"):
        _ = dataset.test.labels


def at(array: np.ndarray, row: int, value: Any) -> np.ndarray:
    """The array with something else in a row."""
    changed = array.astype(np.result_type(array, np.float64))
    changed[row] = value
    return changed


def archive(array: np.ndarray) -> bytes:
    held = io.BytesIO()
    np.savez(held, array)
    return held.getvalue()


SOUND, LABELS, HOT = values(ROWS, 507), labels(ROWS), np.eye(4)[labels(ROWS)]
IMAGE_NPY, AUDIO_NPY, LABEL_NPY = "data_wr_train.npy: ", "data_sp_train.npy: ", "labels_train.npy: "

WRONG: dict[str, tuple[dict[str, Content], tuple[str, ...]]] = {
    "image is no square": ({"train_image": values(ROWS, 785)}, (IMAGE_NPY, "785", "image_shape = [height, width]")),
    "image of one axis": ({"train_image": values(ROWS)}, (IMAGE_NPY, f"({ROWS},)", "(N, pixels)")),
    "audio of four axes": ({"train_audio": values(ROWS, 3, 3, 3)}, (AUDIO_NPY, "(N, frames, coefficients)")),
    "single number": ({"train_image": np.array(3)}, (IMAGE_NPY, "single number")),
    "image without pixels": ({"train_image": np.zeros((ROWS, 0))}, (IMAGE_NPY, "0 values")),
    "audio without values": ({"train_audio": np.zeros((ROWS, 0))}, (AUDIO_NPY, "empty")),
    "no rows": (dict.fromkeys(("train_image", "train_audio", "train_labels"), SOUND[:0]), (IMAGE_NPY, "no rows")),
    "audio too short": ({"train_audio": SOUND[1:]}, (AUDIO_NPY, f"{ROWS - 1} rows", f"data_wr_train.npy has {ROWS}")),
    "labels too short": ({"train_labels": LABELS[1:]}, (LABEL_NPY, f"{ROWS - 1} rows")),
    "not a number": ({"train_audio": at(SOUND, 7, np.nan)}, (AUDIO_NPY, "row 7 ")),
    "infinite": ({"train_image": at(values(ROWS, 784), 23, -np.inf)}, (IMAGE_NPY, "row 23 ")),
    "no audio": ({"train_audio": None}, (AUDIO_NPY, "missing", "zenodo")),
    "no labels": ({"train_labels": None}, (LABEL_NPY, "missing")),
    "unknown label": ({"test_labels": at(labels(TEST_ROWS), 3, 9)}, ("labels_test.npy: ", "row 3 ", "label 9", "0, 1")),
    "label below 0": ({"train_labels": at(LABELS, 5, -1)}, (LABEL_NPY, "row 5 ", "label -1")),
    "label of a half": ({"train_labels": at(LABELS, 6, 1.5)}, (LABEL_NPY, "row 6 ", "label 1.5")),
    "label not a number": ({"train_labels": at(LABELS, 6, np.nan)}, (LABEL_NPY, "row 6 ", "nan")),
    "label too great": ({"train_labels": at(LABELS, 6, 1e300)}, (LABEL_NPY, "row 6 ")),
    "label not hot": ({"train_labels": at(HOT, 2, 0)}, (LABEL_NPY, "row 2 ", "one-hot")),
    "label twice hot": ({"train_labels": at(HOT, 2, 1)}, (LABEL_NPY, "row 2 ", "one-hot")),
    "label half hot": ({"train_labels": at(HOT, 2, [0.5, 0.5, 0, 0])}, (LABEL_NPY, "row 2 ", "one-hot")),
    "labels of three axes": ({"train_labels": HOT[:, None]}, (LABEL_NPY, "one-hot (N, classes)")),
    "labels as dates": ({"train_labels": LABELS.astype("datetime64[D]")}, (LABEL_NPY, "whole numbers or text")),
    "labels as halves": ({"train_labels": (LABELS / 2).astype(str)}, (LABEL_NPY, "row 1 ", "0.5", "neither a word")),
    "no label": ({"train_labels": np.where(LABELS > 0, "one", " ")}, (LABEL_NPY, "row 0 has no label")),
    "unknown word": ({"test_labels": np.array(["0"] * 7 + ["zero"])}, ("labels_test.npy: ", "row 7 ", "label zero")),
    "one class": ({"train_labels": LABELS * 0}, (LABEL_NPY, "label 0", "two classes")),
    "text": ({"train_image": SOUND.astype(str)}, (IMAGE_NPY, "numbers are needed")),
    "complex": ({"train_audio": SOUND.astype(complex)}, (AUDIO_NPY, "complex128")),
    "objects": ({"train_image": np.array([[1, None]] * ROWS)}, (IMAGE_NPY, "not a NumPy array of numbers")),
    "object labels": ({"train_labels": LABELS.astype(object)}, (LABEL_NPY, "not a NumPy array of numbers")),
    "pickle": ({"train_image": pickle.dumps([1, 2])}, (IMAGE_NPY, "not a NumPy array of numbers")),
    "nothing": ({"train_audio": b""}, (AUDIO_NPY, "not a NumPy array of numbers")),
    "cut off": ({"train_audio": b"\x93NUMPY\x01\x00v\x00{'descr'"}, (AUDIO_NPY, "not a NumPy array of numbers")),
    "archive": ({"train_image": archive(SOUND)}, (IMAGE_NPY, "not a NumPy array")),
    "archived labels": ({"train_labels": archive(LABELS)}, (LABEL_NPY, "not a NumPy array")),
    "other test images": ({"test_image": values(TEST_ROWS, 100)}, ("data_wr_test.npy: ", "(1, 10, 10)", "(1, 28, 28)")),
    "other test audio": ({"test_audio": values(TEST_ROWS, 100)}, ("data_sp_test.npy: ", "(100, 1)", "(39, 13)")),
    "only test": (
        {"train_image": None, "train_audio": None, "train_labels": None},
        ("no training rows", "data_wr_train.npy", "zenodo"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "fragments"), WRONG.values(), ids=WRONG)
def test_wrong_data_is_named_by_file_and_row(
    tmp_path: Path, files: dict[str, Content], fragments: tuple[str, ...]
) -> None:
    folder = zenodo(tmp_path / "d", **files)
    with pytest.raises(DataError) as caught:
        read_dataset(str(folder))
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    message = message.replace(str(tmp_path), "")
    assert [part for part in fragments if part not in message] == [], message


@pytest.mark.parametrize(
    ("csv", "fragments"),
    [
        ("id,label\n0,1\n", ("row_id,label", "id,label")),
        ("", ("row_id,label",)),
        ("row_id,label\n0,1\n1,0.5\n", ("line 3 ", "whole number")),
        ("row_id,label\n0\n", ("line 2 ",)),
        ("row_id,label\n0,1\n1,2\n0,2\n", ("line 4 ", "repeats the row_id 0")),
        ("row_id,label\n0,1\n2,2\n3,1\n4,1\n5,2\n", ("no line for the row_id 1",)),
        ("row_id,label\n0,1\n1,-2\n2,1\n3,1\n4,1\n", ("line 3 ", "label -2")),
        ("row_id,label\n0,1\n1,\n2,1\n3,1\n4,1\n", ("line 3 has no label",)),
        ("row_id,label\n0,1\n1,2\n", ("2 rows", "x_train_wr.npy has 5")),
        ("row_id,label\n0,99999999999999999999\n", ("99999999999999999999",)),
        ("row_id,label\n0,1\n".encode("utf-16"), ()),
        (b"row_id,label\n0,\xe9\n", ()),
    ],
    ids=[
        "header",
        "empty",
        "half",
        "short",
        "twice",
        "gap",
        "below-0",
        "no-label",
        "too-few",
        "too-great",
        "utf-16",
        "latin-1",
    ],
)
def test_a_wrong_csv_is_named_by_line(tmp_path: Path, csv: str | bytes, fragments: tuple[str, ...]) -> None:
    folder = kaggle(tmp_path / "d", csv)
    with pytest.raises(DataError) as caught:
        read_dataset(str(folder))
    assert str(caught.value).startswith(f"{folder}/y_train.csv: ")
    assert [part for part in fragments if part not in str(caught.value)] == [], str(caught.value)


def test_a_wrong_folder_is_one_sentence(mmsearch: Run, workspace: Path) -> None:
    missing = mmsearch("data", "nowhere", code=2)
    assert missing.stderr == "mmsearch: nowhere: no such folder; data is a folder, or the word demo\n"
    other = mmsearch("data", "studies", code=2).stderr
    assert other.startswith("mmsearch: studies: no known layout; ")
    assert [
        name for name in ("data_wr_train.npy", "y_train.csv (kaggle)", "holds digits.toml") if name not in other
    ] == []
    zenodo(workspace / "bad", train_audio=at(SOUND, 7, np.nan))
    for command in ("data bad", "launch --data bad"):
        bad = mmsearch(*command.split(), code=2).stderr.splitlines()[-1]
        assert bad.startswith("mmsearch: ")
        assert bad.endswith("bad/data_sp_train.npy: row 7 holds a value that is not a finite number")


def test_the_row_is_that_of_the_file_in_later_chunks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zenodo(tmp_path / "d", train_audio=at(SOUND, 17, np.nan))
    monkeypatch.setattr("mmsearch.data.arrays.CHUNK_ROWS", 5)
    with pytest.raises(DataError, match="row 17 "):
        read_dataset(str(folder))


def test_shapes_that_the_study_gives(tmp_path: Path) -> None:
    folder = str(zenodo(tmp_path / "d", test_image=None, test_audio=None, test_labels=None))
    read = read_dataset(folder, image_shape=(14, 56), audio_shape=(13, 39))
    assert (read.shapes.image, read.shapes.audio) == ((1, 14, 56), (13, 39))
    assert read_dataset(folder, image_shape=(4, 14, 14)).shapes.image == (4, 14, 14)
    with pytest.raises(DataError, match=r"data_wr_train.npy: .* 784,.* 1x3x3"):
        read_dataset(folder, image_shape=(3, 3))
    with pytest.raises(DataError, match=r"data_sp_train.npy: .* 507,.* 39x12"):
        read_dataset(folder, audio_shape=(39, 12))


def test_wide_samples_are_scaled_as_in_training_however_soft_they_are() -> None:
    loud = np.array([[1 << 22], [1 << 14]], dtype=np.int32)
    trained = wave_scale(loud, 0, float(loud.max()))
    assert trained == 1 / (1 << 23)
    assert wave_scale(loud[1:], 0, float(loud[1:].max()), trained) == trained
    assert wave_scale(loud[1:], 0, float(loud[1:].max())) == 1 / (1 << 15)
    assert wave_scale(loud * 256, 0, float(loud.max()) * 256, trained) == 1 / (1 << 31)  # it would not fit
