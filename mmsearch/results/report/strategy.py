"""How a search went about it, in sentences: who proposed trials and who pruned them, their value, budget and cost."""

from __future__ import annotations

from collections.abc import Iterator

from mmsearch.config import StudyConfig
from mmsearch.results.audit_words import saved_in_words, wrong_in_words
from mmsearch.results.report.content import Block, Cite, Column, Text, note, paragraph, table
from mmsearch.results.report.material import Searched
from mmsearch.results.report.words import count, listed, metric
from mmsearch.search.audit import audit_of
from mmsearch.search.progress import duration, plural
from mmsearch.search.samplers import first_step, steps
from mmsearch.search.study import grid_size


def strategy(searched: Searched) -> Iterator[Block]:
    """The paragraphs of it."""
    config, counts = searched.config, searched.counts
    yield paragraph(
        "The search runs on Optuna ", Cite("akiba2019"), ". ", *_sampler(config), " ", *_pruner(config, searched)
    )
    if audited := _audited(searched):
        yield paragraph(audited)
    yield paragraph(*_value(searched))
    size = grid_size(config)
    budget = f"{searched.total} trials, complete or pruned"
    if size is not None:
        budget += f", of a grid of {count(size)} points"
    yield paragraph(
        f"The budget was {budget}, of at most {count(config.search.max_epochs, 'epoch')} each"
        f"{' in each fold' if config.folds > 1 else ''}; a training ended earlier after "
        f"{count(config.search.patience, 'epoch')} without a lower validation loss. Splits, proposals and trainings "
        f"all derive from the seed {config.study.seed}.",
    )
    if counts.finished < searched.total:
        running = f"; {count(counts.running, 'trial')} ran when this was written" if counts.running else ""
        yield note(
            f"The search is not finished: {counts.finished} of {searched.total} trials are there{running}. What "
            "follows holds for these."
        )
    yield paragraph(*_effort(searched))
    hardware = searched.hardware()
    if len(hardware) > 1:
        columns = (
            Column("hardware"),
            Column("device"),
            Column("threads", "right"),
            Column("trials", "right"),
        )
        rows = [(name, device, str(threads), str(n)) for (name, device, threads), n in hardware.most_common()]
        yield table("hardware", "What trials were trained on.", columns, rows)


def _sampler(config: StudyConfig) -> Text:
    search = config.search
    at_random = f"{count(search.startup_trials, 'random trial')}"
    match search.sampler:
        case "grid":
            return ("Trials are the points of a grid over the space, in random order.",)
        case "random":
            return ("Configurations were drawn at random ", Cite("bergstra2012"), ".")
        case "qmc":
            return ("Configurations are points of a scrambled Sobol sequence ", Cite("owen1998"), ".")
        case "gp":
            return (
                "Configurations were proposed by a Gaussian process with a Matern kernel ",
                Cite("snoek2012"),
                f" after {at_random}; it models what applies to every configuration, and a tree-structured Parzen "
                "estimator ",
                Cite("bergstra2011"),
                " proposes the rest.",
            )
        case "nsga2":
            return (
                "Configurations were bred by the genetic algorithm NSGA-II ",
                Cite("deb2002"),
                f" in generations of {search.population} trials.",
            )
        case _:
            return (
                "Configurations were proposed by a tree-structured Parzen estimator ",
                Cite("bergstra2011"),
                f" after {at_random}, multivariate over groups of hyperparameters that occur together ",
                Cite("falkner2018"),
                ", with trials that still run counted as poor ones.",
            )


