"""What a search leaves: a bundle that reloads and predicts, metrics that can be checked, tables for the report."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Run
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, f1_score

from mmsearch.data.sources import read_dataset
from mmsearch.errors import BundleError, DataError
from mmsearch.results.bundle import Bundle


@pytest.fixture
def workspace(searched: Path, tmp_path: Path) -> Path:
    shutil.copytree(searched, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def best(folder: Path) -> Path:
    return folder / "storage" / "digits" / "retrained" / "best"


def test_metrics_agree_with_the_predictions(workspace: Path) -> None:
    metrics = json.loads((best(workspace) / "metrics.json").read_text())
    rows = read_csv(best(workspace) / "predictions.csv")
    assert len(rows) == metrics["test"]["rows"] == 1000
    truth, predicted = [row["label"] for row in rows], [row["predicted"] for row in rows]
    assert metrics["test"]["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["test"]["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert np.sum(metrics["test"]["confusion_matrix"]) == 1000
    assert metrics["test"]["per_class"]["7"]["support"] == truth.count("7")
    assert metrics["training"]["rows"] == 400
    assert metrics["held_back"] is None
    searched = metrics["searched"]
    assert (searched["rule"], searched["values"]) == ("best", {"macro_f1": searched["value"]})
    assert metrics["modalities"]["both"] == metrics["test"]["macro_f1"]
    assert metrics["modalities"]["both"] > max(metrics["modalities"][m] for m in ("image_alone", "audio_alone"))
    assert {"mmsearch", "torch", "optuna", "numpy", "python"} <= set(metrics["versions"])
    for row in rows:
        chances = [float(value) for name, value in row.items() if name.startswith("p_")]
        assert sum(chances) == pytest.approx(1, abs=1e-5)
        assert float(row["confidence"]) == max(chances)
        assert row["predicted"] == str(int(np.argmax(chances)))


def test_the_demo_test_rows_are_never_trained_on(workspace: Path) -> None:
    dataset = read_dataset("demo")
    labels = [row["label"] for row in read_csv(best(workspace) / "predictions.csv")]
    assert dataset.test is not None
    assert labels == [dataset.classes[label] for label in dataset.test.labels]


def test_retraining_prints_what_it_wrote(workspace: Path) -> None:
    said = (workspace / "retrain-best.out").read_text()
    metrics = json.loads((best(workspace) / "metrics.json").read_text())
    low, high = metrics["test"]["macro_f1_interval"]
    assert f"macro F1    {metrics['test']['macro_f1']:.4f} [{low:.4f}, {high:.4f}] on 1000 test rows" in said
    for name in ("both", "image alone", "audio alone", "shuffled", "fusion gain"):
        assert re.search(rf"^{name} +-?0\.\d{{4}} \[", said, re.M)
    assert f"temperature {metrics['calibration']['temperature']:.3f}, fitted on 80 validation rows" in said
    assert "exports     safetensors, pt2, onnx: the same labels" in said


def test_a_bundle_reloads_and_predicts_the_same(workspace: Path) -> None:
    bundle = Bundle.load(best(workspace))
    demo = read_dataset("demo").test
    assert demo is not None
    rows = read_csv(best(workspace) / "predictions.csv")
    expected = np.array([[float(row[f"p_{name}"]) for name in bundle.classes] for row in rows])
    assert np.allclose(bundle.predict(demo.image, demo.audio), expected, atol=1e-5)
    flat_and_scaled = demo.image.reshape(len(demo.image), -1).astype(np.float64) / 255
    assert np.allclose(bundle.predict(flat_and_scaled, demo.audio.reshape(-1, 507)), expected, atol=1e-4)
    for image, audio in (((2, 785), (2, 507)), ((2, 784), (2, 508)), ((2, 28, 28, 2), (2, 507))):
        with pytest.raises(DataError, match="trained on images of 1x28x28 and audio of 39x13"):
            bundle.predict(np.zeros(image), np.zeros(audio))
    with pytest.raises(DataError, match="3 rows"):
        bundle.predict(np.zeros((2, 784)), np.zeros((3, 507)))


def test_images_of_another_size_are_resized(workspace: Path) -> None:
    bundle = Bundle.load(best(workspace))
    demo = read_dataset("demo").test
    assert demo is not None
    image, audio = demo.image[:200], demo.audio[:200]
    doubled = image.repeat(2, axis=2).repeat(2, axis=3)
    coloured = np.repeat(doubled.transpose(0, 2, 3, 1), 3, axis=3)
    expected = bundle.predict(image, audio).argmax(1)
    for given in (doubled, coloured, doubled.astype(np.float32) / 255):
        assert (bundle.predict(given, audio).argmax(1) == expected).mean() > 0.97


def test_one_modality_alone(workspace: Path) -> None:
    bundle = Bundle.load(best(workspace))
    demo = read_dataset("demo").test
    assert demo is not None
    alone = json.loads((best(workspace) / "metrics.json").read_text())["modalities"]
    for name, found in (
        ("image_alone", bundle.predict(demo.image, None)),
        ("audio_alone", bundle.predict(None, demo.audio)),
    ):
        assert found.shape == (1000, 10)
        assert f1_score(demo.labels, found.argmax(1), average="macro") == pytest.approx(alone[name], abs=1e-6)
    with pytest.raises(DataError, match="one of them is needed"):
        bundle.predict(None, None)


def test_retraining_again_keeps_the_first(mmsearch: Run, workspace: Path) -> None:
    first = best(workspace).resolve()
    held = {path.name: path.read_bytes() for path in first.iterdir()}
    mmsearch("retrain-best")
    assert {path.name: path.read_bytes() for path in first.iterdir()} == held
    assert best(workspace).resolve().name == f"{first.name}-2"
    again = load_file(best(workspace) / "model.safetensors")
    for name, weights in load_file(first / "model.safetensors").items():
        assert np.array_equal(weights, again[name])  # same seed, machine and threads: same model


def test_predict_runs_on_new_data(mmsearch: Run, workspace: Path, tmp_path: Path) -> None:
    demo = read_dataset("demo").test
    assert demo is not None
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    np.save(fresh / "x_test_wr.npy", demo.image[:50].reshape(50, 784))
    np.save(fresh / "x_test_sp.npy", demo.audio[:50].reshape(50, 507))
    mmsearch("predict", best(workspace), fresh, "-o", "out.csv")
    rows = read_csv(workspace / "out.csv")
    known = read_csv(best(workspace) / "predictions.csv")[:50]
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in known]
    assert "label" not in rows[0]
    said = mmsearch("predict", best(workspace), "demo", "--split", "train").stdout
    assert len(said.splitlines()) == 4001
    assert said.startswith("row_id,label,predicted,confidence,p_0")


def test_predict_says_what_is_wrong_in_one_sentence(mmsearch: Run, workspace: Path, tmp_path: Path) -> None:
    for arguments, code, word in (
        (("nowhere", "demo"), 2, "no such file"),
        ((best(workspace), "nowhere"), 2, "no such folder"),
        ((best(workspace), "demo", "--split", "valid"), 2, "train or test"),
        ((best(workspace), "demo", "-o", "no/such/folder/out.csv"), 2, "does not exist"),
    ):
        said = mmsearch("predict", *arguments, code=code).stderr
        assert word in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize("file", ["config.toml", "model.safetensors"])
def test_a_damaged_bundle_is_an_error(workspace: Path, file: str) -> None:
    path = best(workspace) / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BundleError):
        Bundle.load(best(workspace))


def test_weights_of_another_model_are_an_error(workspace: Path) -> None:
    config = best(workspace) / "config.toml"
    config.write_text(config.read_text().replace('"head.units" = 32', '"head.units" = 64'))
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(best(workspace))


def test_the_table_in_each_form(mmsearch: Run, workspace: Path) -> None:
    plain = list(csv.DictReader(io.StringIO(mmsearch("export").stdout)))
    held = json.loads(mmsearch("export", "--format", "json").stdout)
    assert [row["number"] for row in plain] == [str(row["number"]) for row in held] == list("012345")
    for text, exact in zip(plain, held, strict=True):  # a CSV says what JSON says, and nothing is rounded
        assert {name: "" if value is None else str(value) for name, value in exact.items()} == text
    assert list(plain[0])[:6] == ["number", "state", "value", "duration_s", "epochs", "best_epoch"]
    ranked = json.loads(mmsearch("export", "--format", "json", "--sort", "best").stdout)
    done = [row["value"] for row in ranked if row["state"] == "COMPLETE"]
    assert done == sorted(done, reverse=True)
    assert [row["state"] for row in ranked][: len(done)] == ["COMPLETE"] * len(done)
    table = mmsearch("export", "--format", "md").stdout.splitlines()
    assert len(table) == 8
    assert table[0].startswith("| number")
    latex = mmsearch("export", "--format", "tex").stdout
    assert latex.startswith("\\begin{tabular}")
    assert "duration\\_s" in latex
    mmsearch("export", "-o", "trials.csv")
    assert (workspace / "trials.csv").read_text() == mmsearch("export").stdout


def test_each_trial_leaves_its_epochs(workspace: Path) -> None:
    for folder in (workspace / "storage" / "digits" / "trials").iterdir():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows = read_csv(folder / "metrics.csv")
        assert [line["epoch"] for line in lines] == [int(row["epoch"]) for row in rows] == [*range(1, len(rows) + 1)]
        assert [line["valid_macro_f1"] for line in lines] == [float(row["valid_macro_f1"]) for row in rows]


def test_retraining_needs_the_data_of_the_search(mmsearch: Run, workspace: Path) -> None:
    file = workspace / "studies" / "digits.toml"
    file.write_text(TINY.replace("rows = 400", "rows = 401"))
    assert "data.rows = 400" in mmsearch("retrain-best", code=2).stderr


def test_a_competition_gets_its_submission(mmsearch: Run, workspace: Path, tmp_path: Path) -> None:
    demo = read_dataset("demo")
    folder = tmp_path / "course"
    folder.mkdir()
    train, test = demo.train, demo.test
    assert test is not None
    np.save(folder / "x_train_wr.npy", train.image[:400].reshape(400, 784))
    np.save(folder / "x_train_sp.npy", train.audio[:400].reshape(400, 507))
    labels = train.labels[:400].tolist()
    (folder / "y_train.csv").write_text("row_id,label\n" + "".join(f"{i},{y}\n" for i, y in enumerate(labels)))
    np.save(folder / "x_test_wr.npy", test.image.reshape(1000, 784))
    np.save(folder / "x_test_sp.npy", test.audio.reshape(1000, 507))
    mmsearch("launch", "--data", folder, "--study-name", "course", "--trials", 2, "--workers", 2)
    said = mmsearch("retrain-best", "--data", folder, "--study-name", "course").stdout
    assert "training rows" in said
    bundle = workspace / "storage" / "course" / "retrained" / "best"
    lines = (bundle / "submission.csv").read_text().splitlines()
    assert lines[0] == "row_id,label"
    assert [line.split(",")[0] for line in lines[1:]] == [str(i) for i in range(1000)]
    given = np.array([int(line.split(",")[1]) for line in lines[1:]])
    assert (given == test.labels).mean() > 0.5
    assert json.loads((bundle / "metrics.json").read_text())["test"] is None
    assert "label" not in (bundle / "predictions.csv").read_text().splitlines()[0].split(",")
