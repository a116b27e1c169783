"""`regrad index`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.retrieval.config import IndexConfig
from regrad.settings import load_settings


@click.command("index")
@settings_options("jobs/index-lab.yaml")
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Index a corpus (passages of id, title, text) for BM25 retrieval."""
    settings = load_settings(IndexConfig, config, overrides)
    from ray_jobs import index_corpus

    click.echo(index_corpus.run(settings))
