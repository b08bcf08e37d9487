"""Retraining: what is chosen, ensembles, what each modality brings, and that nothing is lost or left half-made."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from conftest import Run, Start
from scripted import scripted

from mmsearch.cli_search import Terminated
from mmsearch.config import StudyConfig, load_config
from mmsearch.console import Epochs, print_retrained
from mmsearch.data.dataset import Split
from mmsearch.data.sources import load_dataset, read_dataset
from mmsearch.errors import MmsearchError, UsageError
from mmsearch.results import retrain
from mmsearch.results.account import NAMES, account_of, modality_account
from mmsearch.results.bundle import Bundle
from mmsearch.results.confirm import Confirmation, Confirmed
from mmsearch.results.members import train_member
from mmsearch.results.plans import PlannedMember, make_plan
from mmsearch.results.predict import predict
from mmsearch.results.retrain import retrain_best
from mmsearch.results.runtime import load_predictor
from mmsearch.search.note import RETRAINED, note_of
from mmsearch.search.space import distributions, varying
from mmsearch.search.study import CONFIRMED, OpenStudy, open_study


@pytest.fixture
def workspace(searched: Path, tmp_path: Path) -> Path:
    shutil.copytree(searched, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def here(workspace: Path) -> StudyConfig:
    return load_config(workspace / "studies" / "digits.toml")


@pytest.fixture
def opened(workspace: Path) -> Iterator[OpenStudy]:
    with open_study(here(workspace)) as found:
        yield found


def folder_of(workspace: Path) -> Path:
    return workspace / "storage" / "digits" / "retrained"


def plain(opened: OpenStudy, **options: Any) -> list[int]:
    """The trials of a plan."""
    given = {"trial": None, "rule": None, "ensemble": 1, "calibrate": False, **options}
    return [member.trial.number for member in make_plan(opened, **given).members]


def confirmed(opened: OpenStudy, order: list[int], *, later: int = 0, seeds: int = 3) -> Confirmation:
    """A confirmation in the study, by which these trials are the best, in this order."""
    trials = {trial.number: trial for trial in opened.trials()}
    rows = tuple(
        Confirmed(
            trial=number,
            params=trials[number].params,
            searched=trials[number].values[0],
            values=(0.9 - place / 100,) * seeds,
            mean=0.9 - place / 100,
            interval=(0.89 - place / 100, 0.91 - place / 100),
            drop=0.02,
            parameters=1000,
            p=None,
            differs=False,
            best_epochs=(2, 1, 3)[:seeds] if not place else (3,) * seeds,
            rank=place + 1,
        )
        for place, number in enumerate(order)
    )
    finished = sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials.values()) - later
    held = Confirmation("macro_f1", 1, seeds, rows, order[0], "best", finished, finished)
    opened.storage.set_study_system_attr(opened.id, CONFIRMED, asdict(held))
    return held


def by_value(opened: OpenStudy) -> list[int]:
    complete = [trial for trial in opened.trials() if trial.state.name == "COMPLETE"]
    return [trial.number for trial in sorted(complete, key=lambda trial: -trial.values[0])]


def add(opened: OpenStudy, value: float, lr: float) -> int:
    """One more complete trial, of the defaults but for the learning rate; its number."""
    config = opened.config
    params = {**varying(config.dimensions, config.configurations[0]), "optimizer.lr": lr}
    made = optuna.trial.create_trial(
        params=params,
        distributions={name: held for name, held in distributions(config.dimensions).items() if name in params},
        value=value,
        user_attrs={"best_epoch": 3},
    )
    opened.optuna.add_trial(made)
    return len(opened.trials()) - 1


def test_an_ensemble_has_the_best_configurations_each_once(opened: OpenStudy) -> None:
    good, again, better = add(opened, 0.97, 2e-3), add(opened, 0.98, 2e-3), add(opened, 0.99, 4e-3)
    ranked = by_value(opened)
    assert ranked[:3] == [better, again, good]
    assert plain(opened, ensemble=2) == [better, again]
    assert plain(opened, ensemble=3) == [better, again, ranked[3]]
    with pytest.raises(UsageError, match=f"the study digits has {len(ranked) - 1} complete trials of different"):
        plain(opened, ensemble=20)
    with pytest.raises(UsageError, match="an ensemble of 21 is not possible: it has 2 to 20 members"):
        plain(opened, ensemble=21)


def test_a_trial_that_is_asked_for_is_trained_on_several_seeds(opened: OpenStudy) -> None:
    last = by_value(opened)[-1]
    plan = make_plan(opened, trial=last, rule=None, ensemble=4, calibrate=True)
    assert [member.trial.number for member in plan.members] == [last] * 4
    assert len({member.seed for member in plan.members}) == 4
    assert plan.unseen_epochs == plan.epochs == 4 * plan.members[0].epochs
    alone = make_plan(opened, trial=last, rule=None, ensemble=1, calibrate=False)
    assert alone.members == plan.members[:1]
    assert alone.unseen_epochs == 0
    assert (plan.by, plan.rule) == ("trial", f"trial {last}")
    assert plan.why.endswith("; 4 times, on as many seeds, as an ensemble")


def test_without_a_confirmation_the_best_is_taken_and_the_way_to_one_is_told(opened: OpenStudy) -> None:
    plan = make_plan(opened, trial=None, rule=None, ensemble=1, calibrate=False)
    assert (plan.trial.number, plan.by, plan.confirmed) == (by_value(opened)[0], "best", None)
    assert "mmsearch confirm" in str(plan.hint)
    assert make_plan(opened, trial=None, rule="best", ensemble=1, calibrate=False).hint is None


def test_a_confirmed_winner_is_taken_for_the_median_of_its_epochs(opened: OpenStudy) -> None:
    third, second, first = (add(opened, 0.97 + place / 100, 1e-3 * (place + 2)) for place in range(3))
    confirmed(opened, [third, first])
    plan = make_plan(opened, trial=None, rule=None, ensemble=1, calibrate=False)
    assert (plan.trial.number, plan.by, plan.epochs, plan.hint) == (third, "confirmed", 2, None)
    searched = plan.trial.values[0]
    assert plan.why == (
        f"trial {third}, confirmed on 3 seeds: macro_f1 0.9000 [0.8900, 0.9100]; searched {searched:.4f}"
    )
    assert plain(opened, ensemble=3) == [third, first, second]
    assert plain(opened, rule="best") == [first]
    assert plain(opened, trial=second) == [second]
    assert make_plan(opened, trial=None, rule="best", ensemble=1, calibrate=False).epochs == 3  # it was confirmed too


def test_a_search_that_went_on_since_is_told(opened: OpenStudy) -> None:
    confirmed(opened, by_value(opened)[:2], later=2)
    plan = make_plan(opened, trial=None, rule=None, ensemble=1, calibrate=False)
    assert f"the search has finished 2 trials since trial {plan.trial.number} was confirmed" in str(plan.hint)


def test_the_confirmed_winner_is_retrained_and_told(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrain, "write_exports", lambda *_, **__: {})
    with open_study(here(workspace)) as opened:
        last = by_value(opened)[-1]
        confirmed(opened, [last])
    with Epochs() as show:
        bundle = retrain_best(here(workspace), calibrate=False, on_plan=show.plan, on_epoch=show.epoch)
    print_retrained(bundle)
    out, err = capsys.readouterr()
    assert f"retraining trial {last}, confirmed on 3 seeds: macro_f1 0.9000 [0.8900, 0.9100]; searched" in err
    assert "for 2 epochs" in err
    assert err.splitlines()[-1].startswith("epoch 2/2: ")
    assert f"trial       {last} (" in out
    assert "confirmed on fresh seeds" in out
    assert "calibration" not in out
    held = bundle.metrics
    assert held["chosen"]["by"] == held["searched"]["rule"] == "confirmed"
    assert held["chosen"]["sentence"] in err
    assert held["confirmed"] == {"mean": 0.9, "interval": [0.89, 0.91], "seeds": 3, "drop": 0.02}
    assert (held["epochs"], held["calibration"]) == (2, None)
    assert held["test"]["ece"] == held["test"]["ece_uncalibrated"]
    assert (bundle.temperature, bundle.abstain_below) == (1.0, None)


def test_an_ensemble_is_the_mean_of_its_members(mmsearch: Run, workspace: Path) -> None:
    done = mmsearch("retrain-best", "--ensemble", 2, "--abstain-below", "coverage=0.7")
    best = folder_of(workspace) / "best"
    bundle, test = Bundle.load(best), read_dataset("demo").test
    assert test is not None
    held = json.loads((best / "metrics.json").read_text())
    assert [member["trial"] for member in held["members"]] == [held["trial"], held["members"][1]["trial"]]
    assert len({json.dumps(member["params"]) for member in held["members"]}) == 2
    assert held["parameters"] == bundle.parameters == sum(member["parameters"] for member in held["members"])
    assert "ensemble    2 models, of trials" in done.stdout

    alone = [replace(bundle, members=(member,), temperature=1.0).probabilities(test) for member in bundle.members]
    mean = np.mean(alone, axis=0)
    assert np.abs(replace(bundle, temperature=1.0).probabilities(test) - mean).max() < 1e-6
    softened = mean ** (1 / bundle.temperature)
    assert np.abs(bundle.probabilities(test) - softened / softened.sum(1, keepdims=True)).max() < 1e-5

    calibration, scores = held["calibration"], held["test"]
    assert (calibration["rows"], calibration["asked"]) == (80, "coverage=0.7")
    assert calibration["fitted_on"] == "validation rows, by a model trained without them"
    assert calibration["coverage"] == pytest.approx(0.7, abs=0.013)
    assert bundle.temperature == pytest.approx(calibration["temperature"])
    assert calibration["log_loss_after"] <= calibration["log_loss_before"]
    epochs = sum(member["epochs"] for member in held["members"])
    assert f"epoch {2 * epochs}/{2 * epochs}: " in done.stderr
    assert f"and {epochs} epochs before that to calibrate" in done.stderr

    with (best / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert bundle.abstain_below is not None
    kept = [row for row in rows if row["abstained"] == "false"]
    assert len(kept) == round(scores["kept"]["coverage"] * len(rows))
    assert np.mean([row["label"] == row["predicted"] for row in kept]) == pytest.approx(scores["kept"]["accuracy"])
    assert all(float(row["confidence"]) >= bundle.abstain_below for row in kept)
    assert f"abstains    below {bundle.abstain_below:.4f}" in done.stdout

    low, high = scores["macro_f1_interval"]
    assert low < scores["macro_f1"] < high
    account = held["modalities"]["account"]
    both = {"macro_f1": scores["macro_f1"], "interval": scores["macro_f1_interval"], "mistakes": scores["mistakes"]}
    assert account["both"] == both
    assert account["fusion_gain"]["macro_f1"] == pytest.approx(
        account["both"]["macro_f1"] - max(account[name]["macro_f1"] for name in ("image_alone", "audio_alone"))
    )
    assert set(held["exports"]) == {"safetensors", "pt2", "onnx"}
    assert all((best / f"model.{form}").is_file() for form in held["exports"])
    assert held["abstention"][0] == {"threshold": 0.0, "coverage": 1.0, "accuracy": pytest.approx(scores["accuracy"])}


def test_what_is_not_possible_is_one_sentence(mmsearch: Run, workspace: Path) -> None:
    said = mmsearch("retrain-best", "--abstain-below", "0.9", "--no-calibrate", code=2).stderr
    assert said == "mmsearch: --abstain-below needs the calibration that --no-calibrate leaves out\n"
    with pytest.raises(UsageError, match='accuracy=2" is not possible: give a confidence from 0 to 1'):
        retrain_best(here(workspace), abstain_below="accuracy=2")


def test_a_gain_is_what_both_have_over_the_better_one_alone() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 2000)

    def wrong(share: float) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.where(rng.random(2000) < share, (labels + 1) % 4, labels)

    image = wrong(0.2)
    predicted = {
        "both": [wrong(0.05)],
        "image_alone": [image],
        "audio_alone": [wrong(0.5)],
        "image_shuffled": [wrong(0.7), wrong(0.9)],
        "audio_shuffled": [image],
    }
    found = account_of(labels, predicted, 4)
    assert found["fusion_gain"]["macro_f1"] == pytest.approx(0.15, abs=0.02)
    low, high = found["fusion_gain"]["interval"]
    assert 0.1 < low < found["fusion_gain"]["macro_f1"] < high < 0.2
    for name in NAMES:
        low, high = found[name]["interval"]
        assert low < found[name]["macro_f1"] < high
    assert found["image_shuffled"]["macro_f1"] == pytest.approx(0.2, abs=0.02)  # the mean of the two
    assert found["audio_shuffled"] == found["image_alone"]  # the same predictions on the same rows, drawn the same
    assert found["both"]["mistakes"] == (predicted["both"][0] != labels).sum()
    assert found["image_shuffled"]["mistakes"] == (predicted["image_shuffled"][0] != labels).sum()  # fewer than again
    assert found["fusion_gain"]["differing"] == (predicted["both"][0] != image).sum()
    same = account_of(labels, {**predicted, "both": [image]}, 4)
    assert same["fusion_gain"] == {"macro_f1": 0.0, "interval": [0.0, 0.0], "differing": 0}
    assert account_of(labels, predicted, 4) == found


def test_a_modality_of_noise_brings_nothing(workspace: Path) -> None:
    config = here(workspace)
    dataset = load_dataset(config)
    assert dataset.test is not None
    rng = np.random.default_rng(0)

    def deafened(split: Split) -> Split:
        return replace(split, audio=rng.normal(size=split.audio.shape).astype(np.float32))

    dataset = replace(dataset, train=deafened(dataset.train), test=deafened(dataset.test.only(dataset.test.rows[:300])))
    planned = PlannedMember(None, config.configurations[0], 8, 0)  # type: ignore[arg-type]  # no trial is looked at
    member = train_member(config, dataset, dataset.train, planned, torch.device("cpu"))
    assert dataset.test is not None
    account = modality_account(Bundle((member,), dataset.trained, workspace), dataset.test)
    score = {name: held["macro_f1"] for name, held in account.items() if isinstance(held, dict)}
    assert score["both"] > 0.7
    assert score["audio_alone"] < 0.2
    assert score["image_shuffled"] < 0.25
    assert abs(score["audio_shuffled"] - score["both"]) < 0.05
    assert abs(score["fusion_gain"]) < 0.08
    assert account["fusion_gain"]["interval"][0] < 0.03


@pytest.mark.parametrize("error", [MmsearchError("the pt2 form has gone wrong"), RuntimeError("a bug\nin detail")])
def test_an_export_that_fails_loses_nothing_else(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(retrain, "write_exports", fail)
    before = {path.name for path in folder_of(workspace).iterdir()}
    with pytest.raises(
        MmsearchError, match="holds the model, its metrics and predictions, but not all exports"
    ) as caught:
        retrain_best(here(workspace), calibrate=False)
    assert caught.value.exit_code == 1
    assert str(error) in str(caught.value)
    best = folder_of(workspace) / "best"
    assert {path.name for path in folder_of(workspace).iterdir()} == before | {best.resolve().name}
    assert best.resolve().name not in before
    assert str(best.resolve()) in str(caught.value)
    names = {path.name for path in best.iterdir()}
    assert names == {"config.toml", "metrics.json", "model.safetensors", "model_card.md", "predictions.csv"}
    assert json.loads((best / "metrics.json").read_text())["exports"] == {}
    assert Bundle.load(best).parameters > 0


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("modality_account", MmsearchError("the scores have gone wrong")),
        ("model_card", ValueError("a bug")),
        ("write_exports", KeyboardInterrupt()),
        ("write_exports", Terminated()),
    ],
)
def test_what_was_trained_is_not_lost_whatever_ends_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(retrain, broken, fail)
    link = folder_of(workspace) / "best"
    before, target, notes = {path.name for path in folder_of(workspace).iterdir()}, link.readlink(), list[str]()
    with pytest.raises(type(error)) as caught:
        retrain_best(here(workspace), calibrate=False, on_note=notes.append)
    (name,) = {path.name for path in folder_of(workspace).iterdir()} - before
    assert name == f"{target.name}-unfinished"
    folder = folder_of(workspace) / name
    said = f"the trained model is kept, and `mmsearch predict` takes it: {folder}"
    if isinstance(error, MmsearchError):
        assert str(caught.value) == f"the scores have gone wrong; {said}"
        assert notes == []
    else:
        assert notes == [said]
    assert link.readlink() == target
    assert {part.name for part in folder.iterdir()} >= {"config.toml", "model.safetensors"}
    table = list(csv.DictReader(predict(load_predictor(folder), "demo").splitlines()))
    assert np.mean([row["label"] == row["predicted"] for row in table]) > 0.5


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("demo", "demo"),
        ("/home/somebody/work/studies/birds", "birds"),
        ("/home/somebody/work/data/birds", "../data/birds"),
        ("/home/somebody/birds", "birds"),
        ("/mnt/secret/birds", "birds"),
    ],
)
def test_metrics_do_not_say_where_their_writer_keeps_data(source: str, told: str) -> None:
    assert retrain._told(source, Path("/home/somebody/work/studies/birds.toml")) == told


def test_the_study_names_a_model_by_its_place_in_the_storage_folder(opened: OpenStudy, workspace: Path) -> None:
    held = opened.storage.get_study_user_attrs(opened.id)[RETRAINED]
    assert held["folder"] == f"digits/retrained/{held['trial']}"
    assert f"`{held['folder']}/metrics.json` says on which rows" in note_of(opened)


def test_weights_that_were_wrong_are_not_left(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bundle: Bundle, *_: object, **__: object) -> None:
        (bundle.folder / "model.safetensors").unlink()
        raise MmsearchError("the safetensors form has gone wrong")

    monkeypatch.setattr(retrain, "write_exports", fail)
    before = sorted(folder_of(workspace).iterdir())
    with pytest.raises(MmsearchError, match="the safetensors form has gone wrong"):
        retrain_best(here(workspace), calibrate=False)
    assert sorted(folder_of(workspace).iterdir()) == before


def test_a_kill_leaves_nothing_half_made(start: Start, workspace: Path) -> None:
    """The signal comes when the weights are written and the exports are not."""
    waiting = workspace / "waiting"
    body = f"""
    import mmsearch.results.exports as exports

    def wait(*arguments, **options):
        Path({str(waiting)!r}).touch()
        time.sleep(600)

    exports.write_exports = wait
    """
    before = sorted(folder_of(workspace).iterdir())
    target = (folder_of(workspace) / "best").readlink()
    process = start("retrain-best", "--no-calibrate", env=scripted(workspace, launcher=body))
    deadline = time.monotonic() + 120
    while not waiting.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    left = sorted(folder_of(workspace).iterdir())
    assert [path for path in left if not path.name.startswith(".")] == before
    assert (folder_of(workspace) / "best").readlink() == target
    torn = [path for path in left if path.name.startswith(".")]
    assert len(torn) == 1  # which `mmsearch clean` removes
    assert (torn[0] / "model.safetensors").exists()
