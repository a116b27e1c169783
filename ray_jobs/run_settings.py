"""What a training was given: kept beside its checkpoints until it is finished, and then in the directory of its result.

With the first an interrupted training is resumed, with the second a finished one is left as it is; in both cases only
if settings and data are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from regrad.errors import StorageError, TrainingError
from regrad.settings import settings_changed
from regrad.storage import Storage
from regrad.training.config import TrainConfig

UNFINISHED = "run.json"
"""In the run's own directory, beside its checkpoints."""
FINISHED = "training.json"
"""In the directory of the result, which is written with it."""

# What a resumed run may change: none of it changes a number, but by rounding.
_FREE: dict[str, Any] = {
    **dict.fromkeys(("output", "checkpoints", "watch", "cluster", "batch_tokens"), True),
    "optimizer": {"micro_batch", "batch_tokens"},
    "passages": {"cluster"},  # a refresh that failed for want of room is the reason to change it
}


def run_storage(config: TrainConfig) -> Storage:
    """The directory of an unfinished run."""
    return Storage(config.checkpoints.location or f"{config.output}.training")


def as_written(config: TrainConfig, data: Mapping[str, Any]) -> bytes:
    """The file of all that decides a training's numbers; `data` are hashes of what the settings name."""
    return json.dumps(_settings_of(config, data), indent=1).encode()


def check_unfinished(storage: Storage, config: TrainConfig, data: Mapping[str, Any]) -> None:
    """Raise `TrainingError` unless the unfinished run there has these settings and data."""
    remedy = "discard the run with --set checkpoints.resume=false"
    differences = _differing(storage, UNFINISHED, config, data, remedy)
    if differences:
        raise TrainingError(
            f"an unfinished run at {storage.uri} has other settings: {_shown(differences)}. Finish it with its "
            "own settings, or discard it with --set checkpoints.resume=false",
            code="run_of_other_settings",
            uri=storage.uri,
            keys=[key for key, _, _ in differences],
        )


def note_finished(config: TrainConfig, data: Mapping[str, Any], others: Sequence[str] = ()) -> None:
    """Say in the directories of the result and of the `others`, which are complete, what they were trained with."""
    for uri in (config.output, *others):
        Storage(uri).write(FINISHED, as_written(config, data))


def is_finished(
    config: TrainConfig, data: Mapping[str, Any], replaces: bool = False, others: Sequence[str] = ()
) -> bool:
    """Whether `config.output` is the result of just these settings and data, so that nothing is left to do; and the
    results of the run at `others`, if it has several.

    Raises `TrainingError` if one is that of others, unless the new one `replaces` it. An unfinished run goes first,
    `checkpoints.resume` false takes up nothing, and what was not made by a training's job says nothing of itself.
    """
    check_others(config, data, others)
    if not config.checkpoints.resume or run_storage(config).exists(UNFINISHED):
        return False
    return all(_is_result(Storage(uri), config, data, replaces) for uri in (config.output, *others))


def check_others(config: TrainConfig, data: Mapping[str, Any], others: Sequence[str]) -> None:
    """Raise `TrainingError` if one of the `others` is the result of other settings, which a run would write over.

    Unlike `config.output` they are not locked by their run: another may have finished there since this one began.
    """
    if config.checkpoints.resume:
        for uri in others:
            _is_result(Storage(uri), config, data, replaces=False)


def _is_result(output: Storage, config: TrainConfig, data: Mapping[str, Any], replaces: bool) -> bool:
    if not output.exists(FINISHED):
        return False
    remedy = "remove it, or have it replaced with checkpoints.resume=false"
    differences = _differing(output, FINISHED, config, data, remedy)
    if differences and not replaces:
        raise TrainingError(
            f"the result at {output.uri} was trained with other settings: {_shown(differences)}. Choose another "
            "output, remove this one, or have it replaced with --set checkpoints.resume=false",
            code="finished_with_other_settings",
            uri=output.uri,
            keys=[key for key, _, _ in differences],
        )
    return not differences


def check_made_by_training(config: TrainConfig, results: Sequence[tuple[str, str]]) -> None:
    """Raise `StorageError` if a result's place, with the file that shows that one is there, has what no job trained.

    For results of a kind that is also made otherwise, or downloaded. An unfinished run may have written some of its
    own, and `checkpoints.resume` false replaces what is there.
    """
    if not config.checkpoints.resume or run_storage(config).exists(UNFINISHED):
        return
    for uri, card in results:
        if Storage(uri).exists(card) and not Storage(uri).exists(FINISHED):
            raise StorageError(
                f"{uri} exists, and does not say that a training made it ({FINISHED}): choose another place, or have "
                "it replaced with --set checkpoints.resume=false",
                code="occupied",
                uri=uri,
                card=card,
            )


def finished_line(described: str) -> str:
    """What a job says of a result that it left as it is."""
    return f"finished already: {described}; --set output=... or remove it to train anew"


def _settings_of(config: TrainConfig, data: Mapping[str, Any], exclude_defaults: bool = False) -> dict[str, Any]:
    dumped = config.model_dump(mode="json", exclude=_FREE, exclude_defaults=exclude_defaults)
    return {**dumped, "data": dict(data)}


def _differing(
    storage: Storage, name: str, config: TrainConfig, data: Mapping[str, Any], remedy: str
) -> list[tuple[str, Any, Any]]:
    """The keys whose values differ between the file and the settings, with the old and the new values."""
    try:
        before = json.loads(storage.read(name))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise TrainingError(f"{storage.uri}/{name} is damaged; {remedy}", code="run_damaged", uri=storage.uri)
    return list(settings_changed(before, _settings_of(config, data), _settings_of(config, data, exclude_defaults=True)))


def _shown(differences: list[tuple[str, Any, Any]]) -> str:
    return "; ".join(f"{key} was {old!r:.60}, is {new!r:.60}" for key, old, new in differences[:8])
