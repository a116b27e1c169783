"""`regrad bank export`."""

from __future__ import annotations

import click

from regrad.bank.config import CodecName
from regrad.cli.bank import show
from regrad.cli.bank.arguments import codec_option, given_ids, ids_option, uri_argument, version_option


@click.command("export")
@uri_argument
@click.argument("output", metavar="OUTPUT")
@click.option(
    "--format", "form", type=click.Choice(["bank", "safetensors"]), default="bank", show_default=True, help="See above."
)
@version_option("The version to copy")
@codec_option("Encode the copy with this codec (format bank; default: the bytes as they are).")
@ids_option("Copy these passages only")
def command(
    uri: str, output: str, form: str, version: int | None, codec: CodecName | None, ids_from: str | None
) -> None:
    """Copy a version's atoms to OUTPUT, each checked on the way. Nothing is there until all of it is.

    \b
    bank          a new bank, or one of the same layout, which gets them in a new version
    safetensors   one file of float32 tensors a passage, under the names of LoRA tensors,
                  with atoms.jsonl (id, file, text_hash) and bank.json (what they are)
    """
    ids = given_ids(ids_from)
    if form == "bank":
        from regrad.bank.io.export import copy_bank

        copied = copy_bank(uri, output, version, codec, ids)
        click.echo(f"copied {show.counted(copied.added, 'atom')} to {output}: version {copied.manifest.label}")
        return
    if codec:
        raise click.UsageError("--codec goes with --format bank: files of tensors are float32")
    from regrad.bank.io.tensors import export_tensors

    click.echo(f"wrote {show.counted(export_tensors(uri, output, version, ids), 'atom')} to {output}")
