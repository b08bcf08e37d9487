"""What is computed in torch from raw rows: the numbers that the data side computes, for any setting and any sound."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features import configuration, waves

from mmsearch.data import features, spectra
from mmsearch.data.dataset import Pixels, Shapes, Trained
from mmsearch.data.features import feature_shapes
from mmsearch.models import frontend
from mmsearch.models.frontend import Frontend, frame_values


def in_doubles(name: str, rows: np.ndarray, rate: int, **given: Any) -> np.ndarray:
    """The features of the data side, with its transform in double precision."""
    exact = SimpleNamespace(rfft=lambda frames, length: scipy.fft.rfft(frames.astype(np.float64), length))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectra, "fft", exact)
        return features.FEATURES[name](rows, rate, **given)


def in_torch(name: str, rows: np.ndarray, rate: int, **given: Any) -> np.ndarray:
    made = frontend.FEATURES[name](rows.shape[1], rate, **given)
    with torch.inference_mode():
        return np.asarray(made(torch.from_numpy(rows)))


def keywords(made: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(made).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def test_there_is_one_for_each_feature_with_the_same_parameters() -> None:
    assert frontend.FEATURES.keys() == features.FEATURES.keys()
    for name, made in frontend.FEATURES.items():
        assert keywords(made) == keywords(features.FEATURES[name])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(features.FEATURES)),
    st.integers(1, 3000),
    st.sampled_from([100, 4000, 8000, 11025, 48000]),
    st.integers(2, 300),
    st.integers(1, 400),
    st.integers(4, 256),
    st.data(),
)
def test_features_of_any_setting_and_any_sound_are_the_same(
    name: str, samples: int, rate: int, window_ms: int, hop_ms: int, bands: int, data: st.DataObject
) -> None:
    given: dict[str, Any] = {"window_ms": window_ms, "hop_ms": hop_ms}
    given |= {"bands": bands} if name in ("log_mel", "mfcc") else {}
    given |= {"log": data.draw(st.booleans())} if name == "stft" else {}
    if name == "mfcc":
        drawn = (data.draw(st.integers(2, 64)), data.draw(st.integers(0, 2)), data.draw(st.booleans()))
        given |= dict(zip(("coefficients", "deltas", "energy"), drawn, strict=True))
    silence, loud = np.zeros(samples), np.where(np.arange(samples) // 7 % 2, 1.0, -1.0)
    tone = 0.9 * np.sin(2 * np.pi * 0.11 * np.arange(samples))
    rows = np.concatenate([waves(2, samples, rate), np.stack([silence, loud, tone]).astype(np.float32)])
    expected, found = in_doubles(name, rows, rate, **given), in_torch(name, rows, rate, **given)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("name", features.FEATURES)
def test_features_are_those_that_models_are_trained_on(name: str) -> None:
    arguments = configuration(name=name).under(f"features.{name}")
    rows = waves(6, 4000)
    expected = features.FEATURES[name](rows, 8000, **arguments)
    np.testing.assert_allclose(in_torch(name, rows, 8000, **arguments), expected, rtol=1e-4, atol=1e-3)


def test_raw_rows_become_what_the_model_takes() -> None:
    shapes = Shapes((1, 4, 5), (800, 1), 2)
    hyperparameters = configuration(name="log_mel")
    image = np.random.default_rng(0).integers(0, 256, (3, 1, 4, 5)).astype(np.float32)
    sound = np.round(waves(3, 800) * 32767)
    trained = Trained(shapes, ("a", "b"), Pixels(0, 255, 1 / 255), 8000, 1 / 32768)
    pixels, found = Frontend(trained, hyperparameters)(torch.from_numpy(image), torch.from_numpy(sound[..., None]))
    np.testing.assert_allclose(pixels, image / 255, rtol=1e-6)
    settings_ = hyperparameters.under("features.log_mel")
    np.testing.assert_allclose(found, in_doubles("log_mel", sound / np.float32(32768), 8000, **settings_), atol=1e-4)
    assert found.shape[1:] == feature_shapes(shapes, 8000, hyperparameters).audio
    assert frame_values(trained, hyperparameters) == found.shape[1] * 256  # the transform of 25 ms

    plain = Trained(Shapes((1, 4, 5), (7, 3), 2), ("a", "b"), Pixels(-1, 1, 1.0))
    audio = torch.randn(3, 7, 3)
    pixels, same = Frontend(plain, hyperparameters)(torch.from_numpy(image), audio)
    assert same is audio
    np.testing.assert_array_equal(pixels, image)
    assert frame_values(plain, hyperparameters) == 0
