"""What the commands print: how a search stands, what was retrained, and what goes on meanwhile."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mmsearch.errors import UsageError
from mmsearch.paths import replacing

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from mmsearch.config import StudyConfig
    from mmsearch.results.bundle import Bundle
    from mmsearch.results.plans import Plan
    from mmsearch.search.audit import Audit
    from mmsearch.search.launcher import Summary
    from mmsearch.search.progress import Progress
    from mmsearch.search.study import OpenStudy
    from mmsearch.training.fit import EpochResult

FRONT_ROWS = 10  # of the Pareto front that are printed


class Forgiving:
    """Standard error for a process whose work must not end since nobody reads what it says any more.

    That is so where a terminal was closed, or the program that a pipe leads to has ended, as `tee` does at a Ctrl-C.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """All of it, or to nobody."""
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """As a stream's."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """From here on nothing is written anywhere; else what is left in the stream would fail again at the end."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def must_be_writable(out: Path | None) -> None:
    """Find out before the work that its result has no place to go."""
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist")
    if out is not None and out.is_dir():
        raise UsageError(f"{out} is a folder; --out takes a file")


def put(data: str | bytes, out: Path | None) -> None:
    """Data: into a file, or to standard output."""
    if out is None:
        sys.stdout.write(data) if isinstance(data, str) else sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    try:
        with replacing(out) as temporary:
            temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from None
    say(f"wrote {out}")


