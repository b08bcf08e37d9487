"""One typed, frozen `StudyConfig` out of defaults, study file, environment and command line, in rising precedence."""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from mmsearch.checks import check_either_way, check_search
from mmsearch.constraints import Constraint, parse_constraint
from mmsearch.errors import StudyFileError
from mmsearch.hyperparameters import TABLE, Hyperparameters, nearest, show
from mmsearch.paths import DEFAULT_STUDY, MANIFEST, RESERVED_NAMES, StoragePaths, StudyPaths
from mmsearch.spaces import Space, flatten, parse_dimension
from mmsearch.texts import hide_passwords, parse_gpus, parse_seconds, parse_shape

Metric = Literal["macro_f1", "accuracy", "loss", "parameters", "latency_ms"]
LEADING: tuple[Metric, ...] = ("macro_f1", "accuracy", "loss")  # those that each epoch has
SMALLER_IS_BETTER: tuple[Metric, ...] = ("loss", "parameters", "latency_ms")
Size = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0, allow_inf_nan=False)]

# What the environment may set; the first variable that is set and not empty counts.
ENVIRONMENT: tuple[tuple[str, str], ...] = (
    ("MMSEARCH_STORAGE", "study.storage"),
    ("OPTUNA_STORAGE", "study.storage"),
    ("MMSEARCH_FOLDER", "study.folder"),
    ("MMSEARCH_DATA", "data.source"),
    ("MMSEARCH_DEVICE", "search.device"),
)


