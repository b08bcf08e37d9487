"""Features of waveforms: what librosa and scipy compute, for any rate, length and window; and computed once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import scipy
from conftest import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import labels, values, zenodo

from mmsearch.data import features, spectra
from mmsearch.data.cache import keep_latest
from mmsearch.data.dataset import Dataset, Shapes, statistics
from mmsearch.data.features import FEATURES, feature_shapes, with_features
from mmsearch.data.sources import load_rows, read_dataset, rows_from_arrays
from mmsearch.data.spectra import Frames, differences, mel_bank, pitch_bank
from mmsearch.errors import DataError, MmsearchError
from mmsearch.hyperparameters import Hyperparameters, Value
from mmsearch.spaces import Fixed, Space

WAVEFORMS: dict[str, Value] = {"data.audio": "waveforms"}
CUTS = [(8000, 25, 10), (16000, 25, 10), (8000, 32, 8), (22050, 50, 60), (44100, 100, 25)]


def configuration(**given: Value) -> Hyperparameters:
    """A configuration for waveforms; `mfcc__bands` stands for `features.mfcc.bands`."""
    dimensions = {f"features.{name.replace('__', '.')}": Fixed(value) for name, value in given.items()}
    return Space(dimensions, WAVEFORMS).configuration({})


def waves(rows: int, samples: int, rate: int = 8000) -> np.ndarray:
    """Rising tones over noise, some with a silent beginning."""
    seconds = np.arange(samples) / rate
    rng = np.random.default_rng([rows, samples])
    start = rng.uniform(rate / 160, rate / 8, (rows, 1))
    found = 0.3 * np.sin(2 * np.pi * (start + start * seconds) * seconds) + rng.normal(0, 0.01, (rows, samples))
    found[::3, : samples // 4] = 0
    return found.astype(np.float32)


def by_librosa(rows: np.ndarray, frames: Frames) -> np.ndarray:
    """(n, frames, bins) magnitudes. librosa puts a short window into the middle of the transform's length."""
    before = (frames.fft - frames.window) // 2
    return np.stack(
        [
            np.abs(
                librosa.stft(
                    np.pad(row, (before, frames.fft)),
                    n_fft=frames.fft,
                    hop_length=frames.hop,
                    win_length=frames.window,
                    center=False,
                )
            ).T[: frames.count]
            for row in rows
        ]
    )


