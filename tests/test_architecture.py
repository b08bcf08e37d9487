"""The rules of the house, read from the sources: imports go down only, and what is written twice says the same."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, environment

import mmsearch.models.factory  # noqa: F401 - registers encoders and fusions
from mmsearch.data.features import FEATURES
from mmsearch.hyperparameters import TABLE, Hyperparameters
from mmsearch.models.factory import _head
from mmsearch.models.registry import AUDIO_ENCODERS, FUSIONS, IMAGE_ENCODERS
from mmsearch.training.augmentation import augment_audio, augment_images
from mmsearch.training.losses import LOSSES
from mmsearch.training.optimisers import OPTIMISERS, SCHEDULES

# A module may import from its own floor and from those below.
FLOORS = (
    ("__init__", "__main__"),
    ("cli", "cli_results", "cli_search"),
    ("console", "options"),
    ("results",),
    ("search",),
    ("training",),
    ("models",),
    ("data",),
    ("config", "checks", "constraints", "spaces", "hyperparameters", "paths", "texts"),
    ("errors",),
)
FLOOR = {name: -height for height, names in enumerate(FLOORS) for name in names}

BOTH = {"search.objective"}  # all that imports both Optuna and torch, anywhere


def sources() -> dict[str, Path]:
    """Each module of the package by its dotted name below `mmsearch`."""
    package = ROOT / "mmsearch"
    paths = sorted(package.rglob("*.py"))
    return {".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


SOURCES = sources()


def imports(module: str, *, top_level: bool = False) -> Iterator[str]:
    """The dotted names that a module imports: also inside functions and for type checkers; or at its top only."""
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import, which these tests do not follow"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def uses(module: str, library: str, *, top_level: bool = False) -> bool:
    return any(name.split(".")[0] == library for name in imports(module, top_level=top_level))


def test_the_sources_are_found() -> None:
    assert {"cli", "config", "data", "data.sources", "search.storage", "__init__"} <= set(SOURCES)
    assert "mmsearch.training.fit.fit" in set(imports("search.folds"))
    assert "mmsearch.search.launcher.launch" in set(imports("cli_search"))
    assert "mmsearch.search.launcher.launch" not in set(imports("cli_search", top_level=True))


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down_only(module: str) -> None:
    here = module.split(".")[0]
    assert here in FLOOR, f"mmsearch.{here} has no floor"
    for name in imports(module):
        library, _, rest = name.partition(".")
        if library == "mmsearch":
            other = rest.split(".")[0]
            assert other in FLOOR, f"mmsearch.{module} imports {name}, which has no floor"
            assert FLOOR[other] <= FLOOR[here], f"mmsearch.{module} imports {name}, which stands above it"


def test_hyperparameters_and_paths_need_nothing_of_ours_above_errors() -> None:
    for module in ("hyperparameters", "paths", "errors"):
        ours = {name for name in imports(module) if name.startswith("mmsearch.")}
        assert {name.split(".")[1] for name in ours} <= {"errors"}


@pytest.mark.parametrize("module", [m for m in SOURCES if m.split(".")[0] in ("data", "models", "training")])
def test_data_models_and_training_know_nothing_of_optuna(module: str) -> None:
    assert not uses(module, "optuna")
    assert not uses(module, "optuna_dashboard")


@pytest.mark.parametrize(
    "module", [m for m in SOURCES if m.split(".")[0] not in ("search", "results", "console", "cli", "cli_results")]
)
def test_only_search_results_and_the_command_line_know_of_a_study(module: str) -> None:
    assert not uses(module, "optuna")
    assert module == "config" or not uses(module, "sqlalchemy")  # config: its URL parser, in one function


@pytest.mark.parametrize("module", [m for m in SOURCES if m.split(".")[0] == "data"])
def test_data_knows_nothing_of_torch(module: str) -> None:
    assert not uses(module, "torch")


def test_optuna_and_torch_meet_in_few_places() -> None:
    assert {m for m in SOURCES if uses(m, "optuna") and uses(m, "torch")} == BOTH
    at_the_top = {m for m in SOURCES if uses(m, "optuna", top_level=True) and uses(m, "torch", top_level=True)}
    assert {m for m in at_the_top if m.startswith("search.")} == {"search.objective"}


def test_one_file_touches_what_is_private_in_optuna() -> None:
    private = {
        module
        for module in SOURCES
        for name in imports(module)
        if name.startswith("optuna.") and any(part.startswith("_") for part in name.split("."))
    }
    assert private == {"search.storage"}


@pytest.mark.parametrize("module", SOURCES)
def test_a_file_reads_in_a_sitting(module: str) -> None:
    assert len(SOURCES[module].read_text(encoding="utf-8").splitlines()) <= 450


HEAVY = ("torch", "optuna", "numpy", "scipy", "sklearn", "sqlalchemy")


@pytest.mark.parametrize(
    ("arguments", "may", "code"),
    [
        (["--help"], (), 0),
        (["--version"], (), 0),
        (["launch", "--help"], (), 0),
        (["init", "made"], (), 0),
        (["launch", "missing.toml"], (), 2),
        (["data", "missing"], ("numpy",), 2),
    ],
)
def test_a_command_imports_only_what_it_needs(
    arguments: list[str], may: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    program = (
        "import sys\nfrom mmsearch.cli import main\n"
        "try: main()\nexcept SystemExit as end: code = end.code or 0\n"
        f"print('LOADED', code, *(name for name in {HEAVY} if name in sys.modules))"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1].split() == ["LOADED", str(code), *(name for name in HEAVY if name in may)]


def test_importing_data_and_training_does_not_load_optuna() -> None:
    program = (
        "import sys, mmsearch.training.fit, mmsearch.data.sources, mmsearch.results.predict\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('optuna', 'sqlalchemy')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr


def keywords(function: Callable[..., Any]) -> set[str]:
    """The keyword-only arguments of a class or function."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def named(prefix: str) -> set[str]:
    """The keyword arguments that the table's names under a prefix become."""
    rows = {name: row.default for name, row in TABLE.items() if name.startswith(f"{prefix}.")}
    return set(Hyperparameters(rows).under(prefix))


