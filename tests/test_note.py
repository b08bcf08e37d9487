"""The dashboard's note: what it says, when it is written, and that neither launchers nor kills tear it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
from conftest import TINY
from optuna.trial import TrialState, create_trial

from mmsearch.config import load_config
from mmsearch.errors import StorageLost
from mmsearch.results.confirm import Confirmation, Confirmed
from mmsearch.search import note
from mmsearch.search.note import NOTE, WRITING, NoteKeeper, note_of, save_note
from mmsearch.search.progress import Event, Progress, Snapshot
from mmsearch.search.storage import BASELINE
from mmsearch.search.study import CONFIRMED, Counts, OpenStudy, create_study, open_study

Open = Callable[..., OpenStudy]
ON_ONE = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)  # the kind of storage does not matter

# More parameters than one attribute of a note holds: two parts, which could be torn.
SEARCHED = (
    *("loss.label_smoothing", "augment.mixup", "head.dropout", "audio.mlp.dropout", "image.mlp.dropout"),
    *("augment.image.noise", "augment.image.erasing", "augment.audio.noise", "augment.audio.shift"),
    *("augment.audio.time_mask", "augment.audio.frequency_mask", "augment.image.shift", "augment.image.zoom"),
    *("fusion.modality_dropout", "augment.image.crop", "augment.image.flip_horizontal", "image.cnn.dropout"),
)
WIDE = TINY + "".join(f'"{name}" = {{ low = 0.0, high = 0.5 }}\n' for name in SEARCHED)


@pytest.fixture
def opened(tmp_path: Path, storage_url: str) -> Iterator[Open]:
    """Opens the study of a file, any number of times; nothing trains."""
    path = tmp_path / "studies" / "digits.toml"
    path.parent.mkdir()
    held: list[OpenStudy] = []

    def opens(text: str = TINY, **overrides: Any) -> OpenStudy:
        path.write_text(text)
        config = load_config(path, {"study.storage": storage_url, **overrides})
        held.append(create_study(config, "any data")[0] if not held else open_study(config))
        return held[-1]

    yield opens
    for study in held:
        study.storage.engine.dispose()


def add(
    study: OpenStudy, value: float | None, state: TrialState = TrialState.COMPLETE, *, defaults: bool = False
) -> None:
    """A trial that has ended."""
    attrs = {"best_epoch": 2, "epochs": 3}
    system = {BASELINE: True} if defaults else {}
    study.optuna.add_trial(create_trial(state=state, value=value, user_attrs=attrs, system_attrs=system))


def written(study: OpenStudy) -> str:
    return str(optuna_dashboard.get_note(study.optuna))


def lines_of(study: OpenStudy) -> dict[str, str]:
    """The sentences on how it stands."""
    return dict(line[4:].split("**: ") for line in note_of(study).splitlines() if line.startswith("- **"))


def confirmation() -> dict[str, Any]:
    """A tiny one, as it is stored: of trial 1, when the search had two trials."""
    interval, epochs = (0.9, 0.97), (2, 2)
    row = Confirmed(1, {}, 0.95, (0.93, 0.94), 0.935, interval, 0.015, 500, None, False, best_epochs=epochs)
    return asdict(Confirmation("macro_f1", 1, 2, (row,), 1, "best", 2, 2))


@ON_ONE
def test_it_says_how_the_search_stands(opened: Open) -> None:
    study = opened()
    assert lines_of(study) == {"Best": "no trial is complete", "Trials": "0 of 6 (1 waiting)"}
    add(study, 0.9, defaults=True)
    add(study, 0.95)
    add(study, None, TrialState.PRUNED)
    add(study, None, TrialState.FAIL)
    assert lines_of(study) == {
        "Best": "macro_f1 0.9500 (trial 2, epoch 2); +0.0500 over the defaults (trial 1)",
        "Trials": "3 of 6 (2 complete, 1 pruned, 1 failed, 1 waiting)",
    }


@ON_ONE
def test_it_says_what_came_after_the_search(opened: Open) -> None:
    study = opened()
    for value in (0.9, 0.95, 0.93):
        add(study, value)
    study.storage.set_study_system_attr(study.id, CONFIRMED, confirmation())
    study.optuna.set_user_attr("retrained", {"trial": 1, "macro_f1": 0.97, "folder": "/somewhere/1"})
    found = lines_of(study)
    assert found["Confirmed"] == (
        "trial 1; macro_f1 0.9350 on average over 2 fresh seeds (95 % interval 0.9000 to 0.9700), "
        "0.0150 worse than in the search; 1 trial finished since"
    )
    assert found["Retrained"] == "trial 1, macro F1 0.9700; `/somewhere/1/metrics.json` says on which rows"


@ON_ONE
def test_several_metrics_are_all_told(opened: Open) -> None:
    study = opened(TINY.replace("[study]", '[study]\nmetrics = ["accuracy", "parameters"]'))
    for values in ([0.9, 500.0], [0.8, 100.0], [0.7, 300.0]):
        study.optuna.add_trial(create_trial(values=values, user_attrs={"best_epoch": 1}))
    assert lines_of(study)["Best"] == "accuracy 0.9000, parameters 500 (trial 1, epoch 1); 2 trials on the Pareto front"
    assert "pruner none" in note_of(study)


@ON_ONE
def test_its_commands_are_those_of_the_study_whoever_writes_them(opened: Open) -> None:
    """A launch for 4 trials, and whatever came after it without that number, write the same."""
    first = note_of(opened(**{"study.trials": 4, "data.rows": 200}))
    study = opened(**{"search.device": "cpu", "data.rows": 200})
    assert note_of(study) == first
    commands = first.partition("```\n")[2].splitlines()
    assert [command.split()[1] for command in commands[:6]] == [
        *("launch", "confirm", "retrain-best", "report", "export", "dashboard"),
    ]
    assert commands[0].endswith(" --trials 4")
    assert "--trials" not in "".join(commands[1:])


@ON_ONE
def test_no_password_is_in_it(tmp_path: Path, opened: Open) -> None:
    study = opened()
    config = study.config.model_copy(update={"overrides": {"study.storage": "postgresql://me:secret@host/db"}})
    text = note_of(OpenStudy(config, study.optuna, study.storage))
    assert "postgresql://me:***@host/db" in text
    assert "secret" not in text


def test_one_that_was_edited_stays_and_one_that_was_emptied_is_written_anew(opened: Open) -> None:
    study = opened()
    save_note(study)
    first = written(study)
    assert first == note_of(study)
    add(study, 0.9)
    save_note(study)
    assert written(study) == note_of(study) != first  # ours: kept up to date
    optuna_dashboard.save_note(study.optuna, "mine")
    save_note(study)
    assert written(study) == "mine"
    optuna_dashboard.save_note(study.optuna, "")
    save_note(study)
    assert written(study) == note_of(study)


@ON_ONE
def test_one_that_says_the_same_is_not_written_again(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened()
    save_note(study)
    before = study.storage.get_study_system_attrs(study.id)
    save_note(study)
    assert study.storage.get_study_system_attrs(study.id) == before  # its version too, which an editor relies on


def test_one_that_a_kill_has_torn_is_mended(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(WIDE)
    save_note(study)
    assert len(written(study)) > 2045  # two parts
    add(study, 0.9)

    def killed(held: optuna.Study, text: str) -> None:
        study.storage.set_study_system_attr(study.id, "dashboard:note_str:0", text[:2045])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna_dashboard, "save_note", killed)
        with pytest.raises(KeyboardInterrupt):
            save_note(study)
    assert study.storage.get_study_system_attrs(study.id)[NOTE] == WRITING
    save_note(study)
    assert written(study) == note_of(study)


def test_several_write_at_once(opened: Open) -> None:
    """Two launchers with a note of two parts each, which differ: the last one is whole, and known as ours."""
    studies = [opened(WIDE), opened(WIDE, **{"data.source": "elsewhere"})]
    texts = {note_of(study) for study in studies}
    assert len(texts) == 2
    start = threading.Barrier(2)

    def write(study: OpenStudy) -> None:
        start.wait()
        for _ in range(8):
            save_note(study)

    threads = [threading.Thread(target=write, args=(study,)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written(studies[0]) in texts
    add(studies[0], 0.9)
    save_note(studies[0])
    assert written(studies[0]) == note_of(studies[0])


@ON_ONE
def test_one_that_cannot_be_written_is_a_warning(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = opened()

    def away(held: OpenStudy) -> str:
        raise StorageLost("the storage is away")

    monkeypatch.setattr(note, "note_of", away)
    with caplog.at_level(logging.WARNING, "mmsearch"):
        save_note(study)
    assert caplog.messages == ["the dashboard's note was not written: the storage is away"]
    assert written(study) == ""


class Heard(Progress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def note(self, text: str) -> None:
        self.told.append(text)

    def event(self, event: Event) -> None:
        self.told.append(event)

    def show(self, snapshot: Snapshot) -> None:
        self.told.append(snapshot)

    def close(self) -> None:
        self.told.append("closed")


def snapshot(best: tuple[int, float] | None) -> Snapshot:
    return Snapshot(Counts(1, 0, 0, 1, 0), 6, "macro_f1", best, None, [], 1, 3, 1, 9.0)


def wait_for(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


@ON_ONE
def test_it_is_kept_while_a_search_runs(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(note, "EVERY_S", 600.0)
    study, heard = opened(), Heard()
    epoch = Event(0, {"event": "epoch", "trial": 0, "fold": 1, "epoch": 1, "value": 0.5})
    with NoteKeeper(study, heard) as kept:
        kept.show(snapshot((7, 0.1)))  # of a study that is gone on with
        kept.event(Event(0, {"event": "started", "trial": 0}))
        assert not kept._news.is_set()  # while workers start, nothing takes their time
        kept.event(epoch)
        wait_for(lambda: "0 of 6" in written(study))
        add(study, 0.9)
        kept.show(snapshot((1, 0.9)))
        wait_for(lambda: "macro_f1 0.9000 (trial 1" in written(study))
        kept.show(snapshot((1, 0.9)))
        kept.note("a word")
        kept.event(Event(0, {"event": "ready"}))
        kept.close()
        add(study, 0.8)
    assert "2 of 6" in written(study)
    assert heard.told == [
        *(snapshot((7, 0.1)), Event(0, {"event": "started", "trial": 0}), epoch),
        *(snapshot((1, 0.9)), snapshot((1, 0.9))),
        *("a word", Event(0, {"event": "ready"}), "closed"),
    ]


@ON_ONE
def test_it_is_written_now_and_then_without_news(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(note, "EVERY_S", 0.01)
    study = opened()
    with NoteKeeper(study, Progress()):
        wait_for(lambda: "0 of 6" in written(study))
        add(study, None, TrialState.PRUNED)
        wait_for(lambda: "1 of 6" in written(study))


@ON_ONE
def test_a_storage_that_hangs_does_not_hold_up_the_search(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the note, the block ends: at once where the storage is lost, else a little later."""
    study, goes_on = opened(), threading.Event()
    monkeypatch.setattr(note, "save_note", lambda held: goes_on.wait(60))
    monkeypatch.setattr(note, "LAST_S", 0.05)
    with NoteKeeper(study, Progress()):
        pass
    monkeypatch.setattr(note, "LAST_S", 600.0)
    with pytest.raises(StorageLost), NoteKeeper(study, Progress()):
        raise StorageLost("away")
    goes_on.set()
