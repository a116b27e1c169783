"""`regrad serve`, its verbs for a running server, and `regrad ask`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import requests

from regrad.cli.options import LazyGroup, settings_options
from regrad.client import API_KEY, AnswerClient, with_key
from regrad.errors import ServeError

if TYPE_CHECKING:  # `regrad ask` and `regrad serve status` would wait for torch
    from serve_app.config import HttpConfig, ServeConfig
    from serve_app.rollout import ReleaseList

_TIMEOUT_SECONDS = 10
_WAIT_SECONDS = 30.0
_PAUSE_SECONDS = 0.2

url_option = click.option(
    "--url", metavar="URL", help="Wait until the server at this address answers from the new release."
)


def releases_at(url: str) -> list[dict[str, Any]]:
    """The releases that a server answers from; raises `ServeError` if there is no regrad server at the address."""
    address = f"{url.rstrip('/')}/v1/bank"
    try:
        response = requests.get(address, timeout=_TIMEOUT_SECONDS, auth=with_key)
        found = response.json()["releases"] if response.ok else None
    except requests.JSONDecodeError:
        found = None
    except requests.RequestException as error:
        raise ServeError(
            f"no server answers at {url}; start one with `regrad serve`, or give --url", code="no_server", url=url
        ) from error
    except (KeyError, TypeError):
        found = None
    if response.status_code == 401:
        text = f"the server at {url} needs an API key that it knows: put one into {API_KEY}"
        raise ServeError(text, code="unauthorized", status=401, url=url)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        status = response.status_code
        raise ServeError(f"{address} does not list releases (HTTP {status})", code="not_regrad", url=url, status=status)
    return found


def wait_for(url: str, wanted: Sequence[dict[str, Any]], say: Callable[[str], None] = click.echo) -> None:
    """Wait until the server says that it answers from these releases.

    Raises `ServeError` after half a minute, or if no server answers.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    while not _are(found := releases_at(url), wanted):
        if time.monotonic() > deadline:
            raise ServeError(
                f"the server at {url} does not answer from it after {_WAIT_SECONDS:.0f} s: does it follow the same "
                "file (`releases`), and can it read what the file names? Its log says more",
                code="not_followed",
                url=url,
                seconds=_WAIT_SECONDS,
            )
        time.sleep(_PAUSE_SECONDS)
    say(f"the server at {url} answers from it:\n{describe_releases(found)}")


