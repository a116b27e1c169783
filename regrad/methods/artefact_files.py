"""The files that a method uses, by their content: what was computed with others is computed again."""

from __future__ import annotations

from regrad.bank.format import read_manifest
from regrad.data.content_digests import directory_digest
from regrad.errors import MethodError
from regrad.meta_init import read_card
from regrad.methods.base import Artefacts, MethodSettings
from regrad.storage import Storage


def artefact_places(uses: Artefacts) -> dict[str, str]:
    """Every location that is named, by what is there."""
    named = {"meta_init": uses.meta_init, "bank": uses.bank, "adapter": uses.adapter, **uses.others}
    return {name: place for name, place in named.items() if place}


def artefact_digests(method: MethodSettings) -> list[str]:
    """Digests of the files that the method uses, once they are known to exist and to fit.

    Raises what `check` of the settings raises, and `MethodError` for a directory without files.
    """
    method.check()
    uses = method.artefacts
    found = []
    if uses.meta_init:
        found.append(str(read_card(uses.meta_init)["fingerprint"]))
    if uses.bank:
        found.append(read_manifest(Storage(uses.bank), uses.bank_version).label)
    if uses.adapter:
        found.append(directory_digest(uses.adapter))
    for name, uri in sorted(uses.others.items()):
        if not Storage(uri).files():
            raise MethodError(
                f"method {method.kind} ({method.name}) needs {name!r}, but there are no files at {uri}",
                code="artefact_not_found",
                artefact=name,
                uri=uri,
            )
        found.append(f"{name}:{directory_digest(uri)}")
    return found
