"""The model card: what a retrained model is, what it was measured on, and where not to trust it, for people.

After Mitchell et al., "Model cards for model reporting" (arXiv 1810.03993).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from mmsearch.data.dataset import Dataset
from mmsearch.hyperparameters import show
from mmsearch.paths import BundlePaths
from mmsearch.results.bundle import Bundle
from mmsearch.results.markup import escape_markdown, markdown_table
from mmsearch.results.scores import FEW_MISTAKES, few_mistakes, little_gain, scored_split
from mmsearch.search.progress import duration, plural
from mmsearch.search.study import OpenStudy
from mmsearch.search.values import RUN, all_in_words
from mmsearch.spaces import extent

ROWS = {
    "test": "test rows",
    "held_back": "rows that were held back from training",
    "training": "training rows, which the model has seen",
}
NAMED_CLASSES = 30  # that are listed; the table of scores has all
DEMO = (
    "The demo data are 5,000 handwritten digits of MNIST (LeCun, Cortes and Burges; CC BY-SA 3.0), and 3,000 spoken "
    "ones of the Free Spoken Digit Dataset (Z. Jackson and contributors; CC BY-SA 4.0), paired by class; they are "
    "under CC BY-SA 4.0. Six people spoke them, in English, and a recording stands beside more than one image."
)


def model_card(opened: OpenStudy, dataset: Dataset, bundle: Bundle, metrics: dict[str, Any]) -> str:
    """The content of model_card.md (GitHub's Markdown), of a bundle whose metrics.json holds `metrics`."""
    sections = (
        (f"# {escape_markdown(metrics['study'])}, trial {metrics['trial']}", _opening(bundle, metrics)),
        ("## Use", _use(bundle, metrics)),
        ("## Scores", _scores(metrics)),
        ("## Calibration", _calibration(metrics)),
        ("## What each modality brings", _account(metrics)),
        ("## Limits", _limits(dataset, metrics)),
        ("## Data", _data(dataset, metrics)),
        ("## Search", _search(opened, metrics)),
        ("## Training", _training(metrics)),
        ("## Each class", _classes(metrics)),
    )
    return "\n".join(f"{head}\n\n" + "\n".join(blocks) for head, blocks in sections)


def _opening(bundle: Bundle, metrics: dict[str, Any]) -> Iterator[str]:
    count = len(bundle.members)
    what = "A classifier" if count == 1 else f"An ensemble of {count} classifiers, whose probabilities are averaged,"
    named = ", ".join(escape_markdown(name) for name in bundle.classes[:NAMED_CLASSES])
    more = f" and {len(bundle.classes) - NAMED_CLASSES} more" if len(bundle.classes) > NAMED_CLASSES else ""
    yield (
        f"{what} that sees an image and hears a recording, and tells {len(bundle.classes)} classes "
        f"apart: {named}{more}. It has {bundle.parameters:,} parameters, and was found by a hyperparameter search and "
        f"trained again on all training rows.\n"
    )
    yield f"Chosen: {escape_markdown(metrics['chosen']['sentence'])}.\n"


def _use(bundle: Bundle, metrics: dict[str, Any]) -> Iterator[str]:
    shapes, paths = bundle.trained.shapes, BundlePaths(bundle.folder)
    image = f"images of {' x '.join(map(str, shapes.image))} (channels, height, width)"
    if bundle.trained.rate is None:
        audio = f"audio of {' x '.join(map(str, shapes.audio))} (frames, coefficients)"
    else:
        audio = f"waveforms of {shapes.audio[0]:,} samples at {bundle.trained.rate:,} Hz"
    yield (
        f"It takes {image}, pixels from {bundle.trained.pixels.low:g} to {bundle.trained.pixels.high:g}, and {audio}, "
        "and gives a probability a class. Whatever it takes is scaled inside.\n"
    )
    yield "```sh\nmmsearch predict FOLDER DATA -o predictions.csv    # FOLDER: this one; DATA: files or arrays\n```\n"
    yield (
        "```python\nimport mmsearch\n\nbundle = mmsearch.Bundle.load(FOLDER)\n"
        "probabilities = bundle.predict(image, audio)  # (rows, classes)\n```\n"
    )
    exports = metrics["exports"]
    if exports:
        files = {"safetensors": paths.weights, "pt2": paths.program, "onnx": paths.onnx}
        rows = [(files[form].name if form in files else form, _checked(held)) for form, held in exports.items()]
        yield "Each form was read back from disk and compared with the trained model:\n"
        yield markdown_table(("file", "largest difference of a probability"), rows)
    if "onnx" in exports and "skipped" not in exports["onnx"]:
        yield (
            '```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
            "# float32, any number of rows\n"
            'probabilities = session.run(None, {"image": image, "audio": audio})[0]\n```\n'
        )
    if "pt2" in exports:
        yield (
            "model.pt2 is loaded with `torch.export.load`. Load only one that you trust: such a file may hold "
            "pickles, which run code.\n"
        )


def _checked(held: dict[str, Any]) -> str:
    if "skipped" in held:
        return str(held["skipped"])
    but = f" but for {plural(held['ties'], 'tie')}" if held["ties"] else ""
    return f"{held['largest_difference']:.1e} on {held['rows']:,} rows, all labels the same{but}"


def _scores(metrics: dict[str, Any]) -> Iterator[str]:
    rows = []
    for name, words in ROWS.items():
        held = metrics[name]
        if held is not None:
            scores = (_with_interval(held[score], held[f"{score}_interval"]) for score in ("macro_f1", "accuracy"))
            rows.append((f"{held['rows']:,} {words}", *scores, f"{held['log_loss']:.4f}", f"{held['ece']:.4f}"))
    yield markdown_table(("rows", "macro F1", "accuracy", "log loss", "ECE"), rows, "lrrrr")
    yield (
        "In brackets: 95 % intervals, Wilson's of the accuracy and by bootstrap over rows of the macro F1. They say "
        "how much the score would change with other rows of the same kind, and nothing of another training or other "
        "data. ECE is the expected calibration error.\n"
    )
    judged = metrics["modalities"]["scored_on"]
    for name, words in ROWS.items():
        held = metrics[name] if name != "training" or judged == name else None  # those that were seen say little anyway
        few = None if held is None else few_mistakes(held["mistakes"], held["rows"])
        if few is not None:
            yield f"Beware: on the {words} {few}.\n"


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"


def _calibration(metrics: dict[str, Any]) -> Iterator[str]:
    held = metrics["calibration"]
    if held is None:
        yield "It was left out: probabilities are as the model gives them, which is mostly too sure.\n"
        return
    name = metrics["modalities"]["scored_on"]
    scored = metrics[name]
    origin = held["fitted_on"] if held["fitted_on"] != "out of fold" else "training rows, out of fold"
    yield (
        f"Logits are divided by a temperature of {held['temperature']:.3f}, fitted on {held['rows']:,} {origin}. The "
        "retrained model, which has seen these rows, takes it over.\n"
    )
    rows = [
        ("the rows it is fitted on", f"{held['ece_before']:.4f}", f"{held['ece_after']:.4f}"),
        (f"{name.replace('_', ' ')} rows", f"{scored['ece_uncalibrated']:.4f}", f"{scored['ece']:.4f}"),
    ]
    yield markdown_table(("ECE on", "before", "after"), rows, "lrr")
    if held["abstain_below"] is not None:
        kept = scored["kept"]
        yield (
            f"It abstains where its confidence is below {held['abstain_below']:.4f} (asked for: "
            f"{escape_markdown(held['asked'])}). Of the rows that it was fitted on this keeps {held['coverage']:.1%}, "
            f"with an accuracy of {_accuracy(held['accuracy_kept'])}; of the {name.replace('_', ' ')} rows "
            f"{kept['coverage']:.1%}, with {_accuracy(kept['accuracy'])}.\n"
        )
    for remark in held["remarks"]:
        yield f"Beware: {escape_markdown(remark)}.\n"


def _accuracy(value: float | None) -> str:
    return "none, since no row is left" if value is None else f"{value:.4f}"


def _account(metrics: dict[str, Any]) -> Iterator[str]:
    account = metrics["modalities"]["account"]
    words = {
        "both": "both",
        "image_alone": "image alone; the audio is the training rows' mean",
        "audio_alone": "audio alone; the image is the training rows' mean",
        "image_shuffled": "with other rows' images",
        "audio_shuffled": "with other rows' audio",
        "fusion_gain": "both, less the better one alone",
    }
    rows = [(text, _with_interval(account[key]["macro_f1"], account[key]["interval"])) for key, text in words.items()]
    yield markdown_table(("given to the model", f"macro F1 on {account['rows']:,} rows"), rows, "lr")
    yield (
        "This is of the fused model: models that are trained on one modality alone may do better than it does with "
        "one.\n"
    )
    few = [
        text.partition(";")[0]
        for key, text in words.items()
        if account[key].get("mistakes", FEW_MISTAKES) < FEW_MISTAKES
    ]
    if few:
        yield f"Beware: with fewer than {FEW_MISTAKES} mistakes an interval is too narrow; here of {_listed(few)}.\n"
    little = little_gain(account["fusion_gain"]["differing"], account["rows"])
    if little is not None:
        yield f"Beware: {little}.\n"


def _limits(dataset: Dataset, metrics: dict[str, Any]) -> Iterator[str]:
    name, scored = scored_split(dataset)
    yield (
        "- It knows one data set. Other cameras, microphones, rooms, speakers, languages or ways to write were not "
        "tested, nor were noise, damage or anybody's wish to deceive it."
    )
    yield (
        "- It always names one of its classes, also for what belongs to none"
        + ("; its confidence was not tested on such rows." if metrics["calibration"] else ".")
    )
    if name == "training":
        yield "- No labelled rows were kept from training: its scores are of rows that it has seen, and too good."
    images, recordings = (len(np.unique(digest[scored.rows])) for digest in dataset.digests[_digests_of(name)])
    if min(images, recordings) < len(scored):
        yield (
            f"- The {len(scored):,} {ROWS[name].partition(',')[0]} hold {images:,} different images and "
            f"{recordings:,} different recordings. Intervals take rows for independent, and so are somewhat too narrow."
        )
    searched = metrics["searched"]
    yield (
        f"- The searched value ({all_in_words(searched['values'])}) is of its best epoch and of one of the best trials "
        "chosen on the same rows, and so too good. The number of epochs was chosen on these too."
    )
    if metrics["confirmed"] is None:
        yield "- The choice was not confirmed on other seeds; `mmsearch confirm` does that."
    if searched["violated"]:
        yield f"- It does not keep to the study's constraints: {escape_markdown(searched['violated'])}."
    yield "- Whether it treats people alike was not tested: the data do not say who they are.\n"


def _digests_of(name: str) -> str:
    return "test" if name == "test" else "train"


def _data(dataset: Dataset, metrics: dict[str, Any]) -> Iterator[str]:
    data = metrics["data"]
    source = "the demo data of mmsearch" if dataset.layout == "demo" else f"`{_code(PurePath(dataset.source).name)}`"
    rows = [f"{data['training_rows']:,} training rows"]
    rows += [
        f"{data[f'{name}_rows']:,} {words}"
        for name, words in ROWS.items()
        if name != "training" and data[f"{name}_rows"]
    ]
    yield f"Data set: {source} (layout {data['layout']}), {_listed(rows)}; fingerprint `{data['fingerprint']}`.\n"
    kept = " No row of the test split had a part in the search or in training." if data["test_rows"] else ""
    yield (
        f"Rows that share an identical image or recording are never torn apart between training and validation.{kept}\n"
    )
    if dataset.layout == "demo":
        yield DEMO + "\n"
    if dataset.skipped:
        yield f"{plural(len(dataset.skipped), 'row')} with unusable files were left out.\n"


def _search(opened: OpenStudy, metrics: dict[str, Any]) -> Iterator[str]:
    config, trials = opened.config, opened.trials()
    states = Counter(trial.state.name.lower() for trial in trials)
    seconds = sum(trial.duration.total_seconds() for trial in trials if trial.duration is not None)
    machines = sorted(
        {str(run["hardware"]) for trial in trials if "hardware" in (run := trial.user_attrs.get(RUN, {}))}
    )
    pruner = config.search.pruner if len(opened.metrics) == 1 else "none"
    yield (
        f"{plural(len(trials), 'trial')} ({_listed([f'{number} {state}' for state, number in states.items()])}), "
        f"{duration(seconds)} of training in all, with sampler {config.search.sampler}, pruner {pruner}, at most "
        f"{config.search.max_epochs} epochs and patience {config.search.patience}"
        + (f", on {_listed([escape_markdown(machine) for machine in machines])}" if machines else "")
        + f". The metric is {_listed([f'`{metric}`' for metric in opened.metrics])} on {_validation(opened)}.\n"
    )
    rows = [
        (name, extent(dimension), _chosen(metrics, name)) for name, dimension in config.dimensions.varying().items()
    ]
    if rows:
        yield markdown_table(("parameter", "searched over", "chosen"), rows)


def _validation(opened: OpenStudy) -> str:
    data, folds = opened.config.data, opened.config.folds
    if folds > 1:
        return f"validation rows, the mean of {folds} folds"
    return f"validation rows, {data.fraction:.0%} of {'all' if data.validation == 'three_way' else 'the training rows'}"


def _chosen(metrics: dict[str, Any], name: str) -> str:
    """The values of a parameter in all members; of members that do not have it, a dash."""
    values = [show(member["params"][name]) if name in member["params"] else "-" for member in metrics["members"]]
    return ", ".join(values if len(set(values)) > 1 else values[:1])


def _training(metrics: dict[str, Any]) -> Iterator[str]:
    rows = [
        (str(member["trial"]), str(member["epochs"]), str(member["seed"]), f"{member['parameters']:,}")
        for member in metrics["members"]
    ]
    yield markdown_table(("trial", "epochs", "seed", "parameters"), rows, "rrrr")
    held, extra = metrics["hardware"], metrics["calibration"]
    more = f" (and {duration(extra['seconds'])} before it, without the validation rows)" if extra else ""
    versions = ", ".join(f"{library} {version}" for library, version in metrics["versions"].items())
    yield (
        f"{duration(metrics['seconds'])}{more} on {escape_markdown(held['device'])}, "
        f"{plural(held['threads'], 'thread')}. Versions: {escape_markdown(versions)}.\n"
    )


def _classes(metrics: dict[str, Any]) -> Iterator[str]:
    name = metrics["modalities"]["scored_on"]
    scored = metrics[name]
    rows = [
        (held, *(f"{scores[part]:.4f}" for part in ("precision", "recall", "f1-score")), f"{scores['support']:,}")
        for held, scores in scored["per_class"].items()
    ]
    yield f"On the {scored['rows']:,} {ROWS[name]}:\n"
    yield markdown_table(("class", "precision", "recall", "F1", "rows"), rows, "lrrrr")


def _code(text: str) -> str:
    """A text that stands between backticks."""
    return " ".join(text.replace("`", "'").split())


def _listed(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
