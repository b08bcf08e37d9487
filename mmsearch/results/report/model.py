"""What a retrained model is worth: its scores with intervals, its calibration, and what each modality gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmsearch.results.report.content import (
    Block,
    Cell,
    Cite,
    Code,
    Column,
    Commands,
    Picture,
    Section,
    note,
    paragraph,
    table,
)
from mmsearch.results.report.material import Material, Model
from mmsearch.results.report.words import NONE, count, fitted_on, interval, listed, score, setting, share

CLASSES = 50  # that are listed; of more, those with the lowest F1
FEW_MISTAKES = 5  # below which their number says little of how many there might have been
COVERAGES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5)  # shares of rows with an answer that are listed

KINDS = {
    "test": "test rows",
    "held_back": "rows that were kept back from training",
    "training": "rows that it was trained on",
}
ACCOUNT = (
    ("both", "both modalities"),
    ("image_alone", "image alone (audio set to its training mean)"),
    ("audio_alone", "audio alone (image set to its training mean)"),
    ("image_shuffled", "images shuffled among the rows"),
    ("audio_shuffled", "audio shuffled among the rows"),
    ("fusion_gain", "what both gain over the better one alone"),
)
# Which figures stand in which part, by what their names begin with; all others stand in the last.
PLACES = {
    "scores": ("confus", "per_class"),
    "calibration": ("reliability", "coverage"),
    "modalities": ("modalities",),
    "examples": ("mistakes", "sample"),
    "embeddings": ("embedding", "clusters"),
}


def model(material: Material) -> Section:
    """The retrained model, or how to make one."""
    held = material.model
    doubts = [note(*doubt) for doubt in material.doubts]
    if held is None:
        blocks: tuple[Block, ...] = (
            *doubts,
            paragraph("There is no retrained model to report. This command trains the winner again and scores it:"),
            Commands((material.searched.command("retrain-best"),)),
        )
        return Section("model", "The model", blocks)
    placed: dict[str, list[Block]] = {part: [] for part in (*PLACES, "architecture")}
    for figure in held.figures:
        part = next((p for p, names in PLACES.items() if figure.name.startswith(names)), "architecture")
        placed[part].append(Picture(figure))
    parts = [
        ("scores", "Scores", (*_scores(held), *placed["scores"])),
        ("calibration", "Calibration and abstention", (*_calibration(held), *placed["calibration"])),
        ("modalities", "What each modality gives", (*_modalities(held), *placed["modalities"])),
        ("examples", "Examples", tuple(placed["examples"])),
        ("embeddings", "Embeddings", tuple(placed["embeddings"])),
        ("architecture", "Architecture", (*placed["architecture"], *_layers(held))),
    ]
    sections = tuple(Section(f"model-{name}", title, tuple(blocks)) for name, title, blocks in parts if blocks)
    return Section("model", "The model", (*doubts, paragraph(*_made(held))), sections)


def _made(held: Model) -> tuple[str | Code, ...]:
    """Which model it is and how it came about."""
    metrics = held.metrics
    members = metrics["members"]
    data = metrics["data"]
    sentence = metrics["chosen"]["sentence"].rstrip(".")
    words = f"{sentence[:1].upper()}{sentence[1:]}. "
    if len(members) > 1:
        trials = listed([str(member["trial"]) for member in members])
        words += f"The model is an ensemble of {len(members)}, of trials {trials}, whose probabilities are averaged. "
    else:
        words += f"It was trained for {count(members[0]['epochs'], 'epoch')} with the seed {members[0]['seed']}. "
    words += (
        f"{'Its members were' if len(members) > 1 else 'It was'} trained on {count(data['training_rows'], 'row')}, and "
        f"{'have' if len(members) > 1 else 'has'} {count(metrics['parameters'], 'parameter')}. It lies in "
    )
    return words, Code(held.folder), "."


def _scores(held: Model) -> Iterator[Block]:
    scores, kind = held.scores, KINDS[held.scored_on]
    words = (
        f"On {count(scores['rows'])} {kind} its macro F1 is {score(scores['macro_f1'])} (95 % interval "
        f"{interval(scores['macro_f1_interval'])}), its accuracy {score(scores['accuracy'])} "
        f"({interval(scores['accuracy_interval'])}) and its log loss {score(scores['log_loss'])}."
    )
    yield paragraph(words)
    if few := few_mistakes(held):
        yield note(few)
    if held.scored_on == "training":
        yield note("These rows were trained on: the scores say nothing of new rows.")
    classes: Mapping[str, Mapping[str, Any]] = scores["per_class"]
    shown = list(classes.items())
    if len(shown) > CLASSES:
        shown = sorted(shown, key=lambda item: item[1]["f1-score"])[:CLASSES]
    columns = (
        Column("class"),
        *(Column(name, "right") for name in ("precision", "recall", "F1", "rows")),
    )
    rows = [
        [
            name,
            *(score(held[key]) for key in ("precision", "recall", "f1-score")),
            count(int(held["support"])),
        ]
        for name, held in shown
    ]
    which = f"The {CLASSES} of {len(classes)} classes with the lowest F1" if len(classes) > CLASSES else "Each class"
    yield table("classes", f"{which} on the {kind}.", columns, rows)


def few_mistakes(held: Model) -> str | None:
    """That the bootstrap says too little of so few mistakes; None where there are enough, or nobody counted them.

    Without any, 3 of n is about the upper end of the 95 % interval: Hanley and Lippman-Hand, "If nothing goes wrong, is
    everything all right? Interpreting zero numerators" (1983).
    """
    mistakes, rows = held.scores.get("mistakes"), held.scores["rows"]
    if mistakes is None or mistakes >= FEW_MISTAKES:
        return None
    where = f"these {count(rows, 'row')}"
    if mistakes:
        return f"With {count(mistakes, 'mistake')} on {where}, the bootstrap interval of the macro F1 is too narrow."
    said = f"With no mistake on {where}, the bootstrap interval of the macro F1 is too narrow"
    if held.scored_on == "training":  # which says nothing of new rows
        return f"{said}."
    return f"{said}: by the rule of three up to {share(min(1.0, round(3 / rows, 4)))} of new rows may be wrong."


def _calibration(held: Model) -> Iterator[Block]:
    found, scores, kind = held.metrics.get("calibration"), held.scores, KINDS[held.scored_on]
    if found is None:
        yield paragraph(
            f"The probabilities are as the model gives them, without calibration. On the {kind} their expected "
            f"calibration error is {score(scores['ece'])} ",
            Cite("guo2017"),
            ".",
        )
    else:
        yield paragraph(
            f"Logits are divided by the temperature {found['temperature']:.3f}, fitted on {fitted_on(found)}. "
            f"On those rows the expected calibration error went from "
            f"{score(found['ece_before'])} to {score(found['ece_after'])} and the log loss from "
            f"{score(found['log_loss_before'])} to {score(found['log_loss_after'])}; on the {kind} the error is "
            f"{score(scores['ece'])}, and without the temperature {score(scores['ece_uncalibrated'])} ",
            Cite("guo2017"),
            ".",
        )
        if found["abstain_below"] is not None or found.get("asked"):
            yield paragraph(_abstention(held, found))
        for remark in found.get("remarks", ()):
            yield note(f"Beware: {remark}.")
    curve = held.metrics.get("abstention") or []
    if curve:
        rows = [
            [f"{point['threshold']:.6g}", share(round(point["coverage"], 4)), score(point["accuracy"])]
            for point in _steps(curve)
        ]
        columns = (Column("threshold", "right"), Column("coverage", "right"), Column("accuracy of the rest", "right"))
        yield table(
            "abstention",
            f"If the model said nothing of {kind} whose greatest probability is below a threshold.",
            columns,
            rows,
        )


def _abstention(held: Model, found: Mapping[str, Any]) -> str:
    """Where the model abstains, and what that brings: on the rows of the threshold, and on those of the scores."""
    threshold = found["abstain_below"]
    asked = f", asked for as {found['asked']}" if found.get("asked") else ""
    if threshold is None:
        return f"No threshold brings what was asked for, {found['asked']}: the model never abstains."
    if threshold == 0:
        return f"The threshold of abstaining is 0{asked}: the model never abstains."
    words = (
        f"The model abstains where its greatest probability is below {threshold:.4f}{asked}. On the rows that the "
        f"threshold was chosen on it then {_answers(found['coverage'], found['accuracy_kept'])}"
    )
    if kept := held.scores.get("kept"):
        rows = count(held.scores["rows"])
        words += f"; on the {rows} {KINDS[held.scored_on]} it {_answers(kept['coverage'], kept['accuracy'])}"
    return f"{words}."


def _answers(coverage: float, accuracy: float | None) -> str:
    if accuracy is None:
        return "answers none of them"
    return f"answers {share(round(coverage, 4))} of them, with an accuracy of {score(accuracy)}"


def _steps(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of a curve at which the coverage last was one of `COVERAGES` or more; each once."""
    found: list[dict[str, Any]] = []
    for least in COVERAGES:
        point = max((point for point in curve if point["coverage"] >= least), key=lambda point: point["threshold"])
        if point not in found:
            found.append(point)
    return found


