"""Running the application from this process: read a Serve file, start, wait until it answers, shut down."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

from regrad.errors import ConfigError, ServeError
from regrad.settings import apply_override, parse_settings, read_yaml
from serve_app.app import build
from serve_app.config import HttpConfig, ServeConfig

_HTTP = "http."


def load_serve_file(path: Path, overrides: Sequence[str] = ()) -> tuple[ServeConfig, HttpConfig]:
    """The args of the one application in a Serve configuration file, and where to listen; raises `ConfigError`."""
    data = read_yaml(path)
    applications = data.get("applications")
    if not isinstance(applications, list) or len(applications) != 1 or not isinstance(applications[0], dict):
        raise ConfigError(f"{path}: 'applications' must list exactly one application")
    args = dict(applications[0].get("args") or {})
    options = data.get("http_options") or {}
    http = {key: options[key] for key in ("host", "port") if key in options}
    for override in overrides:
        target = http if override.startswith(_HTTP) else args
        apply_override(target, override.removeprefix(_HTTP))
    return parse_settings(ServeConfig, args, f"{path}: args"), parse_settings(HttpConfig, http, f"{path}: http_options")


@contextmanager
def serving(config: ServeConfig, http: HttpConfig, shared: bool = False) -> Iterator[str]:
    """Serve inside the block (on the Ray cluster that this process has joined); gives the URL.

    At the end Serve is shut down, or, on a `shared` cluster, only this application is deleted.

    Raises `ServeError` if the port is taken or a replica does not start, and whatever `serve_app.app.build` raises.
    """
    if not shared:
        check_port(http)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _start(http)
    try:
        deploy(config)
        yield f"http://{http.host}:{http.port}"
    finally:
        serve.delete(APPLICATION) if shared else serve.shutdown()


def _start(http: HttpConfig) -> None:
    options = HTTPOptions(host=http.host, port=http.port)
    try:
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=QUIET)
    except RayError as error:
        raise ServeError(f"the server did not start: {_last_line(str(error))}") from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["no reason given"])[-1]


QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
APPLICATION = "regrad"
_START_SECONDS = 300
_ERROR_LINE = re.compile(r"^[\w.]*(Error|Mismatch|NotFound|Exception)\b.*: ")


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
            raise ServeError(f"the server did not start: {_reason(status)}")
        if time.monotonic() > deadline:
            raise ServeError(f"the server is not up after {_START_SECONDS} s: {_reason(status)}")
        time.sleep(0.2)


def check_port(http: HttpConfig) -> None:
    """Raise `ServeError` if something listens at the address, or it cannot be listened at."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            raise ServeError(
                f"cannot listen at {http.host}:{http.port}: {error.strerror}; choose another with --set http.port=PORT"
            ) from error


def _reason(status: ApplicationStatusOverview) -> str:
    """The last line of the first deployment message that Serve has, which is the replica's own error."""
    messages = [status.message, *(deployment.message for deployment in status.deployments.values())]
    lines = [line.strip() for message in messages if message for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return str((errors or lines or ["no reason given"])[-1])
