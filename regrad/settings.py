"""How settings are read: YAML plus `key.path=value` overrides into immutable, validated classes.

A misspelt key is an error that names the nearest right one. Where a mapping is expected, a string that ends in
`.yaml` names another file, relative to the one that mentions it, or, in an override, to the directory that you are in.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from regrad.errors import ConfigError, StorageError
from regrad.text import counted, did_you_mean, in_one_line, nearest_name


class Settings(BaseModel):
    """Base of every settings class: immutable, and unknown keys are errors.

    `MOVED` names keys of earlier versions with the key, or keys, that took their place, for the error that they cause:
    keys of this class (`a.b` of a section), or with a `/` before them, of the whole file.
    """

    MOVED: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )


S = TypeVar("S", bound=Settings)


def absolute_location(uri: str) -> str:
    """A path from the root, `~` resolved; a URI as it is."""
    return uri if not uri or "://" in uri else os.path.abspath(os.path.expanduser(uri))


Location = Annotated[str, AfterValidator(absolute_location)]
"""A path or URI. A relative path, or `~`, is taken from where the settings are read: workers run elsewhere."""


def load_settings(kind: type[S], path: str | Path | None, overrides: Sequence[str] = ()) -> S:
    """Settings from a YAML file, at a path or a URI (or defaults alone), and overrides such as `bank.codec=bf16`.

    Raises `ConfigError` naming the file, the key and what was expected.
    """
    data = read_yaml(path) if path is not None else {}
    for override in overrides:
        apply_override(data, override)
    return parse_settings(kind, data, str(path) if path is not None else "the overrides")


def parse_settings(kind: type[S], data: Mapping[str, Any], where: str) -> S:
    """Validate a mapping; raises `ConfigError` that names every wrong key and the nearest right one."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        # A list with a problem inside it is reported as too short, too: only the problem inside is the cause.
        inside = {details["loc"][:depth] for details in found for depth in range(len(details["loc"]))}
        causes = [details for details in found if details["type"] != "too_short" or details["loc"] not in inside]
        problems = [_explained(kind, details) for details in causes]
        text = "; ".join(text for text, _ in problems)
        raise ConfigError(f"{where}: {text}", code="invalid", problems=[fields for _, fields in problems]) from error


def settings_changed(before: Any, now: Any, beyond_defaults: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys whose values differ between recorded settings and those of now, with the old and the new values.

    Both are dumped whole; `beyond_defaults` are those of now that are not at their defaults (`exclude_defaults`). A
    setting that the record does not know is newer than it, and counts if it is not at its default: a new version of
    this package goes on with what an older one began.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        given = beyond_defaults if isinstance(beyond_defaults, dict) else {}
        for name in sorted({*before, *now}):
            if name in before or name in given:
                place = f"{key}.{name}" if key else name
                yield from settings_changed(before.get(name), now.get(name), given.get(name), place)
    elif before != now:
        yield key, before, now


def invalid(problem: str, sentence: str, near: str = "") -> PydanticCustomError:
    """What a validator of settings raises: `problem` stays, for programs and tests; the sentence is for people.

    `near` is the right name that is nearest to a wrong one. All three are in the fields of the `ConfigError`.
    """
    # Pydantic fills in a template: the sentence may have braces of its own.
    return PydanticCustomError(problem, "{sentence}", {"sentence": sentence, "near": near})


def read_yaml(
    path: str | Path, including: tuple[str | Path, ...] = (), files: list[str | Path] | None = None
) -> dict[str, Any]:
    """A YAML mapping with its included files resolved, from a path or a URI; raises `ConfigError` for anything else.

    `files`, if given, gets the place of every file that was read: a URI as text.
    """
    path = str(path) if is_uri(path) else Path(path)
    itself = path if isinstance(path, str) else path.resolve()
    if itself in including:
        raise ConfigError(f"{path} includes itself", code="includes_itself", path=str(path))
    if files is not None:
        files.append(path)
    try:
        data = yaml.safe_load(_text_of(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", code="unreadable", path=str(path)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {in_one_line(error)}", code="not_yaml", path=str(path)) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        found = type(data).__name__
        raise ConfigError(
            f"{path}: a mapping of settings is expected, found {found}", code="no_mapping", path=str(path), found=found
        )
    chain = (*including, itself)
    return {str(key): _include(value, path, chain, files) for key, value in data.items()}


def is_uri(place: str | Path) -> bool:
    """Whether a place is a URI, and no path."""
    return isinstance(place, str) and "://" in place


def _text_of(place: str | Path) -> str:
    """What a configuration file holds; raises `ConfigError` if there is none."""
    if isinstance(place, str):
        from regrad.storage import Storage  # seconds of imports, which most commands do without

        folder, _, name = place.rpartition("/")
        try:
            return Storage(folder).read(name).decode()
        except StorageError as error:
            code = "not_found" if error.code == "storage.not_found" else "unreadable"
            raise ConfigError(str(error), code=code, path=place, near="") from error
    try:
        return place.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = nearest_name(place.name, (other.name for other in place.parent.glob("*.yaml")))
        hint = f"; did you mean {place.parent / near}?" if near else ""
        raise ConfigError(f"{place} does not exist{hint}", code="not_found", path=str(place), near=near) from error


def _beside(place: str | Path, name: str) -> str | Path:
    """The place of a file that the one at `place` names."""
    if is_uri(name):
        return name
    if isinstance(place, Path):
        return place.parent / name
    scheme, _, path = place.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(path), name))}"


