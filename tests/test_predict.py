"""`mmsearch predict` with a model in any of its forms: on new data in each layout, without a study, the same labels."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, environment
from test_data import put
from test_exports import configuration, rows, saved, trained
from test_manifest import WORDS, encoded, manifest, noise, picture, table, wav

from mmsearch.data.dataset import Pixels, Shapes, Trained
from mmsearch.data.sources import read_dataset
from mmsearch.results.exports import TOLERANCE, write_exports
from mmsearch.results.predict import predict, predictions_csv, submission_csv
from mmsearch.results.runtime import load_predictor

FORMS = ("", "model.safetensors", "model.pt2", "model.onnx")
ROWS = 2000


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def chances(table: list[dict[str, str]]) -> np.ndarray:
    """(n, classes) the probabilities of a table of predictions."""
    return np.array([[float(value) for name, value in row.items() if name.startswith("p_")] for row in table])


def must_agree(tables: list[list[dict[str, str]]], count: int) -> None:
    """All say the same of so many rows, labels and whatever else, but for the last digits of probabilities."""
    for one in tables:
        assert len(one) == count
        np.testing.assert_allclose(chances(one), chances(tables[0]), atol=TOLERANCE)
    plain = [[{k: v for k, v in row.items() if k != "confidence" and k[:2] != "p_"} for row in one] for one in tables]
    assert plain[1:] == plain[:1] * (len(tables) - 1)


@pytest.fixture(scope="module")
def best(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The retrained model of the tiny search, in a folder of its own, far from its study."""
    folder = tmp_path_factory.mktemp("model") / "best"
    return Path(shutil.copytree(searched / "storage" / "digits" / "retrained" / "best", folder))


def as_zenodo(folder: Path) -> str:
    """Demo rows as fractions, flat."""
    train = read_dataset("demo").train
    image = np.asarray(train.image[:ROWS], np.float64).reshape(ROWS, -1) / 255
    files: dict[str, np.ndarray] = {f"data_wr_{name}.npy": image for name in ("train", "test")}
    files |= {f"data_sp_{name}.npy": train.audio[:ROWS].reshape(ROWS, -1) for name in ("train", "test")}
    return str(put(folder, files | {f"labels_{name}.npy": train.labels[:ROWS] for name in ("train", "test")}))


def as_kaggle(folder: Path) -> str:
    """Demo rows as larger images, without test labels."""
    train = read_dataset("demo").train
    image, audio = train.image[:ROWS, 0].repeat(2, axis=1).repeat(2, axis=2), train.audio[:ROWS]
    files: dict[str, Any] = {f"x_{name}_wr.npy": image for name in ("train", "test")}
    labels = "".join(f"{row},{label}\n" for row, label in enumerate(train.labels[:ROWS]))
    files |= {"y_train.csv": f"row_id,label\n{labels}".encode()}
    return str(put(folder, files | {f"x_{name}_sp.npy": audio for name in ("train", "test")}))


@pytest.mark.parametrize(
    ("layout", "split", "count", "columns"),
    [
        (as_zenodo, None, ROWS, ["row_id", "label", "predicted", "confidence"]),
        (as_kaggle, "test", ROWS, ["row_id", "predicted", "confidence"]),
        (lambda folder: "demo", "train", 4000, ["row_id", "label", "predicted", "confidence"]),
    ],
)
def test_each_form_says_the_same_of_arrays(
    best: Path, layout: Callable[[Path], str], split: str | None, count: int, columns: list[str], tmp_path: Path
) -> None:
    source = layout(tmp_path / "d")
    tables = [parsed(predict(load_predictor(best / form), source, split)) for form in FORMS]
    must_agree(tables, count)
    assert [name for name in tables[0][0] if not name.startswith("p_")] == columns
    labels = read_dataset("demo").train.labels[:count]
    assert np.mean([int(row["predicted"]) == label for row, label in zip(tables[0], labels, strict=True)]) > 0.5


def test_each_form_says_the_same_of_files(tmp_path: Path) -> None:
    """Pictures of other sizes and recordings of other rates and lengths than those of training, and no labels."""
    seen = Trained(Shapes((1, 12, 10), (1000, 1), 3), WORDS, Pixels(0, 255, 1 / 255), 8000, 1 / 32768)
    split = rows(20)
    names = ("mfcc", "stft")
    members = [configuration(image__encoder="mlp", audio__encoder="mlp", features__name=name) for name in names]
    bundle = saved(tmp_path / "b", split, seen, *members, abstain_below=0.7)
    write_exports(bundle, split, on_note=print)
    others = {f"{row}.wav": wav(noise(3000 + row, seed=row), 16000) for row in range(0, 24, 2)}
    others |= {f"{row}.png": encoded(picture(20, 30 + row, 3, seed=row)) for row in range(0, 24, 3)}
    others["manifest.csv"] = table([(f"{row}.png", f"{row}.wav") for row in range(24)], "image,audio")
    folder = manifest(tmp_path / "d", others)
    tables = [parsed(predict(load_predictor(tmp_path / "b" / form), str(folder))) for form in FORMS]
    must_agree(tables, 24)
    assert list(tables[0][0])[:6] == ["row_id", "image", "audio", "predicted", "confidence", "abstained"]
    assert len({row["predicted"] for row in tables[0]}) > 1
    for row in tables[0]:
        assert row["abstained"] == ("true" if float(row["confidence"]) < 0.7 else "false")


