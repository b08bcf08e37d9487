"""A model as a program: any family, any batch, from raw rows to probabilities; the same as the model, or refused."""

from __future__ import annotations

import itertools
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_features import waves

from mmsearch.data.dataset import Pixels, Shapes, Split, Trained, statistics
from mmsearch.data.features import feature_shapes, with_features
from mmsearch.data.sources import rows_from_arrays
from mmsearch.errors import BundleError, MmsearchError
from mmsearch.hyperparameters import TABLE, Hyperparameters, Value
from mmsearch.models.factory import build_model
from mmsearch.models.registry import AUDIO_ENCODERS, FUSIONS, IMAGE_ENCODERS
from mmsearch.paths import BundlePaths
from mmsearch.results import exports
from mmsearch.results.bundle import Bundle, Description, Member
from mmsearch.results.exports import TOLERANCE, Program, write_exports
from mmsearch.results.runtime import Exported, InMemory, load_predictor, raw_rows
from mmsearch.spaces import Fixed, Space

CLASSES = ("barn owl", 'a "dog"', "cät")
FORMS = ("model.pt2", "model.onnx")
IMAGES, SAMPLES, RATE = (1, 12, 10), 1000, 8000
RNG = np.random.default_rng(5)


def configuration(**given: Value) -> Hyperparameters:
    """A configuration for waveforms; `image__encoder` stands for `image.encoder`."""
    dimensions = {name.replace("__", "."): Fixed(value) for name, value in given.items()}
    return Space(dimensions, {"data.audio": "waveforms"}).configuration({})


def rows(count: int, *, images: tuple[int, ...] = IMAGES, samples: int = SAMPLES, seed: int = 0) -> Split:
    """Pictures and 16-bit recordings; the first row is dark and silent, the second bright and as loud as can be."""
    rng = np.random.default_rng([seed, count])
    image = rng.integers(0, 256, (count, *images)).astype(np.uint8)
    sound = np.round(waves(count, samples, RATE) * 32767).astype(np.int16)
    image[:2], sound[:2] = np.array([0, 255]).reshape(2, 1, 1, 1), np.array([[0], [32767]])
    sound[1, ::5] = -32768
    return Split(image, sound[..., None], rng.integers(0, 3, count), np.arange(count), 1 / 255, 1 / 32768)


def trained(images: tuple[int, int, int] = IMAGES, samples: int = SAMPLES) -> Trained:
    return Trained(Shapes(images, (samples, 1), len(CLASSES)), CLASSES, Pixels(0, 255, 1 / 255), RATE, 1 / 32768)


def member(split: Split, seen: Trained, hyperparameters: Hyperparameters) -> Member:
    """A model as after training: normalised by its rows, with statistics of its own layers, and sure of what it says.

    The logits of a fresh one are nearly the same for all rows; here they differ by deviations of 2.
    """
    torch.manual_seed(len(hyperparameters))
    fed = with_features(split, seen.rate, hyperparameters, None)
    model = build_model(hyperparameters, feature_shapes(seen.shapes, seen.rate, hyperparameters), statistics(fed))
    ((image, audio),) = (map(torch.from_numpy, chunk) for chunk in fed.chunks())
    with torch.no_grad():
        model.train()(image, audio)
        logits = model.eval()(image, audio)
        for layer in model.head.modules():
            if isinstance(layer, torch.nn.Linear) and layer.out_features == seen.shapes.classes:
                layer.bias.sub_(logits.mean(0)).mul_(2 / logits.std(0).mean())
                layer.weight.mul_(2 / logits.std(0).mean())
    return Member(model, hyperparameters)


def saved(folder: Path, split: Split, seen: Trained, *members: Hyperparameters, **calibration: Any) -> Bundle:
    """A bundle on disk."""
    bundle = Bundle(tuple(member(split, seen, given) for given in members), seen, folder, **calibration)
    bundle.save(folder)
    return bundle