def _include(value: Any, path: str | Path, chain: tuple[str | Path, ...], files: list[str | Path] | None) -> Any:
    if isinstance(value, str) and value.endswith(".yaml"):
        return read_yaml(_beside(path, value), chain, files)
    if isinstance(value, dict):
        return {str(key): _include(inner, path, chain, files) for key, inner in value.items()}
    if isinstance(value, list):  # a name that is an item itself may be a file of data, and stays
        return [item if isinstance(item, str) else _include(item, path, chain, files) for item in value]
    return value


def apply_override(data: dict[str, Any], override: str, files: list[str | Path] | None = None) -> None:
    """Set one `key.path=value` (the value is YAML) in nested mappings and lists; raises `ConfigError`.

    `files` is given the files that the value names.

    An item of a list is named by its position from 0: `sets.0.limit=20`.
    """
    key, separator, text = override.partition("=")

    def refuse(reason: str) -> ConfigError:
        return ConfigError(f"override {override!r}{reason}", code="bad_override", override=override)

    if not separator or not key:
        raise refuse(" is not of the form key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise refuse(": the value is not YAML") from error
    value = _include(value, Path("the overrides"), (), files)
    *parents, last = key.split(".")
    place: Any = data
    for parent in parents:
        place = place[_position(place, parent, refuse)] if isinstance(place, list) else place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise refuse(f": {parent!r} is not a section")
    place[_position(place, last, refuse) if isinstance(place, list) else last] = value


def _position(items: list[Any], part: str, refuse: Callable[[str], ConfigError]) -> int:
    if not re.fullmatch("[0-9]+", part) or int(part) >= len(items):
        raise refuse(f": {part!r} is not a position in a list of {counted(len(items), 'item')} (the first is 0)")
    return int(part)


def _explained(kind: type[BaseModel], details: ErrorDetails) -> tuple[str, dict[str, str]]:
    """A problem that Pydantic found as a sentence, and as fields: the key, the nearest right name, and its type, which
    is Pydantic's or was given to `invalid`."""
    keys, model = _place(kind, details["loc"])
    key = ".".join(keys)
    problem = details["type"]
    if problem == "missing":
        return f"key '{key}' is required", {"key": key, "problem": problem}
    if problem == "extra_forbidden":
        moved = getattr(model, "MOVED", {}).get(keys[-1], ())
        meant = [moved] if isinstance(moved, str) else list(moved) or _keys_meant(keys[-1], model)
        right = [name[1:] if name[0] == "/" else ".".join([*keys[:-1], name]) for name in meant]
        if moved:
            hint = f": it is {' or '.join(map(repr, right))} now"
        elif right:
            hint = f"; did you mean {' or '.join(map(repr, right))}?"
        else:
            hint = f"; the keys here are {', '.join(model.model_fields)}"
        return f"unknown key '{key}'{hint}", {
            "key": key,
            "problem": problem,
            "near": right[0] if len(right) == 1 else "",
        }
    near, hint = details.get("ctx", {}).get("near", ""), ""  # of `invalid`, whose sentence says it already
    if problem == "literal_error" and isinstance(details["input"], str):
        near = nearest_name(details["input"], re.findall(r"'([^']+)'", details.get("ctx", {}).get("expected", "")))
        hint = did_you_mean(near)
    message = details["msg"].removeprefix("Value error, ")
    found = "" if isinstance(details["input"], dict) else f", found {details['input']!r:.80}"
    where = f"key '{key}': " if key else ""  # a validator of the whole class names the keys itself
    return f"{where}{message}{found}{hint}", {"key": key, "problem": problem, "near": near}


def _keys_meant(name: str, model: type[BaseModel]) -> list[str]:
    """`section.name` of each section with a key of that very name, else the key of this class that is most like it."""
    within = [
        f"{section}.{name}"
        for section, field in model.model_fields.items()
        for inner in models_in(field.annotation)
        if name in inner.model_fields
    ]
    near = nearest_name(name, model.model_fields)
    return list(dict.fromkeys(within)) or ([near] if near else [])


def _place(kind: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], type[BaseModel]]:
    """The keys that lead to a problem, and the class that the last one is a key of.

    In a union of settings classes Pydantic puts the tag of the chosen one, here its name, among the keys. The tag tells
    the class, and is not in the file.
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
            models = list(models_in(field.annotation)) or [kind]
    return keys, kind


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes that a field's annotation names, those of a union and of a list among them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


CustomResources = dict[
    Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")], Annotated[float, Field(gt=0, allow_inf_nan=False)]
]
"""What a worker or replica takes of a cluster's own resources, by name, so that it runs on the machines that have them.