# What the command line lays over a study file: its option and the key.
OPTIONS: Mapping[str, str] = {
    "--data": "data.source",
    "--storage": "study.storage",
    "--study-name": "study.name",
    "--seed": "study.seed",
    "--device": "search.device",
    "--trials": "study.trials",
    "--image-shape": "data.image_shape",
    "--skip-broken": "data.skip_broken",
    "--timeout": "search.timeout",
    "--patience-trials": "search.patience_trials",
    "--max-failures": "search.max_failures",
    "--audit": "search.audit",
    "--storage-timeout": "search.storage_timeout",
    "--gpus": "search.gpus",
    "--workers-per-gpu": "search.workers_per_gpu",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StudySection(_Section):
    """`[study]`: what the study is called, what it maximises, and where it is kept."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, max_length=5)] = ("macro_f1",)
    constraints: tuple[str, ...] = ()
    trials: Size = 20
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    folder: str = "../storage"
    storage: Annotated[str | None, Field(repr=False)] = None

    @field_validator("metrics")
    @classmethod
    def _one_leads(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        if metrics[0] not in LEADING:
            raise PydanticCustomError("ours", f"must begin with the metric that leads: {', '.join(LEADING)}")
        if len(set(metrics)) < len(metrics):
            raise PydanticCustomError("ours", "must not name a metric twice")
        return metrics

    @field_validator("constraints")
    @classmethod
    def _constraints_are_read(cls, constraints: tuple[str, ...]) -> tuple[str, ...]:
        try:
            read = [str(parse_constraint(text, get_args(Metric))) for text in constraints]
        except ValueError as error:
            raise PydanticCustomError("ours", "{reason}", {"reason": str(error)}) from None
        if len(set(read)) < len(read):
            raise PydanticCustomError("ours", "must not name a constraint twice")
        return tuple(read)


class DataSection(_Section):
    """`[data]`: the data set, its shapes, and which rows validate."""

    source: str = "demo"
    validation: Literal["holdout", "three_way", "kfold"] = "holdout"
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    folds: Annotated[int, Field(ge=2, le=50)] = 5
    test: Annotated[float, Field(ge=0, lt=1)] = 0.2
    rows: Annotated[int, Field(ge=10)] | None = None
    image_shape: tuple[Size, Size] | tuple[Size, Size, Size] | None = None
    audio_shape: tuple[Size, Size] | None = None
    sample_rate: Annotated[int, Field(ge=100, le=768_000)] | None = None
    audio_seconds: Annotated[float, Field(gt=0, le=3600)] | None = None
    skip_broken: bool = False


class SearchSection(_Section):
    """`[search]`: who proposes, who prunes, how long a trial may train."""

    sampler: Literal["tpe", "gp", "random", "grid", "qmc", "nsga2"] = "tpe"
    startup_trials: Annotated[int, Field(ge=0)] = 10
    population: Annotated[int, Field(ge=2)] = 20
    pruner: Literal["median", "percentile", "hyperband", "halving", "patient", "threshold", "wilcoxon", "none"] = (
        "halving"
    )
    pruner_startup: Annotated[int, Field(ge=0)] = 5
    pruner_warmup: Annotated[int, Field(ge=0)] | None = None
    pruner_percentile: Annotated[float, Field(ge=0, le=100)] = 25.0
    pruner_patience: Annotated[int, Field(ge=0)] = 2
    pruner_lower: Annotated[float, Field(allow_inf_nan=False)] | None = None
    pruner_upper: Annotated[float, Field(allow_inf_nan=False)] | None = None
    pruner_p: Annotated[float, Field(gt=0, lt=1)] = 0.1
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    audit: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_epochs: Size = 10
    patience: Size = 3
    timeout: Seconds | None = None
    patience_trials: Size | None = None
    epoch_timeout: Seconds = 3600.0
    trial_timeout: Seconds | None = None
    storage_timeout: Seconds = 120.0
    checkpoint_every: Seconds = 10.0
    max_retries: Annotated[int, Field(ge=0)] = 1
    max_failures: Size = 10
    init: str | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    gpus: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    workers_per_gpu: Size = 1


class StudyConfig(_Section):
    """All of one study: the sections of its file, with paths resolved and defaults filled in."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True, ignored_types=(cached_property,)
    )

    file: str
    overrides: Annotated[dict[str, Any], Field(repr=False)] = {}
    study: StudySection
    data: DataSection = DataSection()
    search: SearchSection = SearchSection()
    space: dict[str, Any] = {}
    enqueue: tuple[dict[str, Any], ...] = ()

    @field_validator("study")
    @classmethod
    def _name_is_free(cls, study: StudySection) -> StudySection:
        if study.name in RESERVED_NAMES:
            raise PydanticCustomError("reserved", f'name = "{study.name}" is a file that all studies share')
        return study

    @field_validator("enqueue", mode="before")
    @classmethod
    def _tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @cached_property
    def dimensions(self) -> Space:
        """The search space; raises `StudyFileError` where `[space]` cannot be read."""
        try:
            flat = flatten(self.space)
        except ValueError as error:
            raise StudyFileError(f"{self.file}: [space] {error}") from None
        found = {}
        for name, node in flat.items():
            try:
                found[name] = parse_dimension(name, node)
            except ValueError as error:
                glue = " " if name not in TABLE else ": "
                raise StudyFileError(f'{self.file}: [space] "{name}"{glue}{error}') from None
        return Space(found, {"data.audio": "waveforms" if self.waveforms else "features"})

    @property
    def waveforms(self) -> bool:
        """Whether the audio rows are waveforms, of which each configuration computes its features."""
        return self.data.sample_rate is not None or (Path(self.data.source) / MANIFEST).is_file()

    @cached_property
    def configurations(self) -> tuple[Hyperparameters, ...]:
        """What is tried first: the defaults, then each `[[enqueue]]`; a repeated one once."""
        return self.configurations_in(self.dimensions)

    def configurations_in(self, space: Space) -> tuple[Hyperparameters, ...]:
        """The same in another space; raises `StudyFileError` for an `[[enqueue]]` that is not in it."""
        found = [space.configuration({})]
        for position, given in enumerate(self.enqueue):
            try:
                made = space.configuration(flatten(given))
            except ValueError as error:
                raise StudyFileError(f"{self.file}: [[enqueue]] number {position + 1}: {error}") from None
            if made not in found:
                found.append(made)
        return tuple(found)

    @property
    def metric(self) -> Metric:
        """The leading metric, whose best epoch on the validation rows is a trial's value."""
        return self.study.metrics[0]

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """Whether a greater or a smaller value of each metric is better."""
        return ["minimize" if metric in SMALLER_IS_BETTER else "maximize" for metric in self.study.metrics]

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """What a trial must keep to, to be the best."""
        return tuple(parse_constraint(text, get_args(Metric)) for text in self.study.constraints)

    @property
    def folds(self) -> int:
        """How many models a trial trains, each validated on other rows."""
        return self.data.folds if self.data.validation == "kfold" else 1

    def command(self, verb: str, options: Collection[str] = OPTIONS) -> str:
        """A command on this study as its user would type it, with the `options` that were laid over the file.

        A password is never shown.
        """
        words = ["mmsearch", verb]
        if Path(self.file) != DEFAULT_STUDY:
            words.append(self.file)
        for option, key in OPTIONS.items():
            if option not in options or key not in self.overrides:
                continue
            value = self.overrides[key]
            if isinstance(value, bool):  # a flag
                words += [option] if value else []
            else:
                words += [option, hide_password(str(value)) if key == "study.storage" else str(value)]
        return shlex.join(words)

    @property
    def storage_paths(self) -> StoragePaths:
        """The files that all studies of this folder share."""
        return StoragePaths(Path(self.study.folder))

    @property
    def paths(self) -> StudyPaths:
        """The files of this study."""
        return StudyPaths(Path(self.study.folder) / self.study.name)

    @property
    def storage_url(self) -> str:
        """The database URL: as given, or the embedded database of the storage folder. May hold a password."""
        return self.study.storage or f"sqlite:///{self.storage_paths.database}"


