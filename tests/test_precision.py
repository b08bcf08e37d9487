"""In which precision training steps are computed: the rule, the study file's key, and gradients as good in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast, get_args

import pytest
import torch
from conftest import ROOT
from torch import Tensor
from torch.nn import functional

from mmsearch.config import SearchSection, load_config
from mmsearch.data.dataset import Shapes
from mmsearch.errors import StudyFileError
from mmsearch.hyperparameters import TABLE, Hyperparameters, Value
from mmsearch.models.factory import build_model
from mmsearch.spaces import Fixed, Space
from mmsearch.training import precision
from mmsearch.training.losses import LOSSES
from mmsearch.training.precision import Precision, autocast_for, computed_in, gains, processor_flags

CPU = torch.device("cpu")
SHAPES = Shapes((1, 16, 16), (12, 6), 5)
ROWS = 48
WITH = "processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512_bf16 clzero\n\nprocessor\t: 1\nflags\t\t: fpu avx512_bf16\n"
AMX = "flags\t\t: fpu avx512f amx_bf16 amx_tile\n"
WITHOUT = "model name\t: one that was named avx512_bf16\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16x\n"
# Each choice and each normalisation, activation and kind of dropout, the rest as the program's defaults have it.
CHOICES = [
    (name, option)
    for name, parameter in TABLE.items()
    if name.startswith(("image.", "audio.", "fusion.", "head."))
    for option in parameter.options
    if name.endswith(("encoder", "fusion.name", "norm", "activation", "cell", "input", "dropout_kind"))
]


def configuration(given: dict[str, Value]) -> Hyperparameters:
    return Space({name: Fixed(value) for name, value in given.items()}).configuration({})


def chosen(name: str, option: Value) -> Hyperparameters:
    given: dict[str, Value] = {parent: allowed[0] for parent, allowed in TABLE[name].requires}
    if name.endswith("dropout_kind"):
        given[name.removesuffix("_kind")] = 0.2
    return configuration({**given, name: option})


@pytest.fixture
def has_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(WITH)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")


@pytest.fixture
def has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(WITHOUT)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")


@pytest.mark.parametrize(("text", "found"), [(WITH, True), (AMX, True), (WITHOUT, False), ("", False), (None, False)])
def test_a_processor_says_whether_it_has_bfloat16(
    text: str | None, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    assert precision.supports_bfloat16(CPU) is found
    assert not precision.supports_bfloat16(torch.device("meta"))


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not say")
def test_torch_knows_the_same_of_this_processor() -> None:
    known = torch.cpu.get_capabilities()
    for name in precision.INSTRUCTIONS:
        assert (name in processor_flags(precision.CPUINFO)) == bool(known.get(name, False))


@pytest.mark.usefixtures("has_bfloat16")
def test_auto_is_bfloat16_where_the_processor_has_it_and_a_step_gains() -> None:
    assert computed_in("auto", configuration({}), CPU) == "bfloat16"
    assert computed_in("auto", configuration({"batch_size": 8}), CPU) == "float32"
    narrow: dict[str, Value] = {"image.encoder": "mlp", "image.mlp.units_1": 32}
    assert computed_in("auto", configuration(narrow), CPU) == "bfloat16"  # beside convolutions
    narrow |= {"audio.encoder": "mlp", "audio.mlp.units_1": 64}
    assert computed_in("auto", configuration(narrow), CPU) == "float32"
    assert computed_in("auto", configuration({}), torch.device("cuda")) == "float32"


@pytest.mark.usefixtures("has_none")
def test_auto_is_float32_where_the_processor_has_no_other_and_what_is_asked_for_is_done() -> None:
    defaults = configuration({})
    assert {chosen: computed_in(chosen, defaults, CPU) for chosen in get_args(Precision)} == {
        "auto": "float32",
        "float32": "float32",
        "bfloat16": "bfloat16",
    }
    expected = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
    for asked, dtype in expected.items():
        with autocast_for(cast(Precision, asked), defaults, CPU):
            assert functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


def test_auto_takes_bfloat16_only_where_it_was_measured_to_be_faster_and_as_good() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "precision.json").read_text())
    overall = measured["all_families"]
    assert {result["family"] for result in measured["results"]} >= {"mlp", "cnn", "conv1d", "vit", "rnn gru"}
    for result in measured["results"]:
        if gains(configuration(result["given"])):
            assert result["family"] not in (*overall["slower"], *overall["macro_f1"]["worse"]), result["family"]


def gradient(hyperparameters: Hyperparameters, chosen: Precision) -> Tensor:
    """All gradients of one training step in a row; the same rows, weights and dropout in each precision."""
    torch.manual_seed(0)
    model = build_model(hyperparameters, SHAPES).train()
    image, audio = torch.rand(ROWS, *SHAPES.image), torch.randn(ROWS, *SHAPES.audio)
    target = torch.arange(ROWS) % SHAPES.classes
    with autocast_for(chosen, hyperparameters, CPU):
        logits = model(image, audio).float()
    loss = LOSSES[hyperparameters["loss.name"]](logits, target, **hyperparameters.under("loss.focal"))
    loss.backward()  # type: ignore[no-untyped-call]
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert {each.dtype for each in found} == {torch.float32}
    return torch.cat([each.flatten() for each in found])


@pytest.mark.parametrize(("name", "option"), [*CHOICES, ("loss.name", "focal")])
def test_a_step_in_bfloat16_goes_where_one_in_float32_goes(name: str, option: Value) -> None:
    made = chosen(name, option)
    wide, lower = gradient(made, "float32"), gradient(made, "bfloat16")
    assert not torch.equal(wide, lower)
    assert functional.cosine_similarity(wide, lower, dim=0) > 0.98
    assert float(lower.norm() / wide.norm()) == pytest.approx(1, abs=0.1)


def study(tmp_path: Path, line: str) -> SearchSection:
    (tmp_path / "study.toml").write_text(f"[search]\n{line}\n")
    return load_config(tmp_path / "study.toml").search


def test_a_study_says_which_precision_and_else_it_is_auto(tmp_path: Path) -> None:
    assert study(tmp_path, "").precision == "auto"
    for chosen in get_args(Precision):
        assert study(tmp_path, f'precision = "{chosen}"').precision == chosen
    with pytest.raises(StudyFileError, match=r'precision = "float16" must be "auto", "float32" or "bfloat16"$'):
        study(tmp_path, 'precision = "float16"')