def _modalities(held: Model) -> Iterator[Block]:
    account = held.metrics["modalities"]["account"]
    gain, alone = account["fusion_gain"], {key: account[key]["macro_f1"] for key in ("image_alone", "audio_alone")}
    better = max(alone, key=lambda key: float(alone[key]))
    low, high = gain["interval"]
    verdict = "more than" if low > 0 else "less than" if high < 0 else "not told apart from"
    yield paragraph(
        f"With both modalities the macro F1 is {score(account['both']['macro_f1'])}, with the "
        f"{better.partition('_')[0]} alone {score(alone[better])}: both gain {gain['macro_f1']:+.4f} "
        f"({low:+.4f} to {high:+.4f}), {verdict} nothing. This is of one fused model that loses a modality, not of "
        "models that were trained on one alone."
    )
    rows = [
        [
            Cell(words),
            Cell(f"{account[key]['macro_f1']:+.4f}" if key == "fusion_gain" else score(account[key]["macro_f1"])),
            Cell(f"{low:+.4f} to {high:+.4f}" if key == "fusion_gain" else interval(account[key]["interval"])),
        ]
        for key, words in ACCOUNT
    ]
    yield table(
        "modalities",
        f"The modality account on {count(account['rows'])} {KINDS[held.scored_on]}, with "
        f"{account['confidence']:.0%} intervals of {count(account['resamples'])} bootstrap samples, the same for all.",
        (Column("input"), Column("macro F1", "right"), Column("interval", "right")),
        rows,
    )


def _layers(held: Model) -> Iterator[Block]:
    if not held.layers:
        return
    names = list(held.layers[0])
    numbers = {name for name in names if all(isinstance(layer[name], int | float) for layer in held.layers)}
    columns = [
        Column(name.replace("_", " "), "right" if name in numbers else "left", code=name == "name") for name in names
    ]
    rows = [
        [count(cell) if isinstance(cell := layer[name], int) else setting(cell) or NONE for name in names]
        for layer in held.layers
    ]
    of = " of one of its members" if len(held.metrics["members"]) > 1 else ""
    yield table("layers", f"The layers of the model{of}.", columns, rows)