def load_config(
    path: str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    origin: str = "the command line",
    reading: bool = False,
) -> StudyConfig:
    """Read a study file and lay the environment and `overrides` over it.

    `overrides` maps dotted keys such as `study.trials` to values; None stands for "not given". Relative paths in the
    file are relative to it, those in the environment and in `overrides` to the working directory. `reading` is for who
    only looks at a study, and need not have its data, which decide what applies.

    Raises `StudyFileError` with the file, the key and what is allowed.
    """
    path = Path(path)
    tree = _read(path)
    for section in ("study", "data", "search"):
        if not isinstance(tree.setdefault(section, {}), dict):
            raise StudyFileError(f"{path}: {section} must be a table, written [{section}]")
    study, data = tree["study"], tree["data"]
    study.setdefault("name", path.stem)
    study.setdefault("folder", StudySection.model_fields["folder"].default)
    for section, key in ((study, "folder"), (data, "source"), (tree["search"], "init")):
        if isinstance(section.get(key), str):
            section[key] = _locate(section[key], path.parent, key, str(path))
    if isinstance(study.get("storage"), str):
        study["storage"] = _storage_url(study["storage"], path.parent, f"{path}: [study] storage")

    origins: dict[str, str] = {}
    given = {key: (value, origin) for key, value in (overrides or {}).items() if value is not None}
    for variable, key in ENVIRONMENT:
        if key not in given and key not in origins and (text := os.environ.get(variable)):
            origins[key] = f"the environment variable {variable}"
            _lay(tree, key, text, origins[key])
    for key, (value, label) in given.items():
        origins[key] = label
        _lay(tree, key, value, label)

    for section in (study, data, tree["search"]):  # TOML has lists only
        section.update({key: tuple(node) for key, node in section.items() if isinstance(node, list)})
    try:
        raw = {key: value for key, (value, _) in given.items()}
        config = StudyConfig(file=str(path), overrides=raw, **tree)
    except ValidationError as error:
        raise StudyFileError(hide_passwords(_sentence(error.errors()[0], tree, str(path), origins))) from None
    except TypeError:  # a top-level table that is called as one of ours
        raise StudyFileError(f'{path}: "file" and "overrides" are no sections of a study file') from None
    _ = config.dimensions  # read now, so that whatever is wrong is said now
    if reading:
        check_either_way(config)
    else:
        _ = config.configurations
        check_search(config)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyFileError(f"{path}: no such study file; `mmsearch init` writes studies/digits.toml here") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyFileError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{path}: not valid TOML: {error}") from None


def _lay(tree: dict[str, Any], key: str, value: object, label: str) -> None:
    section, _, name = key.partition(".")
    if section not in ("study", "data", "search"):
        raise StudyFileError(f'{label}: "{key}" is not a key of [study], [data] or [search]')
    if isinstance(value, str) and key == "study.storage":
        value = _storage_url(value, Path.cwd(), label)
    elif isinstance(value, str) and key in ("study.folder", "data.source"):
        value = _locate(value, Path.cwd(), name, label)
    elif isinstance(value, str) and key == "data.image_shape":
        value = parse_shape(value, label)
    elif isinstance(value, str) and key == "search.gpus":
        value = parse_gpus(value, label)
    tree[section][name] = value


