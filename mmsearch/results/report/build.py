"""A report out of what is known of a study."""

from __future__ import annotations

from mmsearch.results.report.again import ablation, confirmation
from mmsearch.results.report.content import Report
from mmsearch.results.report.ends import limits, reproduction, summary
from mmsearch.results.report.material import Material
from mmsearch.results.report.methods import methods
from mmsearch.results.report.model import model
from mmsearch.results.report.trials import found


def build(material: Material) -> Report:
    """The report of a study."""
    name = material.searched.config.study.name
    parts = (summary, methods, found, confirmation, ablation, model, reproduction, limits)
    return Report(
        f"{name}: a hyperparameter search",
        f"Report of the study {name}, {material.made.day} {material.made:%B %Y}",
        tuple(part(material) for part in parts),
    )
