"""The application: `build` makes it for `serve deploy configs/serve/lab.yaml`; `serving` runs it from this process."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, HTTPOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

from regrad.errors import ConfigError, ServeError
from regrad.retrieval.base import check_index
from regrad.settings import apply_override, parse_settings, read_yaml
from serve_app.config import HttpConfig, ReplicaConfig, ServeConfig
from serve_app.evidence import BankLoaderDeployment, RetrieverDeployment
from serve_app.gateway import Gateway
from serve_app.generator import GeneratorDeployment
from serve_app.http.app import make_app
from serve_app.methods import check_offers
from serve_app.observability import CALLS, QUESTIONS
from serve_app.rollout import read_releases, resolve_releases

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
APPLICATION = "regrad"
_START_SECONDS = 300
_HTTP = "http."
_ERROR_LINE = re.compile(r"^[\w.]*(Error|Mismatch|NotFound|Exception)\b.*: ")


def build(args: dict[str, Any]) -> Application:
    """The application for `args` (see `serve_app.config.ServeConfig`).

    Raises `ConfigError` for a wrong key, `MetaInitError` or `BankError` for a missing artefact, and
    `FingerprintMismatch` if the bank was built for another MetaInit.
    """
    config = parse_settings(ServeConfig, args, "the application's args")
    check_artefacts(config)
    retriever = bank_loader = None
    if not config.embedded:
        retriever = _deploy(RetrieverDeployment, "retriever", config.retriever).bind(config)
        bank_loader = _deploy(BankLoaderDeployment, "bank_loader", config.bank_loader).bind(config)
    generator = _deploy(GeneratorDeployment, "generator", config.generator).bind(config)
    # The routes are made here, but called in a replica: only there can they ask Serve for the gateway.
    ingress = serve.ingress(make_app(config, lambda: serve.get_replica_context().servable_object))(Gateway)
    return _deploy(ingress, "gateway", config.gateway).bind(config, retriever, bank_loader, generator)


def check_artefacts(config: ServeConfig) -> None:
    """Refuse what is missing, and a bank that does not belong to its MetaInit, before anything starts."""
    resolve_releases(config, read_releases(config))
    check_index(config.index, config.retrieval)
    check_offers(config)


def _deploy(cls: Any, name: str, config: ReplicaConfig) -> Any:
    scales = config.max_replicas > config.min_replicas
    # The gateway's requests come one by one; the others' come in micro-batches.
    policy = {} if name == "gateway" else {"policy": AutoscalingPolicy(policy_function=replicas_for_questions)}
    scaling = AutoscalingConfig(
        min_replicas=config.min_replicas,
        max_replicas=config.max_replicas,
        target_ongoing_requests=config.target_ongoing_requests or max(1, config.max_ongoing_requests // 2),
        upscale_delay_s=config.upscale_delay_seconds,
        downscale_delay_s=config.downscale_delay_seconds,
        **policy,
    )
    return serve.deployment(
        cls,
        name=name,
        autoscaling_config=scaling if scales else None,
        num_replicas=None if scales else config.min_replicas,
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        graceful_shutdown_timeout_s=config.drain_seconds,
        health_check_period_s=config.health_check_seconds,
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus, "resources": config.resources},
    )


def replicas_for_questions(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """A policy for Serve's autoscaling: so many replicas that each has `target_ongoing_requests` questions in hand.

    Serve applies the delays and the bounds. While no replica has said anything a call counts as one question.
    """
    # Serve sends this function itself to its controller, which imports nothing of ours for it: it names constants only.
    metrics = context.aggregated_metrics
    questions, calls = (sum(metrics.get(name, {}).values()) for name in (QUESTIONS, CALLS))
    questions_a_call = max(1.0, questions / calls) if calls > 0 else 1.0
    return context.total_num_requests * questions_a_call / context.config.get_target_ongoing_requests(), {}


def load_serve_file(path: str | Path, overrides: Sequence[str] = ()) -> tuple[ServeConfig, HttpConfig]:
    """The args of the one application in a Serve configuration file, and where to listen; raises `ConfigError`."""
    data = read_yaml(path)
    args, http = parts_of(data, str(path))
    for override in overrides:
        target = http if override.startswith(_HTTP) else args
        apply_override(target, override.removeprefix(_HTTP))
    return parse_settings(ServeConfig, args, f"{path}: args"), parse_settings(HttpConfig, http, f"{path}: http_options")


def parts_of(data: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a Serve configuration: a copy of its one application's args, and where to listen; raises `ConfigError`."""
    applications = data.get("applications")
    if not isinstance(applications, list) or len(applications) != 1 or not isinstance(applications[0], dict):
        raise ConfigError(
            f"{where}: 'applications' must list exactly one application", code="not_one_application", path=where
        )
    options = data.get("http_options") or {}
    http = {key: options[key] for key in ("host", "port") if key in options}
    return deepcopy(dict(applications[0].get("args") or {})), http


