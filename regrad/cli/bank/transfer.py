"""`regrad bank export` and `import`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import click

from regrad.bank.config import CodecName
from regrad.cli.bank.output import codec_option, given_ids, ids_option, uri_argument, version_option
from regrad.text import counted

if TYPE_CHECKING:
    from regrad.bank.io.transfer import Imported


@click.command("export")
@uri_argument
@click.argument("output", metavar="OUTPUT")
@click.option(
    "--format", "form", type=click.Choice(["bank", "safetensors"]), default="bank", show_default=True, help="See above."
)
@version_option("The version to copy")
@codec_option("Encode the copy with this codec (format bank; default: the bytes as they are).")
@ids_option("Copy these passages only")
def export(
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
        from regrad.bank.io.transfer import copy_bank

        copied = copy_bank(uri, output, version, codec, ids)
        click.echo(f"copied {counted(copied.added, 'atom')} to {output}: version {copied.manifest.label}")
        return
    if codec:
        raise click.UsageError("--codec goes with --format bank: files of tensors are float32")
    from regrad.bank.io.tensors import export_tensors

    click.echo(f"wrote {counted(export_tensors(uri, output, version, ids), 'atom')} to {output}")


_TAKES = {
    "bank": (),
    "safetensors": (),
    "regrad-release": ("--meta-init", "--ids"),
    "prag": ("--ids", "--base-identity"),
}


@click.command("import")
@uri_argument
@click.option("--from", "source", required=True, metavar="PATH", help="What to import: a path or URI.")
@click.option("--format", "form", type=click.Choice(list(_TAKES)), required=True, help="What it is; see above.")
@click.option("--meta-init", metavar="DIR", help="regrad-release: the MetaInit that the gradients were computed at.")
@click.option("--ids", metavar="FILE", help="Which passages keys mean: lines of key, id, and if known title and text.")
@click.option("--base-identity", metavar="TEXT", help="prag: what to call the base model instead of its recorded name.")
@codec_option("How to store the atoms (default: as the bank does, or float32).")
def import_(
    uri: str,
    source: str,
    form: str,
    meta_init: str | None,
    ids: str | None,
    base_identity: str | None,
    codec: CodecName | None,
) -> None:
    """Add atoms that something else wrote to the bank at URI, which is made if there is none. All in one version.

    \b
    bank             another bank of the same layout
    safetensors      what `regrad bank export --format safetensors` writes
    regrad-release   .pt files of the ReGrad authors' encode.py; needs --meta-init
    prag             a directory of PRAG's adapters, one a passage: a bank of adapters

    Gradients keyed by question and rank need --ids. A passage whose atom is damaged or not finite is quarantined. A
    file that needs more than tensors to be unpickled is refused, since it could run code.
    """
    given = {"--meta-init": meta_init, "--ids": ids, "--base-identity": base_identity}
    odd = [name for name, value in given.items() if value is not None and name not in _TAKES[form]]
    if odd:
        raise click.UsageError(f"{odd[0]} does not go with --format {form}")
    if form == "regrad-release" and meta_init is None:
        raise click.UsageError("--format regrad-release needs --meta-init DIR")
    done = _importer(form, meta_init or "", ids, base_identity)(source, uri, codec=codec)
    refused = f", {counted(done.refused, 'passage')} refused (info --quarantine)" if done.refused else ""
    left = f", {counted(done.left_out, 'atom')} left out that {ids} does not name" if done.left_out else ""
    click.echo(f"added {counted(done.added, 'atom')} to {uri}: version {done.manifest.label}{refused}{left}")


def _importer(form: str, meta_init: str, ids: str | None, base_identity: str | None) -> Callable[..., Imported]:
    """The function that reads a format; called with source, bank and codec."""
    if form == "regrad-release":
        from regrad.bank.io.release import import_release

        return partial(import_release, meta_init=meta_init, ids=ids)
    if form == "prag":
        from regrad.bank.io.prag import import_adapters

        return partial(import_adapters, ids=ids, base_identity=base_identity)
    if form == "bank":
        from regrad.bank.io.transfer import copy_bank

        return copy_bank
    from regrad.bank.io.tensors import import_tensors

    return import_tensors