@dataclass(frozen=True)
class Made:
    """A bundle, the rows that its exports were tried out on, and what `write_exports` returned and printed."""

    bundle: Bundle
    split: Split
    found: dict[str, Any]
    notes: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An ensemble with every encoder, fusion and feature in it."""
    families = zip(sorted(IMAGE_ENCODERS), sorted(AUDIO_ENCODERS), sorted(FUSIONS), strict=True)
    features = ("stft", "log_mel", "mfcc", "chroma", "log_mel")
    split, notes = rows(40), list[str]()
    members = [
        configuration(image__encoder=image, audio__encoder=audio, fusion__name=fusion, features__name=name)
        for (image, audio, fusion), name in zip(families, features, strict=True)
    ]
    bundle = saved(tmp_path_factory.mktemp("ensemble"), split, trained(), *members, temperature=0.5, abstain_below=0.6)
    return Made(bundle, split, write_exports(bundle, split, on_note=notes.append), notes)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Split]:
    """The quickest model to export."""
    plain = configuration(image__encoder="mlp", audio__encoder="mlp", features__name="chroma")
    split = rows(20)
    return saved(tmp_path_factory.mktemp("small"), split, trained(), plain), split


def by_onnxruntime(path: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """As somebody without mmsearch runs it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda image, audio: session.run(None, {"image": image, "audio": audio})[0]


