"""Where data comes from: a folder in a known layout, or the demo data of the package, as a data set or rows of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmsearch.config import StudyConfig
from mmsearch.data.arrays import (
    Inspection,
    fit_images,
    fit_waves,
    inspect,
    numeric,
    pixel_scale,
    scale_as_trained,
    shape_audio,
    shape_images,
    shape_waves,
    wave_scale,
)
from mmsearch.data.cache import digest_of
from mmsearch.data.dataset import Array, Dataset, Index, Pixels, Split, Trained
from mmsearch.data.decode import Form
from mmsearch.data.labels import in_order
from mmsearch.data.layouts import Found, Part, expected, must_have, read_arrays, read_files, recognise
from mmsearch.data.splits import keep_back, some, split_off_test
from mmsearch.errors import DataError

BYTE_SCALE = 1 / 255  # of the pixels of image files, however dark they are


def load_dataset(config: StudyConfig) -> Dataset:
    """The data set of a study, as its `[data]` says; what is derived from its files is kept in its cache."""
    data, seed = config.data, config.study.seed
    three_way = data.validation == "three_way"
    dataset = read_dataset(
        data.source,
        test=0 if three_way else data.test,
        rows=data.rows,
        seed=seed,
        image_shape=data.image_shape,
        audio_shape=data.audio_shape,
        sample_rate=data.sample_rate,
        audio_seconds=data.audio_seconds,
        skip_broken=data.skip_broken,
        cache=config.storage_paths.cache,
    )
    return keep_back(dataset, data.fraction, seed) if three_way else dataset


def read_dataset(
    source: str,
    *,
    test: float = 0.2,
    rows: int | None = None,
    seed: int = 0,
    image_shape: Sequence[int] | None = None,
    audio_shape: Sequence[int] | None = None,
    sample_rate: int | None = None,
    audio_seconds: float | None = None,
    skip_broken: bool = False,
    cache: Path | None = None,
) -> Dataset:
    """Read the data set at `source`: a folder, or the word `demo`.

    Where it has no test split, `test` of its groups become one. `rows` takes only so many training rows. With
    `sample_rate` (samples a second) the audio rows of arrays are waveforms; those of a manifest always are, and are
    brought to it. Waveforms are cut or padded to `audio_seconds`. `skip_broken` leaves out what cannot be used of a
    manifest. `cache` is a folder that keeps what is derived from the files. Raises `DataError`, which names the file
    and the row.
    """
    layout = recognise(source)
    waveforms = layout == "manifest" or sample_rate is not None
    if waveforms and audio_shape is not None:
        raise DataError(f"{source}: audio_shape is for features; here the audio rows are waveforms (see audio_seconds)")
    if audio_seconds is not None and not waveforms:
        raise DataError(f"{source}: audio_seconds is for waveforms; here the audio rows are features, without a rate")
    if layout == "manifest":
        shape = None if image_shape is None else tuple(image_shape)
        form = Form(shape, sample_rate, audio_seconds)
        found = read_files(source, form, skip_broken=skip_broken, cache=cache)
    else:
        found = read_arrays(source, layout)
        samples = None if audio_seconds is None or not sample_rate else max(1, round(audio_seconds * sample_rate))
        parts = {
            name: replace(
                part,
                image=shape_images(part.image, image_shape, part.names[0]),
                audio=_waves(part, samples, cache)
                if sample_rate
                else shape_audio(part.audio, audio_shape, part.names[1]),
            )
            for name, part in found.parts.items()
        }
        found = replace(found, parts=parts, rate=sample_rate)
    if "train" not in found.parts:
        raise DataError(f"{source}: there are no training rows; {expected()}")
    first = found.parts["train"]
    assert first.labels is not None
    classes = in_order(first.labels.names)
    if len(classes) < 2:
        raise DataError(f"{first.names[2]}: all rows have the label {classes[0]}; a classifier needs two classes")
    dataset = _assemble(source, found, classes, cache)
    if rows is not None:
        dataset = replace(dataset, train=some(dataset.train, rows, seed))
    if dataset.test is None and test > 0:
        kept, held_out = split_off_test(dataset, test, seed)
        dataset = replace(dataset, train=kept, test=held_out)
    return dataset


def load_rows(source: str, split: str | None, trained: Trained, *, skip_broken: bool = False) -> Split:
    """The rows of one split of any data set, to be predicted: its test split, or else its training split.

    Images are brought to the size, and waveforms to the rate and length, that the model was trained on; waveforms in
    arrays are taken to be at its rate. `skip_broken` leaves out what cannot be used of a manifest. Raises `DataError`
    where the rows cannot be brought to what the model takes.
    """
    layout = recognise(source)
    if layout == "manifest":
        if trained.rate is None:
            raise DataError(f"{source}: holds recordings, but the model was trained on features: {_takes(trained)}")
        form = Form(trained.shapes.image, trained.rate, samples=trained.shapes.audio[0])
        found = read_files(source, form, predict=split or True, skip_broken=skip_broken)
        return _to_predict(source, layout, next(iter(found.parts.values())), trained)
    parts = read_arrays(source, layout).parts
    name = split or ("test" if "test" in parts else "train")
    must_have(source, name, list(parts))
    return _to_predict(source, layout, _fitted(parts[name], trained), trained)


def rows_from_arrays(image: Array | None, audio: Array | None, trained: Trained) -> Split:
    """Rows without labels out of two arrays in any form that a file may have. Raises `DataError`.

    None stands for what is not known of any row: it is 0 there.
    """
    given = {
        name: numeric(np.ascontiguousarray(array), name)
        for name, array in (("image", image), ("audio", audio))
        if array is not None
    }
    if not given:
        raise DataError("neither images nor audio are given; one of them is needed")
    count = len(next(iter(given.values())))
    for name, shape in (("image", trained.shapes.image), ("audio", trained.shapes.audio)):
        given.setdefault(name, np.broadcast_to(np.float32(0), (count, *shape)))
    if len(given["audio"]) != count:
        raise DataError(f"audio: {len(given['audio'])} rows, but image has {count}")
    part = Part(given["image"], given["audio"], None, ("image", "audio", "no labels"))
    return _to_predict("arrays", "arrays", _fitted(part, trained), trained)


def _waves(part: Part, samples: int | None, cache: Path | None) -> Array:
    waves = shape_waves(part.audio, part.names[1])
    return waves if samples is None else fit_waves(waves, samples, part.names[1], cache)


def _fitted(part: Part, trained: Trained) -> Part:
    """Rows of arrays, brought to what the model takes."""
    shapes = trained.shapes
    try:
        image = fit_images(part.image, shapes.image, part.names[0])
        if trained.rate is not None:
            audio = _waves(part, shapes.audio[0], None)
        else:
            audio = shape_audio(part.audio, shapes.audio, part.names[1])
    except DataError as error:
        raise DataError(f"{error}; the model was trained on {_takes(trained)}") from None
    return replace(part, image=image, audio=audio)


def _takes(trained: Trained) -> str:
    """What a model was trained on, in words."""
    image, (steps, width) = "x".join(map(str, trained.shapes.image)), trained.shapes.audio
    audio = f"of {steps}x{width}" if trained.rate is None else f"of {steps} samples at {trained.rate} Hz"
    return f"images of {image} and audio {audio}"


def _to_predict(source: str, layout: str, part: Part, trained: Trained) -> Split:
    found = Found(layout, {"train": part}, trained.rate)
    dataset = _assemble(source, found, trained.classes, None, unknown_labels=True, audio_scale=trained.audio_scale)
    if layout == "manifest" and trained.pixels.low >= 0:
        return replace(dataset.train, image_scale=BYTE_SCALE)
    scale = scale_as_trained(trained.pixels, part.image, dataset.pixels.low, dataset.pixels.high)
    return replace(dataset.train, image_scale=scale)


def _assemble(
    source: str,
    found: Found,
    classes: Sequence[str],
    cache: Path | None,
    *,
    unknown_labels: bool = False,
    audio_scale: float = 1.0,
) -> Dataset:
    """Check every value once, find the range of pixels and audio, and map labels to class indices."""
    parts = found.parts
    seen = {
        name: (inspect(part.image, part.names[0], cache, name), inspect(part.audio, part.names[1], cache, name))
        for name, part in parts.items()
    }
    for kind in (0, 1):
        rows = {name: (part.image, part.audio)[kind].shape[1:] for name, part in parts.items()}
        if len(set(rows.values())) > 1:
            where = parts["test"].names[kind]
            raise DataError(f"{where}: its rows have the shape {rows['test']}, those of train {rows['train']}")
    low, high = min(image.low for image, _ in seen.values()), max(image.high for image, _ in seen.values())
    quietest, loudest = min(audio.low for _, audio in seen.values()), max(audio.high for _, audio in seen.values())
    pixels = Pixels(low, high, BYTE_SCALE if found.layout == "manifest" else pixel_scale(low, high))
    splits = {}
    for name, part in parts.items():
        scale = 1.0 if found.rate is None else wave_scale(part.audio, quietest, loudest, audio_scale)
        splits[name] = Split(
            part.image,
            part.audio,
            None if part.labels is None else _class_index(part, classes, unknown_labels),
            np.arange(len(part.image)),
            pixels.scale,
            scale,
            None if found.rate is None else _content(part.audio, seen[name][1], scale),
            part.origin,
        )
    return Dataset(
        source=source,
        layout=found.layout,
        train=splits["train"],
        test=splits.get("test"),
        classes=tuple(classes),
        digests={name: (image.digest, audio.digest) for name, (image, audio) in seen.items()},
        pixels=pixels,
        audio_range=(quietest, loudest),
        competition=found.layout == "kaggle" and "test" in parts,
        rate=found.rate,
        group={name: part.group for name, part in parts.items() if part.group is not None},
        skipped=found.skipped,
    )


def _content(audio: Array, seen: Inspection, scale: float) -> str:
    """A name of the waveforms' content: the same wherever they lie."""
    return digest_of(audio.dtype.str, audio.shape, scale, digest_of(seen.digest.tobytes()))


def _class_index(part: Part, classes: Sequence[str], unknown_labels: bool) -> Index | None:
    assert part.labels is not None
    index = part.labels.among(classes)
    wrong = np.flatnonzero(index < 0)
    if not len(wrong):
        return index
    if unknown_labels:
        return None
    listed = f"{classes[0]} to {classes[-1]}" if len(classes) > 8 else ", ".join(classes)
    place, name = part.place(int(wrong[0])), part.labels.name(int(wrong[0]))
    raise DataError(f"{part.names[2]}: {place} has the label {name}, which no training row has ({listed})")
