"""The application builder: one function for `serve run`, `serve deploy` and `regrad serve`.

serve deploy configs/serve/lab.yaml
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from regrad.bank.versions import read_manifest
from regrad.config import ReplicaConfig, ServeConfig
from regrad.errors import FingerprintMismatch
from regrad.meta_init import read_card
from regrad.retrieval.lucene import check_index
from regrad.settings import parse_settings
from regrad.storage import Storage
from serve_app.bank_loader import BankLoaderDeployment
from serve_app.gateway import Gateway, make_api
from serve_app.generator import GeneratorDeployment
from serve_app.retriever import RetrieverDeployment


def build(args: dict[str, Any]) -> Application:
    """The application for `args` (see `regrad.config.ServeConfig`).

    Raises `ConfigError` for a wrong key, `MetaInitError` or `BankError` for a missing artefact, and
    `FingerprintMismatch` if the bank was built for another MetaInit.
    """
    config = parse_settings(ServeConfig, args, "the application's args")
    check_artefacts(config)
    retriever = _deploy(RetrieverDeployment, "retriever", config.retriever).bind(config)
    bank_loader = _deploy(BankLoaderDeployment, "bank_loader", config.bank_loader).bind(config)
    generator = _deploy(GeneratorDeployment, "generator", config.generator).bind(config)
    ingress = serve.ingress(make_api(config))(Gateway)
    return _deploy(ingress, "gateway", config.gateway).bind(config, retriever, bank_loader, generator)


def check_artefacts(config: ServeConfig) -> None:
    """Refuse what is missing, and a bank that does not belong to the MetaInit, before anything starts."""
    expected = read_card(config.meta_init)["fingerprint"]
    found = read_manifest(Storage(config.bank)).fingerprint
    if found != expected:
        raise FingerprintMismatch(found, expected)
    check_index(config.index)


def _deploy(cls: Any, name: str, config: ReplicaConfig) -> Any:
    scaling = AutoscalingConfig(
        min_replicas=config.min_replicas,
        max_replicas=config.max_replicas,
        target_ongoing_requests=max(1, config.max_ongoing_requests // 2),
    )
    return serve.deployment(
        cls,
        name=name,
        autoscaling_config=scaling if config.max_replicas > config.min_replicas else None,
        num_replicas=None if config.max_replicas > config.min_replicas else config.min_replicas,
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
    )
