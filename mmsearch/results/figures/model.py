"""All figures of a retrained model, on the rows that it is scored on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmsearch.data.dataset import Dataset
from mmsearch.paths import BundlePaths
from mmsearch.results.bundle import Bundle
from mmsearch.results.figures.architecture import architecture_figure
from mmsearch.results.figures.confidence import coverage_figure, reliability_figure
from mmsearch.results.figures.embeddings import embedding_figures
from mmsearch.results.figures.layers import layer_table
from mmsearch.results.figures.rows import scored
from mmsearch.results.figures.samples import mistakes_figure, sample_figures
from mmsearch.results.figures.scores import (
    NUMBERED,
    confused_pairs_figure,
    confusion_figure,
    modalities_figure,
    per_class_figure,
)
from mmsearch.results.figures.style import Figure
from mmsearch.results.scores import scored_split

__all__ = ["layer_table", "model_figures"]


def model_figures(
    bundle: Bundle, dataset: Dataset, *, device: torch.device | None = None, cache: Path | None = None
) -> list[Figure]:
    """Figures of a bundle's scores, confidence, mistakes, embeddings and architecture, in the order of a report.

    They are of the rows that `scored_split` picks, of which a few thousand are predicted again; `cache` is a folder
    that keeps features. What metrics.json does not hold is left out.
    """
    name, split = scored_split(dataset)
    seen = scored(bundle, name, split, device, cache)
    metrics: dict[str, Any] = bundle.metrics if BundlePaths(bundle.folder).metrics.is_file() else {}
    pairs = confused_pairs_figure(seen) if len(seen.classes) > NUMBERED else None
    modalities = modalities_figure(metrics)
    return [
        confusion_figure(seen),
        *([pairs] if pairs is not None else []),
        per_class_figure(seen),
        reliability_figure(seen),
        coverage_figure(seen),
        *([modalities] if modalities is not None else []),
        mistakes_figure(seen),
        *sample_figures(seen),
        *embedding_figures(bundle, seen, device=device, cache=cache),
        architecture_figure(bundle),
    ]
