"""The study file: each wrong one is one sentence that helps, and what counts when several places set a key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Run
from pydantic import ValidationError

from mmsearch.config import ENVIRONMENT, StudyConfig, load_config
from mmsearch.errors import StudyFileError
from mmsearch.spaces import Choices, Range

SHIPPED = sorted((ROOT / "studies").glob("*.toml"))
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, _ in ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str, name: str = "mine.toml") -> Path:
        path = tmp_path / "studies" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return make


LR = '[space]\n"optimizer.lr" = '
DROPOUT = '[space]\n"head.dropout" = '
BATCH = '[space]\n"batch_size" = '
ENCODERS = '[space]\n"image.encoder" = ["cnn", "mlp"]\n'

# What a study file says, and what its error must say besides the file's name.
WRONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "key": ("[study]\ntrails = 5", ("[study] trails", 'did you mean "trials"?', "seed, folder, storage")),
    "section": ("[serach]\npatience = 3", ("[serach]", 'did you mean "search"?', "study, data, search, space")),
    "section called file": ("[file]\nx = 1", ('"file" and "overrides" are no sections',)),
    "space no table": ("space = 3", ("[space] = 3 must be a table",)),
    "parameter": ('[space]\n"image.cnn.filter_1" = 8', ('"image.cnn.filter_1"', 'did you mean "image.cnn.filters_1"?')),
    "parameter in a table": ("[space.optimizer]\nlrr = 1", ('"optimizer.lrr"', 'did you mean "optimizer.lr"?')),
    "parameter without a value": ('[space]\n"batch_sizes" = {}', ('"batch_sizes"', 'did you mean "batch_size"?')),
    "parameter twice": (f"{LR}1e-3\n[space.optimizer]\nlr = 1e-2", ('"optimizer.lr"',)),
    "option": ('[space]\n"image.encoder" = ["cnn", "mpl"]', ('"image.encoder"', '"vit", "mlp"', 'did you mean "mlp"?')),
    "option twice": (f"{BATCH}[32, 64, 32]", ('"batch_size"', "listed twice")),
    "no options": (f"{BATCH}[]", ('"batch_size"', "not empty")),
    "default not among choices": (f"{BATCH}{{ choices = [32, 64], default = 16 }}", ('"batch_size"', "default 16")),
    "text for a number": (f'{BATCH}"big"', ('"batch_size": "big"', "a whole number from 2 to 8192")),
    "fraction for a whole number": (f"{BATCH}[32, 64.5]", ("64.5 is not a whole number from 2 to 8192",)),
    "flag for a number": (f"{LR}true", ('"optimizer.lr": true', "a number from 1e-07 to 10")),
    "outside the limits": (f"{BATCH}{{ low = 1, high = 64 }}", ('"batch_size": 1 ', "from 2 to 8192")),
    "not a number": (f"{DROPOUT}{{ low = nan, high = 0.5 }}", ('"head.dropout": nan', "from 0 to 0.9")),
    "low above high": (f"{LR}{{ low = 1e-2, high = 1e-3 }}", ('"optimizer.lr"', "low = 0.01", "above high = 0.001")),
    "no high": (f"{BATCH}{{ low = 2 }}", ('"batch_size"', "high is missing")),
    "range key": (f"{BATCH}{{ low = 2, hihg = 64 }}", ('"hihg"', 'did you mean "high"?', "low, high, log")),
    "range of choices": ('[space]\n"image.encoder" = { low = 1, high = 2 }', ("list of choices", '"vit", "mlp"')),
    "log from 0": (f"{DROPOUT}{{ low = 0, high = 0.5, log = true }}", ('"head.dropout"', "low above 0, not 0")),
    "log and step": (f"{BATCH}{{ low = 2, high = 8, log = true, step = 2 }}", ("log and step exclude each other",)),
    "step does not divide": (f"{DROPOUT}{{ low = 0.0, high = 0.5, step = 0.2 }}", ('"head.dropout"', "step = 0.2")),
    "step below 0": (f"{BATCH}{{ low = 2, high = 8, step = -2 }}", ("step must be a whole number above 0, not -2",)),
    "step infinite": (f"{DROPOUT}{{ low = 0.0, high = 0.5, step = inf }}", ('"head.dropout"', "step")),
    "step not a number": (f"{DROPOUT}{{ low = 0.0, high = 0.5, step = nan }}", ('"head.dropout"', "step")),
    "default outside": (f"{DROPOUT}{{ low = 0.0, high = 0.5, default = 0.6 }}", ("default 0.6", "not in the range")),
    "trials": ("[study]\ntrials = 0", ("[study] trials = 0", "greater than or equal to 1")),
    "trials as text": ('[study]\ntrials = "5"', ('[study] trials = "5" must be a whole number',)),
    "name": ('[study]\nname = "a b"', ('[study] name = "a b"', "letters, digits, dots, dashes and underscores")),
    "metric": ('[study]\nmetrics = ["f1"]', ('[study] metrics = "f1"', '"macro_f1", "accuracy", "loss"')),
    "no metric": ("[study]\nmetrics = []", ("[study] metrics = []", "at least 1")),
    "no such user": ('[study]\nfolder = "~nobody-is-called-so/x"', ("[study] folder", "~nobody-is-called-so")),
    "storage without scheme": ('[study]\nstorage = "studies.db"', ("[study] storage", "sqlite:///studies.db")),
    "storage of another kind": ('[study]\nstorage = "mysql://u@h/d"', ('"mysql"', "sqlite and postgresql")),
    "storage with a bare @": ('[study]\nstorage = "postgresql://me:p@ss@h/d"', ("[study] storage", "%40")),
    "storage in memory": ('[study]\nstorage = "sqlite:///:memory:"', ("[study] storage", "must name a SQLite file")),
    "fraction": ("[data]\nfraction = 1.0", ("[data] fraction = 1", "less than 1")),
    "image shape too short": ("[data]\nimage_shape = [28]", ("[data] image_shape = [28]",)),
    "image shape too long": ("[data]\nimage_shape = [2, 2, 2, 2]", ("= [2, 2, 2, 2]", "[channels, height, width]")),
    "audio shape too short": ("[data]\naudio_shape = [39]", ("[data] audio_shape = [39]", "[frames, coefficients]")),
    "sampler": ('[search]\nsampler = "cmaes"', ('[search] sampler = "cmaes"', '"grid", "qmc" or "nsga2"')),
    "pruner": ('[search]\npruner = "asha"', ('[search] pruner = "asha"', '"hyperband", "halving"')),
    "population": ("[search]\npopulation = 1", ("[search] population = 1", "greater than or equal to 2")),
    "percentile": ("[search]\npruner_percentile = 101", ("[search] pruner_percentile = 101", "equal to 100")),
    "reduction factor": ("[search]\nreduction_factor = 1", ("[search] reduction_factor = 1", "equal to 2")),
    "a threshold that is none": ("[search]\npruner_lower = nan", ("[search] pruner_lower = nan", "a finite number")),
    "threshold without one": ('[search]\npruner = "threshold"', ("needs pruner_lower or pruner_upper",)),
    "thresholds that cross": (
        "[search]\npruner_lower = 0.9\npruner_upper = 0.5",
        ("[search] pruner_lower = 0.9 is above pruner_upper = 0.5",),
    ),
    "wilcoxon without folds": (
        '[data]\nvalidation = "three_way"\n[search]\npruner = "wilcoxon"',
        ('[search] pruner = "wilcoxon" compares folds', 'validation = "kfold" in [data], not "three_way"'),
    ),
    "pruner of several metrics": (
        '[study]\nmetrics = ["macro_f1", "parameters"]\n[search]\npruner = "hyperband"',
        ('[search] pruner = "hyperband" needs one metric', '"none"'),
    ),
    "device": ('[search]\ndevice = "gpu"', ('[search] device = "gpu"', '"auto", "cpu", "cuda" or "cuda:N"')),
    "grid of a range": (
        '[search]\nsampler = "grid"\n[space]\n"optimizer.lr" = { low = 1e-3, high = 1e-2 }',
        ('"optimizer.lr" needs a step', "grid"),
    ),
    "grid of what is conditional": (
        '[search]\nsampler = "grid"\n[space]\n"fusion.name" = ["concat", "gated"]\n"fusion.gated.units" = [64, 128]',
        ('"fusion.gated.units"', "only to some configurations", "grid"),
    ),
    "enqueue unknown": ('[[enqueue]]\n"optimizer.rl" = 1', ("[[enqueue]] number 1", 'did you mean "optimizer.lr"?')),
    "enqueue of the second": (f'{BATCH}[8, 16]\n[[enqueue]]\n[[enqueue]]\n"batch_size" = 9', ("number 2", "8, 16")),
    "enqueue out of range": (
        f'{LR}{{ low = 1e-3, high = 1e-2 }}\n[[enqueue]]\n"optimizer.lr" = 1.0',
        ('"optimizer.lr" = 1', "0.001 to 0.01"),
    ),
    "enqueue of what is fixed": ('[[enqueue]]\n"batch_size" = 9', ('"batch_size" is fixed at 64', "not 9")),
    "enqueue that does not apply": (
        f'{ENCODERS}[[enqueue]]\n"image.encoder" = "mlp"\n"image.cnn.kernel" = 3',
        ('"image.cnn.kernel" does not apply', 'image.encoder = "cnn"'),
    ),
    "enqueue as a table": ('[enqueue]\n"batch_size" = 32', ("[enqueue]", "must be a list")),
    "no TOML": ("[study\nname = 3", ("not valid TOML", "line 1")),
}  # fmt: skip


@pytest.mark.parametrize(("text", "fragments"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_one_sentence(write: Write, text: str, fragments: tuple[str, ...]) -> None:
    path = write(text)
    with pytest.raises(StudyFileError) as caught:
        load_config(path)
    where, message = str(caught.value)[: len(str(path))], str(caught.value)[len(str(path)) :]
    assert where == str(path)
    assert message.startswith(": ")
    assert "\n" not in message
    assert [part for part in fragments if part not in message] == [], message


@pytest.mark.parametrize("name", ["key", "option", "low above high", "trials as text", "enqueue unknown", "no TOML"])
def test_a_wrong_file_ends_every_command_before_it_begins(mmsearch: Run, workspace: Path, name: str) -> None:
    text, fragments = WRONG[name]
    (workspace / "studies" / "digits.toml").write_text(text)
    for command in ("status", "launch"):
        done = mmsearch(command, code=2)
        assert done.stderr.startswith("mmsearch: studies/digits.toml: ")
        assert done.stderr.count("\n") == 1
        assert all(part in done.stderr for part in fragments)
        assert done.stdout == ""
    assert [path.name for path in workspace.iterdir()] == ["studies"]


@pytest.mark.parametrize(
    ("arguments", "env", "fragments"),
    [
        (["launch", "other.toml"], {}, ("other.toml: no such study file", "`mmsearch init`")),
        (["launch", "studies"], {}, ("studies: cannot be read",)),
        (["launch", "--trials", 0], {}, ("the command line: [study] trials = 0",)),
        (["launch", "--trials", "many"], {}, ("--trials", "valid integer")),
        (["launch", "--device", "tpu"], {"MMSEARCH_DEVICE": "gpu"}, ("the command line: [search] device",)),
        (["launch"], {"MMSEARCH_DEVICE": "gpu"}, ("the environment variable MMSEARCH_DEVICE: [search] device",)),
        (["status"], {"OPTUNA_STORAGE": "mysql://u:hidden@h/d"}, ("variable OPTUNA_STORAGE", "mysql")),
        (["status", "--storage", "u:hidden@h/d"], {}, ("the command line", "sqlite:///")),
    ],
)
def test_the_message_names_where_a_wrong_value_comes_from(
    mmsearch: Run, arguments: list[object], env: dict[str, str], fragments: tuple[str, ...]
) -> None:
    done = mmsearch(*arguments, code=2, env=env)
    assert [part for part in fragments if part not in done.stderr] == [], done.stderr
    assert "hidden" not in done.stderr


def test_each_layer_lies_over_the_one_before(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> tuple[str, str, str, str, str]:
        config = load_config(path, given)
        places = (config.storage_url, config.study.folder, config.data.source, config.search.device)
        return (config.study.name, *(place.replace(str(tmp_path), "T") for place in places))  # type: ignore[return-value]

    monkeypatch.chdir(tmp_path)
    given: dict[str, object] = {}
    path = write("")
    assert found() == ("mine", "sqlite:///T/storage/studies.db", "T/storage", "demo", "auto")
    write(
        '[study]\nname = "n"\nfolder = "f"\nstorage = "sqlite:///s.db"\n[data]\nsource = "d"\n[search]\ndevice = "cpu"'
    )
    assert found() == ("n", "sqlite:///T/studies/s.db", "T/studies/f", "T/studies/d", "cpu")
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///optuna.db")
    monkeypatch.setenv("MMSEARCH_FOLDER", "e")
    monkeypatch.setenv("MMSEARCH_DATA", "x/../env")
    monkeypatch.setenv("MMSEARCH_DEVICE", "cuda:1")
    assert found() == ("n", "sqlite:///T/optuna.db", "T/e", "T/env", "cuda:1")
    monkeypatch.setenv("MMSEARCH_STORAGE", "sqlite:///ours.db")
    assert found()[1] == "sqlite:///T/ours.db"
    monkeypatch.setenv("MMSEARCH_STORAGE", "")
    assert found()[1] == "sqlite:///T/optuna.db"
    given = {"study.storage": "postgresql://u@h/d", "data.source": "demo", "search.device": None, "study.name": "cli"}
    assert found() == ("cli", "postgresql+psycopg://u@h/d", "T/e", "demo", "cuda:1")


def test_a_variable_that_does_not_count_does_no_harm(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", "mysql://for-something-else/d")
    monkeypatch.setenv("MMSEARCH_STORAGE", "sqlite:////ours.db")
    assert load_config(write("")).storage_url == "sqlite:////ours.db"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("sqlite:///x.db", "sqlite:///{folder}/x.db"),
        ("sqlite:///../x.db", "sqlite:///{parent}/x.db"),
        ("sqlite:////abs/x.db", "sqlite:////abs/x.db"),
        ("sqlite:///demo", "sqlite:///{folder}/demo"),
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql+psycopg://u@h/d?a=b", "postgresql+psycopg://u@h/d?a=b"),
        ("postgres+psycopg://u@h/d", "postgresql+psycopg://u@h/d"),
    ],
)
def test_a_storage_url_is_one_that_can_be_opened_from_anywhere(write: Write, text: str, url: str) -> None:
    path = write(f'[study]\nstorage = "{text}"')
    assert load_config(path).storage_url == url.format(folder=path.parent, parent=path.parent.parent)


def test_a_folder_called_demo_is_beside_the_file(write: Write) -> None:
    path = write('[study]\nfolder = "demo"')
    assert load_config(path).paths.folder == path.parent / "demo" / "mine"


def test_the_default_lies_in_its_range(write: Write) -> None:
    text = '[space]\n"head.dropout" = { low = 0.0, high = 0.3, step = 0.1, default = 0.3 }\n"batch_size" = [16, 32]'
    config = load_config(write(text))
    assert config.dimensions["batch_size"] == Choices((16, 32), 32)  # the nearest to the program's default
    dropout = config.dimensions["head.dropout"]
    assert isinstance(dropout, Range)
    assert dropout.default in dropout
    assert config.configurations[0]["head.dropout"] == 0.3


def test_the_defaults_enqueued_again_are_tried_once(write: Write) -> None:
    space = f"{DROPOUT}{{ low = 0.0, high = 0.6, step = 0.1, default = 0.3 }}\n"
    config = load_config(write(f'{space}[[enqueue]]\n"head.dropout" = 0.3\n[[enqueue]]\n"head.dropout" = 0.2'))
    assert [made["head.dropout"] for made in config.configurations] == [0.3, 0.2]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_studies_can_be_read_frozen_and_sent_to_a_worker(path: Path) -> None:
    config = load_config(path)
    assert config.study.name == path.stem
    assert Path(config.study.folder) == ROOT / "storage"
    for section, key in ((config.study, "trials"), (config.search, "max_epochs"), (config, "space")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)
    again = StudyConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.dimensions == config.dimensions
    assert again.configurations == config.configurations


@pytest.mark.parametrize("pruner", ["halving", "median", "none"])
def test_several_metrics_go_with_the_pruner_that_nobody_chose(write: Write, pruner: str) -> None:
    text = f'[study]\nmetrics = ["accuracy", "parameters"]\n[search]\npruner = "{pruner}"\npruner_lower = 0.1'
    config = load_config(write(text))
    assert config.search.pruner == pruner
    assert config.search.pruner_lower == 0.1  # what the chosen pruner does not use does no harm


def test_json_keeps_what_has_no_type_of_its_own_there(write: Write) -> None:
    text = (
        '[data]\nimage_shape = [3, 28, 28]\naudio_shape = [39, 13]\n[space]\n"optimizer.sgd.nesterov" = [true, false]'
    )
    config = load_config(write(f"{text}\n[space.optimizer]\nlr = {{ low = 1e-4, high = 1, log = true }}\n[[enqueue]]"))
    again = StudyConfig.model_validate_json(config.model_dump_json())
    assert (again, again.dimensions) == (config, config.dimensions)
    assert again.data.image_shape == (3, 28, 28)


DIGITS = (ROOT / "studies" / "digits.toml").read_text()
# Keys that have no default of their own: what stands behind the # is an example.
EXAMPLES = {"study.storage", "study.constraints", "data.rows", "data.image_shape", "data.audio_shape"}
EXAMPLES |= {"data.sample_rate", "data.audio_seconds", "search.pruner_lower", "search.pruner_upper", "search.init"}
EXAMPLES |= {"search.pruner_warmup", "search.timeout", "search.patience_trials", "search.trial_timeout", "search.gpus"}
SECTIONS = re.findall(r"^\[(study|data|search)\]\n(.*?)(?=^# What is|^\[)", DIGITS, re.M | re.S)
KEYS = [
    (section, key, bool(hash_sign))
    for section, body in SECTIONS
    for hash_sign, key in re.findall(r"^(# )?(\w+) = ", body, re.M)
]


@pytest.mark.parametrize(("section", "key"), [(section, key) for section, key, commented in KEYS if commented])
def test_what_comments_give_as_defaults_are_the_defaults(write: Write, section: str, key: str) -> None:
    default = getattr(getattr(load_config(write("", "digits.toml")), section), key)
    text, changed = re.subn(rf"^# (?={key} = )", "", DIGITS, flags=re.M)
    written = getattr(getattr(load_config(write(text, "digits.toml")), section), key)
    assert changed == 1
    assert (not default and bool(written)) if f"{section}.{key}" in EXAMPLES else (written == default)


def test_the_default_study_shows_every_key() -> None:
    config = load_config(ROOT / "studies" / "digits.toml")
    for section in (config.study, config.data, config.search):
        name = type(section).__name__.removesuffix("Section").lower()
        assert [key for s, key, _ in KEYS if s == name] == list(type(section).model_fields)


def test_init_writes_studies_that_work_and_overwrites_none(mmsearch: Run, workspace: Path) -> None:
    done = mmsearch("init", "new place")
    folder = workspace / "new place"
    assert "cd 'new place' && mmsearch launch" in done.stderr
    assert {path.name for path in (folder / "studies").iterdir()} == {path.name for path in SHIPPED}
    assert load_config(folder / "studies" / "digits.toml").study.folder == str(folder / "storage")
    assert (folder / "storage").is_dir()
    (folder / "studies" / "digits.toml").write_text("mine")
    (folder / "studies" / "smoke.toml").unlink()
    assert "digits.toml is there already" in mmsearch("init", "new place").stderr
    assert (folder / "studies" / "digits.toml").read_text() == "mine"
    assert (folder / "studies" / "smoke.toml").read_bytes() == (ROOT / "studies" / "smoke.toml").read_bytes()


def test_a_grid_may_be_of_audio_features(write: Write) -> None:
    text = '[data]\nsample_rate = 8000\n[search]\nsampler = "grid"\n[space]\n"features.name" = ["stft", "mfcc"]'
    assert set(load_config(write(text)).dimensions.varying()) == {"features.name"}


def test_who_only_reads_a_study_does_not_need_what_applies_to_its_data(write: Write) -> None:
    text = '[space]\n"features.name" = ["mfcc", "stft"]\n[[enqueue]]\n"features.name" = "mfcc"'
    path = write(text)  # of waveforms, which --data named when it was launched
    with pytest.raises(StudyFileError, match="does not apply"):
        load_config(path)
    assert load_config(path, reading=True).study.trials == 20


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5", 1.5), ("30m", 1800), ("8h", 28800), ("1d12h30m", 131400)]
)
def test_a_time_may_be_written_with_its_unit(write: Write, text: str, seconds: float) -> None:
    assert load_config(write(f'[search]\ntimeout = "{text}"')).search.timeout == seconds
    assert load_config(write(""), {"search.timeout": text}).search.timeout == seconds


@pytest.mark.parametrize("text", ["", "soon", "8 h", "-5", "h", "5x", "0"])
def test_a_time_that_cannot_be_read(write: Write, text: str) -> None:
    with pytest.raises(StudyFileError, match=r"\[search\] trial_timeout = .* must be|greater than 0"):
        load_config(write(f'[search]\ntrial_timeout = "{text}"'))


def test_gpus_on_the_command_line(write: Write) -> None:
    assert load_config(write(""), {"search.gpus": "0, 2"}).search.gpus == (0, 2)
    assert load_config(write("[search]\ngpus = [1]")).search.gpus == (1,)
    with pytest.raises(StudyFileError, match='"first" must be numbers of GPUs, such as 0,1'):
        load_config(write(""), {"search.gpus": "first"})
