"""What changes a bank or copies it: `regrad bank add`, `delete`, `compact`, `gc`, `export` and `import`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from regrad.bank.config import BuildConfig, CodecName
from regrad.cli.bank import output as show
from regrad.cli.bank.output import check_ids, codec_option, given_ids, ids_option, uri_argument, version_option
from regrad.cli.options import QUARANTINED, settings_options
from regrad.settings import load_settings
from regrad.text import counted, readable_size

if TYPE_CHECKING:
    from regrad.bank.io.transfer import Imported


@click.command("add")
@settings_options("jobs/build-lab.yaml")
def add(config: str | Path, overrides: tuple[str, ...]) -> None:
    """Add or replace the passages of a corpus; all others stay. Settings are those of `regrad build`.

    The exit status is 3 if some of its passages could not be used: `regrad bank info --quarantine` lists them.
    """
    settings = load_settings(BuildConfig, config, overrides)
    from ray_jobs import build_bank

    built = build_bank.build(settings, add=True)
    click.echo(build_bank.describe(built.manifest, settings.bank.uri))
    if built.refused:
        click.echo(f"{counted(built.refused, 'passage')} of this corpus refused", err=True)
    sys.exit(QUARANTINED if built.refused else 0)


@click.command("delete")
@uri_argument
@click.argument("ids", nargs=-1, metavar="[ID]...")
@ids_option("Passages to forget")
def delete(uri: str, ids: tuple[str, ...], ids_from: str | None) -> None:
    """Forget passages: a new version lacks them, and no older version returns them any more.

    This includes passages that were refused, and those that only older versions have. All or none: an unknown id is an
    error, and then nothing is deleted. There is no confirmation. The bytes stay in files until `regrad bank compact`
    and `regrad bank gc` have run.
    """
    check_ids(ids)
    wanted = sorted({*ids, *(given_ids(ids_from) or ())})
    if not wanted:
        raise click.UsageError("name the ids to forget, or a file of them with --ids-from")
    from regrad.bank.maintenance import delete

    manifest = delete(uri, wanted)
    click.echo(f"forgot {counted(len(wanted), 'passage')} in version {manifest.label}: {show.ids_listed(wanted)}")
    click.echo(f"{counted(manifest.passages, 'passage')} left. To remove the bytes from the disk, too, run")
    click.echo(f"    {show.command_line('compact', uri)}\n    {show.command_line('gc', uri)}")


@click.command("compact")
@uri_argument
@click.option("--shard-bytes", type=click.IntRange(min=1), metavar="N", help="Size of a new shard (default: 64 MiB).")
def compact(uri: str, shard_bytes: int | None) -> None:
    """Rewrite shards that contain deleted or replaced atoms, without them, and join small shards and parts.

    Makes a new version with the same atoms. The old files stay until `regrad bank gc` removes them.
    """
    from regrad.bank.format import read_manifest
    from regrad.bank.maintenance import SHARD_BYTES, compact
    from regrad.storage import Storage

    before = read_manifest(Storage(uri))
    manifest = compact(uri, shard_bytes or SHARD_BYTES)
    if manifest.version == before.version:
        click.echo(f"version {manifest.label} is compact already: nothing was done")
        return
    shards = sum(part.shards for part in manifest.parts)
    click.echo(
        f"version {manifest.label}: {counted(manifest.passages, 'passage')} in {counted(shards, 'shard')}, "
        f"before in {sum(part.shards for part in before.parts):,}"
    )
    click.echo(f"The old files are still there; `{show.command_line('gc', uri)}` removes them.")


@click.command("gc")
@uri_argument
@click.option(
    "--keep", type=int, default=1, show_default=True, metavar="N", help="How many of the newest versions to keep."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Keep files that no version names until they are this old: a running writer may be about to name them.",
)
@click.option("--abandon-builds", is_flag=True, help="Remove the finished blocks of interrupted builds, too.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
def gc(uri: str, keep: int, grace: float, abandon_builds: bool, dry_run: bool) -> None:
    """Remove old versions, the files that only they needed, and files that dead writers left.

    Servers that still have an old version open lose what is removed: restart them first.
    """
    from regrad.bank.maintenance import gc

    removed = gc(uri, keep, grace, abandon_builds, dry_run)
    if not removed.files:
        click.echo("nothing to remove")
        return
    old = ", ".join(map(str, removed.versions)) or "none"
    click.echo(
        f"{'would remove' if dry_run else 'removed'} {counted(len(removed.files), 'file')}, "
        f"{readable_size(removed.bytes)}; versions: {old}"
    )
    if dry_run:
        for name in removed.files:
            click.echo(f"    {name}")


@click.command("export")
@uri_argument
@click.argument("output", metavar="OUTPUT")
@click.option(
    "--format",
    "form",
    type=click.Choice(["bank", "safetensors", "peft"]),
    default="bank",
    show_default=True,
    help="See above.",
)
@click.option("--peft", "form", flag_value="peft", help="The same as --format peft.")
@version_option("The version to copy")
@codec_option("Encode the copy with this codec (format bank; default: the bytes as they are).")
@ids_option("Copy these passages only")
@click.option("--id", "ids", multiple=True, metavar="ID", help="One passage to export; may be repeated.")
@click.option("--meta-init", metavar="DIR", help="peft: the MetaInit of the gradients.")
@click.option("--gamma", type=float, default=1.0, show_default=True, help="peft: the scale of the update.")
@click.option("--phi0", is_flag=True, help="peft: export phi0 alone, without passages.")
@click.option("--base", metavar="NAME", help="peft: name of the base model (default: the MetaInit's).")
def export(
    uri: str,
    output: str,
    form: str,
    version: int | None,
    codec: CodecName | None,
    ids_from: str | None,
    ids: tuple[str, ...],
    meta_init: str | None,
    gamma: float,
    phi0: bool,
    base: str | None,
) -> None:
    """Copy a version's atoms to OUTPUT and check each. The copy appears only when it is complete.

    \b
    bank          a new bank, or one of the same layout, which gets them in a new version
    safetensors   one file of float32 tensors a passage, under the names of LoRA tensors,
                  with atoms.jsonl (id, file, text_hash) and bank.json (what they are)
    peft          the update of the named passages together, as one PEFT adapter directory
                  that other servers load
    """
    check_ids(ids)
    named = given_ids(ids_from)
    wanted = [*ids, *(named or ())] if ids or named is not None else None
    if form != "peft" and (meta_init or base or phi0 or gamma != 1.0):
        raise click.UsageError("--meta-init, --gamma, --phi0 and --base go with --peft")
    if form != "bank" and codec:
        floats = "adapters" if form == "peft" else "files of tensors"
        raise click.UsageError(f"--codec goes with --format bank: {floats} are float32")
    if form == "peft":
        _export_peft(uri, output, version, wanted, meta_init, gamma, phi0, base)
    else:
        _export_atoms(uri, output, form, version, codec, wanted)


def _export_atoms(
    uri: str, output: str, form: str, version: int | None, codec: CodecName | None, ids: list[str] | None
) -> None:
    if form == "bank":
        from regrad.bank.io.transfer import copy_bank

        copied = copy_bank(uri, output, version, codec, ids)
        click.echo(f"copied {counted(copied.added, 'atom')} to {output}: version {copied.manifest.label}")
        return
    from regrad.bank.io.tensors import export_tensors

    click.echo(f"wrote {counted(export_tensors(uri, output, version, ids), 'atom')} to {output}")


def _export_peft(
    uri: str,
    output: str,
    version: int | None,
    ids: list[str] | None,
    meta_init: str | None,
    gamma: float,
    phi0: bool,
    base: str | None,
) -> None:
    from regrad.bank.io.peft import export_start, export_update

    if phi0:
        if meta_init is None or ids is not None:
            raise click.UsageError("--phi0 needs --meta-init DIR and takes no passages")
        export_start(uri, output, meta_init, version, base)
        click.echo(f"wrote the start of {meta_init} to {output}")
        return
    if not ids:
        raise click.UsageError("--peft writes the update of passages: name them with --id or --ids-from, or say --phi0")
    export_update(uri, output, ids, meta_init, version, gamma, base)
    click.echo(f"wrote the update of {counted(len(ids), 'passage')} to {output}")


_TAKES = {
    "bank": (),
    "safetensors": (),
    "regrad-release": ("--meta-init", "--ids"),
    "prag": ("--ids", "--base-identity"),
}


@click.command("import")
@uri_argument
@click.option("--from", "source", required=True, metavar="PATH", help="What to import: a path or URI.")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(_TAKES)),
    required=True,
    help="Its format; see above.",
)
@click.option("--meta-init", metavar="DIR", help="regrad-release: the MetaInit of the gradients.")
@click.option("--ids", metavar="FILE", help="The passage of each key: lines of key, id and, if known, title and text.")
@click.option("--base-identity", metavar="TEXT", help="prag: name of the base model, instead of the recorded one.")
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
    """Add atoms from files to the bank at URI, in one new version; the bank is created if there is none.

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
    done = _imported(source, uri, form, codec, meta_init, ids, base_identity)
    refused = f", {counted(done.refused, 'passage')} refused (info --quarantine)" if done.refused else ""
    left = f", {counted(done.left_out, 'atom')} left out that {ids} does not name" if done.left_out else ""
    click.echo(f"added {counted(done.added, 'atom')} to {uri}: version {done.manifest.label}{refused}{left}")


def _imported(
    source: str,
    uri: str,
    form: str,
    codec: CodecName | None,
    meta_init: str | None,
    ids: str | None,
    base_identity: str | None,
) -> Imported:
    if form == "regrad-release":
        from regrad.bank.io.release import import_release

        return import_release(source, uri, codec=codec, meta_init=meta_init or "", ids=ids)
    if form == "prag":
        from regrad.bank.io.prag import import_adapters

        return import_adapters(source, uri, codec=codec, ids=ids, base_identity=base_identity)
    if form == "bank":
        from regrad.bank.io.transfer import copy_bank

        return copy_bank(source, uri, codec=codec)
    from regrad.bank.io.tensors import import_tensors

    return import_tensors(source, uri, codec=codec)
