"""`regrad bank`: look at a Gradient Bank, mend it, forget passages, make room."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from regrad.cli.bank_transfer import export_command, import_command
from regrad.cli.options import settings_options
from regrad.config import BuildConfig
from regrad.settings import load_settings

_SHOWN = 20
DAMAGED, QUARANTINED = 1, 3


@click.group("bank")
def command() -> None:
    """Look at a Gradient Bank, add to it, forget passages, make room, check it, copy it."""


command.add_command(export_command, "export")
command.add_command(import_command, "import")


@command.command("info")
@click.argument("uri")
@click.option("--version", type=int, help="An older version; by default the one in force.")
@click.option("--id", "passage_id", help="Say what the bank knows of one passage.")
@click.option("--quarantine", is_flag=True, help="List the passages that have no atom, and why.")
@click.option("--json", "as_json", is_flag=True)
def info(uri: str, version: int | None, passage_id: str | None, quarantine: bool, as_json: bool) -> None:
    """What a bank holds, what is on its disk, and whether deleted atoms are still there."""
    from regrad.bank import describe

    if quarantine:
        _show([{"id": name, "reason": reason} for name, reason in describe.quarantined(uri, version)], as_json)
    elif passage_id is not None:
        _show(asdict(describe.passage_info(uri, passage_id, version)), as_json)
    else:
        found = describe.info(uri, version)
        _show(asdict(found), as_json)
        if not as_json:
            click.echo(_about_forgetting(found.records_on_disk, found.dead_records, found.dead_bytes))


@command.command("add")
@settings_options("jobs/build-lab.yaml")
def add(config: Path, overrides: tuple[str, ...]) -> None:
    """Add the passages of a corpus, or replace them; the others stay. Settings are those of `regrad build`."""
    settings = load_settings(BuildConfig, config, overrides)
    from ray_jobs import build_bank

    manifest = build_bank.build(settings, add=True)
    click.echo(build_bank.describe(manifest, settings.bank.uri))
    sys.exit(QUARANTINED if manifest.quarantined else 0)


@command.command("delete")
@click.argument("uri")
@click.argument("ids", nargs=-1)
@click.option("--ids-from", type=click.File(encoding="utf-8"), help="A file with one id a line; - is standard input.")
def delete(uri: str, ids: Sequence[str], ids_from: Any) -> None:
    """Forget passages: from now on no version of the bank gives their atoms out."""
    from regrad.bank import upkeep

    names = [*ids, *(line.rstrip("\r\n") for line in ids_from or () if line.strip())]
    if not names:
        raise click.UsageError("name at least one passage id")
    manifest = upkeep.delete(uri, names)
    click.echo(f"forgotten: {len(set(names))} passages; version {manifest.label} has {manifest.passages}")
    click.echo(f"their bytes go with: regrad bank compact {uri} && regrad bank gc {uri}")


@command.command("compact")
@click.argument("uri")
@click.option("--shard-bytes", type=click.IntRange(min=1), help="How large shards should be; 64 MiB by default.")
def compact(uri: str, shard_bytes: int | None) -> None:
    """Copy what is in use out of shards that hold deleted atoms; put small shards and parts together."""
    from regrad.bank import compact as compacting

    manifest = compacting.compact(uri, shard_bytes or compacting.SHARD_BYTES)
    shards = sum(part.shards for part in manifest.parts)
    click.echo(f"version {manifest.label}: {manifest.passages} passages in {shards} shards")


@command.command("gc")
@click.argument("uri")
@click.option("--keep", type=click.IntRange(min=1), default=1, show_default=True, help="Versions to keep.")
@click.option("--grace", type=click.FloatRange(min=0), default=3600.0, show_default=True, metavar="SECONDS")
@click.option("--abandon-builds", is_flag=True, help="Also remove what unfinished builds have done.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def gc(uri: str, keep: int, grace: float, abandon_builds: bool, dry_run: bool) -> None:
    """Remove old versions and the files that only they needed; files of dead writers when older than the grace."""
    from regrad.bank import upkeep

    removed = upkeep.gc(uri, keep, grace, abandon_builds, dry_run)
    verb = "would remove" if dry_run else "removed"
    versions = ", ".join(map(str, removed.versions)) or "none"
    click.echo(f"{verb} versions: {versions}; {len(removed.files)} files, {_size(removed.bytes)}")


@command.command("verify")
@click.argument("uri")
@click.option("--version", type=int)
@click.option("--repair", is_flag=True, help="Make damaged look-up files anew.")
@click.option("--json", "as_json", is_flag=True)
def verify(uri: str, version: int | None, repair: bool, as_json: bool) -> None:
    """Read every byte, and list the files and passages that are damaged. The exit status is 1 if there are any."""
    from regrad.bank import verify as verifying

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done} of {total} shards", nl=done == total, err=True)

    damage = [*verifying.damaged_manifests(uri), *verifying.verify(uri, version, repair, progress)]
    if as_json:
        click.echo(json.dumps([asdict(item) for item in damage], indent=1))
    for item in damage if not as_json else ():
        click.echo(f"{item.file}: {item.problem}" + "".join(f"\n  {name}" for name in item.passages))
    if damage:
        click.echo("restore the files, or `regrad bank delete` the passages and add them again", err=True)
        sys.exit(DAMAGED)
    if not as_json:
        click.echo("every byte is as it was written")


@command.command("diff")
@click.argument("uri")
@click.argument("older", type=int)
@click.argument("newer", type=int, required=False)
@click.option("--json", "as_json", is_flag=True)
def diff(uri: str, older: int, newer: int | None, as_json: bool) -> None:
    """How two versions differ; the newer one is by default the one in force."""
    from regrad.bank import describe

    found = describe.diff(uri, older, newer)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    click.echo(f"from version {found.older} to {found.newer}; {found.moved} atoms were moved")
    for name in ("added", "removed", "changed"):
        ids = getattr(found, name)
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        click.echo(f"{name}: {len(ids)}" + (f": {', '.join(ids[:_SHOWN])}{more}" if ids else ""))


def _show(found: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for row in found if isinstance(found, list) else [found]:
        if isinstance(found, list):
            click.echo(f"{row['id']}: {row['reason']}")
            continue
        for name, value in row.items():
            click.echo(f"{name.replace('_', ' '):>24}  {_value(name, value)}")


def _value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_size(item) if name == 'bytes' else item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    return "-" if value is None else str(value)


def _about_forgetting(records: int, dead: int, size: int) -> str:
    if not dead:
        return f"every one of the {records} records on disk belongs to a passage"
    return (
        f"{dead} atoms that no passage of this version has ({_size(size)}) are still in shard files: "
        "run `regrad bank compact`, then `regrad bank gc`"
    )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