@pytest.mark.parametrize(("rate", "window_ms", "hop_ms"), CUTS)
def test_spectra_are_those_of_librosa(rate: int, window_ms: int, hop_ms: int) -> None:
    rows = waves(4, rate * 6 // 10, rate)
    frames = Frames.of(rows.shape[1], rate, window_ms, hop_ms)
    cut: dict[str, Any] = {"window_ms": window_ms, "hop_ms": hop_ms}
    magnitude = by_librosa(rows, frames)
    power = magnitude**2
    found = FEATURES["stft"](rows, rate, log=False, **cut)
    np.testing.assert_allclose(found, magnitude, atol=1e-5 * magnitude.max())
    logarithm = FEATURES["stft"](rows, rate, log=True, **cut)
    np.testing.assert_allclose(logarithm, np.log(np.maximum(magnitude, 1e-5)), atol=2e-2)

    mel = librosa.feature.melspectrogram(
        S=power.transpose(0, 2, 1), sr=rate, n_fft=frames.fft, n_mels=26, htk=True, norm=None
    )
    expected = np.log(np.maximum(mel, 1e-10)).transpose(0, 2, 1)
    np.testing.assert_allclose(FEATURES["log_mel"](rows, rate, bands=26, **cut), expected, atol=1e-3)

    cepstra = librosa.feature.mfcc(S=expected.transpose(0, 2, 1), n_mfcc=13, dct_type=2, norm="ortho")
    slopes = librosa.feature.delta(cepstra, width=5, order=1, mode="nearest")
    stacked = [cepstra, slopes, librosa.feature.delta(slopes, width=5, order=1, mode="nearest")]
    settings: dict[str, Any] = {"bands": 26, "coefficients": 13, "energy": False, **cut}
    for deltas in (0, 1, 2):
        found = FEATURES["mfcc"](rows, rate, deltas=deltas, **settings)
        np.testing.assert_allclose(found, np.concatenate(stacked[: deltas + 1], 1).transpose(0, 2, 1), atol=5e-3)

    chroma = librosa.feature.chroma_stft(S=power.transpose(0, 2, 1), sr=rate, n_fft=frames.fft, tuning=0.0)
    np.testing.assert_allclose(FEATURES["chroma"](rows, rate, **cut), chroma.transpose(0, 2, 1), atol=1e-4)


@pytest.mark.parametrize(("rate", "length", "bands"), [(8000, 256, 26), (16000, 512, 40), (44100, 4096, 128)])
def test_banks_are_those_of_librosa(rate: int, length: int, bands: int) -> None:
    expected = librosa.filters.mel(sr=rate, n_fft=length, n_mels=bands, htk=True, norm=None)
    np.testing.assert_allclose(mel_bank(rate, length, bands).T, expected, atol=1e-6)
    np.testing.assert_allclose(pitch_bank(rate, length).T, librosa.filters.chroma(sr=rate, n_fft=length), atol=1e-6)


def test_energy_and_cosine_transform_are_those_of_scipy_and_numpy() -> None:
    rows = waves(3, 4000)
    cut: dict[str, Any] = {"window_ms": 25, "hop_ms": 10}
    found = FEATURES["mfcc"](rows, 8000, bands=20, coefficients=64, deltas=0, energy=True, **cut)
    assert found.shape == (3, 48, 20)  # there are no more coefficients than bands
    energy = np.array(
        [[np.log(max((row[i * 80 : i * 80 + 200] ** 2).sum(), 1e-10)) for i in range(48)] for row in rows]
    )
    np.testing.assert_allclose(found[..., 0], energy, rtol=1e-4)
    mel = FEATURES["log_mel"](rows, 8000, bands=20, **cut)
    np.testing.assert_allclose(found[..., 1:], scipy.fft.dct(mel, norm="ortho")[..., 1:], atol=1e-4)


def test_a_tone_is_where_it_belongs() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000, dtype=np.float64)[None].astype(np.float32)
    magnitude = FEATURES["stft"](tone, 8000, window_ms=128, hop_ms=64, log=False)
    assert set(magnitude.argmax(2).ravel()) == {round(440 / (8000 / 1024))}
    np.testing.assert_allclose(magnitude.max(), 0.5 * 1024 / 4, rtol=0.1)  # half the amplitude times Hann's sum
    assert set(FEATURES["chroma"](tone, 8000, window_ms=128, hop_ms=64).argmax(2).ravel()) == {9}  # A, from C


def test_differences_of_a_line_are_its_slope() -> None:
    line = np.arange(20, dtype=np.float32)[None, :, None] * np.array([2.0, -3.0], np.float32) + 7
    found = differences(line)
    np.testing.assert_allclose(found[0, 2:-2], np.broadcast_to([2, -3], (16, 2)), atol=1e-5)
    assert (differences(line[:, :1]) == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FEATURES)),
    st.integers(1, 3000),
    st.sampled_from([100, 4000, 8000, 11025, 48000]),
    st.integers(2, 300),
    st.integers(1, 400),
    st.integers(4, 256),
    st.data(),
)
def test_features_of_any_setting_are_finite_and_of_the_shape_that_is_said(
    name: str, samples: int, rate: int, window_ms: int, hop_ms: int, bands: int, data: st.DataObject
) -> None:
    given: dict[str, Value] = {f"{name}__window_ms": window_ms, f"{name}__hop_ms": hop_ms}
    given |= {f"{name}__bands": bands} if name in ("log_mel", "mfcc") else {}
    if name == "mfcc":
        given |= {"mfcc__deltas": data.draw(st.integers(0, 2)), "mfcc__energy": data.draw(st.booleans())}
    hyperparameters = configuration(name=name, **given)
    rows = np.concatenate([waves(2, samples, rate), np.zeros((1, samples), np.float32)])
    found = FEATURES[name](rows, rate, **hyperparameters.under(f"features.{name}"))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert found.shape[1:] == feature_shapes(Shapes((1, 8, 8), (samples, 1), 2), rate, hyperparameters).audio
    assert found.shape[1] == 1 + max(0, samples - max(2, round(rate * window_ms / 1000))) // max(
        1, round(rate * hop_ms / 1000)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(100, 100_000), st.integers(1, 12), st.integers(4, 256))
