"""A folder of people's own files: any image, any PCM recording, any class; and what is said of what cannot be used."""

from __future__ import annotations

import csv
import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data import put, zenodo

from mmsearch.data.dataset import Dataset, Trained
from mmsearch.data.decode import _length
from mmsearch.data.describe import describe
from mmsearch.data.manifest import read_manifest
from mmsearch.data.media import Broken, Picture, Recording, quantised, read_image, read_wav, resampled
from mmsearch.data.sources import load_rows, read_dataset
from mmsearch.data.splits import holdout
from mmsearch.errors import DataError
from mmsearch.models.factory import build_model
from mmsearch.results.bundle import Bundle, Member
from mmsearch.spaces import Space

RNG = np.random.default_rng(7)
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


def wav(samples: np.ndarray, rate: int = 8000, *, form: int | None = None, bits: int | None = None) -> bytes:
    """A wav file of samples (n,) or (n, channels) in their own type; int32 with `bits` 24 are packed."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    bits = bits or 8 * samples.itemsize
    data = samples.tobytes()
    if bits == 24:
        data = samples.astype("<i4")[..., None].view(np.uint8)[..., :3].tobytes()
    plain = FLOAT if samples.dtype.kind == "f" else PCM
    layout = struct.pack(
        "<HHIIHH", form or plain, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits
    )
    if form == EXTENSIBLE:
        layout += struct.pack("<HHIH", 22, bits, 0, plain) + bytes(14)
    pieces = [(b"fmt ", layout), (b"LIST", b"odd"), (b"data", data)]
    body = b"".join(name + struct.pack("<I", len(part)) + part + bytes(len(part) % 2) for name, part in pieces)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def noise(samples: int = 2000, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng([seed, samples]).normal(0, 0.1, samples) * 32767).astype("<i2")


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, form, **options)
    return held.getvalue()


def table(rows: Sequence[Sequence[object]], header: str = "image,audio,label,split") -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header.split(","), *rows])
    return text.getvalue().encode()


WORDS = ("barn owl", "cat", "dog")


def manifest(folder: Path, given: dict[str, bytes] | None = None, *, rows: int = 24, test: int = 6) -> Path:
    """A folder with gray pictures, recordings and classes in words; what is given is put in a file's place."""
    files: dict[str, bytes] = {}
    lines = []
    for number in range(rows):
        image, audio = f"{number}.png", f"{number}.wav"
        files[image], files[audio] = encoded(picture(6, 8, seed=number)), wav(noise(seed=number))
        lines.append((image, audio, WORDS[number % 3], "test" if number >= rows - test else "train"))
    files["manifest.csv"] = table(lines)
    return put(folder, files | (given or {}))


def grouped(rows: Sequence[Sequence[object]]) -> dict[str, bytes]:
    """A table with a group a row."""
    return {"manifest.csv": table(rows, "image,audio,label,split,group")}


def values(dataset: Dataset, row: int) -> np.ndarray:
    return np.asarray(dataset.train.audio[row, :, 0])


def said(folder: Path, **options: Any) -> str:
    """What is said of data that cannot be read, in one line, without its folder."""
    with pytest.raises(DataError) as caught:
        read_dataset(str(folder), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{folder}/", "")


def test_files_become_arrays(tmp_path: Path) -> None:
    dataset = read_dataset(str(manifest(tmp_path / "d")))
    assert (dataset.layout, dataset.classes, dataset.rate) == ("manifest", WORDS, 8000)
    assert dataset.shapes.image == (1, 6, 8)
    assert dataset.shapes.audio == (2000, 1)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (18, 6)
    for split, first in ((dataset.train, 0), (dataset.test, 18)):
        assert split.ids.tolist() == list(range(first, first + len(split)))
        assert split.files == [(f"{row}.png", f"{row}.wav") for row in split.ids]
        assert split.labels.tolist() == [row % 3 for row in split.ids]
        for row in range(len(split)):
            np.testing.assert_array_equal(split.image[row, 0], picture(6, 8, seed=first + row))
            np.testing.assert_array_equal(split.audio[row, :, 0], noise(seed=first + row))
    assert split.image_scale == 1 / 255
    assert split.audio_scale == 1 / 32768


TYPES = st.sampled_from(["<i2", "u1", "<i4", "<i3", "<f4", "<f8"])


@settings(max_examples=60, deadline=None)
@given(TYPES, st.integers(1, 3), st.integers(1, 200), st.booleans(), st.integers(0, 99))
def test_recordings_of_any_pcm_form_are_read(
    tmp_path_factory: pytest.TempPathFactory, kind: str, channels: int, length: int, extensible: bool, seed: int
) -> None:
    drawn = np.random.default_rng(seed).uniform(-0.9, 0.9, (length, channels))
    drawn[0] = 0.95  # not all equal
    bits = {"u1": 8, "<i2": 16, "<i3": 24, "<i4": 32}.get(kind)
    if bits is None:
        samples, step = drawn.astype(kind), 1e-6
    else:
        step = 2.0 ** (1 - bits)
        samples = np.rint(drawn / step).astype("<i4" if kind == "<i3" else kind.replace("u1", "i2"))
        samples = (samples + 128).astype(np.uint8) if kind == "u1" else samples
    path = tmp_path_factory.mktemp("wav") / "x.wav"
    path.write_bytes(wav(samples, 22050, form=EXTENSIBLE if extensible else None, bits=bits))
    if length == 1:
        with pytest.raises(Broken, match="silent"):
            read_wav(path)
        return
    found = read_wav(path)
    assert found.rate == 22050
    np.testing.assert_allclose(found.samples, drawn.mean(1), atol=step + 1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 400), st.integers(0, 99))