def test_the_column_abstained_is_there_with_a_threshold_only() -> None:
    probabilities = np.array([[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]], np.float32)
    ids = np.arange(3)
    assert "abstained" not in predictions_csv(("a", "b"), probabilities, ids, None)
    found = parsed(predictions_csv(("a", "b"), probabilities, ids, np.array([0, 1, 0]), abstain_below=0.75))
    assert list(found[0]) == ["row_id", "label", "predicted", "confidence", "abstained", "p_a", "p_b"]
    assert [(row["predicted"], row["abstained"]) for row in found] == [("b", "false"), ("a", "false"), ("a", "true")]
    nine = np.float32(0.9)  # a little less than 0.9 in double precision, and not below it
    assert ",false," in predictions_csv(("a", "b"), np.array([[nine, 1 - nine]]), ids[:1], None, abstain_below=0.9)


def test_any_name_of_a_class_or_file_stays_one_cell_and_none_is_a_formula() -> None:
    classes = ("a,b", 'c "d"', "e\nf", "g\rh", "=1+1", "@sum", "+1", "-1")
    probabilities, ids = np.eye(8, dtype=np.float32), np.arange(8)
    files = [("=cmd.png", "x.wav")] * 8
    text = predictions_csv(classes, probabilities, ids, ids, files)
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    told = [f"'{name}" if name[0] in "=@+-" else name for name in classes]
    assert [row["predicted"] for row in found] == [row["label"] for row in found] == told
    assert [row["confidence"] for row in found] == ["1.0"] * 8
    assert {row["image"] for row in found} == {"'=cmd.png"}
    assert list(found[0])[-8:] == [f"p_{name}" for name in classes]
    asked = list(csv.reader(io.StringIO(submission_csv(classes, probabilities, ids), newline="")))
    assert asked == [["row_id", "label"], *([str(row), name] for row, name in enumerate(classes))]  # for a program
    assert submission_csv(("0", "1"), probabilities[:2, :2], ids[:2]) == "row_id,label\n0,0\n1,1\n"


def test_predicting_needs_neither_a_study_nor_optuna(best: Path, tmp_path: Path) -> None:
    for form in ("model.pt2", "model.onnx"):
        shutil.copy(best / form, tmp_path / f"alone{Path(form).suffix}")
    program = (
        "import sys\nfrom mmsearch.cli import main\n"
        "for form in sys.argv[1:]:\n"
        "    sys.argv = ['mmsearch', 'predict', form, 'demo', '-o', f'{form}.csv']\n"
        "    try: main()\n    except SystemExit as end: assert not end.code, end.code\n"
        "print(*(name for name in ('optuna', 'sqlalchemy', 'optuna_dashboard') if name in sys.modules))"
    )
    shutil.copytree(best, tmp_path / "best")
    forms = ["best", "alone.pt2", "alone.onnx"]
    done = subprocess.run(
        [sys.executable, "-c", program, *forms],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("\n", "".join(f"wrote {form}.csv\n" for form in forms))
    tables = [parsed((tmp_path / f"{form}.csv").read_text()) for form in forms]
    must_agree([*tables, parsed((best / "predictions.csv").read_text())], 1000)


def test_of_no_rows_there_are_no_probabilities(tmp_path: Path) -> None:
    split = rows(20)
    bundle = saved(tmp_path, split, trained(), configuration(image__encoder="mlp", audio__encoder="rnn"))
    write_exports(bundle, split, on_note=print)
    nothing = split.only(split.rows[:0])
    for predictor in (load_predictor(tmp_path / form) for form in FORMS):
        found = predictor.probabilities(nothing)
        assert found.shape == (0, 3)
        assert found.dtype == np.float32
    assert bundle.logits(nothing).shape == bundle.probabilities(nothing).shape == (0, 3)


def test_a_damaged_model_is_one_sentence(mmsearch: Run, best: Path, workspace: Path) -> None:
    (workspace / "model.onnx").write_bytes((best / "model.onnx").read_bytes()[:-100])
    said = mmsearch("predict", "model.onnx", "demo", code=2).stderr
    assert said.startswith("mmsearch: model.onnx: not an ONNX model, or damaged")
    assert said.count("\n") == 1
    assert "mmsearch: nowhere: no such file or folder" in mmsearch("predict", "nowhere", "demo", code=2).stderr
