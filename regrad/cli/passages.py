"""`regrad passages`: a corpus that changes, its indexes and its bank as one collection."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from regrad.cli.bank.output import check_ids, given_ids, ids_listed, ids_option, json_option, print_fields, print_json
from regrad.cli.options import QUARANTINED
from regrad.text import counted

if TYPE_CHECKING:
    from regrad.retrieval.collection import CollectionBank


@click.group("passages")
def passages() -> None:
    """Add passages and delete them everywhere at once: in every index and in the bank.

    A collection is an index that changes. It can be given wherever an index can; a running server takes up a
    change within seconds.
    """


@passages.command("create")
@click.argument("collection", metavar="COLLECTION")
@click.option(
    "--index",
    "indexes",
    multiple=True,
    required=True,
    metavar="URI",
    help="One of each kind; repeatable.",
)
@click.option("--bank", metavar="URI", help="The bank of the same passages' gradients.")
@click.option("--meta-init", metavar="URI", help="With --bank: the MetaInit of its gradients.")
@click.option(
    "--method",
    type=click.Choice(["rrf", "scores"]),
    default="rrf",
    show_default=True,
    help="How the indexes' results are fused.",
)
def create(collection: str, indexes: tuple[str, ...], bank: str | None, meta_init: str | None, method: str) -> None:
    """Create COLLECTION from existing indexes and, with --bank, the bank of the same passages.

    Nothing is copied: the indexes stay where they are, and must stay.
    """
    if bool(bank) != bool(meta_init):
        raise click.UsageError("--bank and --meta-init go together")
    from regrad.retrieval.collection_changes import create_collection
    from regrad.retrieval.config import FusionConfig
    from regrad.settings import absolute_location

    fusion = FusionConfig.model_validate({"method": method})
    taken = _bank(absolute_location(bank), absolute_location(meta_init)) if bank and meta_init else None
    places = [absolute_location(each) for each in indexes]
    made = create_collection(absolute_location(collection), places, fusion, taken)
    kinds = "one index" if len(indexes) == 1 else f"{len(indexes)} indexes"
    click.echo(f"collection {collection}: {counted(made.passages, 'passage')}, {kinds}{', a bank' if taken else ''}")


def _bank(uri: str, meta_init: str) -> CollectionBank:
    from regrad.bank.format import read_manifest
    from regrad.errors import FingerprintMismatch
    from regrad.meta_init import read_card
    from regrad.retrieval.collection import CollectionBank
    from regrad.storage import Storage

    manifest, fingerprint = read_manifest(Storage(uri)), read_card(meta_init)["fingerprint"]
    if manifest.fingerprint != fingerprint:
        raise FingerprintMismatch(manifest.fingerprint, fingerprint)
    return CollectionBank(uri=uri, meta_init=meta_init, codec=manifest.codec, version=manifest.version)


@passages.command("add")
@click.argument("collection", metavar="COLLECTION")
@click.option(
    "--corpus",
    required=True,
    metavar="URI",
    help="The passages, in any form that `regrad index` and `regrad build` read.",
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="A setting of `regrad build`.")
def add(collection: str, corpus: str, changes: tuple[str, ...]) -> None:
    """Index the passages of a corpus and compute their gradients; they become visible all at once.

    More than a thousand passages are embedded by as many workers as compute gradients (--set cluster.workers=4). A
    passage replaces an older one with the same id. The exit status is 3 if the bank has refused some: they are
    found, but have no gradient.
    """
    from ray_jobs import change_collection
    from regrad.settings import absolute_location

    uri = absolute_location(collection)
    version, built = change_collection.add(uri, absolute_location(corpus), changes)
    click.echo(f"version {version.version} of {collection}: {counted(version.passages, 'passage')}")
    if built and built.refused:
        click.echo(f"{counted(built.refused, 'passage')} of this corpus without a gradient", err=True)
        sys.exit(QUARANTINED)


@passages.command("delete")
@click.argument("collection", metavar="COLLECTION")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@ids_option("Passages to delete")
def delete(collection: str, ids: tuple[str, ...], ids_from: str | None) -> None:
    """Delete passages: no index finds them any more, and the bank forgets their gradients. All or none.

    The texts stay in the indexes' files until those are rebuilt, the gradients' bytes in the bank's until `regrad
    bank compact` and `regrad bank gc` have run.
    """
    check_ids(ids)
    wanted = sorted({*ids, *(given_ids(ids_from) or ())})
    if not wanted:
        raise click.UsageError("name the ids to delete, or a file of them with --ids-from")
    from ray_jobs import change_collection
    from regrad.settings import absolute_location

    version = change_collection.forget(absolute_location(collection), wanted)
    click.echo(f"deleted {counted(len(wanted), 'passage')} in version {version.version}: {ids_listed(wanted)}")
    click.echo(f"{counted(version.passages, 'passage')} left")


@passages.command("info")
@click.argument("collection", metavar="COLLECTION")
@json_option
def info(collection: str, as_json: bool) -> None:
    """Show what COLLECTION consists of."""
    from regrad.retrieval.collection import read_version
    from regrad.settings import absolute_location

    version = read_version(absolute_location(collection))
    if as_json:
        print_json(version.model_dump(mode="json"))
        return
    hidden = sum(len(segment.hidden) for segment in version.segments)
    rows = [("version", str(version.version)), ("passages", f"{version.passages:,}"), ("hidden", f"{hidden:,}")]
    rows += [("indexes", ", ".join(segment.indexes)) for segment in version.segments]
    if bank := version.bank:
        rows.append(("bank", f"version {bank.version} of {bank.uri}"))
    print_fields(rows)
