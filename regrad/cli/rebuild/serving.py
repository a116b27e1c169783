"""How servers take up a version: by the release list and the collection that they follow, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from regrad.bank.format import current_version
from regrad.cli.serve import releases_at, wait_for
from regrad.errors import ServeError
from regrad.rebuild.config import ServingConfig
from regrad.rebuild.prune import InUse
from regrad.rebuild.versions import Version
from regrad.retrieval.base import CARD as INDEX_CARD
from regrad.retrieval.collection import CollectionBank, location, read_version
from regrad.retrieval.collection_changes import publish, replace_indexes
from regrad.settings import parse_settings
from regrad.storage import Storage
from serve_app.config import ServeConfig
from serve_app.rollout import ReleaseConfig, ReleaseList, changing_releases, resolve_releases, updated, write_releases


def take_up(serving: ServingConfig, version: Version, output: Storage) -> str:
    """Make the version's MetaInit and bank current for the servers that follow `releases`, then its indexes.

    Returns a few words about it. If anything fails, even that a server does not follow, what was current before is
    put back and the error raised.
    """
    places = version.places_in(output)
    release = parse_settings(
        ReleaseConfig,
        {
            "name": serving.name,
            "meta_init": places["meta-init"],
            "bank": places["bank"],
            "bank_version": version.bank_version,
        },
        "serving",
    )
    application = ServeConfig(
        meta_init=release.meta_init, bank=release.bank, index=serving.collection or "", releases=serving.releases
    )
    with changing_releases(application) as current:
        # The base that the servers hold is that of what is current now: another one is refused.
        application = application.model_copy(update={"meta_init": current.releases[0].meta_init})
        new = ReleaseList(releases=(release,)) if current.releases == (release,) else updated(current, release)
        facts = resolve_releases(application, new)[1]
        with _put_back_if_it_fails(application, current, serving.collection):
            write_releases(application, new)
            if serving.collection is not None:
                bank = CollectionBank(
                    uri=release.bank,
                    meta_init=release.meta_init,
                    codec=facts[0]["codec"],
                    version=version.bank_version,
                )
                replace_indexes(serving.collection, [places[name] for name in version.searched], bank)
            if serving.url is not None:
                wait_for(serving.url, facts, say=lambda _: None)
    return f"servers that follow {serving.releases} answer from it"


@contextmanager
def in_use(serving: ServingConfig | None, say: Callable[[str], None]) -> Iterator[InUse]:
    """What the servers of the settings answer from or may go back to, which `regrad serve` cannot change inside."""
    if serving is None:
        yield InUse()
        return
    # A server that follows the file has these settings, of which none but the file's place is read.
    application = ServeConfig(meta_init="none", bank="none", index="none", releases=serving.releases)
    with changing_releases(application) as current:
        listed = [one for one in (*current.releases, *current.previous) if one.bank != application.bank]
        locations = [place for one in listed for place in (one.meta_init, one.bank)]
        banks = [(one.bank, one.bank_version or current_version(Storage(one.bank)) or 0) for one in listed]
        if serving.collection is not None and Storage(serving.collection).exists(INDEX_CARD):
            version = read_version(serving.collection)
            locations += [location(serving.collection, index) for one in version.segments for index in one.indexes]
            banks += [(version.bank.uri, version.bank.version)] if version.bank else []
        yield InUse(locations, [*banks, *_answering(serving.url, say)])


def _answering(url: str | None, say: Callable[[str], None]) -> list[tuple[str, int]]:
    """The banks and their versions that the server at a URL answers from; none if no server is there."""
    if url is None:
        return []
    try:
        found = releases_at(url)
    except ServeError as error:
        say(f"{error}: what is in use is taken from the release list and the collection alone")
        return []
    return [(str(one["bank"]), int(str(one["bank_version"]).partition("-")[0])) for one in found]


@contextmanager
def _put_back_if_it_fails(application: ServeConfig, before: ReleaseList, collection: str | None) -> Iterator[None]:
    folder, _, name = str(application.releases).rpartition("/")
    was_there = Storage(folder).exists(name)
    indexes = read_version(collection) if collection and Storage(collection).exists(INDEX_CARD) else None
    try:
        yield
    except BaseException:
        if was_there:
            write_releases(application, before)
        else:
            Storage(folder).remove_file(name)
        if collection is not None and indexes is not None and read_version(collection) != indexes:
            publish(collection, indexes)
        raise
