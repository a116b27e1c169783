"""How settings are read: YAML plus `key.path=value` overrides into immutable, validated classes.

A misspelt key is an error that names the nearest right one. Where a mapping is expected, a string that ends in
`.yaml` names another file, relative to the one that mentions it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from regrad.errors import ConfigError


class Settings(BaseModel):
    """Base of every settings class: immutable, and unknown keys are errors.

    `MOVED` names keys of earlier versions with the keys that took their place, for the error that they cause.
    """

    MOVED: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )


S = TypeVar("S", bound=Settings)


def _absolute(uri: str) -> str:
    return uri if not uri or "://" in uri else os.path.abspath(os.path.expanduser(uri))


Location = Annotated[str, AfterValidator(_absolute)]
"""A path or URI. A relative path, or `~`, is taken from where the settings are read: workers run elsewhere."""


def load_settings(kind: type[S], path: str | Path | None, overrides: Sequence[str] = ()) -> S:
    """Settings from a YAML file (or defaults alone) and overrides such as `bank.codec=bf16`.

    Raises `ConfigError` naming the file, the key and what was expected.
    """
    data = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        apply_override(data, override)
    return parse_settings(kind, data, str(path) if path is not None else "the overrides")


def parse_settings(kind: type[S], data: Mapping[str, Any], where: str) -> S:
    """Validate a mapping; raises `ConfigError` with one line a problem."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(_explain(kind, details) for details in _causes(error.errors()))
        raise ConfigError(f"{where}: {problems}") from error


def _causes(problems: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that are too short only because of a problem inside them."""
    places = [details["loc"] for details in problems]

    def is_cause(details: ErrorDetails) -> bool:
        own = details["loc"]
        return details["type"] != "too_short" or not any(p[: len(own)] == own and p != own for p in places)

    return [details for details in problems if is_cause(details)]


def read_yaml(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML mapping with its included files resolved; raises `ConfigError` for anything else."""
    if path.resolve() in including:
        raise ConfigError(f"{path} includes itself")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist{_nearby(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping of settings is expected, found {type(data).__name__}")
    chain = (*including, path.resolve())
    return {str(key): _include(value, path, chain) for key, value in data.items()}


def _include(value: Any, path: Path, chain: tuple[Path, ...]) -> Any:
    if isinstance(value, str) and value.endswith(".yaml"):
        return read_yaml(path.parent / value, chain)
    if isinstance(value, dict):
        return {str(key): _include(inner, path, chain) for key, inner in value.items()}
    if isinstance(value, list):  # a name that is an item itself may be a file of data, and stays
        return [item if isinstance(item, str) else _include(item, path, chain) for item in value]
    return value


def _nearby(path: Path) -> str:
    names = [other.name for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` (the value is YAML) in nested mappings; raises `ConfigError`."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML") from error
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a section")
    data[last] = value


def _explain(kind: type[BaseModel], details: ErrorDetails) -> str:
    location, here = _place(kind, details["loc"])
    key = ".".join(location)
    if details["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_moved(here, location) or _suggest(here, location)}"
    if details["type"] == "missing":
        return f"key '{key}' is required"
    message = details["msg"].removeprefix("Value error, ")
    found = "" if isinstance(details["input"], dict) else f", found {details['input']!r:.80}"
    return f"key '{key}': {message}{found}{_nearest_value(details)}"


def _nearest_value(details: ErrorDetails) -> str:
    if details["type"] != "literal_error" or not isinstance(details["input"], str):
        return ""
    allowed = re.findall(r"'([^']+)'", details.get("ctx", {}).get("expected", ""))
    near = difflib.get_close_matches(details["input"], allowed, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _moved(kind: type[BaseModel], location: Sequence[str]) -> str:
    """Where a setting of an earlier version is now, if its class says so."""
    new = getattr(kind, "MOVED", {}).get(location[-1])
    return f": it is '{'.'.join([*location[:-1], new])}' now" if new else ""


def _suggest(kind: type[BaseModel], location: Sequence[str]) -> str:
    near = difflib.get_close_matches(location[-1], kind.model_fields, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{'.'.join([*location[:-1], near[0]])}'?"
    return f"; the keys here are {', '.join(kind.model_fields)}"


def _place(kind: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], type[BaseModel]]:
    """The keys that lead to a problem, and the class that the last one is a key of.

    In a union of settings classes Pydantic puts the chosen one's tag, here its name, among the keys: it chooses the
    class, and nobody wrote it.
    """
    keys: list[str] = []
    models = [kind]
    for part in location:
        tagged = [model for model in models if model.__name__ == part]
        if tagged and len(models) > 1:
            kind, models = tagged[0], tagged
            continue
        keys.append(str(part))
        if len(models) == 1:
            kind = models[0]
        field = kind.model_fields.get(str(part))
        if field:
            models = list(_models_in(field.annotation)) or [kind]
    return keys, kind


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


class WorkersConfig(Settings):
    """How much of the cluster a job takes. `gpu: null` uses GPUs when the cluster has one for each worker."""

    workers: int = Field(2, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpu: bool | None = None


def builtin_config(name: str) -> Path:
    """A file that comes with regrad, such as `jobs/train-lab.yaml`: from the wheel, or from a source checkout."""
    package = Path(__file__).parents[1]
    wheel, checkout = package / "configs" / name, package.parent / "configs" / name
    return wheel if wheel.exists() else checkout
