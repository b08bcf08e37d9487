"""mmsearch: hyperparameter search for classifiers that see and hear.

All that the command line does is here too:

    import mmsearch

    config = mmsearch.load_config("studies/smoke.toml", {"study.trials": 4})
    summary = mmsearch.launch(config, workers=2)
    bundle = mmsearch.retrain_best(config)
    probabilities = bundle.predict(image, audio)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsearch.config import StudyConfig as StudyConfig
    from mmsearch.config import load_config as load_config
    from mmsearch.data.sources import load_dataset as load_dataset
    from mmsearch.data.sources import read_dataset as read_dataset
    from mmsearch.errors import MmsearchError as MmsearchError
    from mmsearch.hyperparameters import Hyperparameters as Hyperparameters
    from mmsearch.models.factory import build_model as build_model
    from mmsearch.results.bundle import Bundle as Bundle
    from mmsearch.results.confirm import confirm as confirm
    from mmsearch.results.retrain import retrain_best as retrain_best
    from mmsearch.results.runtime import load_predictor as load_predictor
    from mmsearch.search.enqueue import enqueue as enqueue
    from mmsearch.search.launcher import Summary as Summary
    from mmsearch.search.launcher import launch as launch
    from mmsearch.search.study import open_study as open_study
    from mmsearch.training.fit import fit as fit

# Loaded on first use, so that what needs no torch does not wait for it.
_HOMES = {
    "Bundle": "mmsearch.results.bundle",
    "Hyperparameters": "mmsearch.hyperparameters",
    "MmsearchError": "mmsearch.errors",
    "StudyConfig": "mmsearch.config",
    "Summary": "mmsearch.search.launcher",
    "build_model": "mmsearch.models.factory",
    "confirm": "mmsearch.results.confirm",
    "enqueue": "mmsearch.search.enqueue",
    "fit": "mmsearch.training.fit",
    "launch": "mmsearch.search.launcher",
    "load_config": "mmsearch.config",
    "load_dataset": "mmsearch.data.sources",
    "load_predictor": "mmsearch.results.runtime",
    "open_study": "mmsearch.search.study",
    "read_dataset": "mmsearch.data.sources",
    "retrain_best": "mmsearch.results.retrain",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmsearch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