def test_each_mel_band_hears_something(rate: int, power_of_two: int, bands: int) -> None:
    bank = mel_bank(rate, 1 << power_of_two, bands)
    assert (bank >= 0).all()
    assert bank.max(0).min() >= spectra.LEAST_WEIGHT
    assert bank.max() <= 1


def test_narrow_bands_differ_in_sound_too() -> None:
    rows = waves(5, 8000)
    found = FEATURES["log_mel"](rows, 8000, window_ms=4, hop_ms=4, bands=200)
    assert found.std((0, 1)).min() > 0.1


@pytest.mark.parametrize("name", FEATURES)
def test_blocks_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, arguments = waves(7, 3000), configuration(name=name).under(f"features.{name}")
    whole = FEATURES[name](rows, 8000, **arguments)
    for block in (1, 1000, 5000):
        monkeypatch.setattr(spectra, "BLOCK_VALUES", block)
        np.testing.assert_allclose(FEATURES[name](rows, 8000, **arguments), whole, rtol=1e-4, atol=1e-4)


def computed(dataset: Dataset, hyperparameters: Hyperparameters) -> Any:
    """The features of the training rows, without a cache."""
    return with_features(dataset.train, dataset.rate, hyperparameters, None).audio


SAMPLES = 1200
SOUND = (waves(24, SAMPLES) * 32000).astype(np.int16)


