"""What a worker makes of trials and machines that go wrong: memory, disk, devices, launchers that are gone."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import optuna
import pytest
import torch
from conftest import TINY, Run, environment
from optuna.trial import TrialState
from test_worker_resume import one_core  # noqa: F401 - a fixture

from mmsearch.config import StudyConfig, load_config
from mmsearch.data.sources import load_dataset
from mmsearch.errors import DiskFull, MmsearchError, OutOfMemory
from mmsearch.search.machine import training_environment
from mmsearch.search.objective import Objective
from mmsearch.search.space import restore
from mmsearch.search.study import create_study, open_study
from mmsearch.search.values import MEMORY, VIOLATED
from mmsearch.search.worker import Orders, Stop, disk_full, run_trial
from mmsearch.training.device import choose_devices, free_memory, memory_told, own_device, still_works
from mmsearch.training.precision import computed_in
from mmsearch.training.provenance import code_digest, device_name, versions

CPU = torch.device("cpu")

# The second configuration's first layer alone gives 320 x 1,024 x 28 x 28 numbers, several times over.
LARGE = (
    TINY.replace("trials = 6", "trials = 3")
    .replace('"batch_size" = 32', '"batch_size" = [32, 320]')
    .replace('"image.cnn.filters_1" = 8', '"image.cnn.filters_1" = [8, 1024]')
    + '\n[[enqueue]]\nimage.encoder = "cnn"\nimage.cnn.filters_1 = 1024\nbatch_size = 320\n'
    + '\n[[enqueue]]\nimage.encoder = "mlp"\nimage.mlp.units_1 = 16\nbatch_size = 32\n'
)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], StudyConfig]:
    def make(text: str) -> StudyConfig:
        (tmp_path / "studies").mkdir()
        (tmp_path / "studies" / "made.toml").write_text(text)
        return load_config(tmp_path / "studies" / "made.toml")

    return make


@pytest.mark.usefixtures("one_core")
def test_a_trial_that_runs_out_of_memory_is_pruned_and_the_search_goes_on(
    start: Callable[..., Popen[str]], workspace: Path
) -> None:
    (workspace / "studies" / "digits.toml").write_text(LARGE)
    search = start("launch", "--workers", 1)
    resource.prlimit(search.pid, resource.RLIMIT_AS, (2_500_000_000, 2_500_000_000))  # workers inherit it
    said = search.communicate(timeout=180)[1]
    assert search.returncode == 0, said
    assert re.search(r"trial 1 pruned: the processor's memory is too small .*: it asked for \d+ MiB at once", said)
    config = load_config(workspace / "studies" / "digits.toml")
    with open_study(config) as opened:
        trials = opened.trials()
        assert [trial.state == TrialState.FAIL for trial in trials] == [False] * 3  # counted, and not tried again
        assert trials[1].state == TrialState.PRUNED
        assert trials[1].constraints == {MEMORY: 1.0}
        assert "memory is too small" in trials[1].user_attrs[VIOLATED]
        assert trials[2].state == TrialState.COMPLETE
        best = opened.best()
        assert best is not None
        assert best.number != 1
    assert not [path for path in config.paths.folder.rglob("*") if "checkpoint" in path.name]


@pytest.mark.usefixtures("one_core")
def test_a_loss_that_is_not_finite_fails_with_its_reason(mmsearch: Run, workspace: Path) -> None:
    rates = '"optimizer.lr" = { low = 1e-3, high = 1e-2, log = true, default = 3e-3 }'
    growing = '"optimizer.name" = "sgd"\n"optimizer.sgd.weight_decay" = 1.0\n"optimizer.lr" = [1e-3, 10.0]'
    text = TINY.replace(rates, growing).replace("max_epochs = 3", "max_epochs = 9\npatience = 9")
    (workspace / "studies" / "digits.toml").write_text(text + "\n[[enqueue]]\noptimizer.lr = 10.0\n")
    said = mmsearch("launch", "--trials", 2, "--workers", 1).stderr
    reason = r"the (training|validation) loss of epoch \d+ is (nan|inf): try a lower optimizer\.lr"
    assert re.search(rf"trial 1 failed: {reason}", said), said
    with open_study(load_config(workspace / "studies" / "digits.toml")) as opened:
        assert re.fullmatch(reason, opened.trials()[1].user_attrs["fail_reason"])


@pytest.mark.usefixtures("one_core")
def test_a_full_disk_hands_the_trial_back_in_one_sentence(mmsearch: Run, workspace: Path) -> None:
    config = load_config(workspace / "studies" / "digits.toml")
    log = config.paths.epochs(1)
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    said = mmsearch("launch", "--workers", 1, code=1).stderr
    assert "cannot be written: No space left on device" in said.splitlines()[-1]
    with open_study(config) as opened:
        states = [trial.state for trial in opened.trials()]
        assert states == [TrialState.COMPLETE, TrialState.WAITING]
    log.unlink()
    mmsearch("launch", "--workers", 1)
    with open_study(config) as opened:
        assert not [trial for trial in opened.trials() if trial.state == TrialState.FAIL]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_written_is_told_from_other_errors(number: int) -> None:
    told = disk_full(OSError(number, os.strerror(number), "/some/file"))
    assert str(told).startswith(f"/some/file: cannot be written: {os.strerror(number)}; ")
    assert "\n" not in str(told)
    assert disk_full(OSError(errno.ENOENT, "?", "/some/file")) is None
    assert disk_full(ValueError("no space")) is None
    known = DiskFull("known")
    assert disk_full(known) is known


ALIVE = """
import signal, time
import mmsearch.search.worker as worker
worker.STOP_GRACE_S = worker.HAND_BACK_S = 1.0
def run(orders, emit, stop):
    stop.hand_back = lambda: {hand_back}
    emit("ready")
    stop.asked.wait()
    {then}
    emit("stopped")