def test_16_bits_go_through_unchanged(samples: int, seed: int) -> None:
    given = noise(samples, seed)
    np.testing.assert_array_equal(quantised((given / 32768).astype(np.float32)), given)


SEEDS = [wav(noise(50)), wav(np.stack([noise(30)] * 2, 1), form=EXTENSIBLE)]
SEEDS += [encoded(picture(6, 8, 3)), encoded(picture(6, 8), "GIF")]


def outcome(read: Callable[[Path], Recording | Picture], path: Path) -> Recording | Picture | str:
    """What is read, or what is said of it; anything else that is raised fails the test."""
    try:
        return read(path)
    except Broken as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
    st.sampled_from([read_wav, read_image]),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_read_or_broken(
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    changes: list[tuple[float, int]],
    kept: float,
    read: Callable[[Path], Recording | Picture],
) -> None:
    held = bytearray(content)
    for at, value in changes:
        held[int(at * (len(held) - 1))] = value
    path = tmp_path_factory.mktemp("damaged") / "x"
    path.write_bytes(held if kept > 0.5 else held[: int(2 * kept * len(held))])
    found = outcome(read, path)
    assert isinstance(found, Recording | Picture) or (found and "\n" not in found)


@pytest.mark.parametrize(("rate", "target"), [(44100, 8000), (8000, 16000), (11025, 8000), (16000, 8000)])
def test_resampling_keeps_tones_and_folds_nothing_down(rate: int, target: int) -> None:
    at, then = np.arange(rate) / rate, np.arange(target) / target
    found = resampled(Recording(np.sin(2 * np.pi * 1000 * at).astype(np.float32), rate), target)
    assert len(found) == target
    middle = slice(target // 10, -target // 10)
    np.testing.assert_allclose(found[middle], np.sin(2 * np.pi * 1000 * then)[middle], atol=0.01)
    if rate > 1.5 * target:
        high = resampled(Recording(np.sin(2 * np.pi * 0.75 * target * at).astype(np.float32), rate), target)
        assert np.abs(high[middle]).max() < 0.01


def test_colour_stereo_words_and_any_length(tmp_path: Path) -> None:
    """Colour 40 x 60 in png and jpg; 16 kHz stereo of 0.2 to 3 s."""
    files: dict[str, Any] = {}
    lines = []
    for number in range(20):
        name = f"{number}.{'jpg' if number % 2 else 'png'}"
        files[name] = encoded(picture(60, 40, 3, seed=number), "JPEG" if number % 2 else "PNG")
        length = 3200 + 2240 * number  # 0.2 to 2.86 s
        files[f"{number}.wav"] = wav(np.stack([noise(length), noise(length) // 3], axis=1), 16000)
        lines.append((f"{number}.wav", WORDS[number % 3], name))
    files["manifest.csv"] = table(lines, "audio,label,image")
    folder = put(tmp_path / "d", files)
    dataset = read_dataset(str(folder))
    assert (dataset.rate, dataset.shapes.image, dataset.classes) == (16000, (3, 60, 40), WORDS)
    assert dataset.shapes.audio == (3200 + 2240 * 18, 1)  # 19 of 20 recordings are whole
    row = int(np.flatnonzero(dataset.train.ids == dataset.train.ids.min())[0])
    number = int(dataset.train.ids[row])
    mixed = ((noise(3200 + 2240 * number).astype(float) + noise(3200 + 2240 * number) // 3) / 2).round()
    held = values(dataset, int(dataset.train.rows[row]))
    before = (len(held) - len(mixed)) // 2
    np.testing.assert_allclose(held[before : before + len(mixed)], mixed, atol=1)
    assert not held[:before].any()
    assert not held[before + len(mixed) :].any()

    given = read_dataset(str(folder), image_shape=(30, 20), sample_rate=8000, audio_seconds=0.5)
    assert (given.rate, given.shapes.image, given.shapes.audio) == (8000, (3, 30, 20), (4000, 1))
    assert read_dataset(str(folder), image_shape=(1, 30, 20)).shapes.image == (1, 30, 20)


def test_a_long_recording_keeps_its_middle(tmp_path: Path) -> None:
    dataset = read_dataset(str(manifest(tmp_path / "d")), audio_seconds=0.1)
    np.testing.assert_array_equal(values(dataset, 0), noise(seed=0)[600:1400])


def test_the_most_frequent_rate_of_train_is_taken(tmp_path: Path) -> None:
    fast = {f"{number}.wav": wav(noise(4000, number), 16000) for number in (1, 4, 7, 18, 19, 20, 21, 22, 23)}
    assert read_dataset(str(manifest(tmp_path / "d", fast))).rate == 8000
    more = fast | {f"{number}.wav": wav(noise(4000, number), 16000) for number in range(10)}
    assert read_dataset(str(manifest(tmp_path / "e", more))).rate == 16000


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5000), st.sampled_from([8000, 16000])), min_size=1, max_size=60))
def test_most_training_recordings_stay_whole(measured: list[tuple[int, int]]) -> None:
    from mmsearch.data.decode import Form
    from mmsearch.data.manifest import Row

    rows = [Row(at, at + 2, "i", str(at), "x", "train", "") for at in range(len(measured))]
    lengths = {str(at): held for at, held in enumerate(measured)}
    rate, samples = _length(rows, lengths, Form(rate=8000))
    at_rate = np.array([-(-length * 8000 // own) for length, own in measured])
    assert rate == 8000
    assert samples in at_rate
    assert (at_rate <= samples).mean() >= 0.95
    assert (at_rate < samples).mean() < 0.95  # and no longer than that takes


def rotated(pixels: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, "JPEG", exif=exif, quality=100, subsampling=0)


GRAY, COLOUR = picture(6, 8), picture(6, 8, 3)


def of_mode(mode: str) -> bytes:
    held = io.BytesIO()
    image = Image.fromarray(COLOUR).convert(mode)
    image.save(held, "TIFF" if mode in ("CMYK", "F", "I", "LAB", "YCbCr") else "PNG")
    return held.getvalue()


@pytest.mark.parametrize(
    ("content", "channels", "expected"),
    [
        (encoded(GRAY), 1, GRAY),
        (encoded(GRAY, "BMP"), 1, GRAY),
        (encoded(GRAY.astype(np.uint16) * 256 + 7), 1, GRAY),
        (encoded(GRAY > 99), 1, (GRAY > 99) * 255),
        (encoded(GRAY.astype(np.float32) / 255, "TIFF"), 1, GRAY),
        (encoded(COLOUR), 3, COLOUR.transpose(2, 0, 1)),
        (encoded(np.dstack([COLOUR, GRAY])), 3, COLOUR.transpose(2, 0, 1)),
        (encoded(np.dstack([GRAY, GRAY])), 3, np.stack([GRAY] * 3)),
        (of_mode("P"), 3, None),
        (of_mode("CMYK"), 3, COLOUR.transpose(2, 0, 1)),
        (of_mode("1"), 1, None),
        (rotated(np.kron(np.eye(2, dtype=np.uint8), np.full((8, 4), 255, np.uint8)), 6), 1, None),
    ],
)
def test_images_of_any_mode_are_read(tmp_path: Path, content: bytes, channels: int, expected: Any) -> None:
    (tmp_path / "x").write_bytes(content)
    found = read_image(tmp_path / "x")
    assert found.pixels.dtype == np.uint8
    assert len(found.pixels) == channels
    assert found.gray == (channels == 1)
    if expected is not None:
        np.testing.assert_array_equal(found.pixels, np.broadcast_to(expected, found.pixels.shape))


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR).quantize(16)
    image.save(tmp_path / "x.png", transparency=bytes(range(16)))
    assert read_image(tmp_path / "x.png").pixels.shape == (3, 6, 8)


def test_the_orientation_of_a_camera_is_respected(tmp_path: Path) -> None:
    upright = np.zeros((8, 16), np.uint8)
    upright[:, :8] = 255
    (tmp_path / "x.jpg").write_bytes(rotated(np.rot90(upright).copy(), 6))  # 6: turn it by 90 degrees to the right
    np.testing.assert_allclose(read_image(tmp_path / "x.jpg").pixels[0].astype(int), upright, atol=3)


def test_one_image_in_colour_makes_the_set_coloured(tmp_path: Path) -> None:
    dataset = read_dataset(str(manifest(tmp_path / "d", {"3.png": encoded(picture(6, 8, 3))})))
    assert dataset.shapes.image == (3, 6, 8)
    np.testing.assert_array_equal(dataset.train.image[3], picture(6, 8, 3).transpose(2, 0, 1))
    np.testing.assert_array_equal(dataset.train.image[4], np.stack([picture(6, 8, seed=4)] * 3))


def test_images_of_several_sizes_are_resized_on_demand(tmp_path: Path) -> None:
    board = (np.indices((48, 64)).sum(0) % 2 * 255).astype(np.uint8)  # gray, from afar
    folder = manifest(tmp_path / "d", {"3.png": encoded(board)})
    message = said(folder)
    for part in (
        "manifest.csv: line 5: 3.png is 48x64",
        "0.png is 6x8",
        "--image-shape 32x32, or image_shape = [32, 32] in [data]",
    ):
        assert part in message
    dataset = read_dataset(str(folder), image_shape=(6, 8))
    np.testing.assert_array_equal(dataset.train.image[0, 0], picture(6, 8, seed=0))
    np.testing.assert_allclose(dataset.train.image[3, 0, 1:-1, 1:-1].astype(float), 127.5, atol=2)
    assert "4 as in image_shape" in said(folder, image_shape=(4, 6, 8))


SMALL = [("0.png", "0.wav", "a", ""), ("1.png", "1.wav", "b", "")]


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ("must name the columns image, audio, label", "not nothing")),
        (b"\n\n", ("not nothing",)),
        (b"image,audio,label\n", ("there are no rows",)),
        (b"image;audio;label\n", ("with commas", "image;audio;label")),
        (table(SMALL, "image,audio,lable,split"), ('"lable"', 'did you mean "label"?', "label, split, group")),
        (table(SMALL, "image,sound,label,split"), ('"sound"', "allowed are")),
        (table([row[:3] for row in SMALL], "image,label,split"), ("the column audio is missing",)),
        (table([row[:2] for row in SMALL], "image,audio"), ("the column label is missing",)),
        (table(SMALL, "image,audio,label,label"), ("the column label twice",)),
        (table([*SMALL, ("0.png", "0.wav", "a", "", "?")]), ("line 4 has 5 cells", "4 columns")),
        (table([*SMALL, ("0.png", "0.wav", "a", "tset")]), ("line 4", '"tset"', 'did you mean "test"?')),
        (table([*SMALL, ("0.png", "0.wav", " ", "")]), ("line 4 has no label",)),
        (table([*SMALL, ("0.png", "0.wav", "c", "test")]), ("line 4 has the label c", "no training row", "(a, b)")),
        (table([*SMALL, ("0.png", "0.wav", "a", "test"), ("1.png", "1.wav", "", "test")]), ("line 5 has no label",)),
        (table([("0.png", "0.wav", "1", ""), ("1.png", "1.wav", "1.5", "")]), ("line 3", "label 1.5")),
        (table([("0.png", "0.wav", "1", ""), ("1.png", "1.wav", "-1", "")]), ("line 3", "label -1")),
        (table(SMALL[:1]), ("all rows have the label a", "two classes")),
        (table([("0.png", "0.wav", "a", "test")]), ("there are no training rows",)),
        (b'image,audio,label\n0.png,"0.wav,a\n', ("not a CSV file",)),
        ("image,audio,label\n0.png,0.wav,ä\n".encode("latin-1"), ("not a CSV file in UTF-8",)),
        (table(SMALL).decode().encode("utf-16"), ("not a CSV file in UTF-8",)),
    ],
)  # fmt: skip
def test_a_wrong_table_is_named_by_line(tmp_path: Path, content: bytes, fragments: tuple[str, ...]) -> None:
    message = said(manifest(tmp_path / "d", {"manifest.csv": content}))
    assert [part for part in fragments if part not in message] == [], message
    assert "manifest.csv" in message or "no training rows" in message


def test_a_table_as_other_programs_write_it(tmp_path: Path) -> None:
    lines = (
        "split,group, label ,audio,image",
        "",
        ",,ä,0.wav,0.png",
        " , ,b,1.wav,1.png",
        ",,,,",
        "test,,ä,2.wav,2.png",
    )
    folder = manifest(tmp_path / "d", {"manifest.csv": "\r\n".join(lines).encode("utf-8-sig")})
    rows = read_manifest(folder / "manifest.csv")
    assert [(row.number, row.line, row.split, row.label) for row in rows] == [
        (0, 3, "train", "ä"),
        (1, 4, "train", "b"),
        (2, 6, "test", "ä"),
    ]
    dataset = read_dataset(str(folder), test=0)
    assert dataset.classes == ("b", "ä")
    assert dataset.test is not None
    assert dataset.test.ids.tolist() == [2]


def test_classes_are_in_order(tmp_path: Path) -> None:
    rows = [(f"{at}.png", f"{at}.wav", label, "") for at, label in enumerate(["10", "9.0", "2", "10", "9"])]
    assert read_dataset(str(manifest(tmp_path / "d", {"manifest.csv": table(rows)})), test=0).classes == (
        "2",
        "9",
        "10",
    )
    rows[2] = ("2.png", "2.wav", "two", "")
    words = read_dataset(str(manifest(tmp_path / "d", {"manifest.csv": table(rows)})), test=0)
    assert words.classes == ("10", "9", "9.0", "two")


def silence(samples: int = 900) -> bytes:
    return wav(np.full(samples, 5, "<i2"))


BROKEN: dict[str, tuple[bytes | None, str]] = {
    "4.png": (encoded(picture(6, 8))[:60], "4.png is not a whole image"),
    "5.png": (None, "5.png is missing"),
    "6.png": (b"hello", "6.png is not an image that Pillow reads"),
    "7.png": (b"", "7.png is empty"),
    "8.png": (encoded(np.full((6, 8), np.nan, np.float32), "TIFF"), "8.png is not a whole image: it holds a pixel"),
    "4.wav": (None, "4.wav is missing"),
    "5.wav": (wav(noise())[:1000], "5.wav is truncated: 944 of 4000 bytes"),
    "6.wav": (wav(noise())[:30], "6.wav is truncated: it has no sound"),
    "7.wav": (b"ID3 hello", "7.wav is not a wav file"),
    "8.wav": (wav(noise(), form=6), "8.wav is not PCM: its samples are of format 6"),
    "9.wav": (wav(noise(0)), "9.wav has no samples"),
    "10.wav": (silence(), "10.wav is silent: all its samples are equal"),
    "11.wav": (wav(np.array([0, np.inf], "<f4")), "11.wav holds a sample that is not a finite number"),
    "12.wav": (wav(noise().astype("<f4")), "12.wav has float samples of up to"),
    "13.wav": (wav(noise(), bits=12, form=3), "13.wav has samples of 12 bits in 1 bytes"),
    "14.wav": (wav(noise()).replace(b"\x40\x1f", b"\x00\x00", 1), "14.wav has 0 samples a second"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    content, expected = BROKEN[name]
    folder = manifest(tmp_path / "d")
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    message = said(folder)
    line = int(name.split(".")[0]) + 2
    assert message.startswith(f"manifest.csv: line {line}: {expected}"), message
    assert "skip_broken = true" in message
    dataset = read_dataset(str(folder), skip_broken=True)
    assert len(dataset.skipped) == 1
    assert dataset.skipped[0].startswith(f"line {line}: {expected}")
    assert dataset.train.ids.tolist() == [row for row in range(18) if row != line - 2]


def test_names_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "d" / "folder").mkdir(parents=True)
    rows = [
        ("0.png", "0.wav", "a"),
        ("1.png", "1.wav", "b"),
        ("folder", "1.wav", "b"),
        ("", "0.wav", "a"),
        ("1.png", "", "b"),
    ]
    rows += [("0\0.png", "0.wav", "b"), ("../d/0.png", "0.wav", "a"), (str(tmp_path / "d" / "1.png"), "1.wav", "b")]
    folder = manifest(tmp_path / "d", {"manifest.csv": table(rows, "image,audio,label")})
    dataset = read_dataset(str(folder), test=0, skip_broken=True)
    assert [text.split(": ")[0] for text in dataset.skipped] == ["line 4", "line 5", "line 6", "line 7"]
    assert "no image is named" in dataset.skipped[1]
    assert "no audio is named" in dataset.skipped[2]
    assert dataset.train.ids.tolist() == [0, 1, 6, 7]
    np.testing.assert_array_equal(dataset.train.image[2], dataset.train.image[0])


def test_what_is_broken_does_not_decide_for_the_others(tmp_path: Path) -> None:
    long = wav(noise(80_000), 48000)
    folder = manifest(
        tmp_path / "d",
        {"0.png": encoded(picture(6, 8, 3)), "0.wav": long[:-9], "1.wav": long[:-9], "2.wav": silence(90_000)},
    )
    dataset = read_dataset(str(folder), skip_broken=True)
    assert (dataset.rate, dataset.shapes.audio, dataset.shapes.image) == (8000, (2000, 1), (1, 6, 8))
    nothing = manifest(tmp_path / "e", {f"{at}.wav": b"" for at in range(3)}, rows=3, test=0)
    assert "none of its 3 rows can be used; the first: line 2: 0.wav" in said(nothing, skip_broken=True)
    assert "and 2 more rows are broken" in said(nothing)


def test_the_command_line_says_what_is_broken_and_skips_it(mmsearch: Run, workspace: Path) -> None:
    manifest(workspace / "d", {"3.wav": b"", "20.png": b"?", "1.wav": silence(), "2.wav": b""})
    wrong = mmsearch("data", "d", code=2).stderr
    assert wrong == (
        "mmsearch: d/manifest.csv: line 3: 1.wav is silent: all its samples are equal (and 3 more rows are broken); "
        "--skip-broken, or skip_broken = true in [data], leaves such rows out\n"
    )
    told = mmsearch("data", "d", "--skip-broken").stdout.splitlines()
    assert told[-1] == (
        "skipped   4 rows left out: line 3: 1.wav is silent: all its samples are equal; "
        "line 4: 2.wav is not a wav file; line 5: 3.wav is not a wav file; and 1 more"
    )
    assert "audio     2000 samples (0.25 s at 8000 Hz), int16, " in "\n".join(told)
    assert "train     15 rows: barn owl: 5, cat: 5, dog: 5" in told
    assert mmsearch("launch", "--data", "d", code=2).stderr.splitlines()[-1].endswith("leaves such rows out")


def test_data_marks_problems(tmp_path: Path) -> None:
    dark = {f"{at}.png": encoded(np.full((6, 8), 9, np.uint8)) for at in range(24)}
    quiet = {f"{at}.wav": wav(noise(seed=at) // 3000) for at in range(24)}
    rows = [(f"{at}.png", f"{at}.wav", WORDS[at > 1], "test" if at > 20 else "train", at % 7 or "") for at in range(24)]
    folder = manifest(tmp_path / "d", dark | quiet | grouped(rows))
    told = describe(read_dataset(str(folder)))
    assert "groups    6 of its own, which hold 20 rows\n" in told
    problems = [line for line in told.splitlines() if line.startswith("problem")]
    assert problems[0].startswith("problem   3 of 3 test rows have an image, a recording or a group")
    assert problems[1] == "problem   1 class has fewer than 5 training rows: barn owl (2)"
    assert problems[2] == "problem   all pixels are 9"
    assert problems[3].startswith("problem   the waveforms' peak is 0.000")
    assert len(problems) == 4
    fine = describe(read_dataset(str(manifest(tmp_path / "e", rows=30))))
    assert "\nproblem" not in fine
    many = [(f"{at}.png", f"{at}.wav", f"class {at % 15}", "") for at in range(30)]
    told = describe(read_dataset(str(manifest(tmp_path / "f", {"manifest.csv": table(many)}, rows=30)), test=0))
    assert "classes   class 0, class 1, class 10," in told
    assert "15 classes have fewer than 5 training rows: class 0 (2), class 1 (2), class 10 (2), and 12 more" in told


def test_groups_are_never_torn_apart(tmp_path: Path) -> None:
    same = {f"{at}.png": encoded(picture(6, 8, seed=at % 9)) for at in range(40)}  # identical images join groups
    rows = [(f"{at}.png", f"{at}.wav", WORDS[at % 3], "", f"who {at // 4}" if at < 20 else "") for at in range(40)]
    folder = manifest(tmp_path / "d", same | grouped(rows), rows=40)
    dataset = read_dataset(str(folder), test=0)
    known = [(at % 9, at // 4 if at < 20 else -1 - at) for at in range(40)]
    for one in range(40):
        for other in range(40):
            if known[one][0] == known[other][0] or known[one][1] == known[other][1]:
                assert dataset.groups[one] == dataset.groups[other]
    plain = read_dataset(str(manifest(tmp_path / "e", rows=40, test=0)), test=0)
    assert len(set(plain.groups.tolist())) == 40
    again = read_dataset(str(manifest(tmp_path / "e", grouped(rows), rows=40)), test=0)
    assert len(set(again.groups.tolist())) == 25
    assert again.fingerprint != plain.fingerprint
    train, valid = holdout(again, 0.3, 0)
    names = [{rows[row][4] for row in split.ids} - {""} for split in (train, valid)]
    assert not names[0] & names[1]


def test_the_test_labels_may_be_kept_back(tmp_path: Path) -> None:
    rows = [
        (f"{at}.png", f"{at}.wav", WORDS[at % 2] if at < 16 else "", "test" if at >= 16 else "") for at in range(20)
    ]
    dataset = read_dataset(str(manifest(tmp_path / "d", {"manifest.csv": table(rows)})))
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test), dataset.test.label) == (16, 4, None)


def test_two_layouts_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = manifest(zenodo(tmp_path / "d"))
    with pytest.raises(
        DataError, match=r"2 layouts at once: zenodo \(data_wr_train.npy\) and manifest \(manifest.csv\)"
    ):
        read_dataset(str(folder))


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if "manifest-" in path.name)


def test_files_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = manifest(tmp_path / "d", {"5.png": b""}), tmp_path / "cache"
    plain = read_dataset(str(folder), skip_broken=True)
    first = read_dataset(str(folder), skip_broken=True, cache=cache)
    assert len(cached(cache)) == 3
    with monkeypatch.context() as patch:
        patch.setattr("mmsearch.data.decode.read_wav", None)
        patch.setattr("mmsearch.data.decode.read_image", None)
        second = read_dataset(str(folder), skip_broken=True, cache=cache)
        assert "line 7: 5.png is empty" in said(folder, cache=cache)
    for dataset in (first, second):
        assert (dataset.fingerprint, dataset.skipped) == (plain.fingerprint, plain.skipped)
        assert isinstance(dataset.train.image, np.memmap)
        assert isinstance(dataset.train.audio, np.memmap)
        assert dataset.train.files == plain.train.files
    (folder / "3.wav").write_bytes(wav(noise(seed=99)))
    os.utime(folder / "3.wav", ns=(1, 1))
    changed = read_dataset(str(folder), skip_broken=True, cache=cache)
    np.testing.assert_array_equal(values(changed, 3), noise(seed=99))
    assert read_dataset(str(folder), skip_broken=True, audio_seconds=0.1, cache=cache).shapes.audio == (800, 1)


@pytest.mark.parametrize("suffix", [".json", ".image.npy", ".audio.npy"])
@pytest.mark.parametrize("damage", [lambda held: held[: len(held) // 2], lambda held: b""])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    folder, cache = manifest(tmp_path / "d"), tmp_path / "cache"
    plain = read_dataset(str(folder), cache=cache)
    before = cached(cache)
    (path,) = cache.glob(f"manifest-*{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    assert read_dataset(str(folder), cache=cache).fingerprint == plain.fingerprint
    assert cached(cache) == before


def test_several_processes_may_ask_at_once(tmp_path: Path) -> None:
    folder, cache = manifest(tmp_path / "d"), tmp_path / "cache"
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom mmsearch.data import decode, sources\n"
        "plain = decode._decode\n"
        "def slow(*arguments):\n"
        "    with open(sys.argv[3], 'a') as log: log.write('decoding\\n')\n"
        "    time.sleep(0.3)\n"
        "    return plain(*arguments)\n"
        "decode._decode = slow\n"
        "print(sources.read_dataset(sys.argv[1], cache=Path(sys.argv[2])).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(folder), str(cache), str(tmp_path / "log")]
    processes = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    expected = (f"{read_dataset(str(folder)).fingerprint}\n", "")
    assert [process.communicate(timeout=120) for process in processes] == [expected] * 3
    assert (tmp_path / "log").read_text() == "decoding\n"
    assert len(cached(cache)) == 3


def test_new_rows_are_brought_to_what_the_model_was_trained_on(tmp_path: Path) -> None:
    dataset = read_dataset(str(manifest(tmp_path / "d")))
    rows = [(f"{at}.png", f"{at}.wav") for at in range(3)]
    new = put(
        tmp_path / "new",
        {
            "manifest.csv": table(rows, "image,audio"),
            "0.png": encoded(picture(6, 8, seed=0)),
            "1.png": encoded(np.kron(picture(6, 8, 3), np.ones((4, 4, 1), np.uint8)).astype(np.uint8)),
            "2.png": encoded(picture(7, 5)),
            "0.wav": wav(noise(seed=0)),
            "1.wav": wav(noise(9000), 16000),
            "2.wav": wav(noise(500), 8000),
        },
    )
    found = load_rows(str(new), None, dataset.trained)
    assert found.image.shape == (3, 1, 6, 8)
    assert found.audio.shape == (3, 2000, 1)
    assert (found.label, found.image_scale, found.audio_scale) == (None, 1 / 255, 1 / 32768)
    np.testing.assert_array_equal(found.image[0], dataset.train.image[0])
    np.testing.assert_array_equal(found.audio[0], dataset.train.audio[0])
    np.testing.assert_array_equal(found.audio[2, 750:1250, 0], noise(500))
    with pytest.raises(DataError, match="there is no test split; there is: train"):
        load_rows(str(new), "test", dataset.trained)
    # what is broken in a split that nobody asked for does not matter
    (tmp_path / "d" / "3.wav").unlink()
    assert load_rows(str(tmp_path / "d"), None, dataset.trained).ids.tolist() == list(range(18, 24))
    with pytest.raises(DataError, match=r"line 5: 3.wav is missing"):
        load_rows(str(tmp_path / "d"), "train", dataset.trained)
    features = read_dataset(str(zenodo(tmp_path / "z")))
    with pytest.raises(DataError, match=r"holds recordings, but the model was trained on features: .*39x13"):
        load_rows(str(new), None, features.trained)


def untrained(folder: Path, trained: Trained) -> Bundle:
    """A bundle with random weights."""
    from mmsearch.data.features import feature_shapes

    hyperparameters = Space({}, {"data.audio": "waveforms"}).configuration({})
    model = build_model(hyperparameters, feature_shapes(trained.shapes, trained.rate, hyperparameters))
    bundle = Bundle((Member(model.eval(), hyperparameters),), trained, folder)
    bundle.save(folder)
    return bundle


def test_predictions_name_rows_and_files(mmsearch: Run, workspace: Path) -> None:
    folder = manifest(workspace / "d")
    dataset = read_dataset(str(folder))
    bundle = untrained(workspace / "bundle", dataset.trained)
    again = Bundle.load(workspace / "bundle")
    assert again.trained == dataset.trained
    assert dataset.test is not None
    expected = bundle.probabilities(dataset.test)
    np.testing.assert_allclose(again.probabilities(dataset.test, cache=workspace / "cache"), expected, atol=1e-6)
    raw = dataset.test
    by_arrays = again.predict(raw.image[:, 0], raw.audio[:, 100:-100, 0])
    assert by_arrays.shape == expected.shape
    np.testing.assert_allclose(again.predict(raw.image, raw.audio), expected, atol=1e-6)

    (folder / "19.wav").unlink()
    assert "line 21: 19.wav is missing" in mmsearch("predict", "bundle", "d", code=2).stderr
    done = mmsearch("predict", "bundle", "d", "--skip-broken")
    assert done.stderr == "1 row left out: line 21: 19.wav is missing\n"
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(rows[0])[:6] == ["row_id", "image", "audio", "label", "predicted", "confidence"]
    assert [row["row_id"] for row in rows] == ["18", "20", "21", "22", "23"]
    assert [row["image"] for row in rows] == [f"{row['row_id']}.png" for row in rows]
    assert [row["label"] for row in rows] == [WORDS[int(row["row_id"]) % 3] for row in rows]
    kept = [0, 2, 3, 4, 5]
    np.testing.assert_allclose([float(row["p_barn owl"]) for row in rows], expected[kept, 0], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip),
        min_size=2,
        max_size=5,
        unique=True,
    )
)
def test_classes_of_any_name_round_trip(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    from mmsearch.data.dataset import Pixels, Shapes

    folder = tmp_path_factory.mktemp("bundle")
    trained = Trained(Shapes((1, 8, 8), (2000, 1), len(names)), tuple(names), Pixels(0, 255, 1 / 255), 8000)
    untrained(folder, trained)
    assert Bundle.load(folder).trained == trained


def test_the_flag_is_written_back(workspace: Path) -> None:
    from mmsearch.config import load_config

    file = workspace / "studies" / "digits.toml"
    config = load_config(file, {"data.skip_broken": True, "study.seed": 3})
    assert config.data.skip_broken
    assert config.command("launch") == f"mmsearch launch {file} --seed 3 --skip-broken"
    assert config.command("export", ("--storage",)) == f"mmsearch export {file}"
    assert load_config(file, {"data.skip_broken": None}).command("launch") == f"mmsearch launch {file}"
