"""`regrad corpus`: files of any kind as one corpus of passages."""

from __future__ import annotations

import click

from regrad.cli.options import printable
from regrad.settings import parse_settings


@click.command("corpus")
@click.argument("sources", nargs=-1, required=True)
@click.option("--output", "-o", required=True, metavar="DIRECTORY", help="Where the corpus goes, on any storage.")
@click.option("--tokenizer", metavar="MODEL", help="Whose tokens are counted; without it a token is a word.")
@click.option("--max-tokens", type=int, default=200, show_default=True, help="The longest passage.")
@click.option("--strict", is_flag=True, help="Stop at the first record or file that cannot be used.")
def corpus(sources: tuple[str, ...], output: str, tokenizer: str | None, max_tokens: int, strict: bool) -> None:
    """Make passages of SOURCES: files, directories, globs and storage URIs.

    Read are records (.jsonl, .tsv, .parquet; the layouts of DPR, BEIR, FlashRAG and Pyserini) and documents (text,
    Markdown, HTML, PDF). Documents and long records are cut between sentences, what repeats another is left out, and
    what cannot be used is listed with the reason in rejected.jsonl. `corpus.jsonl` in OUTPUT is what `regrad index` and
    `regrad build` take.
    """
    from regrad.data.corpus_maker import CorpusConfig, CorpusMaker

    given = {"sources": sources, "output": output, "tokenizer": tokenizer, "max_tokens": max_tokens, "strict": strict}
    config = parse_settings(CorpusConfig, given, "the command line")
    counting = None
    if config.tokenizer:
        from regrad.models.fast_tokenizer import load_fast_tokenizer

        counting = load_fast_tokenizer(config.tokenizer)

    def say(line: str) -> None:
        click.echo(printable(line), err=True)

    click.echo(printable(CorpusMaker(config, counting, say).run()))