worker.run_worker = run
worker.main()
"""


def worker_that(then: str, configured: Callable[[str], StudyConfig], hand_back: str = "emit('back')") -> Popen[str]:
    """A worker process that, once it is to stop, does something else instead of training."""
    process = Popen(
        [sys.executable, "-c", ALIVE.format(then=then, hand_back=hand_back)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(Orders(configured(TINY), "0-name", 0, 6, 1).to_json() + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"event": "ready"}
    return process


def test_a_worker_ends_with_its_launcher_whatever_it_does(configured: Callable[[str], StudyConfig]) -> None:
    process = worker_that("time.sleep(600)", configured)
    out, log = process.communicate(timeout=60)  # closes its input, as a launcher's end does
    assert process.returncode == 1
    assert json.loads(out) == {"event": "back"}
    assert "in run" in log  # where it was


def test_a_worker_ends_with_its_launcher_also_where_its_trial_cannot_be_handed_back(
    configured: Callable[[str], StudyConfig],
) -> None:
    process = worker_that("time.sleep(600)", configured, "time.sleep(600)")
    out, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert "Timeout" in log


def test_a_worker_whose_launcher_is_gone_is_not_hurried_where_it_stops(
    configured: Callable[[str], StudyConfig],
) -> None:
    process = worker_that("pass", configured)
    out, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert json.loads(out) == {"event": "stopped"}


@pytest.mark.usefixtures("one_core")
def test_a_device_that_fails_for_good_ends_the_process_and_the_search_goes_on(mmsearch: Run, workspace: Path) -> None:
    """There is no such processor, so a worker's own start-up code makes one."""
    (workspace / "sitecustomize.py").write_text(
        "import pathlib, sys\n"
        "if 'mmsearch.search.worker' in sys.orig_argv:\n"
        "    import mmsearch.training.device as device, mmsearch.search.folds as folds\n"
        "    once, broken = pathlib.Path('once'), []\n"
        "    step = folds.TrialTraining.__next__\n"
        "    def fails(self):\n"
        "        if self.first_number == 1 and not once.exists():\n"
        "            once.touch()\n"
        "            broken.append(1)\n"
        "            raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "        return step(self)\n"
        "    folds.TrialTraining.__next__ = fails\n"
        "    device.still_works = lambda device: not broken\n"
    )
    said = mmsearch("launch", "--workers", 1, env={"PYTHONPATH": str(workspace)}).stderr
    assert "trial 1 failed: RuntimeError: CUDA error: an illegal memory access" in said
    assert "does not work any more in this process" in said
    assert said.count("is ready on cpu") == 2
    with open_study(load_config(workspace / "studies" / "digits.toml")) as opened:
        states = [trial.state for trial in opened.trials()]
        assert states.count(TrialState.FAIL) == 1
        assert len(states) == 7


