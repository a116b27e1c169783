"""`regrad corpus`: files of any kind as one corpus of passages."""

from __future__ import annotations

import click

from regrad.cli.options import printable
from regrad.settings import parse_settings


@click.command("corpus")
@click.argument("sources", nargs=-1, required=True)
@click.option("--output", "-o", required=True, metavar="DIRECTORY", help="Where to write the corpus, on any storage.")
@click.option("--tokenizer", metavar="MODEL", help="Tokenizer used for --max-tokens; words are counted if omitted.")
@click.option("--max-tokens", type=int, default=200, show_default=True, help="Maximum number of tokens in a passage.")
@click.option("--strict", is_flag=True, help="Stop at the first record or file that cannot be used.")
def corpus(sources: tuple[str, ...], output: str, tokenizer: str | None, max_tokens: int, strict: bool) -> None:
    """Make passages from SOURCES: files, directories, globs and storage URIs.

    Reads records (.jsonl, .json, .tsv, .parquet; the layouts of DPR, BEIR, FlashRAG and Pyserini) and documents (text,
    Markdown, HTML, PDF). Documents and long records are split between sentences, duplicates are dropped, and what
    cannot be used is listed with the reason in rejected.jsonl. `regrad index` and `regrad build` take `corpus.jsonl` in
    OUTPUT; `sources.jsonl` has the file and the lines of each passage. If interrupted, run the
    same command to resume.
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