def _locate(text: str, base: Path, key: str, label: str) -> str:
    """A path relative to `base`, made absolute; the word `demo` as a data source stays as it is."""
    if key == "source" and text == "demo":
        return text
    try:
        return os.path.normpath(base.resolve() / Path(text).expanduser())
    except RuntimeError:
        section = {"source": "data", "init": "search"}.get(key, "study")
        raise StudyFileError(f'{label}: [{section}] {key} = "{text}": there is no such user') from None


def _storage_url(text: str, base: Path, label: str) -> str:
    """A database URL that SQLAlchemy can open, with its driver named and a SQLite file's path made absolute."""
    if "://" not in text:
        raise StudyFileError(
            f"{label} must be a database URL, such as sqlite:///studies.db or postgresql://user@host/name"
        )
    scheme, rest = text.split("://", 1)
    dialect = scheme.partition("+")[0]
    if dialect == "sqlite":
        name = rest.removeprefix("/")
        if not name or name.startswith(":memory:"):
            raise StudyFileError(f"{label} must name a SQLite file: worker processes cannot share one in memory")
        return f"{scheme}:///{_locate(name, base, 'storage', label)}"
    if dialect in ("postgresql", "postgres"):
        if rest.partition("?")[0].count("@") > 1:
            raise StudyFileError(f"{label}: a password with @ in it is written with %40, and / in it with %2F")
        return f"postgresql+{scheme.partition('+')[2] or 'psycopg'}://{rest}"
    raise StudyFileError(f'{label}: "{scheme}" is not offered; allowed are sqlite and postgresql')


def hide_password(url: str) -> str:
    """A storage URL as it may be shown; only its kind where it cannot be read, or could hide a password elsewhere."""
    from sqlalchemy.engine import make_url  # here, since it takes a fifth of a second to import
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return url.split("://", 1)[0] + "://***"
    if any("@" in part for part in (parsed.username or "", parsed.host or "", parsed.database or "")):
        return f"{parsed.drivername}://***"
    query = {key: "***" if "pass" in key.lower() else value for key, value in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True)


def _sentence(error: Any, tree: Mapping[str, Any], file: str, origins: Mapping[str, str]) -> str:
    """One pydantic error as one sentence: where, what, what is allowed."""
    location = [str(part) for part in error["loc"]]
    section, name = location[0], location[1] if len(location) > 1 else ""
    key = f"[{section}] {name}".strip()
    where = f"{origins[f'{section}.{name}']}: {key}" if f"{section}.{name}" in origins else f"{file}: {key}"
    if error["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"study": StudySection, "data": DataSection, "search": SearchSection}
        ours = [f for f in StudyConfig.model_fields if f not in ("file", "overrides")]
        known = ours if not name else list(models[section].model_fields)
        what = "a key of this section" if name else "a section of a study file"
        owner = next((held for held, model in models.items() if not name and section in model.model_fields), None)
        if owner is not None:
            return f"{file}: {section} is a key of [{owner}], and must stand below that line"
        return f"{where} is not {what}{nearest(name or section, known)}; allowed are {', '.join(known)}"
    if name.endswith("_shape"):
        parts = "[frames, coefficients]" if name == "audio_shape" else "[height, width] or [channels, height, width]"
        return f"{where} = {show(tree[section][name])} must be {parts}: whole numbers from 1"
    if error["type"] == "missing":
        return f"{where} is missing"
    allowed = error["msg"].replace("'", '"')
    for here, theirs in (("must be", "Input should be"), ("must", "Tuple should"), ("a list", "a valid tuple")):
        allowed = allowed.replace(theirs, here)
    allowed = allowed.replace("a valid dictionary", "a table").replace(" after validation", "")
    if "valid integer" in allowed:
        allowed = "must be a whole number"
    elif error["type"] == "string_pattern_mismatch" and name == "name":
        allowed = "must be letters, digits, dots, dashes and underscores, at most 100"
    elif error["type"] == "string_pattern_mismatch":
        allowed = 'must be "auto", "cpu", "cuda" or "cuda:N"'
    elif error["type"] == "reserved":
        return f"{where} {allowed}; choose another"
    elif name == "constraints" and error["type"] == "ours":
        return f"{where}: {error['msg']}"
    value = error["input"]
    if allowed == "must be a list":
        allowed += f", such as [{show(value)}]"
    return f"{where} = {show(value)} {allowed}"
