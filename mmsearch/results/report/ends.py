"""How a report begins and ends: the summary, how to make it all again, and what the numbers do not say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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
from mmsearch.results.report.model import KINDS, few_mistakes
from mmsearch.results.report.words import beside, count, interval, listed, metric, score, value
from mmsearch.search.values import VIOLATED


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
        seen = f"trial {chosen.trial}; {_of(interval(chosen.interval))}"
        tiles.append(Tile(f"confirmed {metric(confirmed.metric)}", score(chosen.mean), seen))
        drop = "" if chosen.drop is None else f", {abs(chosen.drop):.4f} {_worse(chosen.drop)} than in the search"
        words.append(
            f"On {count(confirmed.seeds, 'fresh seed')} trial {chosen.trial}, the choice, has a mean of "
            f"{score(chosen.mean)} ({interval(chosen.interval)}){drop}."
        )
        alike = [str(row.trial) + " (the defaults)" * row.defaults for row in confirmed.rows[1:] if not row.differs]
        if alike:
            trials = f"Trial{'s' * (len(alike) > 1)} {listed(alike)}"
            words.append(f"{trials} cannot be told apart from the best mean, trial {confirmed.rows[0].trial}'s.")
    if held is None:
        words.append(
            "There is no retrained model to report, so nothing is known of other rows than those that validated."
        )
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
        members = len(held.metrics["members"])
        what = "the model" if members == 1 else f"the ensemble of {members} models"
        words.append(
            f"Retrained on training and validation rows, {what} has a macro F1 of {score(scores['macro_f1'])} (95 % "
            f"interval {interval(scores['macro_f1_interval'])}) and an accuracy of {score(scores['accuracy'])} "
            f"({interval(scores['accuracy_interval'])}) on {where}."
        )
        if few := few_mistakes(held):
            words.append(few)
        gain = held.metrics["modalities"]["account"]["fusion_gain"]
        low, high = gain["interval"]
        tiles.append(Tile("gain of both modalities", f"{gain['macro_f1']:+.4f}", f"{low:+.4f} to {high:+.4f} macro F1"))
        words.append(
            f"Both modalities together gain {gain['macro_f1']:+.4f} macro F1 ({low:+.4f} to {high:+.4f}) over the "
            "better one alone, where the training mean stands in for the other: this is of the one fused model, not of "
            "models trained on one modality."
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
    baseline = value(searched.leading, searched.baseline.values[0])
    violated = ", which violate a constraint" if searched.baseline.user_attrs.get(VIOLATED) else ""
    return f", {beside(searched.gain, searched.smaller_is_better)} the defaults' {baseline}{violated}."


def _worse(drop: float) -> str:
    return "worse" if drop >= 0 else "better"


def _of(shown: str) -> str:
    return f"95 % interval {shown}"


def reproduction(material: Material) -> Section:
    """How to make it all again."""
    searched = material.searched
    config = searched.config
    done = [config.command("launch")]
    chosen = searched.best.number
    if (confirmation := material.confirmation) is not None:
        chosen = confirmation.choice
        ranked = sum(row.rank is not None for row in confirmation.rows)
        small = " --prefer small" if confirmation.prefer == "small" else ""
        done.append(f"{searched.command('confirm')} --top {ranked} --seeds {confirmation.seeds}{small}")
    if material.model is not None:
        chosen = int(material.model.metrics["trial"])
        done.append(searched.command("retrain-best") + _asked(material.model.metrics, confirmation is not None))
    ablated = "" if material.ablation is None else f" --ablate --seeds {material.ablation.seeds}"
    done.append(searched.command("report") + ablated)
    versions = searched.versions()
    blocks: list[Block] = [
        paragraph("The study as it was run is ", Code(shown(config, config.paths.study_file)), "."),
        paragraph("These commands make it all:"),
        Commands(tuple(done)),
        paragraph(
            f"All seeds derive from the study's seed, {config.study.seed}, and from the numbers of the trials. A trial "
            "trains to the same numbers on the same hardware with the same versions and number of threads; ",
            Code(f"{config.command('replay', []).replace('replay', f'replay {chosen}', 1)}"),
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


def _asked(metrics: Mapping[str, Any], confirmed: bool) -> str:
    """The options that a model was retrained with, as its metrics.json tells them."""
    by, members, calibration = metrics["chosen"]["by"], metrics["members"], metrics["calibration"]
    words = ""
    if by == "trial":
        words += f" --trial {metrics['trial']}"
    elif by not in ("best", "confirmed") or (by == "best" and confirmed):
        words += f" --pick {by}"
    if len(members) > 1:
        words += f" --ensemble {len(members)}"
    if calibration is None:
        words += " --no-calibrate"
    elif calibration.get("asked") is not None:
        words += f" --abstain-below {calibration['asked']}"
    return words


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
        yield ("Nothing in this report was scored on rows that the search has not seen.",)
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