def _are(found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> bool:
    return len(found) == len(wanted) and all(
        there.get(key) == value
        for there, here in zip(found, wanted, strict=True)
        for key, value in here.items()
        if key != "passages"  # a server that follows the newest version may be one ahead
    )


def describe_releases(releases: Sequence[dict[str, Any]]) -> str:
    """Releases in a few lines each."""
    lines = []
    for release in releases:
        follows = "the newest, always" if release.get("follows_newest") else "stays at this version"
        lines += [
            f"{release.get('name')}: {float(release.get('share') or 0):.0%} of the traffic",
            f"  MetaInit  {release.get('meta_init')} ({release.get('fingerprint')})",
            f"  bank      {release.get('bank')}",
            f"  version   {release.get('bank_version')} ({follows}), {release.get('passages')} passages",
        ]
    return "\n".join(lines)


@click.command("update")
@settings_options("serve/lab.yaml")
@click.option("--name", default="main", show_default=True, help="Name of the release, which answers state.")
@click.option("--meta-init", metavar="URI", help="Another MetaInit on the same base (default: the main release's).")
@click.option("--bank", metavar="URI", help="Another bank (default: the main release's).")
@click.option("--bank-version", type=int, metavar="N", help="Pin this version (default: follow the newest).")
@click.option(
    "--share", type=float, default=1.0, show_default=True, help="Share of the traffic; the rest is unchanged."
)
@url_option
def update(
    config: str | Path,
    overrides: tuple[str, ...],
    name: str,
    meta_init: str | None,
    bank: str | None,
    bank_version: int | None,
    share: float,
    url: str | None,
) -> None:
    """Switch servers to another pair of MetaInit and bank; no request is dropped.

    The pair is checked first, then the file `releases` of the server's settings is written, which all its gateways
    follow. `regrad serve rollback` undoes it.
    """
    from regrad.settings import parse_settings
    from serve_app.rollout import ReleaseConfig, updated

    def changed(current: ReleaseList) -> ReleaseList:
        main = current.releases[0]
        given = {
            "name": name,
            "meta_init": meta_init or main.meta_init,
            "bank": bank or main.bank,
            "bank_version": bank_version,
            "share": share,
        }
        return updated(current, parse_settings(ReleaseConfig, given, "the release"))

    _change(config, overrides, url, changed, "current")


def _change(
    config: str | Path,
    overrides: tuple[str, ...],
    url: str | None,
    changed: Callable[[ReleaseList], ReleaseList],
    said: str,
) -> None:
    """Write the releases that are current from now on, checked before; with `url` wait until a server has them."""
    from serve_app.app import load_serve_file
    from serve_app.rollout import changing_releases, resolve_releases, write_releases

    application, _ = load_serve_file(config, overrides)
    with changing_releases(application) as current:
        releases = changed(current)
        facts = resolve_releases(application, releases)[1]
        write_releases(application, releases)
    click.echo(f"{said}, by {application.releases}:\n{describe_releases(facts)}")
    if url:
        wait_for(url, facts)


@click.command("rollback")
@settings_options("serve/lab.yaml")
@url_option
def rollback(config: str | Path, overrides: tuple[str, ...], url: str | None) -> None:
    """Undo the last update; a second rollback redoes it."""
    from serve_app.rollout import rolled_back

    _change(config, overrides, url, rolled_back, "current again")


@click.command("status")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server is.")
def status(url: str) -> None:
    """Show what a running server answers from: MetaInit, bank, version and share of each release."""
    click.echo(describe_releases(releases_at(url)))


_VERBS = {
    "update": (
        f"{__name__}:update",
        "Answer from another MetaInit or bank, for all or a share of the traffic.",
    ),
    "rollback": (f"{__name__}:rollback", "Undo the last update."),
    "status": (f"{__name__}:status", "Show what a running server answers from."),
}


@click.group("serve", cls=LazyGroup, verbs=_VERBS, invoke_without_command=True, no_args_is_help=False)
@settings_options("serve/lab.yaml")
@click.pass_context
def serve(context: click.Context, config: str | Path, overrides: tuple[str, ...]) -> None:
    """Serve a bank over HTTP; --set changes the application's args (bank=s3://bucket/bank) or http.port=9000.

    Without a verb it serves in the foreground, until Ctrl-C. The verbs change running servers through the file
    `releases` of their settings.
    """
    if context.invoked_subcommand is None:
        _serve(config, overrides)
        return
    sources = [context.get_parameter_source(name) for name in ("config", "overrides")]
    if click.core.ParameterSource.COMMANDLINE in sources:
        raise click.UsageError(f"put --config and --set after the verb: regrad serve {context.invoked_subcommand} ...")


def _check_not_overruled(application: ServeConfig, overrides: tuple[str, ...]) -> None:
    """Raise `ConfigError` if the current releases have another MetaInit or bank than the command line asks for."""
    from regrad.errors import ConfigError
    from serve_app.rollout import read_releases

    main = read_releases(application).releases[0]
    for key in ("meta_init", "bank"):
        given = getattr(application, key)
        found = getattr(main, key)
        if given != found and any(override.startswith(f"{key}=") for override in overrides):
            raise ConfigError(
                f"{key}={given} was asked for, but {application.releases} has {found}; switch to the new one "
                "with `regrad serve update`, or give this server another file with --set releases=FILE",
                code="overruled_by_releases",
                key=key,
                given=given,
                found=found,
            )


def check_address(http: HttpConfig) -> None:
    """Raise `ServeError`, before anything is begun, if a server could not listen there."""
    from ray_jobs.cluster import joined
    from serve_app.app import check_port

    if not joined():  # a cluster that was there already has its proxies, which listen
        check_port(http)


@contextmanager
def served(application: ServeConfig, http: HttpConfig) -> Iterator[str]:
    """The application on the cluster in use; gives its URL. On a cluster that was joined all else stays at the end."""
    from ray_jobs.cluster import joined
    from serve_app.app import serving

    with serving(application, http, shared=joined()) as url:
        yield url


def _serve(config: str | Path, overrides: tuple[str, ...]) -> None:
    from ray_jobs.cluster import cluster
    from regrad.cli.options import wait_until_stopped
    from serve_app.app import check_artefacts, load_serve_file
    from serve_app.rollout import read_releases

    application, http = load_serve_file(config, overrides)
    _check_not_overruled(application, overrides)
    check_artefacts(application)
    check_address(http)
    with cluster(), served(application, http) as url:
        click.echo(f"serving {read_releases(application).releases[0].bank} at {url} (docs at {url}/docs; Ctrl-C stops)")
        wait_until_stopped()
        click.echo("stopping")


@click.command("ask")
@click.argument("question")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server is.")
@click.option("--method", default="regrad", show_default=True, help="One of the server's; GET /v1/methods lists them.")
@click.option("--k", default=3, show_default=True, help="How many passages to retrieve.")
@click.option("--gamma", default=1.0, show_default=True, help="Scale of the update.")
@click.option("--max-new-tokens", default=20, show_default=True, help="Limit for the answer.")
def ask(question: str, url: str, method: str, k: int, gamma: float, max_new_tokens: int) -> None:
    """Ask a running server one question; shows the answer, its passages and where the time went.

    The API key, if the server needs one, is taken from REGRAD_API_KEY.
    """
    options = {"method": method, "k": k, "gamma": gamma, "max_new_tokens": max_new_tokens}
    answer = AnswerClient(url).answer(question, **options)
    for passage in answer["passages"]:
        score = "" if passage["score"] is None else f"{passage['score']:.3f}"
        click.echo(f"  {score:>8}  {passage['tier'] or '':8}  {passage['id']}  {passage['title']}", err=True)
    for step in answer["degraded"]:
        click.echo(f"  degraded ({step['policy']}): {step['reason']}", err=True)
    stages = "  ".join(f"{name} {value:.1f}" for name, value in answer["milliseconds"].items())
    bank = f"  bank {answer['bank_version']}" if answer["bank_version"] else ""
    tokens = answer["usage"]["prompt_tokens"]
    click.echo(f"  {answer['method']}{bank}  prompt {tokens} tokens  ms: {stages}", err=True)
    click.echo(answer["answer"])
