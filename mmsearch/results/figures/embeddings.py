"""Figures of what a model's encoders and its fusion make of the rows: in two dimensions, and in clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from mmsearch.data.features import with_features
from mmsearch.results.bundle import Bundle
from mmsearch.results.figures.rows import Scored, at, places, plain, stratified
from mmsearch.results.figures.style import BLUE, GREEN, OCHRE, PALETTE, VERMILLION, Figure
from mmsearch.results.statistics import Floats, Index, confusion
from mmsearch.training.fit import predict_logits

ROWS = 1000  # that are embedded, at most
FEWEST = 10  # rows, and two classes: with fewer there is nothing to be seen
DIMENSIONS = 50  # to which embeddings are brought before t-SNE, as van der Maaten and Hinton do
PERPLEXITY = 30.0  # at most; of few rows a third of them
ENDS = 8  # restarts of K-means
LABELLED = 16  # classes up to which each is named in the plot
ACROSS = 6  # classes in a line of the legend, where there are more
NEAR, LEAST = 0.3, 10  # share of a class's rows, and points, that are looked at around its name
MOSTLY = 0.5  # of the points around a name are of its class
APART = 0.05  # of the plot's extent, between two names
SYMBOLS = (
    "circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star", "pentagon", "bowtie",
    "hourglass",
)  # fmt: skip
KINDS = {"fused": "fused embedding", "image": "image embedding", "audio": "audio embedding"}


@dataclass(frozen=True, eq=False)
class Clusters:
    """K-means on an embedding, with as many clusters as there are classes, and how it agrees with them.

    cluster: (n,). ari: adjusted Rand index (Hubert and Arabie, 1985), and nmi: normalised mutual information, of
    clusters and classes. silhouette: of the clusters, class_silhouette: of the classes (Rousseeuw, 1987); None where
    there are fewer than two, or as many as rows.
    """

    cluster: Index
    ari: float
    nmi: float
    silhouette: float | None
    class_silhouette: float | None


def embed(
    bundle: Bundle, scored: Scored, positions: Index, device: torch.device | None, cache: Path | None
) -> dict[str, Floats]:
    """(n, width) each: the `fused`, the `image` and the `audio` embedding of rows, of a bundle's first member.

    Where the fusion reads tokens, an encoder's embedding is the mean of its tokens.
    """
    member = bundle.members[0]
    found: dict[str, list[Floats]] = {name: [] for name in KINDS}

    def hook(_: Any, given: tuple[torch.Tensor, torch.Tensor], fused: torch.Tensor) -> None:
        for name, value in zip(KINDS, (fused, *given), strict=True):
            pooled = value.mean(1) if value.dim() == 3 else value
            found[name].append(pooled.float().cpu().numpy())

    split = with_features(at(scored.split, positions), bundle.trained.rate, member.hyperparameters, cache)
    handle = member.model.fusion.register_forward_hook(hook)
    try:
        predict_logits(member.model, split, device or torch.device("cpu"))
    finally:
        handle.remove()
    return {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}


def clusters(embedding: Floats, labels: Index, seed: int = 0) -> Clusters:
    """K-means, the best of several starts; of fewer different rows than classes, a cluster for each."""
    wanted = min(len(np.unique(labels)), len(np.unique(embedding, axis=0)))
    cluster = KMeans(wanted, n_init=ENDS, random_state=seed).fit_predict(embedding).astype(np.int64)
    return Clusters(
        cluster,
        float(adjusted_rand_score(labels, cluster)),
        float(normalized_mutual_info_score(labels, cluster)),
        _silhouette(embedding, cluster),
        _silhouette(embedding, labels),
    )


def _silhouette(embedding: Floats, groups: Index) -> float | None:
    return float(silhouette_score(embedding, groups)) if 2 <= len(np.unique(groups)) < len(groups) else None


def in_two_dimensions(embedding: Floats, seed: int = 0) -> Floats:
    """(n, 2) by t-SNE: van der Maaten and Hinton, "Visualizing data using t-SNE" (2008). n is at least 4.

    Rows that are all the same lie on one point.
    """
    centred = embedding - embedding.mean(0)
    spread = float(np.abs(centred).max())
    if spread <= 1e-12:
        return np.zeros((len(embedding), 2))
    values = (centred / spread).astype(np.float64)
    if min(values.shape) > DIMENSIONS:
        values = PCA(DIMENSIONS, svd_solver="randomized", random_state=seed).fit_transform(values)
    first = "pca" if values.shape[1] >= 2 else "random"
    perplexity = max(1.0, min(PERPLEXITY, (len(values) - 1) / 3))
    found: Floats = TSNE(2, perplexity=perplexity, init=first, random_state=seed).fit_transform(values)
    return found


def matched(cluster: Index, labels: Index, classes: int) -> Index:
    """(n,) each row's cluster by the class that it is matched with, one to one, so that most rows agree."""
    size = max(classes, int(cluster.max()) + 1)
    counts = confusion(labels, cluster, size)
    true, own = linear_sum_assignment(-counts)
    names = np.empty(size, dtype=np.int64)
    names[own] = true
    return np.asarray(names[cluster], dtype=np.int64)


