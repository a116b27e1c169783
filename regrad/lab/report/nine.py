"""The nine claims of the paper, from the records. Every number and every reason is computed; none is written here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from regrad.lab.report.claims import Claim, Part, fact, less_than, more, ratio_above, ratio_below, settle
from regrad.lab.report.table import PARTS, Key, Measured, Scores, Table, average, minus

K = 3
"""Passages of a question where a claim says nothing of them."""
MARGINAL = 0.05
"""What counts as a marginal difference of exact match."""
PARALLEL = 0.1
"""How much more of exact match one method may lose than another if they degrade in parallel."""
LITTLE = 1.3
"""What counts as little latency: the paper's own cached ReGrad takes 1.09 to 1.26 times as long as Direct."""


def nine_claims(table: Table, measured: Measured) -> list[Claim]:
    """All of them, corrected for their number."""
    from_table: Sequence[Callable[[Table], Claim]] = (
        *(best_without_prompt, raw_gradients, random_passages, inverted_u),
        *(distractors, drift, domains),
    )
    return settle([*(claim(table) for claim in from_table), latency(table, measured), batches(measured)])


def best_without_prompt(table: Table) -> Claim:
    """Claim 1."""
    rows = {key.method: key for key in table.methods("methods", "people", K)}
    ours = table.scores(rows["regrad"])
    parts = [
        more(f"ReGrad over {label}, people, k={K}", ours, table.scores(rows[name]))
        for name, label in (("direct", "Direct"), ("cpt", "CPT"), ("prag", "PRAG"))
    ]
    k = _best_k(table, "notes", "many", "rag")
    parts += [_icl("methods", "people", K, table), _icl("notes", "many", k, table)]
    notes = [
        f"On people RAG reads {_points(table, rows['rag'])} and ReGrad + ICL {_points(table, rows['regrad+icl'])}: "
        "with three short passages that set can hardly tell the two apart, so the best overall is also sought on many, "
        "which has more text than the context holds; there all but RAG were trained on such notes.",
        *_alone(table, ("prag", "prag+icl")),
    ]
    return Claim(
        1,
        "ReGrad beats Direct, CPT and PRAG with nothing in the prompt; ReGrad + ICL is best overall.",
        f"exact match of ReGrad less that of Direct, people, k={K}",
        tuple(parts),
        tuple(notes),
    )


