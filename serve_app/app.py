"""The application builder: one function for `serve run`, `serve deploy` and `regrad serve`.

serve deploy configs/serve/lab.yaml
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from regrad.retrieval.base import check_index
from regrad.settings import parse_settings
from serve_app.bank_loader import BankLoaderDeployment
from serve_app.config import ReplicaConfig, ServeConfig
from serve_app.gateway import Gateway
from serve_app.generator import GeneratorDeployment
from serve_app.http.app import make_app
from serve_app.offers import check_offers
from serve_app.retriever import RetrieverDeployment
from serve_app.rollout import read_releases, resolve_all


def build(args: dict[str, Any]) -> Application:
    """The application for `args` (see `serve_app.config.ServeConfig`).

    Raises `ConfigError` for a wrong key, `MetaInitError` or `BankError` for a missing artefact, and
    `FingerprintMismatch` if the bank was built for another MetaInit.
    """
    config = parse_settings(ServeConfig, args, "the application's args")
    check_artefacts(config)
    retriever = _deploy(RetrieverDeployment, "retriever", config.retriever).bind(config)
    bank_loader = _deploy(BankLoaderDeployment, "bank_loader", config.bank_loader).bind(config)
    generator = _deploy(GeneratorDeployment, "generator", config.generator).bind(config)
    ingress = serve.ingress(make_app(config, _gateway))(Gateway)
    return _deploy(ingress, "gateway", config.gateway).bind(config, retriever, bank_loader, generator)


def check_artefacts(config: ServeConfig) -> None:
    """Refuse what is missing, and a bank that does not belong to its MetaInit, before anything starts."""
    resolve_all(config, read_releases(config))
    check_index(config.index)
    check_offers(config)


def _gateway() -> Gateway:
    gateway: Gateway = serve.get_replica_context().servable_object
    return gateway


def _deploy(cls: Any, name: str, config: ReplicaConfig) -> Any:
    scales = config.max_replicas > config.min_replicas
    scaling = AutoscalingConfig(
        min_replicas=config.min_replicas,
        max_replicas=config.max_replicas,
        target_ongoing_requests=config.target_ongoing_requests or max(1, config.max_ongoing_requests // 2),
        upscale_delay_s=config.upscale_delay_seconds,
        downscale_delay_s=config.downscale_delay_seconds,
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
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
    )
