"""`regrad serve update`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.cli.serve.running import described, url_option, wait_for


@click.command("update")
@settings_options("serve/lab.yaml")
@click.option("--name", default="main", show_default=True, help="What answers call it in `release`.")
@click.option("--meta-init", metavar="URI", help="Another MetaInit on the same base (default: the main release's).")
@click.option("--bank", metavar="URI", help="Another bank (default: the main release's).")
@click.option("--bank-version", type=int, metavar="N", help="A version to stay at (default: always the newest).")
@click.option("--share", type=float, default=1.0, show_default=True, help="Of the traffic; the rest stays as it was.")
@url_option
def command(
    config: Path,
    overrides: tuple[str, ...],
    name: str,
    meta_init: str | None,
    bank: str | None,
    bank_version: int | None,
    share: float,
    url: str | None,
) -> None:
    """Answer from another pair of MetaInit and bank from now on; no request is dropped.

    The pair is checked first, then the file `releases` of the server's settings is written, which all its gateways
    follow. `regrad serve rollback` takes it back.
    """
    from regrad.settings import parse_settings
    from serve_app.local import load_serve_file
    from serve_app.rollout import ReleaseConfig, changing_releases, resolve_all, updated, write_releases

    application, _ = load_serve_file(config, overrides)
    with changing_releases(application) as current:
        main = current.releases[0]
        given = {
            "name": name,
            "meta_init": meta_init or main.meta_init,
            "bank": bank or main.bank,
            "bank_version": bank_version,
            "share": share,
        }
        releases = updated(current, parse_settings(ReleaseConfig, given, "the release"))
        facts = resolve_all(application, releases)[1]
        write_releases(application, releases)
    click.echo(f"in force, by {application.releases}:\n{described(facts)}")
    if url:
        wait_for(url, facts)
