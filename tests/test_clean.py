"""`mmsearch clean`: what it finds, what it leaves alone, and that it removes nothing unasked."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from conftest import MMSEARCH, TINY, Run, environment
from optuna.trial import TrialState, create_trial

from mmsearch.config import load_config
from mmsearch.errors import MmsearchError, StudyMismatch
from mmsearch.search import clean
from mmsearch.search.clean import ARTIFACTS, CHECKPOINTS, DERIVED, LOGS, TORN, find_leftovers, remove
from mmsearch.search.machine import this_process
from mmsearch.search.storage import OWNER
from mmsearch.search.study import OpenStudy, open_study

LONG_AGO = time.time() - 3 * 86_400
KEY = "0123456789abcdef01234567"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a finished search of three trials; to be copied."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "studies").mkdir()
    (folder / "studies" / "digits.toml").write_text(TINY)
    done = subprocess.run(
        [MMSEARCH, "launch", "--trials", "3", "--workers", "1"],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def storage(searched: Path, workspace: Path) -> Path:
    """The storage folder of a copy, in the workspace."""
    shutil.copytree(searched / "storage", workspace / "storage")
    return workspace / "storage"


@pytest.fixture
def opened(storage: Path) -> Iterator[OpenStudy]:
    with open_study(load_config(storage.parent / "studies" / "digits.toml")) as found:
        yield found


def plant(path: Path, age_s: float = 3 * 86_400, content: bytes = b"x" * 1000) -> Path:
    """A file that was last changed and used so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def found(opened: OpenStudy, *kinds: str) -> set[Path]:
    """What is found, of these kinds or of all."""
    leftovers = find_leftovers(opened).leftovers
    return {path for leftover in leftovers if not kinds or leftover.kind in kinds for path in leftover.paths}


def files(folder: Path) -> dict[Path, bytes]:
    """All there is, but for the database, which a reader may touch."""
    held = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("studies.db"))
    return {path: path.read_bytes() for path in held}


