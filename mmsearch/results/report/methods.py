"""The methods of a study, in sentences made from it: data, space, search, training and how the winner is judged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset
from mmsearch.hyperparameters import TABLE
from mmsearch.results.report.content import (
    Block,
    Bullets,
    Cite,
    Code,
    Column,
    Section,
    Text,
    paragraph,
    table,
)
from mmsearch.results.report.material import Material, Rows
from mmsearch.results.report.strategy import strategy
from mmsearch.results.report.words import NONE, count, fitted_on, listed, setting, share
from mmsearch.search.progress import plural
from mmsearch.spaces import Choices, Range

NAMED_CLASSES = 20


def methods(material: Material) -> Section:
    """How the study was made."""
    parts = (
        Section("data", "Data", tuple(_data(material))),
        Section("space", "Model and search space", tuple(_space(material.searched.config))),
        Section("search", "Search", tuple(strategy(material.searched))),
        Section("protocol", "Retraining and scoring", tuple(_protocol(material))),
    )
    return Section("methods", "Methods", (), parts)


def _data(material: Material) -> Iterator[Block]:
    config, dataset, rows = material.searched.config, material.dataset, material.rows
    if dataset is None or rows is None:
        name = Path(config.data.source).name
        yield paragraph("The data set is ", Code(name), ", which was not there when this was written.")
        yield paragraph(*_division(config, None))
        return
    shapes = dataset.shapes
    if dataset.rate is None:
        audio = f"audio of {shapes.audio[0]} frames of {shapes.audio[1]} coefficients"
    else:
        audio = f"a waveform of {count(shapes.audio[0], 'sample')} at {count(dataset.rate)} Hz"
    named = list(dataset.classes[:NAMED_CLASSES])
    more = f" and {len(dataset.classes) - len(named)} more" if len(dataset.classes) > len(named) else ""
    sampled = ", a sample with the balance of classes of all" if config.data.rows else ""
    layout = () if dataset.layout == dataset.source else (f" (layout {dataset.layout})",)
    yield paragraph(
        "The data set is ",
        Code(Path(dataset.source).name),
        *layout,
        f": {count(rows.training + rows.held_back, 'training row')}{sampled}{_test_words(rows)}. A row is an image "
        f"of {shapes.image[1]} x {shapes.image[2]} pixels in {plural(shapes.image[0], 'channel')} with {audio}, and "
        f"belongs to one of {len(dataset.classes)} classes: {', '.join(named)}{more}.",
    )
    if dataset.skipped:
        yield paragraph(f"{count(len(dataset.skipped), 'row')} of the manifest with unusable files were left out.")
    yield paragraph(*_division(config, rows))
    yield paragraph(*_repeats(dataset, rows))


def _test_words(rows: Rows) -> str:
    if not rows.test:
        return " and no test rows"
    return f" and {count(rows.test, 'test row')}" + ("" if rows.test_has_labels else " whose labels are not known")


def _division(config: StudyConfig, rows: Rows | None) -> Text:
    """Which rows train and which validate."""
    data = config.data
    stratified = (
        " Splits are stratified by class and grouped: rows that share an identical image, an identical recording or a "
        "group of the data set never lie on both sides of a split."
    )
    if config.folds > 1:
        sizes = "" if rows is None else f" ({_between(rows.train)} rows train, {_between(rows.valid)} validate)"
        return (
            f"Validation is {config.folds}-fold: a trial trains {config.folds} models, each validated on another part "
            f"of the training rows{sizes}.{stratified}",
        )
    if data.validation == "three_way":
        sizes = "" if rows is None else f": {count(rows.train[0])} rows train and {count(rows.valid[0])} validate"
        back = "" if rows is None or not rows.held_back else f" ({count(rows.held_back)} rows)"
        return (
            f"A share of {share(data.fraction)} of the training rows validates, and as much again{back} is kept back "
            f"from the search and from retraining{sizes}.{stratified}",
        )
    sizes = "" if rows is None else f": {count(rows.train[0])} rows train and {count(rows.valid[0])} validate"
    return (f"A share of {share(data.fraction)} of the training rows validates{sizes}.{stratified}",)


def _repeats(dataset: Dataset, rows: Rows) -> Text:
    """How often images and recordings occur more than once."""
    images, recordings = rows.repeats
    if min(images, recordings) == rows.training:
        return ("No image and no recording occurs twice in the training rows.",)
    return (
        f"The {count(rows.training)} training rows are made of {count(images)} different images and "
        f"{count(recordings)} different recordings.",
    )


def _between(pair: tuple[int, int]) -> str:
    return count(pair[0]) if pair[0] == pair[1] else f"{count(pair[0])} to {count(pair[1])}"


def _space(config: StudyConfig) -> Iterator[Block]:
    space = config.dimensions
    varying = space.varying()

    def options(name: str) -> str:
        held = space[name]
        if isinstance(held, Choices):
            return listed([str(option) for option in held.options], "or")
        return setting(held.default if isinstance(held, Range) else held.value)

    features = f", the audio as {options('features.name')}" if config.waveforms else ""
    yield paragraph(
        f"Every model has two branches, an image encoder ({options('image.encoder')}) and an audio encoder "
        f"({options('audio.encoder')}), fused by {options('fusion.name')}{features}, and a classifying head. It is "
        f"trained with {options('optimizer.name')}, the learning rate schedule {options('schedule.name')} and the loss "
        f"{options('loss.name')}.",
    )
    yield paragraph(f"{count(len(varying), 'hyperparameter')} {'is' if len(varying) == 1 else 'are'} searched.")
    rows = [
        (name, _over(dimension), _scale(dimension), setting(dimension.default), _condition(config, name))
        for name, dimension in varying.items()
    ]
    conditional = any(row[-1] != NONE for row in rows)
    columns = (
        Column("hyperparameter", code=True),
        Column("searched over"),
        Column("scale"),
        Column("default"),
        Column("only where", code=True),
    )
    yield table(
        "space",
        "The search space. The first trial has the defaults."
        + (" A hyperparameter with a condition is sampled only where it holds." if conditional else ""),
        columns if conditional else columns[:-1],
        [row if conditional else row[:-1] for row in rows],
    )
    changed = {name: value for name, value in space.fixed().items() if value != TABLE[name].default}
    if changed:
        fixed: list[str | Code] = ["Fixed at another value than the program's default: "]
        for position, (name, value) in enumerate(changed.items()):
            fixed += ["" if not position else ", ", Code(f"{name} = {setting(value)}")]
        yield paragraph(*fixed, ".")


def _over(dimension: Range | Choices) -> str:
    if isinstance(dimension, Choices):
        return ", ".join(setting(option) for option in dimension.options)
    return f"{setting(dimension.low)} to {setting(dimension.high)}"


def _scale(dimension: Range | Choices) -> str:
    if isinstance(dimension, Choices):
        return "choice"
    whole = "whole numbers, " if dimension.whole else ""
    if dimension.log:
        return f"{whole}logarithmic"
    return f"{whole}in steps of {setting(dimension.step)}" if dimension.step else f"{whole}linear"


def _condition(config: StudyConfig, name: str) -> str:
    """What else must hold for a hyperparameter to apply, as far as it varies."""
    found = []
    for parent, allowed in TABLE[name].requires:
        held = config.dimensions[parent] if parent in TABLE else None
        if isinstance(held, Choices):
            fitting = [option for option in held.options if option in allowed]
            if len(fitting) < len(held.options):
                found.append(f"{parent} = {listed([setting(option) for option in fitting], 'or')}")
        elif isinstance(held, Range):
            numbers = [option for option in allowed if isinstance(option, int) and held.low <= option <= held.high]
            if numbers and min(numbers) > held.low:
                found.append(f"{parent} >= {min(numbers)}")
    return listed(found) or NONE


def _protocol(material: Material) -> Iterator[Block]:
    rows = material.rows
    judged = "test" if rows is None else rows.scored_on
    how = {
        "test": "The model is then scored on the test rows, which the search has not looked at.",
        "held_back": "The test rows have no labels: the model is then scored on the rows that were kept back.",
        "training": "No labelled rows are left to test on: the model's scores are of the rows that it was trained on, "
        "and say nothing of new ones.",
    }
    yield paragraph(f"{_retraining(material)} {how[judged]}")
    items: list[Text] = [
        (
            "Intervals of a model's scores are 95 % percentile intervals of the bootstrap over the scored rows ",
            Cite("efron1979"),
            *(("; that of the accuracy is Wilson's, of 95 % too ", Cite("wilson1927")) if _by_wilson(material) else ()),
            ".",
        )
    ]
    if material.confirmation is not None or material.ablation is not None:
        items.append(
            (
                "Intervals of means over seeds are Student's, of 95 %; configurations are compared by paired t-tests, "
                "corrected for their number after Holm ",
                Cite("holm1979"),
                ".",
            )
        )
    held = None if material.model is None else material.model.metrics.get("calibration")
    if held is not None:
        items.append(
            (
                "Probabilities are calibrated by temperature scaling ",
                Cite("guo2017"),
                f", fitted on {fitted_on(held)}.",
            )
        )
    yield Bullets(tuple(items))


def _by_wilson(material: Material) -> bool:
    """Whether the accuracy's interval is Wilson's; older models, whose mistakes were not counted, have another."""
    return material.model is None or "mistakes" in material.model.scores


def _retraining(material: Material) -> str:
    """What is trained again, and for how long: of the model, or of the one that would be made now."""
    if material.model is None:
        confirmed = material.confirmation is not None
        by, numbers = "confirmed" if confirmed else "best", [material.searched.best.number]
    else:
        metrics = material.model.metrics
        by, confirmed = metrics["chosen"]["by"], metrics.get("confirmed") is not None
        numbers = [member["trial"] for member in metrics["members"]]
    median = " (the median of the folds)" if material.searched.config.folds > 1 else ""
    chosen = {
        "best": "the best configuration of the search",
        "confirmed": "the configuration that was chosen on the fresh seeds",
        "trial": f"the configuration of trial {numbers[0]}, which was asked for,",
    }.get(by, f"the configuration of trial {numbers[0]}, picked by {by},")
    times = "is"
    if len(set(numbers)) > 1:
        chosen = f"an ensemble of the configurations of trials {listed([str(number) for number in numbers])}"
    elif len(numbers) > 1:
        times = f"is, from {len(numbers)} seeds,"
    epochs = f"as many epochs as were best in the search{median}"
    if confirmed and len(set(numbers)) > 1:
        epochs = f"the median of its best epochs over the fresh seeds where it was confirmed, and else {epochs}"
    elif confirmed:
        epochs = "the median of its best epochs over the fresh seeds"
    each = "each for" if len(set(numbers)) > 1 else "for"
    return (
        f"{chosen[:1].upper()}{chosen[1:]} {times} trained again on training and validation rows together, with the "
        f"searched schedule, {each} {epochs}."
    )
