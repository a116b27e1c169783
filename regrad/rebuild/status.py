"""What a rebuild's output has: the current version, all versions, and the runs of the steps with what they took."""

from __future__ import annotations

from typing import Any

from regrad.rebuild.records import Records, RunRecord
from regrad.rebuild.versions import Versions
from regrad.storage import Storage
from regrad.text import readable_size


def state(output: Storage) -> dict[str, Any]:
    """All of it, for programs; raises `RebuildError` for a damaged file."""
    versions = Versions(output)
    current = versions.current()
    return {
        "output": output.uri,
        "current": current.model_dump(mode="json") if current else None,
        "versions": [versions.read(name).model_dump(mode="json") for name in versions.ids()],
        "runs": [record.model_dump(mode="json") for record in Records(output).all()],
    }


def described(found: dict[str, Any]) -> str:
    """The same in lines for people, the last run first."""
    current = found["current"] or {}
    words = {current.get("previous"): "before it", current.get("version"): "current"}
    lines = [f"{found['output']}: {'no version is current yet' if not current else current['version'] + ' is current'}"]
    for version in found["versions"]:
        place = words.get(version["id"], "not current")
        lines.append(f"  {version['id']}  {place}: {version['passages']:,} passages, bank {version['bank_version']}")
        lines += _scores(found["runs"], version["id"])
    return "\n".join([*lines, *(f"  {_run(RunRecord.model_validate(run))}" for run in found["runs"])])


def _scores(runs: list[dict[str, Any]], version: str) -> list[str]:
    """What the last evaluation of a version has found."""
    rows: list[dict[str, Any]] = next(
        (run["facts"]["scores"] for run in runs if run["facts"].get("version") == version), []
    )
    return [f"    {_words(row)}: EM {row['em']:.4f}, F1 {row['f1']:.4f}, {row['questions']} questions" for row in rows]


def _words(row: dict[str, Any]) -> str:
    return f"{row['method']} on {row['set']}, k={row['k']}" if row["k"] else f"{row['method']} on {row['set']}"


def _run(record: RunRecord) -> str:
    what = f"{record.step}  {record.began:%Y-%m-%d %H:%M}"
    if record.ended is None:
        return f"{what}  not ended: at work, or killed (attempt {record.attempts})"
    again = f", attempt {record.attempts}" if record.attempts > 1 else ""
    took = "unknown time" if record.seconds is None else f"{record.seconds:,.1f} s"
    cost = f", {record.cost.amount:,.2f} {record.cost.currency}" if record.cost else ""
    return f"{what}  {took}{again}, {readable_size(record.bytes)}{cost}: {record.line}"