def test_it_shows_first_and_removes_when_told_to(mmsearch: Run, storage: Path) -> None:
    study = storage / "digits"
    checkpoint = plant(study / "trials" / "1" / "checkpoint.pt", content=b"x" * 2_500_000)
    torn = plant(study / "trials" / "1" / ".0123abcd.checkpoint.pt")
    orphan = plant(storage / "artifacts" / str(uuid.uuid4()))
    (log,) = (study / "logs").iterdir()
    before = files(storage)
    shown = mmsearch("clean")
    for path in (checkpoint, torn, orphan, log):
        assert str(path) in shown.stdout
    assert "   2.5 MB  checkpoints of trials that have ended: 1\n" in shown.stdout
    assert shown.stderr == "nothing was removed; this does it: mmsearch clean --yes\n"
    assert files(storage) == before
    assert "freed 2.5 MB" in mmsearch("clean", "--yes").stderr
    assert set(files(storage)) == set(before) - {checkpoint, torn, orphan, log}
    assert mmsearch("clean").stderr == "there is nothing to remove\n"
    assert "3 of 3" in mmsearch("launch", "--trials", 3).stdout  # the study is whole


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_in_a_terminal_it_asks(storage: Path, answer: str, gone: bool) -> None:
    checkpoint = plant(storage / "digits" / "trials" / "0" / "checkpoint.pt")
    leader, follower = pty.openpty()
    try:
        process = subprocess.Popen(
            [MMSEARCH, "clean"],
            cwd=storage.parent,
            env=environment(),
            stdin=follower,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.write(leader, answer.encode())
        out, said = process.communicate(timeout=60)
    finally:
        os.close(follower)
        os.close(leader)
    assert process.returncode == 0, said
    assert str(checkpoint) in out
    assert "remove it? [y/N]" in said
    assert checkpoint.exists() is not gone


def test_a_trial_that_runs_or_waits_keeps_all_it_has(opened: OpenStudy) -> None:
    """The checkpoint of a chain of attempts lies with the first of them."""
    study, paths = opened.optuna, opened.config.paths
    for state in (TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL, TrialState.FAIL):  # 3, 4, 5, 6
        study.add_trial(create_trial(state=state))
    study.add_trial(create_trial(state=TrialState.WAITING, system_attrs={"failed_trial": 5}))  # 7, a retry of 5
    study.add_trial(create_trial(state=TrialState.PRUNED, system_attrs={"failed_trial": 6}))  # 8, a retry of 6
    for number in range(10):  # 9 is no trial
        plant(paths.checkpoint(number))
        plant(paths.trial(number) / f".0123abcd.{paths.checkpoint(number).name}")
    ended = {0, 1, 2, 6, 8}
    assert found(opened, CHECKPOINTS) == {paths.checkpoint(number) for number in ended}
    assert {int(path.parent.name) for path in found(opened, TORN)} == ended
    before = set(files(paths.folder))
    remove(find_leftovers(opened).leftovers)
    left = set(files(paths.folder))
    assert {path.parent.name for path in left if "checkpoint.pt" in path.name} == {"3", "4", "5", "7", "9"}
    assert {path.name for path in before - left} >= {"checkpoint.pt"}


def test_a_file_that_is_being_written_stays(opened: OpenStudy) -> None:
    paths, cache = opened.config.paths, opened.config.storage_paths.cache
    for age, torn in ((60, False), (7200, True)):
        planted = {
            plant(paths.folder / ".0123abcd.study.toml", age),
            plant(paths.trial(0) / ".0123abcd.metrics.csv", age),
            plant(cache / f".0123abcd.features-{KEY}.npy", age),
            plant(cache / f".features-{KEY}.npy.lock", age),
        }
        building = plant(paths.retrained / ".0123abcd" / "model.safetensors", age).parent
        os.utime(building, (LONG_AGO, LONG_AGO))  # what is in it counts
        assert found(opened, TORN) == (planted | {building} if torn else set())


def test_a_lock_that_somebody_holds_stays(opened: OpenStudy) -> None:
    cache = opened.config.storage_paths.cache
    held, free = (plant(cache / f".{name}.npy.lock") for name in ("held", "free"))
    with held.open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        remove(find_leftovers(opened).leftovers)
        assert held.exists()
        assert not free.exists()
    remove(find_leftovers(opened).leftovers)
    assert not held.exists()


def test_other_files_and_retrained_models_stay(opened: OpenStudy, tmp_path: Path) -> None:
    config = opened.config
    paths, shared = config.paths, config.storage_paths
    model = plant(paths.retrained / "1" / "model.safetensors")
    (paths.retrained / "best").symlink_to("1")
    plant(paths.retrained / "1" / ".0123abcd.model.safetensors")
    outside = plant(tmp_path / "elsewhere" / ".0123abcd.notes")
    (paths.folder / "trials" / "2").rename(tmp_path / "moved")
    (paths.folder / "trials" / "2").symlink_to(tmp_path / "moved")  # what a link leads to is not ours
    kept = plant(tmp_path / "moved" / "checkpoint.pt")
    for name in (".hidden", ".gitignore", "notes.txt", ".0123abc.short", "x.0123abcd.y"):
        plant(paths.folder / name)
        plant(shared.cache / name)
        plant(shared.artifacts / name)
        plant(shared.folder / name)
    plant(shared.folder / "other" / "trials" / "0" / "checkpoint.pt")
    plant(shared.cache / f"{KEY}.npz")
    before = files(shared.folder)
    logs = found(opened, LOGS)
    remove(find_leftovers(opened).leftovers)
    assert set(before) - set(files(shared.folder)) == logs
    assert model.exists()
    assert outside.exists()
    assert kept.exists()


def test_a_log_goes_when_its_worker_has_gone_and_nothing_went_wrong(opened: OpenStudy) -> None:
    paths = opened.config.paths
    (first,) = paths.log("*").parent.iterdir()
    assert found(opened, LOGS) == {first}  # of the worker that searched

    def claimed(name: str, state: TrialState, **owner: object) -> Path:
        told = {**this_process(name), "born": "gone", **owner}
        values = {"value": 0.5} if state == TrialState.COMPLETE else {}
        opened.optuna.add_trial(create_trial(state=state, system_attrs={OWNER: told}, **values))  # type: ignore[arg-type]
        return plant(paths.log(name))

    good = {first, claimed("good", TrialState.PRUNED)}
    claimed("failed", TrialState.FAIL)
    claimed("good-at-first", TrialState.COMPLETE)
    claimed("good-at-first", TrialState.FAIL)
    claimed("alive", TrialState.COMPLETE, born=this_process("")["born"])
    elsewhere = claimed("elsewhere", TrialState.COMPLETE, machine="another")
    plant(paths.log("had-no-trial"))
    silent = plant(paths.log("said-nothing"), content=b"")
    plant(paths.log("started-now"), age_s=5, content=b"")
    assert found(opened, LOGS) == good | {elsewhere, silent}
    plant(elsewhere, age_s=60)  # it may be about to claim another
    assert found(opened, LOGS) == good | {silent}
    plant(elsewhere)
    claimed("at-work", TrialState.RUNNING)
    assert found(opened, LOGS) == good


def test_what_is_derived_from_data_goes_when_it_is_not_used(opened: OpenStudy) -> None:
    cache = opened.config.storage_paths.cache
    other = "f" * 24
    old = {plant(cache / f"features-{KEY}.npy")}
    old |= {plant(cache / f"manifest-{KEY}{ending}") for ending in (".json", ".image.npy", ".audio.npy")}
    plant(cache / f"features-{other}.npy", 3600)
    plant(cache / f"manifest-{other}.json")  # read again lately: its arrays say so
    plant(cache / f"manifest-{other}.image.npy")
    plant(cache / f"manifest-{other}.audio.npy", 3600)
    assert found(opened, DERIVED) == old
    leftovers = find_leftovers(opened).leftovers
    assert sum(leftover.kind == DERIVED for leftover in leftovers) == 2
    now = time.time()
    os.utime(cache / f"manifest-{KEY}.audio.npy", (now, LONG_AGO))  # used while the user was asked
    remove(leftovers)
    assert {path for path in old if path.exists()} == {path for path in old if path.name.startswith("manifest")}


def test_what_changed_while_the_user_was_asked_stays(opened: OpenStudy) -> None:
    paths = opened.config.paths
    kept, gone = plant(paths.checkpoint(0)), plant(paths.checkpoint(1))
    vanished = plant(paths.checkpoint(2))
    leftovers = [leftover for leftover in find_leftovers(opened).leftovers if leftover.kind == CHECKPOINTS]
    kept.write_bytes(b"new")
    vanished.unlink()
    assert remove(leftovers) == (1, 1000)
    assert kept.exists()
    assert not gone.exists()


def test_an_artifact_stays_while_any_study_of_the_storage_names_it(opened: OpenStudy) -> None:
    folder = opened.config.storage_paths.artifacts
    ours = set(folder.iterdir())
    assert len(ours) == 3 * 3  # of each trial a table and two pictures
    for path in ours:
        os.utime(path, (LONG_AGO, LONG_AGO))
    names = [str(uuid.uuid4()) for _ in range(6)]
    planted = [plant(folder / name) for name in names]
    other = optuna.create_study(study_name="other", storage=opened.storage)  # not one of ours, and shown with them
    opened.storage.set_study_system_attr(other._study_id, f"artifacts:{names[0]}", "{}")
    other.add_trial(create_trial(value=1.0, system_attrs={f"artifacts:{names[1]}": "{}"}))
    other.set_user_attr("note", f"see /artifacts/1/{names[2]}")
    opened.storage.set_study_system_attr(opened.id, f"dashboard:artifacts:7:{names[3]}", "{}")
    plant(planted[5], age_s=60)  # written first, and named in a moment
    assert found(opened, ARTIFACTS) == {planted[4]}


def test_artifacts_stay_where_another_storage_s_study_may_name_them(mmsearch: Run, storage: Path) -> None:
    orphan = plant(storage / "artifacts" / str(uuid.uuid4()))
    mmsearch("launch", "--trials", 1, "--workers", 1, "--study-name", "b", "--storage", f"sqlite:///{storage}/b.db")
    for options in ((), ("--study-name", "b", "--storage", f"sqlite:///{storage}/b.db")):
        done = mmsearch("clean", "--yes", *options)
        stranger = storage / ("digits" if options else "b")
        expected = f"{storage / 'artifacts'} stays as it is: {stranger} belongs to a study of another storage"
        assert expected in done.stderr
        assert orphan.exists()
    (storage / "b" / "study.id").unlink()
    assert str(orphan) in mmsearch("clean", "--yes").stdout
    assert not orphan.exists()


@pytest.mark.parametrize("mark", ["another\n", None])
def test_another_study_s_folder_is_not_touched(mmsearch: Run, storage: Path, mark: str | None) -> None:
    plant(storage / "digits" / "trials" / "0" / "checkpoint.pt")
    identity = storage / "digits" / "study.id"
    identity.unlink()
    if mark:
        identity.write_text(mark)
    before = files(storage)
    said = mmsearch("clean", "--yes", code=2).stderr
    assert "holds the files of another study of that name" in said
    assert len(said.splitlines()) == 1
    assert files(storage) == before


def test_before_there_is_a_study(mmsearch: Run) -> None:
    assert "there is no study yet" in mmsearch("clean", code=4).stderr


def test_what_cannot_be_removed_is_named(opened: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = plant(opened.config.paths.checkpoint(0))

    def refuse(path: Path, **given: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    leftovers = find_leftovers(opened).leftovers
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(MmsearchError, match=rf"{checkpoint}: cannot be removed: Permission denied"):
        remove(leftovers)


def test_a_folder_of_another_study_is_refused_by_its_class(opened: OpenStudy) -> None:
    opened.config.paths.identity.write_text("another")
    with pytest.raises(StudyMismatch):
        find_leftovers(opened)


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_345_678, "2.3 MB"), (5e9, "5.0 GB")]
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert clean.size_in_words(size) == words


def test_each_kind_has_its_words(storage: Path) -> None:
    """Many files of one kind are summed up, the largest first."""
    with open_study(load_config(storage.parent / "studies" / "digits.toml")) as opened:
        for at in range(8):
            plant(storage / "artifacts" / str(uuid.uuid4()), content=b"x" * (1000 + at))
        lines: list[str] = clean.describe(find_leftovers(opened)).splitlines()
    start = next(at for at, line in enumerate(lines) if ARTIFACTS in line)
    assert lines[start].strip() == f"8.0 kB  {ARTIFACTS}: 8"
    assert len([line for line in lines[start:] if "artifacts/" in line]) == 5
    assert lines[start + 6].strip() == "and 3 more"


def test_a_search_that_runs_is_not_disturbed(
    mmsearch: Run, start: Callable[..., subprocess.Popen[str]], workspace: Path
) -> None:
    launcher = start("launch", "--trials", 6, "--workers", 2)
    shown = []
    while launcher.poll() is None:
        if (workspace / "storage" / "digits" / "study.id").exists():
            shown.append(mmsearch("clean", "--yes").stdout)
    out, said = launcher.communicate()
    assert launcher.returncode == 0, said
    assert "6 of 6" in out
    assert shown
    assert "failed" not in said