def recordings(folder: Path, **replaced: Any) -> Path:
    """A folder of arrays whose audio are waveforms."""
    files = {"train_audio": SOUND, "test_audio": SOUND[:8] // 2}
    return zenodo(folder, **(files | replaced))


def read(folder: Path, cache: Path | None = None, **options: Any) -> Dataset:
    return read_dataset(str(folder), sample_rate=8000, cache=cache, **options)


def test_a_split_gets_its_features(tmp_path: Path) -> None:
    dataset = read(recordings(tmp_path / "d"), tmp_path / "cache")
    assert (dataset.rate, dataset.shapes.audio, dataset.trained.rate) == (8000, (SAMPLES, 1), 8000)
    assert dataset.train.audio.dtype == np.int16
    hyperparameters = configuration(name="mfcc")
    split = dataset.train.only(np.array([3, 5, 9]))
    expected = FEATURES["mfcc"](SOUND.astype(np.float32) / 32768, 8000, **hyperparameters.under("features.mfcc"))
    for cache in (None, tmp_path / "cache"):
        found = with_features(split, 8000, hyperparameters, cache)
        np.testing.assert_array_equal(found.audio[found.rows], expected[[3, 5, 9]])
        assert found.audio.shape[1:] == feature_shapes(dataset.shapes, 8000, hyperparameters).audio == (13, 39)
        np.testing.assert_array_equal(found.labels, split.labels)
        assert found.image is split.image
    assert statistics(found).audio_peak == np.abs(expected[[3, 5, 9]]).max()
    with pytest.raises(ValueError, match="no waveforms"):
        with_features(found, 8000, hyperparameters, None)
    # rows that are features already stay as they are
    assert with_features(split, None, hyperparameters, None) is split
    assert feature_shapes(dataset.shapes, None, hyperparameters) == dataset.shapes


@pytest.mark.parametrize(
    "form",
    [
        lambda sound: sound.astype(np.float32) / 32768,
        lambda sound: sound.astype(np.int64),
        lambda sound: sound.astype(np.int32) * 65536,
        lambda sound: sound.astype(np.int32) * 256,
        lambda sound: sound[..., None],
        lambda sound: sound[:, None],
        lambda sound: sound.astype(">i2"),
    ],
)
def test_waveforms_of_any_type_have_the_same_features(tmp_path: Path, form: Callable[[np.ndarray], np.ndarray]) -> None:
    folder = recordings(tmp_path / "d", train_audio=form(SOUND), test_audio=form(SOUND[:8]))
    dataset = read(folder)
    hyperparameters = configuration(name="log_mel")
    plain = computed(read(recordings(tmp_path / "e")), hyperparameters)
    np.testing.assert_allclose(computed(dataset, hyperparameters), plain, atol=1e-3)
    again = rows_from_arrays(dataset.train.image, form(SOUND), dataset.trained)
    np.testing.assert_allclose(computed(replace(dataset, train=again), hyperparameters), plain, atol=1e-3)


def test_8_bit_waveforms_have_their_middle_at_128(tmp_path: Path) -> None:
    eight = (SOUND // 256 + 128).astype(np.uint8)
    found = read(recordings(tmp_path / "d", train_audio=eight, test_audio=eight[:8]), audio_seconds=0.2)
    assert found.shapes.audio == (1600, 1)
    signed = (eight.astype(np.int16) - 128) * 256
    plain = read(recordings(tmp_path / "e", train_audio=signed, test_audio=signed[:8]), audio_seconds=0.2)
    hyperparameters = configuration(name="stft")
    np.testing.assert_allclose(computed(found, hyperparameters), computed(plain, hyperparameters), atol=1e-4)


def test_waveforms_are_cut_and_padded_around_their_middle(tmp_path: Path) -> None:
    folder, cache = recordings(tmp_path / "d", test_audio=SOUND[:8, :1000]), tmp_path / "cache"
    with pytest.raises(DataError, match=r"data_sp_test.npy: its rows have the shape \(1000, 1\), .*\(1200, 1\)"):
        read(folder)
    for held in (None, cache, cache):
        dataset = read(folder, held, audio_seconds=0.1375)
        np.testing.assert_array_equal(dataset.train.audio[:, :, 0], SOUND[:, 50:1150])
        assert dataset.test is not None
        np.testing.assert_array_equal(dataset.test.audio[:, 50:1050, 0], SOUND[:8, :1000])
        assert not dataset.test.audio[:, :50].any()
        assert not dataset.test.audio[:, 1050:].any()
        rows = load_rows(str(folder), "test", dataset.trained)
        np.testing.assert_array_equal(rows.audio, dataset.test.audio)
    assert len(list(cache.glob("padded-*.npy"))) == 1


@pytest.mark.parametrize(
    ("options", "audio", "fragment"),
    [
        ({"sample_rate": 8000, "audio_shape": (40, 30)}, SOUND, "audio_shape is for features"),
        ({"audio_seconds": 1.0}, SOUND, "audio_seconds is for waveforms"),
        ({"sample_rate": 8000}, values(24, 39, 13), "(24, 39, 13); waveforms are (N, samples)"),
    ],
)
def test_features_and_waveforms_are_not_mixed_up(
    tmp_path: Path, options: dict[str, Any], audio: np.ndarray, fragment: str
) -> None:
    folder = recordings(tmp_path / "d", train_audio=audio, test_audio=audio[:8])
    with pytest.raises(DataError) as caught:
        read_dataset(str(folder), **options)
    assert fragment in str(caught.value)
    with pytest.raises(DataError, match=r"demo audio: .* waveforms"):
        read_dataset("demo", sample_rate=8000)


def entries(cache: Path) -> list[str]:
    """All that the cache holds of features, with what is hidden there."""
    return sorted(path.name for path in cache.iterdir() if "features-" in path.name)


def test_features_are_computed_once_for_each_content_and_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, calls = tmp_path / "cache", []

    def counted(rows: np.ndarray, rate: int, **settings: Any) -> np.ndarray:
        if len(rows):
            calls.append(len(rows))
        return features.log_mel(rows, rate, **settings)

    monkeypatch.setitem(FEATURES, "log_mel", counted)
    one, other = configuration(name="log_mel"), configuration(name="log_mel", log_mel__bands=30)
    copies = [read(recordings(tmp_path / name), cache) for name in ("d", "copy")]
    for dataset in copies:  # the content counts, and not the path
        for hyperparameters in (one, other):
            with_features(dataset.train, 8000, hyperparameters, cache)
            with_features(dataset.train.only(np.array([1, 2])), 8000, hyperparameters, cache)
    assert calls == [24, 24]
    assert copies[0].test is not None
    with_features(copies[0].test, 8000, one, cache)
    with_features(read(recordings(tmp_path / "e", train_audio=SOUND[::-1].copy()), cache).train, 8000, one, cache)
    with_features(copies[0].train, 4000, one, cache)
    assert calls == [24, 24, 8, 24, 24]
    assert len(entries(cache)) == 5
    monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    with_features(copies[0].train, 8000, one, cache)
    assert len(calls) == 6


@pytest.mark.parametrize("damage", [lambda held: held[:-1], lambda held: b"", lambda held: b"x" * len(held)])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache, hyperparameters = tmp_path / "cache", configuration(name="chroma")
    dataset = read(recordings(tmp_path / "d"), cache)
    expected = with_features(dataset.train, 8000, hyperparameters, cache).audio.copy()
    (path,) = cache.glob("features-*.npy")
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(with_features(dataset.train, 8000, hyperparameters, cache).audio, expected)
    assert entries(cache) == [path.name]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    dataset = read(recordings(tmp_path / "d"), tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(MmsearchError, match=r"file.*: cannot be written"):
        with_features(dataset.train, 8000, configuration(name="chroma"), tmp_path / "file")


def test_what_was_used_longest_ago_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    dataset = read(recordings(tmp_path / "d"), cache)
    settings = [configuration(name="log_mel", log_mel__bands=bands) for bands in (20, 21, 22)]
    size = 24 * 13 * 22 * 4 + 128
    monkeypatch.setattr(features, "KEPT_BYTES", 2 * size)
    first = with_features(dataset.train, 8000, settings[0], cache)
    held = first.audio.copy()
    (oldest,) = entries(cache)
    with_features(dataset.train, 8000, settings[1], cache)
    second = next(name for name in entries(cache) if name != oldest)
    with_features(dataset.train, 8000, settings[0], cache)  # used again: now the second is the oldest
    with_features(dataset.train, 8000, settings[2], cache)
    assert oldest in entries(cache)
    assert second not in entries(cache)
    assert len(entries(cache)) == 2
    keep_latest(cache, "features-*.npy", 0, ())
    assert entries(cache) == []
    np.testing.assert_array_equal(first.audio, held)  # what is mapped stays


# A worker that computes features slowly, and says when it begins.
WORKER = """
import hashlib, sys, time
from pathlib import Path
from mmsearch.data import features
from mmsearch.data.sources import read_dataset
from mmsearch.spaces import Fixed, Space

folder, cache, log, seconds = sys.argv[1:]
plain = features.log_mel

def slow(rows, rate, **settings):
    if len(rows):
        with open(log, "a") as handle:
            handle.write("computing\\n")
        time.sleep(float(seconds))
    return plain(rows, rate, **settings)

features.FEATURES["log_mel"] = slow
hyperparameters = Space({"features.name": Fixed("log_mel")}, {"data.audio": "waveforms"}).configuration({})
dataset = read_dataset(folder, sample_rate=8000, cache=Path(cache))
found = features.with_features(dataset.train, 8000, hyperparameters, Path(cache))
print(hashlib.blake2b(found.audio.tobytes()).hexdigest(), type(found.audio).__name__)
"""


def start_worker(tmp_path: Path, log: str, seconds: float) -> subprocess.Popen[str]:
    paths = (tmp_path / "d", tmp_path / "cache", tmp_path / log)
    command = [sys.executable, "-c", WORKER, *map(str, paths), str(seconds)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.02)


def expected_line(tmp_path: Path) -> str:
    dataset = read(tmp_path / "d")
    found = with_features(dataset.train, 8000, configuration(name="log_mel"), None)
    return f"{hashlib.blake2b(found.audio.tobytes()).hexdigest()} memmap\n"


def test_of_several_processes_one_computes(tmp_path: Path) -> None:
    recordings(tmp_path / "d")
    workers = [start_worker(tmp_path, "log", 0.5) for _ in range(4)]
    said = [worker.communicate(timeout=120) for worker in workers]
    assert said == [(expected_line(tmp_path), "")] * 4
    assert (tmp_path / "log").read_text() == "computing\n"
    assert len(entries(tmp_path / "cache")) == 1


def test_a_killed_process_leaves_neither_lock_nor_torn_file(tmp_path: Path) -> None:
    recordings(tmp_path / "d")
    killed = start_worker(tmp_path, "first", 600)
    wait_for(tmp_path / "first")
    waiting = start_worker(tmp_path, "second", 0)
    time.sleep(0.3)
    assert not (tmp_path / "second").exists()  # it begins only when the first is gone
    killed.kill()
    killed.communicate()
    assert waiting.communicate(timeout=120) == (expected_line(tmp_path), "")
    assert (tmp_path / "second").read_text() == "computing\n"
    (left,) = entries(tmp_path / "cache")
    assert left.startswith("features-")


def test_the_fingerprint_knows_the_rate(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "d", train_labels=labels(24))
    prints = {read_dataset(str(folder), sample_rate=rate).fingerprint for rate in (8000, 16000)}
    assert len(prints | {read_dataset(str(folder)).fingerprint}) == 3
    dataset = read(folder)
    assert dataset.fingerprint == replace(dataset, source="elsewhere").fingerprint