def fails_with(error: Exception, config: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """The events of a trial in whose first epoch an error comes up."""

    def fail(*arguments: object) -> None:
        raise error

    told: list[tuple[str, object]] = []
    with create_study(config, load_dataset(config).fingerprint)[0] as opened:
        trial = opened.optuna.ask()
        with monkeypatch.context() as patch:
            patch.setattr("mmsearch.training.fit.Training.__next__", fail)
            made = Objective(config, load_dataset(config), CPU)
            run_trial(opened, made, trial, lambda event, **fields: told.append((event, fields.get("state"))), Stop())
    return told


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (MemoryError("Unable to allocate 3 GiB"), "PRUNED"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."), "PRUNED"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "PRUNED"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "PRUNED"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "FAIL"),
        (OSError(errno.ENOENT, "No such file or directory"), "FAIL"),
        (ZeroDivisionError("division by zero"), "FAIL"),
    ],
)
def test_memorys_end_prunes_and_other_errors_fail(
    error: Exception, state: str, configured: Callable[[str], StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(TINY)
    assert fails_with(error, config, monkeypatch) == [("started", None), ("finished", state)]
    with open_study(config) as opened:
        trial = opened.trials()[0]
        assert trial.state.name == state
        assert trial.constraints == ({MEMORY: 1.0} if state == "PRUNED" else {})
        if state == "FAIL":
            assert trial.user_attrs["fail_reason"] == f"{type(error).__name__}: {error}"


def test_a_trial_that_was_taken_over_is_left_alone(
    configured: Callable[[str], StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory has ended, but a launcher elsewhere has failed it meanwhile: the retry's checkpoint stays."""
    config, told = configured(TINY), list[str]()
    with create_study(config, load_dataset(config).fingerprint)[0] as opened:
        opened.storage.owner = {"worker": "0-name"}
        trial = opened.optuna.ask()

        def fail(*arguments: object) -> None:
            assert opened.storage.fail(trial._trial_id, "silent", 1)[0]
            config.paths.checkpoint(0).write_bytes(b"the retry's")
            raise MemoryError

        monkeypatch.setattr("mmsearch.training.fit.Training.__next__", fail)
        made = Objective(config, load_dataset(config), CPU)
        run_trial(opened, made, trial, lambda event, **fields: told.append(event), Stop())
        assert told == ["started", "handed_back"]
        assert opened.trials()[0].user_attrs["fail_reason"] == "silent"
    assert config.paths.checkpoint(0).read_bytes() == b"the retry's"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1048576000 bytes. Error",
         "the processor's memory is too small for this configuration: it asked for 1000 MiB at once"),
        ("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0",
         "the processor's memory is too small for this configuration: it asked for 20.00 GiB at once"),
        ("std::bad_alloc\nat line 3", "the processor's memory is too small for this configuration: std::bad_alloc"),
    ],
)  # fmt: skip
def test_memorys_end_is_one_sentence(text: str, what: str) -> None:
    with pytest.raises(OutOfMemory, match=f"^{re.escape(what)}$"), memory_told(CPU):
        raise RuntimeError(text)


def test_a_trial_remembers_what_its_numbers_depend_on(configured: Callable[[str], StudyConfig]) -> None:
    config = configured(TINY)
    dataset = load_dataset(config)
    study = optuna.create_study(direction="maximize")
    Objective(config, dataset, CPU)(study.ask())
    run = study.trials[0].user_attrs["run"]
    assert run == {
        "seed": run["seed"],
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "precision": computed_in("auto", restore(config.dimensions, study.trials[0].params), CPU),
        "hardware": device_name(CPU),
        "data": dataset.fingerprint,
        "code": code_digest(),
        "versions": versions(),
    }
    assert {"python", "torch", "mmsearch"} <= set(run["versions"])


@pytest.mark.parametrize(
    ("wanted", "gpus", "found", "devices"),
    [
        ("auto", None, 0, ["cpu"]),
        ("cpu", (0, 1), 2, ["cpu"]),
        ("auto", None, 2, ["cuda:0", "cuda:1"]),
        ("cuda", None, 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", (3, 1), 4, ["cuda:3", "cuda:1"]),
        ("cuda:1", (0, 2), 3, ["cuda:1"]),
    ],
)
def test_workers_take_turns_on_the_gpus(
    wanted: str,
    gpus: tuple[int, ...] | None,
    found: int,
    devices: list[str],
    monkeypatch: pytest.MonkeyPatch,
    configured: Callable[[str], StudyConfig],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    places = tuple(map(str, choose_devices(wanted, gpus)))
    assert places == tuple(devices)
    config = configured(TINY)
    orders = [Orders(config, "", index, 6, 1, places=places) for index in range(2 * len(devices))]
    assert [Orders.from_json(one.to_json()).place for one in orders] == 2 * devices


def test_a_process_sees_the_gpu_that_it_trains_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert training_environment(2, "cuda:3")["CUDA_VISIBLE_DEVICES"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in training_environment(2, "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-8f1e,7")  # numbered as this process sees them
    found = training_environment(2, "cuda:1")
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-8f1e"
    assert found["OMP_NUM_THREADS"] == "2"
    assert (str(own_device("cuda:1")), str(own_device("cpu"))) == ("cuda:0", "cpu")


@pytest.mark.parametrize(
    ("wanted", "gpus", "found", "words"),
    [
        ("cuda", None, 0, 'device "cuda": this machine has no CUDA devices'),
        ("cuda:2", None, 1, 'device "cuda:2": this machine has 1 CUDA device'),
        ("auto", (0,), 0, "gpus: there is no GPU 0; this machine has no CUDA devices"),
        ("auto", (0, 2, 5), 2, "gpus: there is no GPU 2 or 5; this machine has 2 CUDA devices, from 0"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_sentence(
    wanted: str, gpus: tuple[int, ...] | None, found: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(MmsearchError, match=f"^{re.escape(words)}$"):
        choose_devices(wanted, gpus)


def test_a_processor_works_and_its_memory_is_given_back() -> None:
    assert still_works(CPU)
    free_memory(CPU)
