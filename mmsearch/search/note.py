"""The note on a study's page of the dashboard: how it stands, what it is, and the commands; kept up to date."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from mmsearch.config import StudyConfig
from mmsearch.errors import StorageError
from mmsearch.hyperparameters import show
from mmsearch.search.database import creation_lock
from mmsearch.search.progress import Event, Progress, Snapshot, plural
from mmsearch.search.study import CONFIRMED, OpenStudy, count, total_of
from mmsearch.search.values import METRICS, all_in_words, in_words
from mmsearch.spaces import extent

NOTE = "mmsearch:note"  # system attribute of a study: a digest of the note that we wrote last
WRITING = "writing"  # its value meanwhile: whoever is killed then leaves a note that is torn, and ours
RETRAINED = "retrained"  # user attribute of a study: the model retrained last; its folder within the storage folder
EVERY_S = 30.0  # between two notes of a search that runs, unless its best trial changes
LAST_S = 10.0  # for the note that is written when all else is done
# Options that say which study and which data are meant, as commands that only read take them, and those that train.
READING = ("--storage", "--study-name")
TRAINING = (*READING, "--data", "--seed", "--image-shape", "--skip-broken")


class NoteKeeper(Progress):
    """While the block runs, keeps the note up to date, and shows what it is told to another progress.

    It writes in a thread, since the dashboard's package takes seconds to import and a storage may be slow: when the
    first epoch is over, so that it takes no time from workers that start, or after half a minute; then when the best
    trial changes, every half minute, and when the block ends.
    """

    def __init__(self, opened: OpenStudy, shown: Progress) -> None:
        self._opened, self._shown = opened, shown
        self._best: tuple[int, float] | None = None
        self._begun = False  # an epoch is over
        self._news, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> NoteKeeper:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._over.set()
        self._news.set()
        if kind is None or not issubclass(kind, StorageError):  # else there is nowhere to write to
            self._thread.join(LAST_S)

    def note(self, text: str) -> None:
        """As the other one."""
        self._shown.note(text)

    def event(self, event: Event) -> None:
        """As the other one."""
        if event.fields["event"] == "epoch" and not self._begun:
            self._begun = True
            self._news.set()
        self._shown.event(event)

    def show(self, snapshot: Snapshot) -> None:
        """As the other one."""
        if snapshot.best != self._best and self._begun:
            self._best = snapshot.best
            self._news.set()
        self._shown.show(snapshot)

    def close(self) -> None:
        """As the other one."""
        self._shown.close()

    def _keep(self) -> None:
        over = False
        while not over:
            self._news.wait(EVERY_S)
            self._news.clear()
            over = self._over.is_set()
            save_note(self._opened)


def save_note(opened: OpenStudy) -> None:
    """Bring the note up to date, unless somebody edited it; one that was emptied is written anew.

    Any number of processes may do so at once. A note that cannot be written is a warning in the log, and no more.
    """
    try:
        import optuna_dashboard  # takes a second or more

        with creation_lock(opened.config.storage_url):  # the parts of two notes must not mix
            before = optuna_dashboard.get_note(opened.optuna)
            written = opened.storage.get_study_system_attrs(opened.id).get(NOTE)
            if before and written not in (WRITING, _digest(before)):
                return
            text = note_of(opened)
            if text != before:
                opened.storage.set_study_system_attr(opened.id, NOTE, WRITING)
                optuna_dashboard.save_note(opened.optuna, text)
            if _digest(text) != written:
                opened.storage.set_study_system_attr(opened.id, NOTE, _digest(text))
    except Exception as error:  # of the dashboard's, of any database: a note is no reason to end a search
        logging.getLogger("mmsearch").warning("the dashboard's note was not written: %s", error)


def note_of(opened: OpenStudy) -> str:
    """The note as it would be written now (Markdown)."""
    config, trials = opened.config, opened.trials()
    total = opened.total()
    pruner = config.search.pruner if len(config.study.metrics) == 1 else "none"
    lines = [f"# {config.study.name}", "", *(f"- {line}" for line in _standing(opened, trials, total))]
    lines += [
        "",
        f"Data: `{config.data.source}`. {_value(config)} Trial 0 has the defaults.",
        "",
        "| parameter | searched over | default |",
        "|---|---|---|",
    ]
    for name, dimension in config.dimensions.varying().items():
        lines.append(f"| `{name}` | {extent(dimension)} | {show(dimension.default)} |")
    lines += [
        "",
        f"Sampler {config.search.sampler}, pruner {pruner}, at most {config.search.max_epochs} epochs, "
        f"patience {config.search.patience}.",
        "",
        "```",
        *_commands(config, total),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _standing(opened: OpenStudy, trials: Sequence[FrozenTrial], total: int) -> list[str]:
    """How the search stands, and what came after it, a sentence each."""
    trials = list(trials)
    counts = count(trials)
    states = {"complete": counts.complete, "pruned": counts.pruned, "failed": counts.failed}
    states |= {"running": counts.running, "waiting": counts.waiting}
    shown = ", ".join(f"{number} {state}" for state, number in states.items() if number)
    lines = [_best(opened, trials), f"**Trials**: {counts.finished} of {total}" + (f" ({shown})" if shown else "")]
    attrs = opened.storage.get_study_system_attrs(opened.id)
    if CONFIRMED in attrs:
        lines.append(_confirmed(attrs[CONFIRMED], counts.finished))
    retrained = opened.storage.get_study_user_attrs(opened.id).get(RETRAINED)
    if retrained is not None:
        score, told = f"macro F1 {retrained['macro_f1']:.4f}", f"`{retrained['folder']}/metrics.json`"
        lines.append(f"**Retrained**: trial {retrained['trial']}, {score}; {told} says on which rows")
    return lines


def _best(opened: OpenStudy, trials: list[FrozenTrial]) -> str:
    """The best trial, and what it is better than."""
    best, metrics = opened.best(trials), opened.metrics
    if best is None:
        return f"**Best**: {opened.why_none(trials)}"
    values = {**dict(zip(metrics, best.values, strict=True)), **best.user_attrs.get(METRICS, {})}
    epoch = best.user_attrs.get("best_epoch")
    found = f"**Best**: {all_in_words(values)} (trial {best.number}" + (f", epoch {epoch})" if epoch else ")")
    gain, baseline = opened.gain(trials), opened.baseline(trials)
    if gain is not None and baseline is not None:
        found += f"; {gain:+.4f} over the defaults (trial {baseline.number})"
    if len(metrics) > 1:
        found += f"; {plural(len(opened.front(trials)), 'trial')} on the Pareto front"
    return found


def _confirmed(held: dict[str, Any], finished: int) -> str:
    """What `mmsearch confirm` chose; `held` is `mmsearch.results.confirm.Confirmation` as it is stored."""
    row = next(row for row in held["rows"] if row["trial"] == held["choice"])
    metric, drop = held["metric"], row["drop"]
    found = f"**Confirmed**: trial {row['trial']}; {metric} {in_words(metric, row['mean'])} on average"
    found += f" over {plural(len(row['values']), 'fresh seed')}"
    if row["interval"] is not None:
        low, high = (in_words(metric, value) for value in row["interval"])
        found += f" (95 % interval {low} to {high})"
    if drop is not None:
        found += f", {abs(drop):.4f} {'worse' if drop > 0 else 'better'} than in the search"
    since = finished - held["finished"]
    return found + (f"; {plural(since, 'trial')} finished since" if since > 0 else "")


def _commands(config: StudyConfig, total: int) -> list[str]:
    """What can be done with the study, as its user would type it."""
    given = "study.trials" in config.overrides or total != total_of(config)
    return [
        config.command("launch", TRAINING) + (f" --trials {total}" if given else ""),
        config.command("confirm", TRAINING),
        config.command("retrain-best", TRAINING),
        config.command("report", TRAINING),
        config.command("export", READING),
        config.command("dashboard", READING),
    ]


def _value(config: StudyConfig) -> str:
    """What a trial's value is, in words."""
    leading, *others = config.study.metrics
    rows = f"on the validation rows ({config.data.fraction:.0%} of the training rows)"
    if config.data.validation == "three_way":
        rows = f"on the validation rows ({config.data.fraction:.0%} of all; as many are kept back)"
    elif config.folds > 1:
        rows = f"on the validation rows, as a mean over {config.folds} folds"
    words = [f"A trial's value is the best epoch's `{leading}` {rows}."]
    if others:
        words.append(f"Beside it: {', '.join(f'`{name}`' for name in others)}, of the same epoch.")
    if config.constraints:
        words.append(f"The best keep to {', '.join(f'`{constraint}`' for constraint in config.constraints)}.")
    return " ".join(words)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
