"""Claims 4 and 5: how many passages, and passages that do not belong."""

from __future__ import annotations

from statistics import fmean

from regrad.lab.sets import Many
from studies.lab_report.claims.claim import MARGINAL, Claim, less_than, more
from studies.lab_report.records import Key, Scores, Table

READ = 5
"""Passages of a prompt that the lab's base was trained to read (`regrad.lab.contexts.CURRICULUM`)."""
PARALLEL = 0.1
"""How much more of exact match one method may lose than another if they degrade in parallel."""


def inverted_u(table: Table) -> Claim:
    """Claim 4: on notes, where the first passage is not always the right one; on people it is."""
    ks = table.ks("notes", "many", "regrad")
    rows = {k: Key("notes", "many", "regrad", k) for k in ks}
    top = max(ks[1:-1], key=lambda k: table.mean(rows[k]))
    tries = len(ks) - 2
    best = table.scores(rows[top])
    parts = tuple(
        more(f"ReGrad with k={top} over k={k}, many", best, table.scores(rows[k]), tries) for k in (ks[-1], ks[0])
    )
    people = [Key("passages", "people", "regrad", k) for k in table.ks("passages", "people", "regrad")]
    notes = [
        f"Many: {table.curve(list(rows.values()))}.",
        f"The rise is the retriever's: BM25 cannot tell a person's {Many.context} notes apart, and RAG rises with it "
        f"({table.curve([Key('notes', 'many', 'rag', k) for k in table.ks('notes', 'many', 'rag')])}). The starts "
        f"were trained on {Many.context} notes at once. What this lab adds to the claim is the fall after them.",
        f"People: {table.curve(people)}. {_first_is_right(table)}",
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
    name = "gold and random"
    ks = table.ks("passages", "gold and random", "regrad")
    curves = {m: {k: table.scores(Key("passages", name, m, k)) for k in ks} for m in ("regrad", "rag")}
    above: dict[str, Scores] = {m: {q: fmean(at[k][q] for k in ks[1:]) for q in at[ks[0]]} for m, at in curves.items()}
    falls: dict[str, Scores] = {m: {q: at[ks[0]][q] - at[ks[-1]][q] for q in at[ks[0]]} for m, at in curves.items()}
    margin = f"from k={ks[0]} to {ks[-1]}, by less than {100 * PARALLEL:.0f} points"
    parts = (
        more(f"ReGrad over RAG, mean of k={ks[1]} to {ks[-1]}", above["regrad"], above["rag"]),
        less_than(f"ReGrad's fall over RAG's {margin}", falls["regrad"], falls["rag"], PARALLEL),
        less_than(f"RAG's fall over ReGrad's {margin}", falls["rag"], falls["regrad"], PARALLEL),
    )
    rows = {m: [Key("passages", name, m, k) for k in ks] for m in ("regrad", "rag", "regrad+icl")}
    notes = [f"{m}: {table.curve(keys)}." for m, keys in rows.items()]
    if table.mean(rows["rag"][-1]) > table.mean(rows["rag"][0]) - MARGINAL:
        notes.append("RAG hardly degrades here: it can read all passages, and strangers' are easy to tell apart.")
    elif table.mean(rows["rag"][-2]) > table.mean(rows["rag"][0]) - MARGINAL:
        notes.append(
            f"RAG falls at k={ks[-1]} alone. The base has learned to read up to {READ} passages at once, so that last "
            "point says less of distractors than of reading more than one was trained for."
        )
    return Claim(
        5,
        "With gold passages fixed and random distractors added, ReGrad degrades in parallel with RAG, above it.",
        "exact match of ReGrad less that of RAG, people, the gold passage with random others",
        parts,
        tuple(notes),
    )


def _first_is_right(table: Table) -> str:
    alone = table.mean(Key("passages", "people", "rag", 1))
    if alone < 1 - MARGINAL:
        return ""
    return "There BM25's first passage is the right one, so that a second can only disturb: the curve cannot rise."