@contextmanager
def serving(config: ServeConfig, http: HttpConfig, shared: bool = False) -> Iterator[str]:
    """Serve inside the block (on the Ray cluster that this process has joined); gives the URL.

    At the end Serve is shut down, or, on a `shared` cluster, only this application is deleted.

    Raises `ServeError` if the port is taken or a replica does not start, and what `build` raises.
    """
    if not shared:
        check_port(http)
        check_gpus(config)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options = HTTPOptions(host=http.host, port=http.port)
    try:
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=QUIET)
    except RayError as error:
        reason = (_lines(str(error)) or ["no reason given"])[-1]
        raise ServeError(f"the server did not start: {reason}", code="not_started", reason=reason) from error
    try:
        deploy(config)
        yield f"http://{http.host}:{http.port}"
    finally:
        serve.delete(APPLICATION) if shared else serve.shutdown()


def deploy(config: ServeConfig, name: str = APPLICATION, route_prefix: str = "/") -> None:
    """Deploy one application and wait until all its replicas are up.

    Raises `ServeError` with the replica's own error if one fails, or with what is missing after five minutes.
    """
    application = build(config.model_dump(mode="json"))
    target = serve.RunTarget(application, name, route_prefix, logging_config=QUIET)
    serve.run_many([target], wait_for_applications_running=False)
    deadline = time.monotonic() + _START_SECONDS
    while (status := serve.status().applications[name]).status != ApplicationStatus.RUNNING:
        if status.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            reason = _reason(status)
            raise ServeError(f"the server did not start: {reason}", code="not_started", reason=reason)
        if time.monotonic() > deadline:
            reason = _reason(status)
            text = f"the server is not up after {_START_SECONDS} s: {reason}"
            raise ServeError(text, code="start_too_slow", seconds=_START_SECONDS, reason=reason)
        time.sleep(0.2)


def anywhere() -> HttpConfig:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return HttpConfig(port=int(probe.getsockname()[1]))


def check_gpus(config: ServeConfig) -> None:
    """Raise `ServeError` if this machine, which is the whole cluster, has too few GPUs for the fewest replicas."""
    beside = [] if config.embedded else [config.retriever, config.bank_loader]
    deployments = [config.generator, config.gateway, *beside]
    wanted = sum(each.min_replicas * each.num_gpus for each in deployments)
    there = ray.cluster_resources().get("GPU", 0.0)
    if wanted > there:
        raise ServeError(
            f"the replicas reserve {wanted:g} GPUs, but this machine has {there:g}; lower num_gpus or min_replicas",
            code="too_few_gpus",
            expected=wanted,
            found=there,
        )


def check_port(http: HttpConfig) -> None:
    """Raise `ServeError` if the address is in use already, or is not one of this machine's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            raise ServeError(
                f"cannot listen at {http.host}:{http.port}: {error.strerror}; choose another with --set http.port=PORT",
                code="cannot_listen",
                host=http.host,
                port=http.port,
            ) from error


def _reason(status: ApplicationStatusOverview) -> str:
    """The last line of the first deployment message that Serve has, which is the replica's own error."""
    messages = [status.message, *(deployment.message for deployment in status.deployments.values())]
    lines = [line for message in messages if message for line in _lines(message)]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return (errors or lines or ["no reason given"])[-1]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
