"""How a report begins and ends: the summary, how to make it all again, and what the numbers do not say."""

from __future__ import annotations

from collections.abc import Iterator

from mmsearch.results.report.content import (
    Block,
    Bullets,
    Cite,
    Code,
    Column,
    Commands,
    Section,
    Text,
    Tile,
    Tiles,
    note,
    paragraph,
    table,
)
from mmsearch.results.report.material import Material, shown
from mmsearch.results.report.model import KINDS
from mmsearch.results.report.words import count, interval, metric, score, value


def summary(material: Material) -> Section:
    """The results in a few sentences and numbers."""
    searched, held, confirmed = material.searched, material.model, material.confirmation
    tiles, words = [], []
    leading, best = metric(searched.leading), value(searched.leading, searched.best.values[0])
    tiles.append(Tile(f"best validation {leading}", best, f"trial {searched.best.number}, as searched"))
    done = count(searched.counts.finished, "trial")
    words.append(
        f"Of {done if searched.counts.finished >= searched.total else f'{done} of {searched.total}'}, trial "
        f"{searched.best.number} is the best, with a validation {leading} of {best}" + _against_defaults(material)
    )
    if confirmed is not None:
        chosen = confirmed.chosen
        tiles.append(Tile(f"confirmed {metric(confirmed.metric)}", score(chosen.mean), _of(interval(chosen.interval))))
        drop = "" if chosen.drop is None else f", {abs(chosen.drop):.4f} {_worse(chosen.drop)} than in the search"
        words.append(
            f"On {count(confirmed.seeds, 'fresh seed')} trial {chosen.trial}, the choice, has a mean of "
            f"{score(chosen.mean)} ({interval(chosen.interval)}){drop}."
        )
    if held is None:
        words.append("No model has been retrained, so nothing is known of other rows than those that validated.")
    else:
        scores, kind = held.scores, KINDS[held.scored_on]
        where = f"{count(scores['rows'])} {kind}"
        tiles.append(
            Tile(
                "macro F1 of the model",
                score(scores["macro_f1"]),
                f"{where}; {_of(interval(scores['macro_f1_interval']))}",
            )
        )
        words.append(
            f"Retrained on training and validation rows, the model has a macro F1 of {score(scores['macro_f1'])} (95 % "
            f"interval {interval(scores['macro_f1_interval'])}) and an accuracy of {score(scores['accuracy'])} "
            f"({interval(scores['accuracy_interval'])}) on {where}."
        )
        gain = held.metrics["modalities"]["account"]["fusion_gain"]
        low, high = gain["interval"]
        tiles.append(Tile("gain of both modalities", f"{gain['macro_f1']:+.4f}", f"{low:+.4f} to {high:+.4f} macro F1"))
        words.append(
            f"Both modalities together gain {gain['macro_f1']:+.4f} macro F1 ({low:+.4f} to {high:+.4f}) over the "
            "better one alone."
        )
    blocks: list[Block] = [Tiles(tuple(tiles)), paragraph(" ".join(words))]
    if searched.counts.finished < searched.total:
        blocks.append(note(f"The search is not finished: {searched.counts.finished} of {searched.total} trials."))
    return Section("summary", "Summary", tuple(blocks))


def _against_defaults(material: Material) -> str:
    searched = material.searched
    if searched.baseline is None or searched.gain is None:
        return "; the defaults have no value to compare it with."
    if searched.baseline.number == searched.best.number:
        return "; it has the defaults, and nothing that was tried is better."
    side = "lower" if searched.smaller_is_better else "higher"
    baseline = value(searched.leading, searched.baseline.values[0])
    return f", {searched.gain:.4f} {side} than the defaults' {baseline}."


def _worse(drop: float) -> str:
    return "worse" if drop >= 0 else "better"


def _of(shown: str) -> str:
    return f"95 % interval {shown}"


def reproduction(material: Material) -> Section:
    """How to make it all again."""
    searched = material.searched
    config = searched.config
    done = [config.command("launch")]
    if material.confirmation is not None:
        done.append(searched.command("confirm"))
    if material.model is not None:
        done.append(searched.command("retrain-best"))
    done.append(searched.command("report") + (" --ablate" if material.ablation is not None else ""))
    versions = searched.versions()
    blocks: list[Block] = [
        paragraph("The study as it was run is ", Code(shown(config, config.paths.study_file)), "."),
        paragraph("These commands make it all:"),
        Commands(tuple(done)),
        paragraph(
            f"All seeds derive from the study's seed, {config.study.seed}, and from the numbers of the trials. A trial "
            "trains to the same numbers on the same hardware with the same versions and number of threads; ",
            Code(f"{config.command('replay', []).replace('replay', f'replay {searched.best.number}', 1)}"),
            " trains one again and says whether that is so.",
        ),
    ]
    if versions:
        columns = (Column("what"), Column("version"))
        rows = [(name, ", ".join(held)) for name, held in versions.items()]
        blocks.append(table("versions", "What the trials ran with.", columns, rows))
    if material.dataset is not None:
        blocks.append(paragraph("The digest of the data is ", Code(material.dataset.fingerprint), "."))
    return Section("reproduction", "How to make it again", tuple(blocks))


def limits(material: Material) -> Section:
    """What the numbers do not say."""
    return Section("limits", "Limits", (Bullets(tuple(_limits(material))),))


def _limits(material: Material) -> Iterator[Text]:
    searched, rows, held = material.searched, material.rows, material.model
    folds = searched.config.folds
    where = f"The same {folds} folds" if folds > 1 else "The same validation rows"
    yield (
        f"{where} chose each trial's best epoch, drove the sampler and ranked "
        f"{count(searched.counts.finished, 'trial')}. Values of the search are therefore too good, the best one most "
        "of all ",
        Cite("cawley2010"),
        ".",
    )
    if material.confirmation is None:
        yield ("No trial was trained on more than one seed: how much of the ranking is luck is not known.",)
    else:
        yield (
            "Confirmed means are of fresh seeds on the same validation rows: their intervals say how much a training "
            "varies, and not how much other rows would change.",
        )
    if held is None:
        yield ("No model was scored on rows that the search has not seen.",)
        return
    kind = KINDS[held.scored_on]
    yield (
        f"Intervals of the model's scores are over its {kind}. They hold for this one model: another seed would give "
        "another one.",
    )
    if rows is not None and min(rows.scored_repeats) < rows.scored:
        images, recordings = rows.scored_repeats
        yield (
            f"The {count(rows.scored)} {kind} are made of {count(images)} different images and {count(recordings)} "
            "different recordings. Intervals take rows for independent, and are therefore too narrow.",
        )
    if material.models > 1:
        yield (
            f"{count(material.models, 'model')} of this study have been retrained and scored on these rows. Whoever "
            "chose among them by these scores has none left to trust.",
        )
    if held.scored_on == "training":
        yield ("The model's scores are of rows that it was trained on.",)
    if held.scored_on == "held_back":
        yield ("The test rows have no labels: the scores are of rows of the training data that were kept back.",)
    yield (
        "All rows are of one data set: nothing here tells how the model does on recordings and images that were made "
        "elsewhere.",
    )
