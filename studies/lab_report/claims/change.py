"""Claims 6 and 7: documents that come one after the other, and another domain."""

from __future__ import annotations

from collections.abc import Sequence

from studies.lab_report.claims.claim import MARGINAL, Claim, K, less_than, more
from studies.lab_report.records import PARTS, Key, Table


def drift(table: Table) -> Claim:
    """Claim 6. CPT begins as Direct, before any document has come."""
    sets = table.sets("drift")
    grows = [Key("drift", name, "regrad", K) for name in sets]
    none = Key("drift", sets[0], "direct")
    cpt = [Key("drift", name, "cpt") for name in sets]
    top = max(cpt[:-1], key=table.mean)
    tries = len(cpt) - 1
    parts = (
        more(f"ReGrad at {sets[-1]} over {sets[0]}", table.scores(grows[-1]), table.scores(grows[0])),
        more(f"CPT at {top.set} over none", table.scores(top), table.scores(none), tries),
        more(f"CPT at {top.set} over {sets[-1]}", table.scores(top), table.scores(cpt[-1]), tries),
    )
    whole = Key("methods", "people", "cpt")
    notes = [
        "CPT is one LoRA that is trained again each time, on the documents that came since alone: nothing is "
        "rehearsed, as after a deployment. RAG and ReGrad retrieve from all so far and from what was there before, the "
        "passages about the memorised people. Half of the questions are about those people, half about the documents; "
        "the two halves are apart below.",
        f"ReGrad: {table.line(grows)}. CPT: none {table.points(none)}, {table.line(cpt)}. RAG: "
        f"{table.line([Key('drift', name, 'rag', K) for name in sets])}.",
        *(_part_of(table, name, what, sets) for name, what in PARTS.items() if table.sets(name)),
        f"Trained on all documents at once, from the base, CPT has {table.points(whole)} of the questions about "
        "documents in the study of methods: what it loses here it loses by the order.",
        *_under_others(table),
    ]
    return Claim(
        6,
        "As documents are injected step by step CPT rises, then falls; ReGrad rises.",
        f"exact match of ReGrad with {sets[-1]} less that with {sets[0]}, the same questions",
        parts,
        tuple(notes),
    )


def _part_of(table: Table, name: str, what: str, sets: Sequence[str]) -> str:
    """How the two do on some of the drift study's questions."""
    rows = {m: [Key(name, one, m, k) for one in sets] for m, k in (("regrad", K), ("cpt", 0))}
    asked = len(table.scores(rows["cpt"][0]))
    return f"{asked} questions about {what}: ReGrad {table.line(rows['regrad'])}; CPT {table.line(rows['cpt'])}."


def _under_others(table: Table) -> list[str]:
    """What an update by passages about others does to what the base knows, while it is applied."""
    row = Key("general", "memorised", "regrad", K), Key("general", "memorised", "rag", K)
    return [
        f"An update takes effect while it is applied: asked about memorised people with three passages about others, "
        f"ReGrad has {table.points(row[0])} and RAG {table.points(row[1])}."
    ]


def domains(table: Table) -> Claim:
    """Claim 7."""
    direct = table.scores(Key("domains", "firms", "direct"))
    rows = {m: Key("domains", "firms", m, K) for m in ("trained on people", "continued on both", "continued on firms")}
    people, both, continued = (table.scores(key) for key in rows.values())
    parts = (
        more("continued on both over trained on people, firms", both, people),
        more("continued on firms over trained on people, firms", continued, people),
        less_than(f"trained on people over Direct, by less than {100 * MARGINAL:.0f} points", people, direct, MARGINAL),
    )
    kept = [f"{m} {table.points(Key('domains', 'people', m, K))}" for m in rows]
    notes = [
        f"Firms: {', '.join(f'{m} {table.points(key)}' for m, key in rows.items())}, RAG "
        f"{table.points(Key('domains', 'firms', 'rag', K))} (the base has never read about a firm either).",
        f"People, asked of the same starts: {', '.join(kept)}.",
    ]
    return Claim(
        7,
        "A general-domain start does not transfer to another domain; continued or mixed meta-training does.",
        f"exact match continued on both less that trained on people, firms, k={K}",
        parts,
        tuple(notes),
    )