class Epochs:
    """Epochs of a retraining or a replay: a bar in a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._epochs = self._done = 0

    def __enter__(self) -> Epochs:
        return self

    def plan(self, plan: Plan) -> None:
        """Before the first epoch of a retraining."""
        from mmsearch.search.progress import plural

        if plan.hint is not None:
            say(plan.hint)
        *most, last = [str(member.epochs) for member in plan.members]
        epochs = f"{', '.join(most)} and {last} epochs" if most else plural(int(last), "epoch")
        before = f", and {plural(plan.unseen_epochs, 'epoch')} before that to calibrate" if plan.unseen_epochs else ""
        text = f"retraining {plan.why}; on training and validation rows for {epochs}{before}"
        self.begin(text, plan.epochs + plan.unseen_epochs)

    def begin(self, text: str, epochs: int) -> None:
        """Before the first of so many epochs."""
        self._epochs = epochs
        say(text)
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("training", total=epochs)
            self._bar.start()

    def epoch(self, result: EpochResult) -> None:
        """After each epoch, of whichever fold."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        else:
            scores = f"loss {result.train.loss:.4f}, macro F1 {result.train.macro_f1:.4f} in training"
            say(f"epoch {self._done}/{self._epochs}: {scores}, {result.seconds:.1f} s")

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class Downloads:
    """Downloads: a bar a file in a terminal, nothing elsewhere; lines that are said meanwhile go above the bars."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[Path, Any] = {}

    def __enter__(self) -> Downloads:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
            self._bars = Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def progress(self, path: Path, done: int, size: int) -> None:
        """So many bytes of a file are there."""
        if self._bars is None:
            return
        if path not in self._tasks:  # what an earlier run left is no speed of this one
            self._tasks[path] = self._bars.add_task(path.name, completed=done, total=size)
        self._bars.update(self._tasks[path], completed=done)

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()


def progress_of(config: StudyConfig) -> Progress:
    """What shows a search: a live view in a terminal, lines elsewhere."""
    from mmsearch.search.progress import LineProgress, LiveProgress

    return LiveProgress(config.study.name) if sys.stderr.isatty() else LineProgress()


def print_summary(config: StudyConfig, summary: Summary) -> None:
    """How a search ended."""
    from mmsearch.search.progress import duration

    counts = summary.counts
    print(
        f"trials    {counts.finished} of {summary.total} ({counts.complete} complete, {counts.pruned} pruned), "
        f"{counts.failed} failed"
    )
    if summary.finished_here:
        rate = summary.finished_here / summary.seconds * 3600
        print(f"time      {duration(summary.seconds)}, {rate:.0f} trials an hour in this run")
    else:
        left = summary.counts.finished < summary.total
        print("time      no trial was finished in this run" if left else "time      nothing was left to do")
    if (spent := summary.spent.in_words()) is not None:
        print(f"workers   {spent}")
    print(f"ended     {summary.ended}")
    _print_audit(config, summary.audit)
    if summary.best is None:
        print("best      no trial is complete")
        return
    _print_best(config.study.metrics, summary.best, summary.front, summary.defaults, summary.gain)


def print_status(opened: OpenStudy) -> None:
    """How a search stands."""
    from mmsearch.config import hide_password
    from mmsearch.search.audit import audit_of
    from mmsearch.search.study import count

    config, trials = opened.config, opened.outcomes()
    counts = count(trials)
    print(f"study     {config.study.name} in {hide_password(config.storage_url)}")
    done = f"{counts.complete} complete, {counts.pruned} pruned"
    print(f"trials    {counts.finished} of {opened.total()} ({done})")
    print(f"          {counts.failed} failed, {counts.running} running, {counts.waiting} waiting")
    best = opened.best(trials)
    if best is None:
        print(f"best      {opened.why_none(trials)}")
    else:
        _print_best(opened.metrics, best, opened.front(trials), opened.defaults(trials), opened.gain(trials))
    _print_audit(config, audit_of(trials, opened.signs[0]))
    _print_confirmed(opened)
    _print_workers(opened)


def _print_audit(config: StudyConfig, audit: Audit) -> None:
    """What pruning saved and how often it was wrong, where there was something to prune or to audit."""
    from mmsearch.results.audit_words import saved_in_words, wrong_in_words

    if audit.pruned or audit.audited:
        print(f"pruning   {saved_in_words(audit)}")
    if audit.audited or config.search.audit:
        print(f"audit     {wrong_in_words(audit)}")


def _print_confirmed(opened: OpenStudy) -> None:
    """What `mmsearch confirm` chose, where it was run."""
    from mmsearch.search.study import CONFIRMED

    if CONFIRMED in opened.storage.get_study_system_attrs(opened.id):
        from mmsearch.results.confirm import confirmation_of
        from mmsearch.results.confirm_words import in_a_line

        held = confirmation_of(opened)
        assert held is not None
        print(f"confirmed {in_a_line(held)}")


def _print_workers(opened: OpenStudy) -> None:
    """Who is on which trial, by host; whoever is between two trials is not known to the study."""
    from mmsearch.search.machine import still_runs
    from mmsearch.search.progress import duration, plural
    from mmsearch.search.study import SILENT_AFTER_S

    running = sorted(opened.running(), key=lambda held: (held.owner.get("host", ""), held.number))
    if not running:
        print("workers   none has a trial")
        return
    machines = plural(len({held.owner.get("host") for held in running}), "machine")
    silent = sum(held.silent > SILENT_AFTER_S for held in running)
    but = f", {silent} of them silent for more than {duration(SILENT_AFTER_S)}" if silent else ""
    print(f"workers   {len(running)} on {machines}{but}")
    for held in running:
        who = (
            f"{held.owner['worker']}, process {held.owner['pid']} on {held.owner['host']}" if held.owner else "unknown"
        )
        step = "" if held.step is None else f", {_reached(opened, held.step)}"
        dead = "; it is dead, and the next launch takes the trial up" if still_runs(held.owner) is False else ""
        print(f"worker    {who}: trial {held.number}{step}, last beat {duration(held.silent)} ago{dead}")


def _reached(opened: OpenStudy, step: int) -> str:
    """How far a running trial is, as far as the study knows."""
    return f"{step} of {opened.config.folds} folds done" if opened.config.folds > 1 else f"epoch {step}"


def _print_best(
    metrics: tuple[str, ...],
    best: FrozenTrial,
    front: list[FrozenTrial],
    defaults: FrozenTrial | None,
    gain: float | None,
) -> None:
    from mmsearch.search.values import VIOLATED, in_words

    leading = metrics[0]
    value = in_words(leading, best.values[0])
    print(f"best      {leading} {value} (trial {best.number}, epoch {best.user_attrs.get('best_epoch')})")
    violated = None if defaults is None else defaults.user_attrs.get(VIOLATED)
    if gain is not None and defaults is not None:
        but = f"; there {violated}" if violated else ""
        baseline = in_words(leading, defaults.values[0])
        print(f"gain      {gain:+.4f} over the defaults ({baseline}, trial {defaults.number}{but})")
    elif violated and defaults is not None:
        print(f"gain      unknown: the defaults (trial {defaults.number}) were not trained, since {violated}")
    if len(metrics) > 1:
        _print_front(metrics, front)


def _print_front(metrics: tuple[str, ...], front: list[FrozenTrial]) -> None:
    """The trials that no other beats in every metric."""
    from mmsearch.search.values import in_words

    print(f"front     {len(front)} trial{'s' * (len(front) != 1)}, beaten by no other in all metrics")
    rows = [["trial", *metrics]]
    for trial in front[:FRONT_ROWS]:
        values = zip(metrics, trial.values, strict=True)
        rows.append([str(trial.number), *(in_words(metric, value) for metric, value in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(" " * 10 + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    if len(front) > FRONT_ROWS:
        print(f"          and {len(front) - FRONT_ROWS} more: mmsearch export --sort best has all trials")


def print_retrained(bundle: Bundle) -> None:
    """What a retraining brought."""
    from mmsearch.results.scores import few_mistakes
    from mmsearch.search.progress import plural
    from mmsearch.search.values import all_in_words

    metrics = bundle.metrics
    searched, found = metrics["searched"], metrics["modalities"]
    scored = metrics[found["scored_on"]]
    kind = {
        "test": "test rows",
        "held_back": "rows that were held back from training",
        "training": "training rows, which it has seen",
    }[found["scored_on"]]
    where = f"{scored['rows']} {kind}"
    by = "" if searched["rule"] == "best" else f"; picked by {searched['rule']}"
    if metrics["chosen"]["by"] == "confirmed":
        by = "; confirmed on fresh seeds"
    print(f"trial       {metrics['trial']} ({all_in_words(searched['values'])} on validation rows{by})")
    if len(metrics["members"]) > 1:
        trials = ", ".join(str(member["trial"]) for member in metrics["members"])
        print(f"ensemble    {len(metrics['members'])} models, of trials {trials}; their probabilities are averaged")
    if searched["violated"]:
        print(f"constraints {searched['violated']}")
    print(f"accuracy    {_with_interval(scored['accuracy'], scored['accuracy_interval'])} on {where}")
    print(f"macro F1    {_with_interval(scored['macro_f1'], scored['macro_f1_interval'])} on {where}")
    if (few := few_mistakes(scored["mistakes"], scored["rows"])) is not None:
        print(f"            {few}")
    _print_calibration(metrics)
    _print_account(metrics)
    forms = [form for form, held in metrics["exports"].items() if "skipped" not in held]
    if forms:
        largest = max(metrics["exports"][form]["largest_difference"] for form in forms)
        ties = max(metrics["exports"][form]["ties"] for form in forms)
        but = f" but for {plural(ties, 'tie')}" if ties else ""
        print(f"exports     {', '.join(forms)}: the same labels{but}, probabilities within {largest:.0e}")
    print(f"bundle      {bundle.folder}")


def _print_calibration(metrics: dict[str, Any]) -> None:
    """How sure a retrained model may be, and of what it says nothing."""
    from mmsearch.search.progress import duration

    held, name = metrics["calibration"], metrics["modalities"]["scored_on"]
    if held is None:
        return
    scored, where = metrics[name], f"{name.replace('_', ' ')} rows"
    print(
        f"calibration temperature {held['temperature']:.3f}, fitted on {held['rows']} {held['fitted_on']} "
        f"({duration(held['seconds'])} of training)"
    )
    errors = f"{held['ece_before']:.4f} to {held['ece_after']:.4f} there"
    print(f"            ECE {errors}, {scored['ece_uncalibrated']:.4f} to {scored['ece']:.4f} on {where}")
    if held["abstain_below"] is not None:
        there = _kept(held["coverage"], held["accuracy_kept"])
        here = _kept(scored["kept"]["coverage"], scored["kept"]["accuracy"])
        print(f"abstains    below {held['abstain_below']:.4f}: keeps {there} of these rows, {here} of the {where}")
    for remark in held["remarks"]:
        print(f"            {remark}")


def _print_account(metrics: dict[str, Any]) -> None:
    """What each modality brings a retrained model."""
    from mmsearch.results.scores import little_gain

    where = f"{metrics['modalities']['scored_on'].replace('_', ' ')} rows"
    account = metrics["modalities"]["account"]
    shown = {name: _with_interval(held["macro_f1"], held["interval"]) for name, held in account.items() if "_" in name}
    print(f"both        {_with_interval(account['both']['macro_f1'], account['both']['interval'])} macro F1 on {where}")
    print(f"image alone {shown['image_alone']} (audio set to its training mean)")
    print(f"audio alone {shown['audio_alone']} (image set to its training mean)")
    print(f"shuffled    {shown['image_shuffled']} with other rows' images, {shown['audio_shuffled']} with their audio")
    print(f"fusion gain {shown['fusion_gain']} over the better one alone")
    if (little := little_gain(account["fusion_gain"]["differing"], account["rows"])) is not None:
        print(f"            {little}")


def _with_interval(value: float, interval: Sequence[float]) -> str:
    """A score and its 95 % interval."""
    return f"{value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"


def _kept(coverage: float, accuracy: float | None) -> str:
    return f"{coverage:.1%}" + ("" if accuracy is None else f" (accuracy {accuracy:.4f})")
