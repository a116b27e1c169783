"""Claims 1 to 3: which method answers best, and whose gradients do it."""

from __future__ import annotations

from collections.abc import Sequence

from studies.lab_report.claims.claim import MARGINAL, Claim, K, Part, less_than, more
from studies.lab_report.records import Key, Scores, Table

PRAGS = ("prag", "prag, mean", "prag-warm", "ft-prag")
"""PRAG's rows with nothing in the prompt."""


def best_without_prompt(table: Table, asked_before: int) -> Claim:
    """Claim 1; `asked_before` of the questions PRAG and instruction CPT were trained on, word for word."""
    rows = {key.method: key for key in table.methods("methods", "people", K)}
    ours = table.scores(rows["regrad"])
    k = _best_k(table, "notes", "many", "rag")
    parts = [
        more(f"ReGrad over {label}, people, k={K}", ours, table.scores(rows[name]))
        for name, label in (("direct", "Direct"), ("cpt", "CPT"))
    ]
    parts.append(_best_prag(table, ours))
    parts += [_icl("methods", "people", K, table), _icl("notes", "many", k, table)]
    notes = [
        f"On people RAG reads {table.points(rows['rag'])} and ReGrad + ICL {table.points(rows['regrad+icl'])}: "
        "with three short passages that set can hardly tell the two apart, so the best overall is also sought on many, "
        "which has more text than the context holds; there all but RAG were trained on such notes.",
        *_alone(table, ("prag", "prag+icl")),
        f"PRAG's adapters and instruction CPT are trained on questions about the very documents, as their authors do; "
        f"{asked_before} of the {len(ours)} questions asked here are among those, word for word. ReGrad has seen none.",
    ]
    return Claim(
        1,
        "ReGrad beats Direct, CPT and PRAG with nothing in the prompt; ReGrad + ICL is best overall.",
        f"exact match of ReGrad less that of Direct, people, k={K}",
        tuple(parts),
        tuple(notes),
    )


def _best_prag(table: Table, ours: Scores) -> Part:
    """Against PRAG with the number of passages and the merge with which it does best."""
    rows = [Key("methods", "people", name, k) for name in PRAGS for k in (1, K)]
    there = [key for key in rows if table.records(key)]
    best = max(there, key=table.mean)
    label = f"ReGrad, k={K}, over PRAG at its best ({best.method}, k={best.k}), people"
    return more(label, ours, table.scores(best), len(there))


def _alone(table: Table, names: Sequence[str]) -> list[str]:
    """What methods have with one passage, where that was asked and makes a difference."""
    pairs = [(Key("methods", "people", name, K), Key("methods", "people", name, 1)) for name in names]
    there = [(three, one) for three, one in pairs if table.records(one)]
    lost = [(three, one) for three, one in there if table.mean(one) > table.mean(three) + MARGINAL]
    return [
        f"{one.method} has {table.points(one)} with one passage and {table.points(three)} with {K}: trained "
        "adapters do not add up."
        for three, one in lost
    ]


def _icl(study: str, name: str, k: int, table: Table) -> Part:
    """ReGrad + ICL against the best of the others."""
    rows = [key for key in table.methods(study, name, k) if key.method != "regrad+icl"]
    best = max(rows, key=table.mean)
    icl = table.scores(Key(study, name, "regrad+icl", k))
    return more(f"ReGrad + ICL over the best other ({best.method}), {name}, k={k}", icl, table.scores(best))


def raw_gradients(table: Table) -> Claim:
    """Claim 2."""
    direct = table.scores(Key("methods", "people", "direct"))
    raw = Key("methods", "people", "raw gradients", K)
    part = more(f"Direct over raw gradients, people, k={K}", direct, table.scores(raw))
    others = [
        f"{key.method} {table.points(key)}" for key in table.methods("methods", "people", K) if "raw" in key.method
    ]
    known = Key("general", "memorised", "direct"), Key("general", "memorised, own passages", "raw gradients", K)
    foreign = Key("general", "memorised", "raw gradients", K)
    ignorant = table.mean(Key("methods", "people", "direct")) < MARGINAL
    why = ": there is nothing to lose, and a step towards the right passage can only add" if ignorant else ""
    notes = [
        f"Direct has {table.points(Key('methods', 'people', 'direct'))} on people it has never seen{why} "
        f"({'; '.join(others)}).",
        f"Where the base knows the answers (memorised people, Direct {table.points(known[0])}), raw gradients of "
        f"three passages that BM25 finds leave {table.points(known[1])}, and of three about other people "
        f"{table.points(foreign)}.",
    ]
    return Claim(
        2,
        "Raw gradients (no meta-learning) are worse than Direct.",
        f"exact match of Direct less that of raw gradients, people, k={K}",
        (part,),
        tuple(notes),
    )


def random_passages(table: Table) -> Claim:
    """Claim 3."""
    random = table.scores(Key("passages", "random", "regrad", K))
    direct = table.scores(Key("passages", "random", "direct"))
    retrieved = table.scores(Key("passages", "people", "regrad", K))
    parts = (
        less_than(f"random passages over Direct, by less than {100 * MARGINAL:.0f} points", random, direct, MARGINAL),
        more("retrieved passages over random ones", retrieved, random),
    )
    return Claim(
        3,
        "Random passages' gradients give only a marginal gain over Direct.",
        f"exact match of ReGrad with random passages less that of Direct, people, k={K}",
        parts,
    )


def _best_k(table: Table, study: str, name: str, method: str) -> int:
    return max(table.ks(study, name, method), key=lambda k: table.mean(Key(study, name, method, k)))
