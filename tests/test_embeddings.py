"""What a model makes of rows, in two dimensions and in clusters: the numbers are scikit-learn's."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from test_figures_model import bundle_of, data

from mmsearch.data.features import with_features
from mmsearch.models.registry import FUSIONS
from mmsearch.results.figures.embeddings import (
    ENDS,
    clusters,
    embed,
    embedding_figures,
    in_two_dimensions,
    label_places,
    marker,
    matched,
)
from mmsearch.results.figures.rows import scored
from mmsearch.results.statistics import Floats, Index


def blobs(classes: int = 3, each: int = 20, apart: float = 6.0, width: int = 5) -> tuple[Floats, Index]:
    """Points around a centre a class, which are `apart` deviations from one another."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(classes), each))
    return rng.normal(0, 1, (len(labels), width)) + apart * np.eye(classes, width)[labels], labels


@pytest.mark.parametrize("apart", [0.0, 2.0, 9.0])
def test_clusters_agree_with_classes_as_scikit_learn_says(apart: float) -> None:
    points, labels = blobs(apart=apart)
    found = clusters(points, labels)
    assert (found.cluster == KMeans(3, n_init=ENDS, random_state=0).fit_predict(points)).all()
    assert found.ari == pytest.approx(adjusted_rand_score(labels, found.cluster))
    assert found.nmi == pytest.approx(normalized_mutual_info_score(labels, found.cluster))
    assert found.silhouette == pytest.approx(silhouette_score(points, found.cluster))
    assert found.class_silhouette == pytest.approx(silhouette_score(points, labels))
    assert (found.ari > 0.99) == (apart == 9.0)


def test_clusters_of_rows_that_are_mostly_the_same() -> None:
    labels = np.array([0, 1, 2] * 4)
    found = clusters(np.zeros((12, 4)), labels)
    assert (found.ari, found.silhouette) == (0.0, None)
    two = clusters(np.repeat([[0.0, 1.0], [1.0, 0.0]], 6, axis=0), labels)
    assert len(np.unique(two.cluster)) == 2


def test_a_cluster_wears_the_colour_of_its_class() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    cluster = np.array([2, 2, 2, 0, 0, 1, 1, 1, 1])
    assert matched(cluster, labels, 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert matched(np.array([0, 1, 0]), np.array([4, 2, 4]), 5).tolist() == [4, 2, 4]


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_embeddings_are_what_the_model_computes(fusion: str) -> None:
    dataset = data()
    assert dataset.test is not None
    bundle = bundle_of(dataset, fusion__name=fusion, audio__encoder="rnn")
    model = bundle.members[0].model
    positions = np.array([5, 0, 17])
    found = embed(bundle, scored(bundle, "test", dataset.test), positions, None, None)
    image, audio = (torch.from_numpy(values[positions]).float() for values in (dataset.test.image, dataset.test.audio))
    with torch.inference_mode():
        fused = model.eval().embed(image, audio)
        image, audio = (image - model.image_mean) / model.image_std, (audio - model.audio_mean) / model.audio_std
        tokens = model.fusion.reads == "tokens"
        seen = model.image_encoder.tokens(image).mean(1) if tokens else model.image_encoder(image)
        heard = model.audio_encoder.tokens(audio).mean(1) if tokens else model.audio_encoder(audio)
    for name, expected in (("fused", fused), ("image", seen), ("audio", heard)):
        assert found[name].shape == expected.shape
        assert np.allclose(found[name], expected, atol=1e-5), name


def test_embeddings_of_waveforms_are_of_their_features() -> None:
    dataset = data(audio=(2000, 1), rate=4000)
    assert dataset.test is not None
    bundle = bundle_of(dataset, features__name="chroma", audio__encoder="mlp")
    found = embed(bundle, scored(bundle, "test", dataset.test), np.arange(4), None, None)
    features = with_features(dataset.test, 4000, bundle.members[0].hyperparameters, None)
    assert features.audio.shape[2] == 12
    assert len(found["audio"]) == 4
    assert np.isfinite(found["audio"]).all()


def test_two_dimensions_keep_neighbours_and_are_the_same_each_time() -> None:
    points, labels = blobs(apart=12.0, width=60)
    flat = in_two_dimensions(points)
    assert flat.shape == (60, 2)
    nearest = np.linalg.norm(flat[:, None] - flat[None], axis=2) + np.diag(np.full(60, np.inf))
    assert (labels[nearest.argmin(1)] == labels).all()
    assert (in_two_dimensions(points) == flat).all()


@pytest.mark.parametrize(
    "points", [np.zeros((12, 3)), np.arange(12.0)[:, None], np.eye(12, 200), np.ones((4, 2)) * 1e9]
)
def test_two_dimensions_of_what_has_fewer(points: Floats) -> None:
    flat = in_two_dimensions(points)
    assert flat.shape == (len(points), 2)
    assert np.isfinite(flat).all()


def test_names_stand_among_their_own_points_and_apart() -> None:
    points, labels = blobs(apart=40.0, width=2, classes=2)
    found = label_places(points, labels)
    for group, place in found.items():
        assert labels[np.linalg.norm(points - place, axis=1).argmin()] == group
    assert len(found) == 2
    assert label_places(np.random.default_rng(0).random((200, 2)), np.arange(200) % 20) == {}
    assert label_places(np.zeros((9, 2)), np.arange(9) % 3) == {}
    far = np.concatenate([points, points[:20] * 0 + 40 * 100])  # two classes so close that one name has to go
    assert len(label_places(far, np.concatenate([labels, np.full(20, 2)]))) == 2


def test_no_two_of_55_classes_look_the_same() -> None:
    looks = [tuple(marker(group).values()) for group in range(55)]
    assert len(set(looks)) == 55
    for one, other in itertools.pairwise(looks):
        assert one[0] != other[0]
        assert one[1] != other[1]


def test_figures_of_embeddings_say_what_they_are_of() -> None:
    dataset = data(test=30)
    assert dataset.test is not None
    bundle = bundle_of(dataset, 2, fusion__name="attention", image__encoder="mlp", audio__encoder="mlp")
    seen = scored(bundle, "test", dataset.test)
    fused, image, audio, table = embedding_figures(bundle, seen)
    assert "the first of 2 members" in fused.caption
    assert "the mean of its tokens" in image.caption
    assert "the mean of its tokens" not in fused.caption
    own = clusters(embed(bundle, seen, np.arange(30), None, None)["audio"], seen.labels)
    assert f"ARI {own.ari:.3f}, NMI {own.nmi:.3f}, silhouette {own.silhouette:.3f}" in audio.caption
    assert table.plot.data[0].y[2] == own.ari
    for figure in (fused, image, audio):
        for legend in (True, False):
            assert sum(len(trace.x) for trace in figure.plot.data if trace.showlegend is legend) == 30


def test_of_very_few_rows_or_one_class_there_are_none() -> None:
    dataset = data(test=9)
    assert dataset.test is not None
    bundle = bundle_of(dataset, image__encoder="mlp", audio__encoder="mlp")
    assert embedding_figures(bundle, scored(bundle, "test", dataset.test)) == []
    alike = replace(dataset.train, label=np.ones(40, dtype=np.int64))
    assert embedding_figures(bundle, scored(bundle, "training", alike)) == []