def _alone(table: Table, names: Sequence[str]) -> list[str]:
    """What methods have with one passage, where that was asked and makes a difference."""
    pairs = [(Key("methods", "people", name, K), Key("methods", "people", name, 1)) for name in names]
    there = [(three, one) for three, one in pairs if table.records(one)]
    lost = [(three, one) for three, one in there if table.mean(one) > table.mean(three) + MARGINAL]
    return [
        f"{one.method} has {_points(table, one)} with one passage and {_points(table, three)} with {K}: trained "
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
        f"{key.method} {_points(table, key)}" for key in table.methods("methods", "people", K) if "raw" in key.method
    ]
    known = Key("general", "memorised", "direct"), Key("general", "memorised, own passages", "raw gradients", K)
    foreign = Key("general", "memorised", "raw gradients", K)
    ignorant = table.mean(Key("methods", "people", "direct")) < MARGINAL
    why = ": there is nothing to lose, and a step towards the right passage can only add" if ignorant else ""
    notes = [
        f"Direct has {_points(table, Key('methods', 'people', 'direct'))} on people it has never seen{why} "
        f"({'; '.join(others)}).",
        f"Where the base knows the answers (memorised people, Direct {_points(table, known[0])}), raw gradients of "
        f"three passages that BM25 finds leave {_points(table, known[1])}, and of three about other people "
        f"{_points(table, foreign)}.",
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


def inverted_u(table: Table) -> Claim:
    """Claim 4: on notes, where the first passage is not always the right one; on people it is."""
    ks = table.ks("notes", "many", "regrad")
    rows = {k: Key("notes", "many", "regrad", k) for k in ks}
    top = max(ks[1:-1], key=lambda k: table.mean(rows[k]))
    tries, best = len(ks) - 2, table.scores(rows[top])
    parts = tuple(
        more(f"ReGrad with k={top} over k={k}, many", best, table.scores(rows[k]), tries) for k in (ks[-1], ks[0])
    )
    people = [Key("passages", "people", "regrad", k) for k in table.ks("passages", "people", "regrad")]
    notes = [
        f"Many: {_curve(table, list(rows.values()))}.",
        f"People: {_curve(table, people)}. {_first_is_right(table)}",
    ]
    return Claim(
        4,
        "Inverted U over k: accuracy rises with the first passages, and too many interfere.",
        f"exact match of ReGrad at its best k less that at k={ks[-1]}, many",
        parts,
        tuple(notes),
    )


def distractors(table: Table) -> Claim:
    """Claim 5."""
    name, ks = "gold and random", table.ks("passages", "gold and random", "regrad")
    curves = {m: {k: table.scores(Key("passages", name, m, k)) for k in ks} for m in ("regrad", "rag")}
    above = {m: average([curves[m][k] for k in ks[1:]]) for m in curves}
    falls: dict[str, Scores] = {m: minus(curves[m][ks[0]], curves[m][ks[-1]]) for m in curves}
    parts = (
        more(f"ReGrad over RAG, mean of k={ks[1]} to {ks[-1]}", above["regrad"], above["rag"]),
        less_than(
            f"ReGrad's fall from k={ks[0]} to {ks[-1]} over RAG's, by less than {100 * PARALLEL:.0f} points",
            falls["regrad"],
            falls["rag"],
            PARALLEL,
        ),
    )
    rows = {m: [Key("passages", name, m, k) for k in ks] for m in ("regrad", "rag", "regrad+icl")}
    notes = [f"{m}: {_curve(table, keys)}." for m, keys in rows.items()]
    if table.mean(rows["rag"][-1]) > table.mean(rows["rag"][0]) - MARGINAL:
        notes.append("RAG hardly degrades here: it can read all passages, and strangers' are easy to tell apart.")
    return Claim(
        5,
        "With gold passages fixed and random distractors added, ReGrad degrades in parallel with RAG, above it.",
        "exact match of ReGrad less that of RAG, people, the gold passage with random others",
        parts,
        tuple(notes),
    )


def drift(table: Table) -> Claim:
    """Claim 6. CPT begins as Direct, before any document has come."""
    sets = table.sets("drift")
    grows = [Key("drift", name, "regrad", K) for name in sets]
    none, cpt = Key("drift", sets[0], "direct"), [Key("drift", name, "cpt") for name in sets]
    top, tries = max(cpt[:-1], key=table.mean), len(cpt) - 1
    parts = (
        more(f"ReGrad at {sets[-1]} over {sets[0]}", table.scores(grows[-1]), table.scores(grows[0])),
        more(f"CPT at {top.set} over none", table.scores(top), table.scores(none), tries),
        more(f"CPT at {top.set} over {sets[-1]}", table.scores(top), table.scores(cpt[-1]), tries),
    )
    notes = [
        f"ReGrad: {_line(table, grows)}. CPT: none {_points(table, none)}, {_line(table, cpt)}. RAG: "
        f"{_line(table, [Key('drift', name, 'rag', K) for name in sets])}.",
        *(_part_of(table, name, what, sets) for name, what in PARTS.items() if table.sets(name)),
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
    return f"{asked} questions about {what}: ReGrad {_line(table, rows['regrad'])}; CPT {_line(table, rows['cpt'])}."


def _under_others(table: Table) -> list[str]:
    """What an update by passages about others does to what the base knows, while it is in force."""
    row = Key("general", "memorised", "regrad", K), Key("general", "memorised", "rag", K)
    return [
        f"An update takes effect while it is in force: asked about memorised people with three passages about others, "
        f"ReGrad has {_points(table, row[0])} and RAG {_points(table, row[1])}."
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
    kept = [f"{m} {_points(table, Key('domains', 'people', m, K))}" for m in rows]
    notes = [
        f"Firms: {', '.join(f'{m} {_points(table, key)}' for m, key in rows.items())}, RAG "
        f"{_points(table, Key('domains', 'firms', 'rag', K))} (the base has never read about a firm either).",
        f"People, asked of the same starts: {', '.join(kept)}.",
    ]
    return Claim(
        7,
        "A general-domain start does not transfer to another domain; continued or mixed meta-training does.",
        f"exact match continued on both less that trained on people, firms, k={K}",
        parts,
        tuple(notes),
    )


def latency(table: Table, measured: Measured) -> Claim:
    """Claim 8."""
    ms = measured.latency
    fetched = sum(r.bytes_fetched for r in table.records(Key("methods", "people", "regrad-online", K)))
    parts = (
        ratio_below(f"cached over Direct, below {LITTLE}", ms["regrad"], ms["direct"], LITTLE),
        ratio_above("Online over cached", ms["regrad-online"], ms["regrad"]),
        fact("bytes that Online fetched from a bank", fetched, fetched == 0),
    )
    means = ", ".join(f"{name} {fmean(values):.1f}" for name, values in ms.items())
    notes = [
        f"Milliseconds a question, one at a time, eight new tokens, without retrieval: {means}. At this size of model "
        "the adapter is a large part of it; docs/benchmarks.md has the ratio at the shape of a 1B model."
    ]
    return Claim(
        8,
        "Cached ReGrad adds little latency over Direct; Online costs more and stores nothing.",
        f"time of cached ReGrad over that of Direct, k={K}",
        parts,
        tuple(notes),
    )


def batches(measured: Measured) -> Claim:
    """Claim 9."""
    parts = (
        ratio_above("time one by one over time in batches", measured.alone, measured.together),
        fact(f"answers of {measured.questions} that differ", measured.different, measured.different == 0),
    )
    return Claim(
        9,
        "Questions can be batched although each has its own update.",
        "questions a second in batches over those one by one, fetching and adding atoms included",
        parts,
    )


def _first_is_right(table: Table) -> str:
    alone = table.mean(Key("passages", "people", "rag", 1))
    if alone < 1 - MARGINAL:
        return ""
    return "There BM25's first passage is the right one, so that a second can only disturb: the curve cannot rise."


def _best_k(table: Table, study: str, name: str, method: str) -> int:
    return max(table.ks(study, name, method), key=lambda k: table.mean(Key(study, name, method, k)))


def _points(table: Table, key: Key) -> str:
    return f"{100 * table.mean(key):.1f}"


def _curve(table: Table, keys: Sequence[Key]) -> str:
    return ", ".join(f"k={key.k} {_points(table, key)}" for key in keys)


def _line(table: Table, keys: Sequence[Key]) -> str:
    return ", ".join(f"{key.set} {_points(table, key)}" for key in keys)