def _pruner(config: StudyConfig, searched: Searched) -> Text:
    """Who ends trials before their last epoch."""
    search = config.search
    if len(searched.metrics) > 1:
        return ("With several metrics no trial is pruned as it trains.",)
    unit = "fold" if config.folds > 1 else "epoch"
    first = first_step(config)
    after = f"after {unit} {first} at the earliest"
    started = f", once {count(search.pruner_startup, 'trial')} ended" if search.pruner_startup else ""
    match search.pruner:
        case "none":
            return ("No trial was pruned.",)
        case "percentile":
            return (
                f"A trial that was not among the best {search.pruner_percentile:g} % at the same {unit} was pruned ",
                Cite("golovin2017"),
                f", {after}{started}.",
            )
        case "hyperband":
            return (
                "Trials were pruned by Hyperband ",
                Cite("li2018"),
                f", with brackets from {count(first, unit)} to {count(steps(config), unit)} and one of "
                f"{search.reduction_factor} trials going on at each rung.",
            )
        case "halving":
            return (
                "Trials were pruned by asynchronous successive halving ",
                Cite("li2020"),
                f", with one of {search.reduction_factor} going on at each rung, the first after {unit} {first}.",
            )
        case "patient":
            return (
                f"A trial without a better value for {count(search.pruner_patience, unit)} was pruned where it was "
                f"worse than the median of the trials before it at the same {unit} ",
                Cite("golovin2017"),
                f", {after}{started}.",
            )
        case "threshold":
            bounds = [
                f"{word} {bound:g}"
                for word, bound in (("below", search.pruner_lower), ("above", search.pruner_upper))
                if bound is not None
            ]
            return (f"A trial with a value {' or '.join(bounds)} was pruned, {after}.",)
        case "wilcoxon":
            return (
                "A trial was pruned where its folds so far were worse than those of the best trial by Wilcoxon's "
                "signed-rank test ",
                Cite("wilcoxon1945"),
                f" with p below {search.pruner_p:g}, {after}.",
            )
        case _:
            return (
                f"A trial that was worse than the median of the trials before it at the same {unit} was pruned ",
                Cite("golovin2017"),
                f", {after}{started}.",
            )


def _audited(searched: Searched) -> str | None:
    """What pruning saved, and how often it was wrong; None where nothing was pruned, or would have been."""
    audit = audit_of(searched.trials, searched.signs[0])
    if not audit.pruned + audit.audited:
        return None
    wrong = f" How often it is wrong: {wrong_in_words(audit)}." if audit.audited else ""
    return f"Pruning {saved_in_words(audit)}.{wrong}"


def _value(searched: Searched) -> Text:
    """What a trial's value is."""
    config, leading, others = searched.config, searched.leading, searched.metrics[1:]
    way = "lowest" if searched.smaller_is_better else "highest"
    text = f"A trial's value is its {way} {metric(leading)} on the validation rows over its epochs"
    if config.folds > 1:
        text += ", as the mean over the folds"
    text += "." if not searched.smaller_is_better else " (smaller is better)."
    if others:
        text += f" Beside it the search aims at {listed([metric(name) for name in others])}, of the same epoch."
    if searched.constraints:
        text += f" Only trials that keep to {listed(searched.constraints)} can be the best."
    return (text,)


def _effort(searched: Searched) -> Text:
    """Trials by state, hours, machines."""
    counts = searched.counts
    states = [f"{counts.complete} complete", f"{counts.pruned} pruned", f"{counts.failed} failed"]
    words = f"There are {listed(states)} trials with {count(searched.epochs, 'epoch')} in all."
    if searched.ended:
        first, last = min(start for start, _ in searched.ended), max(end for _, end in searched.ended)
        words += (
            f" They took {duration(searched.training_seconds)} of training, the sum of their durations, within "
            f"{duration(searched.wall_seconds)} in which at least one ran, from {first:%Y-%m-%d %H:%M} to "
            f"{last:%Y-%m-%d %H:%M} (UTC)."
        )
    workers, machines = searched.owners("worker"), searched.owners("host")
    if workers:
        words += f" {plural(workers, 'worker')} on {plural(machines, 'machine')} took part."
    hardware = searched.hardware()
    if len(hardware) == 1:
        ((name, device, threads),) = hardware
        words += f" Each trained on {name} ({device}, {plural(threads, 'thread')})."
    libraries = {"python": "Python", "mmsearch": "mmsearch", "torch": "PyTorch", "optuna": "Optuna"}
    versions = [f"{libraries[name]} {' and '.join(v)}" for name, v in searched.versions().items() if name in libraries]
    return (words + (f" Versions: {', '.join(versions)}." if versions else ""),)