def embedding_figures(
    bundle: Bundle, scored: Scored, *, device: torch.device | None = None, cache: Path | None = None
) -> list[Figure]:
    """t-SNE of each embedding with its classes and its clusters, and how well these agree; none of very few rows."""
    positions = stratified(scored.labels, ROWS)
    labels = scored.labels[positions]
    if len(positions) < FEWEST or len(np.unique(labels)) < 2:
        return []
    found = embed(bundle, scored, positions, device, cache)
    split = {name: clusters(values, labels) for name, values in found.items()}
    told = f"{len(positions):,} of the {scored.where}, each class by its share" if len(positions) < len(
        scored.labels
    ) else f"the {scored.where}"  # fmt: skip
    if bundle.members[1:]:
        told += f"; the first of {len(bundle.members)} members"
    return [
        *(_pair(name, found[name], split[name], scored, positions, told, bundle) for name in KINDS),
        _agreement(split, len(np.unique(labels)), told),
    ]


def _pair(
    name: str, embedding: Floats, found: Clusters, scored: Scored, positions: Index, told: str, bundle: Bundle
) -> Figure:
    """One embedding twice: coloured by class, and by cluster."""
    classes, labels = scored.classes, scored.labels[positions]
    flat = in_two_dimensions(embedding).astype(np.float32)
    own = matched(found.cluster, labels, len(classes))
    plot = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=("true class", "K-means cluster")
    )
    few = len(np.unique(labels)) <= LABELLED
    rows = [plain(scored.row(position)) for position in positions.tolist()]
    for column, groups in ((1, labels), (2, own)):
        for group in np.unique(groups).tolist():
            member = np.flatnonzero(groups == group)
            plot.add_scatter(
                x=flat[member, 0],
                y=flat[member, 1],
                mode="markers",
                name=plain(classes[group], 18 if few else 14),
                legendgroup=str(group),
                showlegend=column == 1,
                marker={**marker(group), "size": 7, "opacity": 0.85},
                text=[rows[i] for i in member] if column == 1 else None,
                customdata=None if column == 1 else [plain(classes[i], 30) for i in labels[member]],
                hovertemplate=(f"{plain(classes[group])}: %{{text}}" if column == 1 else
                               f"cluster of {plain(classes[group])}, true class %{{customdata}}") + "<extra></extra>",
                row=1,
                col=column,
            )  # fmt: skip
    for group, (x, y) in label_places(flat, labels).items() if few else ():
        text = f"<b>{plain(classes[group], 12)}</b>"
        plot.add_annotation(x=x, y=y, text=text, templateitemname="label", visible=True, row=1, col=1)
    plot.update_xaxes(title="t-SNE dimension 1 (no unit)", zeroline=False, showticklabels=False, ticks="")
    plot.update_yaxes(zeroline=False, showticklabels=False, ticks="")
    plot.update_yaxes(title="t-SNE dimension 2 (no unit)", row=1, col=1)
    below = 0 if few else -(-len(np.unique(labels)) // ACROSS)  # lines of a legend that is too long to stand beside
    plot.update_layout(legend={"font": {"size": 12}, "tracegroupgap": 0}, margin={"t": 40})
    if below:
        beside = {
            "orientation": "h",
            "entrywidth": 0.98 / (ACROSS + 1),
            "entrywidthmode": "fraction",
            "font": {"size": 10},
        }
        plot.update_layout(legend={**beside, "x": 0, "y": -0.12, "yanchor": "top"}, margin={"b": 70 + 20 * below})
    reads = bundle.members[0].model.fusion.reads == "tokens" and name != "fused"
    agree = float((own == labels).mean())
    return Figure(
        f"embedding_{name}",
        f"The {KINDS[name]}",
        f"t-SNE of the {KINDS[name]}, {embedding.shape[1]} numbers a row"
        + (", the mean of its tokens" if reads else "")
        + f": {told}. Left by true class; right by K-means on the embedding itself, each cluster in the colour of the "
        f"class that it is matched with ({agree:.1%} of the rows agree). ARI {found.ari:.3f}, NMI {found.nmi:.3f}"
        + (f", silhouette {found.silhouette:.3f}" if found.silhouette is not None else "")
        + ". Distances between far groups mean nothing in t-SNE.",
        plot,
        width=960,
        height=500 + 20 * below,
        alternative=f"Two scatter plots; {agree:.1%} of the rows lie in the cluster of their class.",
    )


def label_places(flat: Floats, labels: Index) -> dict[int, tuple[float, float]]:
    """Where the name of a class may stand among points (n, 2): where its own points lie thickest, clear of other names.

    A class whose place is taken has none, and neither has one whose points lie nowhere among themselves.
    """
    tree, extent = cKDTree(flat), np.maximum(np.ptp(flat, axis=0), 1e-9)
    typical = len(flat) / len(np.unique(labels))
    reach, near = tree.query(flat, k=min(len(flat), max(LEAST, round(NEAR * typical))))
    same = (labels[near] == labels[:, None]).mean(1)
    found: dict[int, tuple[float, float]] = {}
    for group in np.unique(labels).tolist():
        member = np.flatnonzero(labels == group)
        best = member[np.lexsort((reach[member, -1], -same[member]))[0]]
        around = near[best][labels[near[best]] == group]  # of points on one place it need not hold `best`
        x, y = np.median(flat[np.append(around, best)], axis=0).tolist()
        clear = all(np.abs((np.array((x, y)) - other) / extent).max() > APART for other in found.values())
        if clear and same[best] >= MOSTLY:
            found[group] = (x, y)
    return found


def marker(group: int) -> dict[str, str]:
    """Colour and shape of a class: no two of 55 share both, and neighbours share neither."""
    colours = PALETTE[:5]
    return {"color": colours[group % len(colours)], "symbol": SYMBOLS[group % len(SYMBOLS)]}


def _agreement(found: dict[str, Clusters], classes: int, told: str) -> Figure:
    """ARI, NMI and silhouettes of the embeddings, side by side."""
    measures: Sequence[tuple[str, str, str]] = (
        ("ari", "ARI", BLUE),
        ("nmi", "NMI", VERMILLION),
        ("silhouette", "silhouette of clusters", GREEN),
        ("class_silhouette", "silhouette of classes", OCHRE),
    )
    plot = go.Figure()
    least = 0.0
    for key, said, colour in measures:
        values = [getattr(clustered, key) for clustered in found.values()]
        least = min([least, *(value for value in values if value is not None)])
        plot.add_bar(
            x=list(range(len(values))),
            y=values,
            name=said,
            marker={"color": colour},
            text=["" if value is None else f"{value:.3f}" for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"{said}: %{{y:.4f}}<extra></extra>",
        )
    plot.update_xaxes(**places([KINDS[name] for name in found]), title="embedding")
    plot.update_yaxes(title="score (1 is perfect)", range=(least - 0.1 if least < 0 else 0, 1.1), dtick=0.2)
    plot.update_layout(legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}, margin={"t": 44})
    return Figure(
        "clusters",
        "How the embeddings cluster",
        f"K-means with {classes} clusters on each embedding: its agreement with the classes (ARI: adjusted Rand "
        "index, NMI: normalised mutual information), and how compact and apart its clusters, and the classes, are "
        f"(silhouette, -1 to 1). Of {told}.",
        plot,
        alternative="; ".join(f"{KINDS[name]}: ARI {one.ari:.3f}, NMI {one.nmi:.3f}" for name, one in found.items())
        + ".",
    )
