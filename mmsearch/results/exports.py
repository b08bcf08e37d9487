"""A bundle as programs that take raw rows and return probabilities: model.pt2 and model.onnx, each tried out."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mmsearch.data.dataset import Split
from mmsearch.errors import MmsearchError
from mmsearch.models.frontend import Frontend, settings_of
from mmsearch.paths import BundlePaths, remove, replacing
from mmsearch.results.bundle import Bundle, mean_logits
from mmsearch.results.runtime import DESCRIPTION, INSTALL_ONNX, Floats, InMemory, load_predictor, quiet

TOLERANCE = 1e-4  # between a probability of the model that was saved and of what was loaded
TIE = 1e-6  # between two probabilities of a row: which is the greater, the order of summing decides


class Program(nn.Module):
    """All of a bundle: raw rows become each member's input, logits, their mean, and calibrated probabilities."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        settings = [settings_of(bundle.trained, member.hyperparameters) for member in bundle.members]
        different = [found for at, found in enumerate(settings) if found not in settings[:at]]
        firsts = [bundle.members[settings.index(found)] for found in different]
        self.frontends = nn.ModuleList(Frontend(bundle.trained, member.hyperparameters) for member in firsts)
        self.fed_by = [different.index(found) for found in settings]
        # torch.export cannot store weights whose channels are last
        models = (copy.deepcopy(member.model).cpu() for member in bundle.members)
        self.models = nn.ModuleList(models).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.temperature = bundle.temperature
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """Raw rows, as `Frontend` takes them, -> probabilities (B, classes)."""
        inputs = [frontend(image, audio) for frontend in self.frontends]
        logits = [model(*inputs[at]) for model, at in zip(self.models, self.fed_by, strict=True)]
        return torch.softmax(mean_logits(torch.stack(logits)) / self.temperature, dim=1)


def write_exports(bundle: Bundle, split: Split, *, on_note: Callable[[str], None]) -> dict[str, Any]:
    """Write model.pt2 and model.onnx into the folder that a bundle was saved in, and try out all that lies there.

    Each form, the weights too, is loaded from its file, and has to predict the rows of `split` as the bundle in memory:
    the same labels, and probabilities within `TOLERANCE`. Another label is allowed where its probability is within
    `TIE` of the greatest: rounding decides such a row. Returns, by form, the `largest_difference`, the number of
    `rows`, and how many `ties` fell the other way. Without the extra `onnx`, `on_note` is told how to get it, and that
    form is `skipped` with this sentence.

    Raises `MmsearchError`, with the form and the difference, where one predicts something else, or cannot be written;
    its file is gone then.
    """
    expected = InMemory(bundle).probabilities(split)
    paths, text = BundlePaths(bundle.folder), bundle.describe()
    try:
        found: dict[str, Any] = {"safetensors": _compared(paths.weights, split, expected)}
    except MmsearchError:
        remove(paths.weights)
        raise
    program = _traced(bundle)
    with replacing(paths.program) as path:
        _save_program(program, path, text)
        found["pt2"] = _compared(path, split, expected)
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        found["onnx"] = {"skipped": f"{paths.onnx.name} is not written without {missing[0]}: {INSTALL_ONNX}"}
        on_note(found["onnx"]["skipped"])
        return found
    with replacing(paths.onnx) as path:
        _save_onnx(program, path, text)
        found["onnx"] = _compared(path, split, expected)
    return found


def _compared(path: Path, split: Split, expected: Floats) -> dict[str, Any]:
    form = path.suffix.removeprefix(".")
    found = load_predictor(path).probabilities(split)
    worst = float(np.abs(found - expected).max())
    label, chances = found.argmax(1), np.arange(len(expected))
    others = label != expected.argmax(1)
    tied = others & (expected.max(1) - expected[chances, label] <= TIE)
    ties, labels = int(tied.sum()), int((others & ~tied).sum())
    if labels or not worst <= TOLERANCE:  # not a number is a difference too
        raise MmsearchError(
            f"the {form} form does not predict what the trained model does: of {len(expected)} rows {labels} have "
            f"another label, and probabilities differ by up to {worst:.2g} (allowed: {TOLERANCE:g})"
        )
    return {"largest_difference": worst, "rows": len(expected), "ties": ties}


def _traced(bundle: Bundle) -> ExportedProgram:
    """The bundle as a graph for batches of any size, without the paths of the files that it was written in."""
    shapes = bundle.trained.shapes
    rows = torch.zeros(2, *shapes.image), torch.zeros(2, *shapes.audio)  # of one row, a batch would always be one
    batch = {0: Dim("batch")}
    with quiet():
        program = torch.export.export(Program(bundle), rows, dynamic_shapes=(batch, batch))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _save_program(program: ExportedProgram, path: Path, text: str) -> None:
    held = io.BytesIO()  # a file would have its own name, which is a temporary one, as the root of what it holds
    with quiet():
        torch.export.save(program, held, extra_files={DESCRIPTION: text})
    path.write_bytes(held.getbuffer())


def _save_onnx(program: ExportedProgram, path: Path, text: str) -> None:
    batch = {0: "batch"}
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["image", "audio"],
                output_names=["probabilities"],
                dynamic_shapes=(batch, batch),
            )
    except torch.onnx.OnnxExporterError as error:
        raise MmsearchError(f"{path}: this model cannot be written as ONNX: {str(error).splitlines()[0]}") from None
    assert made is not None
    for node in made.model.graph:
        node.metadata_props.clear()  # where in whose files each operation was written
    made.model.metadata_props[DESCRIPTION] = text
    made.save(path, external_data=False)