def by_torch(path: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    module = torch.export.load(path).module()
    return lambda image, audio: module(torch.from_numpy(image), torch.from_numpy(audio)).numpy()


RUNTIMES = {"model.pt2": by_torch, "model.onnx": by_onnxruntime}


def test_every_form_is_tried_out(made: Made) -> None:
    assert list(made.found) == ["safetensors", "pt2", "onnx"]
    for held in made.found.values():
        assert (held["rows"], held["ties"]) == (40, 0)
        assert 0 <= held["largest_difference"] <= TOLERANCE
    assert made.notes == []
    assert sorted(path.name for path in made.bundle.folder.iterdir()) == [
        *("config.toml", "model.onnx", "model.pt2", "model.safetensors")
    ]
    for alone in made.bundle.members:  # else a member that is wrong would not show
        spread = replace(made.bundle, members=(alone,)).probabilities(made.split)
        assert set(spread.argmax(1)) == {0, 1, 2}
        assert spread.max(1).max() > 0.9


@pytest.mark.parametrize("form", FORMS)
def test_raw_rows_go_in_and_probabilities_come_out_whatever_runs_it(made: Made, form: str) -> None:
    run = RUNTIMES[form](made.bundle.folder / form)
    for count in (1, 2, 7, 1000):
        split = rows(max(2, count), seed=1)
        image = split.image[:count].astype(np.float32)
        audio = split.audio[:count].astype(np.float32)
        found = run(image, audio)
        assert found.dtype == np.float32
        assert found.shape == (count, 3)
        expected = made.bundle.probabilities(split.only(np.arange(count)))
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    lone = [run(image[row : row + 1], audio[row : row + 1])[0] for row in range(4)]
    np.testing.assert_allclose(lone, found[:4], atol=1e-6)  # the first two are silence and noise as loud as can be
    assert np.isfinite(run(np.zeros_like(image), np.zeros_like(audio))).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_file_alone_says_what_it_is_and_not_who_made_it(made: Made, form: str, tmp_path: Path) -> None:
    alone = tmp_path / f"renamed{Path(form).suffix}"
    shutil.copy(made.bundle.folder / form, alone)
    predictor = load_predictor(alone)
    assert isinstance(predictor, Exported)
    assert (predictor.trained, predictor.classes, predictor.abstain_below) == (trained(), CLASSES, 0.6)
    assert predictor.said == Description.read(made.bundle.describe(), "here")
    expected = made.bundle.probabilities(made.split)
    some = made.split.only(np.array([1, 5, 39]))
    np.testing.assert_allclose(predictor.probabilities(some), expected[[1, 5, 39]], atol=TOLERANCE)
    content = alone.read_bytes()
    for path in (str(ROOT), "site-packages", str(tmp_path.parent), ".py"):
        assert path.encode() not in content


def test_the_same_model_leaves_the_same_files(small: tuple[Bundle, Split], tmp_path: Path) -> None:
    contents = []
    for name in ("one", "other"):
        bundle = replace(small[0], folder=tmp_path / name)
        bundle.save(bundle.folder)
        write_exports(bundle, small[1], on_note=print)
        contents.append([(bundle.folder / form).read_bytes() for form in FORMS])
    assert contents[0] == contents[1]


def test_rows_of_another_range_and_type_are_brought_to_that_of_training(made: Made) -> None:
    image, sound = np.asarray(made.split.image, np.uint8), np.asarray(made.split.audio, np.int16)
    expected = made.bundle.probabilities(made.split)
    forms = [load_predictor(made.bundle.folder / form) for form in FORMS]
    for pixels, samples in (
        (image / 255, sound.astype(np.float32) / 32768),
        (image.astype(np.int64), sound[..., 0].astype(np.int32) * 65536),
    ):
        split = rows_from_arrays(pixels, samples, trained())
        for predictor in forms:
            np.testing.assert_allclose(predictor.probabilities(split), expected, atol=TOLERANCE)
    eight = rows_from_arrays(image, (sound[..., 0] // 256 + 128).astype(np.uint8), trained())
    np.testing.assert_array_equal(raw_rows(eight, trained())[1], sound // 256 * 256)
    for predictor in forms:
        np.testing.assert_allclose(predictor.probabilities(eight), made.bundle.probabilities(eight), atol=TOLERANCE)


def test_blocks_do_not_show(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmsearch.results import runtime

    expected = made.bundle.probabilities(made.split)
    predictors = [load_predictor(made.bundle.folder / name) for name in ("", "model.safetensors", *FORMS)]
    assert isinstance(predictors[0], InMemory)
    monkeypatch.setattr(runtime, "CHUNK_VALUES", 7 * SAMPLES)
    monkeypatch.setattr(runtime, "FRAME_VALUES", 1)
    for predictor in predictors:
        np.testing.assert_allclose(predictor.probabilities(made.split), expected, atol=TOLERANCE)


def test_members_share_what_is_computed_of_their_rows() -> None:
    split, seen = rows(20), trained()
    names = ("chroma", "log_mel", "chroma")
    members = [configuration(image__encoder="mlp", audio__encoder="mlp", features__name=name) for name in names]
    program = Program(Bundle(tuple(member(split, seen, given) for given in members), seen, Path()))
    assert (len(program.frontends), program.fed_by) == (2, [0, 1, 0])


def changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Exported programs compute something else than the model."""
    plain = Program.forward
    monkeypatch.setattr(Program, "forward", lambda self, image, audio: change(plain(self, image, audio)))


@pytest.mark.parametrize("form", ["pt2", "onnx", "safetensors"])
def test_a_form_that_predicts_something_else_is_refused_and_removed(
    small: tuple[Bundle, Split], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = replace(small[0], folder=tmp_path)
    bundle.save(tmp_path)
    if form == "safetensors":
        (first,) = bundle.members
        model = build_model(first.hyperparameters, first.model.shapes)
        replace(bundle, members=(Member(model, first.hyperparameters),)).save(tmp_path)
    elif form == "pt2":
        changed(monkeypatch, lambda found: 1 - found)
    else:
        plain = exports._save_onnx
        monkeypatch.setattr(exports, "_save_onnx", lambda program, *rest: plain(flipped(bundle), *rest))
    with pytest.raises(MmsearchError, match=rf"^the {form} form does not predict .* of 20 rows \d+ have another") as at:
        write_exports(bundle, small[1], on_note=print)
    assert at.value.exit_code == 1
    left = {"config.toml", "model.safetensors", "model.pt2"}
    left -= {"safetensors": left - {"config.toml"}, "pt2": {"model.pt2"}, "onnx": set()}[form]
    assert {path.name for path in tmp_path.iterdir()} == left


def flipped(bundle: Bundle) -> torch.export.ExportedProgram:
    with pytest.MonkeyPatch.context() as patch:
        changed(patch, lambda found: found.flip(1))
        return exports._traced(bundle)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([[0.500004, 0.499996], [0.1, 0.9]], "1 have another label, and probabilities differ by up to 8e-06"),
        ([[0.499996, 0.500004], [0.1, np.nan]], "differ by up to nan"),
        ([[0.499996, 0.500004], [0.1002, 0.8998]], "0 have another label, and probabilities differ by up to 0.0002"),
    ],
)
def test_another_label_and_what_is_no_number_are_differences(
    found: list[list[float]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MmsearchError, match=said):
        compared([[0.499996, 0.500004], [0.1, 0.9]], found, monkeypatch)


def compared(expected: list[list[float]], found: list[list[float]], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    form = type("Form", (), {"probabilities": lambda self, split: np.array(found)})
    patch.setattr(exports, "load_predictor", lambda path: form())
    return exports._compared(Path("model.pt2"), rows(len(found)), np.array(expected))


def test_only_a_label_that_rounding_decides_may_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    held = compared([[0.4000004, 0.4, 0.2]] * 2, [[0.4, 0.4000004, 0.2], [0.4000004, 0.4, 0.2]], monkeypatch)
    assert (held["rows"], held["ties"]) == (2, 1)
    with pytest.raises(MmsearchError, match="of 2 rows 2 have another label"):  # two were as good, and not the third
        compared([[0.34, 0.34, 0.33996]] * 2, [[0.34, 0.34, 0.34003]] * 2, monkeypatch)


def test_without_the_extra_onnx_is_skipped_with_a_sentence(
    small: tuple[Bundle, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle, notes = replace(small[0], folder=tmp_path), list[str]()
    bundle.save(tmp_path)
    monkeypatch.setattr(exports, "find_spec", lambda name: None if name == "onnxscript" else object())
    found = write_exports(bundle, small[1], on_note=notes.append)
    assert notes == ["model.onnx is not written without onnxscript: pip install 'mmsearch[onnx]'"]
    assert found["onnx"] == {"skipped": notes[0]}
    assert (tmp_path / "model.pt2").exists()
    assert not (tmp_path / "model.onnx").exists()
    assert capfd.readouterr() == ("", "")


def test_an_onnx_file_without_its_runtime(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleError, match=r"onnxruntime, which runs it, is not installed: pip install 'mmsearch\[onnx"):
        load_predictor(made.bundle.folder / "model.onnx")


def archive(path: Path, **files: str) -> None:
    with zipfile.ZipFile(path, "w") as held:
        for name, content in files.items():
            held.writestr(name.replace("__", "/"), content)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def overwritten(path: Path) -> None:
    """Some bytes of the greatest tensor are others."""
    with zipfile.ZipFile(path) as held:
        entry = max(held.infolist(), key=lambda entry: entry.file_size if "weights" in entry.filename else 0)
    content = bytearray(path.read_bytes())
    middle = entry.header_offset + entry.file_size // 2
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    path.write_bytes(content)


def foreign_onnx(path: Path) -> None:
    import onnx

    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "other", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize(
    ("name", "damage", "fragment"),
    [
        ("model.pt2", torn, "or damaged"),
        ("model.pt2", lambda path: path.write_bytes(b""), "not a program that retrain-best made, or damaged"),
        ("model.pt2", lambda path: path.write_text("hello"), "not a program that retrain-best made, or damaged"),
        ("model.pt2", overwritten, "damaged: the content of archive/data/weights/"),
        ("model.pt2", lambda path: archive(path, a__b="c"), "does not say what it was trained on"),
        ("model.pt2", lambda path: archive(path, **{"a__extra__mmsearch.toml": "x = ["}), "not a bundle's, or damaged"),
        ("model.onnx", torn, "not an ONNX model, or damaged"),
        ("model.onnx", lambda path: path.write_bytes(b""), "not an ONNX model, or damaged"),
        ("model.onnx", lambda path: path.write_text("hello"), "not an ONNX model, or damaged"),
        ("model.onnx", foreign_onnx, "does not say what it was trained on"),
        ("model.safetensors", torn, "not a bundle, or damaged"),
        ("config.toml", lambda path: None, "not a model; allowed are a folder"),
        ("model.bin", lambda path: None, "no such file or folder"),
    ],
)
def test_what_is_no_model_or_a_damaged_one_is_one_sentence(
    made: Made, name: str, damage: Callable[[Path], None], fragment: str, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(made.bundle.folder, tmp_path / "b")
    path = tmp_path / "b" / name
    damage(path)
    with pytest.raises(BundleError) as caught:
        load_predictor(path)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path if name != "model.safetensors" else path.parent) in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_program_of_another_torch_is_one_sentence(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise KeyError("schema\nand more")

    monkeypatch.setattr(torch.export, "load", fail)
    with pytest.raises(BundleError, match=rf"model.pt2: torch {torch.__version__[:3]}.* cannot load it: 'schema"):
        load_predictor(made.bundle.folder / "model.pt2")


# Options that change what is computed, and not only its sizes.
VARIED = (
    *("image.cnn.norm", "image.cnn.activation", "image.cnn.dropout_kind", "image.resnet.norm", "image.resnet.blocks"),
    *("image.resnet.dropout_kind", "image.vit.patch", "image.vit.dropout_kind", "image.mlp.norm", "audio.scale"),
    *("audio.conv1d.input", "audio.conv1d.norm", "audio.conv2d.norm", "audio.transformer.heads", "head.norm"),
    *("head.depth", "fusion.attention.depth"),
)


def alternatives(name: str) -> list[Hyperparameters]:
    """A configuration with each option of a parameter, or with its limits, and whatever it requires."""
    parameter = TABLE[name]
    required = {parent: Fixed(allowed[-1]) for parent, allowed in parameter.requires if parent in TABLE}
    if name.endswith("dropout_kind"):
        required[name.removesuffix("_kind")] = Fixed(0.3)
    options = parameter.options or (int(parameter.low), int(min(parameter.high, 5)))
    return [Space({**required, name: Fixed(option)}).configuration({}) for option in options]


def must_be_exported(folder: Path, members: list[Hyperparameters]) -> None:
    """Of rows that are features already, and of images that do not halve evenly."""
    images = (3, 11, 7)
    split = replace(rows(16, images=images), audio=RNG.normal(size=(16, 20, 5)).astype(np.float32), audio_scale=1.0)
    seen = replace(trained(images), shapes=Shapes(images, (20, 5), 3), rate=None, audio_scale=1.0)
    found = write_exports(saved(folder, split, seen, *members), split, on_note=print)
    assert max(held["largest_difference"] for held in found.values()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("shift", range(5))
def test_every_pair_of_families_is_exported(shift: int, tmp_path: Path) -> None:
    """A Latin square: over the shifts each encoder meets each encoder of the other modality, and each fusion."""
    images, audios, fusions = sorted(IMAGE_ENCODERS), sorted(AUDIO_ENCODERS), sorted(FUSIONS)
    members = [
        configuration(image__encoder=images[i], audio__encoder=audios[(i + shift) % 5], fusion__name=fusion)
        for i, fusion in zip(range(5), fusions[shift * 2 % 5 :] + fusions[: shift * 2 % 5], strict=True)
    ]
    must_be_exported(tmp_path, members)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIED)
def test_every_option_is_exported(name: str, tmp_path: Path) -> None:
    must_be_exported(tmp_path, alternatives(name))


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_recurrent_network_is_exported(cell: str, tmp_path: Path) -> None:
    given = itertools.product((True, False), (1, 2))
    made = [
        configuration(audio__encoder="rnn", audio__rnn__cell=cell, audio__rnn__bidirectional=both, audio__rnn__depth=n)
        for both, n in given
    ]
    must_be_exported(tmp_path, made)


@pytest.mark.slow
def test_rows_of_a_single_value_are_exported(tmp_path: Path) -> None:
    shapes = Shapes((1, 1, 1), (1, 1), 2)
    split = Split(RNG.random((16, 1, 1, 1)).astype(np.float32), RNG.normal(size=(16, 1, 1)), None, np.arange(16), 1.0)
    families = zip(sorted(IMAGE_ENCODERS), sorted(AUDIO_ENCODERS), sorted(FUSIONS), strict=True)
    members = [configuration(image__encoder=i, audio__encoder=a, fusion__name=f) for i, a, f in families]
    bundle = saved(tmp_path, split, Trained(shapes, ("0", "1"), Pixels(0, 1, 1.0)), *members)
    write_exports(bundle, split, on_note=print)
    waveform = configuration(image__encoder="mlp", audio__encoder="mlp", features__name="mfcc")
    seen = trained(samples=1)
    write_exports(saved(tmp_path, rows(16, samples=1), seen, waveform), rows(16, samples=1), on_note=print)
    assert BundlePaths(tmp_path).onnx.exists()