An operator gives them to kinds of machines (`resources` in `cluster.yaml`, `--resources` of `ray start`): `train: 1`
runs beside at most seven others where there are 8. CPUs and GPUs are not among them: they have own settings."""


OTHER_MACHINES = "machine"
"""The kind of machines that have none, and the key of the price of kinds that have no price of their own."""


class WorkersConfig(Settings):
    """How much of the cluster a job takes. `gpu: null` uses GPUs when the cluster has one for each worker."""

    workers: int = Field(2, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpu: bool | None = None
    gpus_per_worker: int = Field(1, ge=1, description="a base model is split over them, if it is too large for one")
    resources: CustomResources = Field({})
    node_hour: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="price of a machine for an hour by its kind, that of cluster.yaml, or `machine` for all others"
    )
    currency: str = "USD"

    @model_validator(mode="after")
    def _gpus_are_used(self) -> Self:
        if self.gpu is False and self.gpus_per_worker > 1:
            raise invalid("gpus_without_gpu", "gpus_per_worker: workers with `gpu: false` have none")
        return self

    def check_one_gpu(self, reason: str) -> None:
        """Raise an error of settings, with the `reason`, if workers are to have several GPUs each."""
        if self.gpus_per_worker > 1:
            raise invalid("one_gpu_a_worker", f"cluster.gpus_per_worker has to be 1 here: {reason}")


def builtin_config(name: str) -> Path:
    """A file that comes with regrad, such as `jobs/train-lab.yaml`: from the wheel, or from a source checkout."""
    package = Path(__file__).parent
    wheel, checkout = package / "configs" / name, package.parent / "configs" / name
    return wheel if wheel.exists() else checkout