REGISTRIES: dict[str, tuple[str, Mapping[str, Callable[..., Any]]]] = {
    "image.encoder": ("image", IMAGE_ENCODERS),
    "audio.encoder": ("audio", AUDIO_ENCODERS),
    "fusion.name": ("fusion", FUSIONS),
    "features.name": ("features", FEATURES),
    "loss.name": ("loss", LOSSES),
    "optimizer.name": ("optimizer", OPTIMISERS),
    "schedule.name": ("schedule", SCHEDULES),
}


@pytest.mark.parametrize("name", REGISTRIES)
def test_what_a_study_file_may_choose_is_what_there_is(name: str) -> None:
    assert set(TABLE[name].options) == set(REGISTRIES[name][1])


@pytest.mark.parametrize(
    ("prefix", "made"),
    [(f"{group}.{name}", made) for group, registry in list(REGISTRIES.values())[:5] for name, made in registry.items()],
)
def test_encoders_and_fusions_take_what_the_table_names(prefix: str, made: Callable[..., Any]) -> None:
    assert keywords(made) == named(prefix)


@pytest.mark.parametrize(("name", "schedule"), SCHEDULES.items())
def test_schedules_take_what_the_table_names(name: str, schedule: Callable[..., float]) -> None:
    assert set(inspect.signature(schedule).parameters) - {"progress"} == named(f"schedule.{name}")


@pytest.mark.parametrize(("name", "optimiser"), OPTIMISERS.items())
def test_optimisers_take_what_the_table_names(name: str, optimiser: Callable[..., Any]) -> None:
    assert named(f"optimizer.{name}") <= set(inspect.signature(optimiser).parameters)
    assert named(f"optimizer.{name}")


def test_each_name_of_the_table_belongs_to_something() -> None:
    """A parameter under no registered choice, and none of the few that stand alone, would change nothing."""
    alone = {"batch_size", "optimizer.lr", "optimizer.clip", "ema.decay", "transfer.freeze_epochs", *REGISTRIES}
    alone |= {"loss.label_smoothing", "loss.class_weights", "loss.l1", "audio.scale", "fusion.modality_dropout"}
    alone |= {f"head.{name}" for name in keywords(_head)}
    alone |= {f"augment.image.{name}" for name in keywords(augment_images)}
    alone |= {f"augment.audio.{name}" for name in keywords(augment_audio)} | {"augment.mixup"}
    chosen = tuple(f"{group}.{name}." for group, registry in REGISTRIES.values() for name in registry)
    assert [name for name in TABLE if name not in alone and not name.startswith(chosen)] == []


def test_the_public_names_are_there() -> None:
    import mmsearch

    tree = ast.parse((ROOT / "mmsearch" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {name.name for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert typed == set(mmsearch.__all__)
    assert all(getattr(mmsearch, name).__doc__ for name in mmsearch.__all__)
