"""A plan from its settings: what is wrong is found first; then all is measured, searched, written, and checked."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from ray_jobs.cluster import cluster
from regrad.bank.format import read_manifest
from regrad.cli.plan.report import CheckedRow, PlanReport
from regrad.cli.plan.server import can_change_embedded, candidate_of, changed_args, loaded
from regrad.data.question_sets import read_questions
from regrad.errors import PlanningError
from regrad.meta_init import MetaInit, read_card
from regrad.methods.base import MethodSettings
from regrad.models.local_files import resolve_path
from regrad.planning.config import MachineConfig, PlanConfig
from regrad.planning.prediction import Predictor
from regrad.planning.profile import (
    ROLES,
    Bank,
    Candidate,
    Machine,
    ObservedServer,
    Profile,
    check_profile,
    read_profile,
    write_profile,
)
from regrad.planning.search import Choice, Limits, best, check_processors, fits, fitting, front, no_room, predicted
from regrad.planning.stages import MeasuredStages, Served, measure
from regrad.settings import parse_settings
from regrad.storage import Storage
from regrad.text import counted, hint, milliseconds
from serve_app.app import check_artefacts, parts_of
from serve_app.config import ServeConfig
from serve_app.methods import offers_of

PROFILE, PLAN, SERVE = "profile.json", "plan.json", "serve.yaml"
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_FRONT_USERS = (1, 4, 16, 64)

Say = Callable[[str], None]


@dataclass(frozen=True)
class CheckedSettings:
    """The settings with everything that they name found and checked."""

    config: PlanConfig
    args: dict[str, Any]
    server: ServeConfig
    limits: Limits
    bank: Bank
    served: Served
    questions: tuple[str, ...]
    profile: Profile | None

    @property
    def default(self) -> Candidate:
        """The configuration as it is given."""
        return candidate_of(self.server)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """A request for each question."""
        options = {"method": self.config.method, "k": self.config.k, "max_new_tokens": self.config.max_new_tokens}
        return [{"question": question, **options} for question in self.questions]

    @property
    def disk_share(self) -> float:
        """Of a remote bank, what the disk tier can hold."""
        tiers = self.server.tiers
        return min(1.0, tiers.disk_bytes / max(1, self.bank.bytes)) if tiers.disk else 0.0


def plan(config: PlanConfig, say: Say) -> PlanReport:
    """Profile, search, choose, write; with `check` also run both configurations. What is wrong is raised first."""
    checked = prepare(config)
    report = _searched(checked, checked.profile or _measured(checked, say), say)
    output = Storage(config.output)
    output.write(SERVE, _document(checked, report.chosen).encode())
    output.write(PLAN, report.as_json().encode())
    if config.check:
        report = report.checked(_checked(checked, report.chosen, report.given, say))
        output.write(PLAN, report.as_json().encode())
    return report


def _searched(checked: CheckedSettings, profile: Profile, say: Say) -> PlanReport:
    """The best configuration of all that fit the machine, the given one, and those that no other one beats."""
    config, machine = checked.config, checked.limits.machine
    predictor = Predictor(profile, checked.bank, checked.disk_share)
    for embedded in checked.limits.embedded:
        if not predictor.knows(embedded):
            say(f"no server with {_setting(embedded)} was measured, so none is searched")
    candidates = fitting(predictor, checked.default, checked.limits, checked.bank)
    choices = predicted(predictor, candidates, machine, config.users)
    chosen = best(choices, config.bound_ms / 1e3 if config.bound_ms else None)
    given = predicted(predictor, [checked.default], machine, config.users)[0]
    loads = sorted({*_FRONT_USERS, config.users})
    spread = [one for users in loads for one in predicted(predictor, candidates, machine, users)]
    return PlanReport(config.users, machine, tuple(front(spread)), chosen, given, f"{config.output}/{SERVE}")


def prepare(config: PlanConfig) -> CheckedSettings:
    """Everything that can be found wrong without measuring: raises the first of it."""
    args, _ = parts_of(config.serve, "serve")
    server = parse_settings(ServeConfig, args, "serve: args")
    offers = offers_of(server)
    if config.method not in offers:
        text = f"the server offers no method {config.method!r}, but {', '.join(offers)}{hint(config.method, offers)}"
        raise PlanningError(text, code="not_offered", method=config.method, offered=list(offers))
    limits = _limits(config, server)
    check_processors(candidate_of(server), limits)
    check_artefacts(server)
    manifest = read_manifest(Storage(server.bank), server.bank_version)
    bank = Bank(codec=manifest.codec, record_bytes=manifest.record_bytes, passages=manifest.passages)
    profile = None
    if config.profile is not None:
        profile = read_profile(config.profile)
        fingerprint = str(read_card(server.meta_init)["fingerprint"])
        check_profile(profile, fingerprint, bank, config.method, config.k, server.embedded, _gpus(server))
    else:
        _check_gpus(server)
        _check_room(server, limits)
    questions = tuple(one.question for one in read_questions(config.questions))
    served = _served(server, offers[config.method].settings)
    return CheckedSettings(config, args, server, limits, bank, served, questions, profile)


def _served(server: ServeConfig, method: MethodSettings) -> Served:
    """What is measured without a server, as this server has it."""
    return Served(
        meta_init=server.meta_init,
        model_path=server.model_path,
        bank=server.bank,
        bank_version=server.bank_version,
        tiers=server.tiers,
        index=server.index,
        retrieval=server.retrieval,
        method=method,
        on_overflow=server.on_overflow,
        devices=tuple(f"cuda:{number}" for number in range(_gpus(server))) or ("cpu",),
        threads=max(1, int(server.generator.num_cpus)),
        prefill_tokens=server.batch.prefill_tokens,
    )


def _gpus(server: ServeConfig) -> int:
    """How many GPUs a generator computes on; a share of one is one."""
    return math.ceil(server.generator.num_gpus)


def _limits(config: PlanConfig, server: ServeConfig) -> Limits:
    deployments = {role: getattr(server, role) for role in ROLES}
    both = config.change_embedded and can_change_embedded(server)
    return Limits(
        machine_of(config.machine),
        {role: one.num_cpus for role, one in deployments.items()},
        {role: one.num_gpus for role, one in deployments.items()},
        config.most_replicas,
        config.most_rows,
        embedded=(False, True) if both else (server.embedded,),
    )


def machine_of(config: MachineConfig) -> Machine:
    """What is given, else what this machine has."""
    here = torch.cuda.device_count()
    card = torch.cuda.get_device_properties(0).total_memory if here else 0
    return Machine(
        cores=config.cores or len(os.sched_getaffinity(0)),
        gpus=here if config.gpus is None else config.gpus,
        memory_bytes=config.memory_bytes or psutil.virtual_memory().total,
        gpu_bytes=config.gpu_bytes or card,
    )


def _check_gpus(server: ServeConfig) -> None:
    """Refuse to measure where a generator does not get the GPUs that it has, over which its base would be split."""
    wanted, here = _gpus(server), torch.cuda.device_count()
    if wanted > here:
        raise PlanningError(
            f"a generator has {counted(wanted, 'GPU')} (generator.num_gpus), and this machine, on which it would be "
            f"measured, has {here}; measure on one that has them, or give a profile that was measured there (profile)",
            code="too_few_gpus",
            expected=wanted,
            found=here,
        )


def _check_room(server: ServeConfig, limits: Limits) -> None:
    """Refuse a model whose files alone are larger than the memory: in memory it is at least as large."""
    path = Path(resolve_path(MetaInit.load(server.meta_init).model_at(server.model_path).path))
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.suffix in _WEIGHTS]
    size = sum(file.stat().st_size for file in files)
    gpus, machine = _gpus(server), limits.machine
    if size > (gpus * machine.gpu_bytes if gpus else machine.memory_bytes):
        raise no_room(size, size // max(1, gpus), machine, gpus > 0)


def _measured(checked: CheckedSettings, say: Say) -> Profile:
    """The profile of this machine, written as soon as it is complete."""
    config, measuring = checked.config, checked.config.measuring
    found = measure(
        checked.served, checked.questions, config.k, config.max_new_tokens, measuring.batches, measuring.repeats, say
    )
    with cluster():
        profile = _profile(checked, found, _observed(checked, checked.server, say))
        other = _other_server(checked, profile, say)
        if other is not None:
            profile = profile.model_copy(update={"other": _observed(checked, other, say)})
    write_profile(f"{config.output}/{PROFILE}", profile)
    return profile


def _observed(checked: CheckedSettings, server: ServeConfig, say: Say) -> ObservedServer:
    """A server under every load.

    Both get all loads. Two for the second would not do: what embedding saves is no constant share. 1, 4, 16 and 64
    users got 1.4, 1.5, 1.2 and 1.2 times as many answers a second (docs/benchmarks.md, "Through HTTP, under load");
    between the ends 4 users would be taken to get 1.3 times as many, which is as wrong as most choices are close. And
    in the same order each is as warm at a load as the other was.
    """
    measuring, loads = checked.config.measuring, []
    with loaded(server, checked.bodies) as load:
        for users in measuring.users:
            say(f"the server with {_setting(server.embedded)} under {users} users, {measuring.seconds:g} s")
            loads.append(load.observe(users, measuring.seconds))
    return ObservedServer(configuration=candidate_of(server), observed=tuple(loads))


def _other_server(checked: CheckedSettings, profile: Profile, say: Say) -> ServeConfig | None:
    """The server with `embedded` the other way, if the plan may change that and this machine has room for it."""
    other = checked.server.model_copy(update={"embedded": not checked.server.embedded})
    if other.embedded not in checked.limits.embedded:
        return None
    if fits(Predictor(profile), candidate_of(other), replace(checked.limits, machine=profile.machine)):
        return other
    say(f"this machine has no room for the server with {_setting(other.embedded)}: it is not measured")
    return None


def _profile(checked: CheckedSettings, found: MeasuredStages, given: ObservedServer) -> Profile:
    alone = checked.config.max_new_tokens > checked.server.groups.max_new_tokens
    return Profile(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware={"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
        machine=machine_of(MachineConfig()),
        fingerprint=found.fingerprint,
        bank=found.bank,
        workload=found.workload.model_copy(update={"alone": alone}),
        generator_on_gpu=_gpus(checked.server) > 0,
        generator_gpus=max(1, _gpus(checked.server)),
        stages=found.stages,
        memory=found.memory,
        configuration=given.configuration,
        observed=given.observed,
    )


def _setting(embedded: bool) -> str:
    return f"`embedded: {str(embedded).lower()}`"


def _document(checked: CheckedSettings, chosen: Choice) -> str:
    """The serve configuration with the chosen values, and a line on what is predicted of it."""
    document = {**checked.config.serve}
    application = {**document["applications"][0], "args": changed_args(checked.args, chosen.candidate)}
    document["applications"] = [application]
    speed = chosen.predicted
    head = (
        f"# By `regrad plan`: predicted for {speed.users} users are {speed.rate:.1f} answers/s and a p50 of "
        f"{milliseconds(speed.p50)}.\n"
    )
    return head + yaml.safe_dump(document, sort_keys=False)


def _checked(checked: CheckedSettings, chosen: Choice, given: Choice, say: Say) -> list[CheckedRow]:
    """Both configurations under the same load, in turn."""
    config, rows = checked.config, []
    configurations: Mapping[str, Choice] = {"given": given, "chosen": chosen}
    with cluster():
        for turn in range(config.check_turns):
            for name, choice in configurations.items():
                say(f"checking the {name} configuration: {config.users} users for {config.check_seconds:g} s")
                args = changed_args(checked.args, choice.candidate)
                with loaded(parse_settings(ServeConfig, args, "the plan"), checked.bodies) as load:
                    measured = load.observe(config.users, config.check_seconds)
                rows.append(CheckedRow(name, turn, choice.predicted, measured))
    return rows
