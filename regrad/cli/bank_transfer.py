"""`regrad bank export` and `regrad bank import`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from regrad.config import CodecName

if TYPE_CHECKING:
    from regrad.bank.transfer.intake import Imported

_CODECS = click.Choice(get_args(CodecName))
_OF_FORMAT = {
    "bank": (),
    "safetensors": (),
    "regrad-release": ("meta_init", "ids"),
    "prag": ("ids", "base_identity"),
}
"""The options that only some formats of an import have."""


@click.command("export")
@click.argument("uri")
@click.argument("output")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["bank", "safetensors"]),
    default="bank",
    show_default=True,
    help="Another bank, or one safetensors file a passage.",
)
@click.option("--version", type=click.IntRange(min=1), help="A version of the bank; by default the one in force.")
@click.option("--codec", type=_CODECS, help="The codec of a bank that is made; by default the same (bytes are copied).")
@click.option(
    "--ids-from", metavar="FILE", help="Only these passages: one id a line, or objects with id in a .jsonl file."
)
def export_command(
    uri: str, output: str, kind: str, version: int | None, codec: CodecName | None, ids_from: str | None
) -> None:
    """Copy atoms of the bank at URI to OUTPUT: into a bank, or as files that anything reads."""
    if codec and kind != "bank":
        raise click.UsageError("--codec goes with --format bank only; tensors are written as float32")
    from regrad.bank.transfer.outgoing import read_ids

    ids = read_ids(ids_from) if ids_from else None
    if kind == "bank":
        from regrad.bank.transfer.banks import copy_bank

        click.echo(_report(output, copy_bank(uri, output, version, codec, ids)))
        return
    from regrad.bank.transfer.tensors import export_tensors

    click.echo(f"{output}: {export_tensors(uri, output, version, ids)} atoms as safetensors files")


@click.command("import")
@click.argument("uri")
@click.option("--from", "source", required=True, metavar="PATH", help="What is imported.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(_OF_FORMAT)),
    required=True,
    help="Another bank, an export of tensors, .pt files of ReGrad's authors, or PRAG's LoRA adapters.",
)
@click.option("--meta-init", metavar="DIR", help="regrad-release: the MetaInit that the gradients were computed at.")
@click.option("--ids", metavar="FILE", help="regrad-release, prag: lines of {key, id, title, text} that name passages.")
@click.option("--base-identity", metavar="NAME", help="prag: the base model, instead of what the adapters call it.")
@click.option("--codec", type=_CODECS, help="The codec of a new bank (a bank that is there keeps its own).")
def import_command(uri: str, source: str, kind: str, codec: CodecName | None, **options: Any) -> None:
    """Add atoms that were computed elsewhere to the bank at URI, all in one new version."""
    for name, value in options.items():
        if value is not None and name not in _OF_FORMAT[kind]:
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --format {kind}")
    if kind == "regrad-release" and options["meta_init"] is None:
        raise click.UsageError("--format regrad-release needs --meta-init: names and shapes are checked against it")
    click.echo(_report(uri, _import(uri, source, kind, codec, options)))


def _import(uri: str, source: str, kind: str, codec: CodecName | None, options: dict[str, Any]) -> Imported:
    if kind == "bank":
        from regrad.bank.transfer.banks import copy_bank

        return copy_bank(source, uri, codec=codec)
    if kind == "safetensors":
        from regrad.bank.transfer.tensors import import_tensors

        return import_tensors(source, uri, codec)
    if kind == "prag":
        from regrad.bank.transfer.adapters import import_adapters

        return import_adapters(source, uri, options["ids"], codec, options["base_identity"])
    from regrad.bank.transfer.release import import_release

    return import_release(source, uri, options["meta_init"], options["ids"], codec)


def _report(uri: str, done: Imported) -> str:
    refused = f", {done.refused} refused (see the quarantine list)" if done.refused else ""
    left_out = f", {done.left_out} left out that no id was given for" if done.left_out else ""
    return f"{uri}: version {done.manifest.label}, {done.added} atoms added{refused}{left_out}"
