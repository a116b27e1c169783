"""Solved questions before every question: which are shown, what they are part of, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regrad.data.passages import Passage
from regrad.errors import EvaluationError, MethodError, PromptTooLong
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.plan import PlannedCell, make_plan
from regrad.evaluation.runner import CellRunner
from regrad.inference.decoding import GenerationRequest, generate
from regrad.meta_init import MetaInit
from regrad.methods.regrad import BoundMetaInit
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel
from tests.tools.evaluating import settings, write_set
from tests.tools.refusals import refused

SHOWN = [{"id": f"d{n}", "question": f"Who taught number {n}?", "answers": [f"t{n}", "x"]} for n in range(3)]
METHODS = [
    "direct",
    {"name": "direct 2", "method": "direct", "demonstrations": 2},
    {"name": "rag 1", "method": "rag", "demonstrations": 1},
]


def write(folder: Path, shown: list[dict[str, Any]]) -> None:
    (folder / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))


@pytest.fixture
def folder(tmp_path: Path, passages: list[Passage]) -> Path:
    write_set(tmp_path, passages)
    write(tmp_path, SHOWN)
    return tmp_path


@pytest.fixture
def model(tiny_path: Path) -> ModelConfig:
    return ModelConfig(path=str(tiny_path))


def few_shot(folder: Path, model: ModelConfig, shown: str | None = "shown.jsonl", **changes: Any) -> EvalConfig:
    gold = {"source": "gold", "corpus": str(folder / "corpus.jsonl")}
    one = {"name": "people", "path": str(folder / "questions.jsonl"), "passages": gold}
    file = {"demonstrations": str(folder / shown)} if shown else {}
    return settings(folder, model, **{"sets": [one | file], "methods": METHODS, "k": [1]} | changes)


def keys(config: EvalConfig) -> dict[str, str]:
    return {cell.method.name: cell.key for cell in make_plan(config)}


def shown_by(cell: PlannedCell) -> list[str]:
    """The ids of the demonstrations that all of the cell's questions have."""
    (shown,) = set(cell.demonstrations.of.values()) or {()}
    return [one.id for one in shown]


def cell_of(config: EvalConfig, name: str) -> PlannedCell:
    return next(cell for cell in make_plan(config) if cell.method.name == name)


def test_the_first_of_the_file_are_shown(folder: Path, model: ModelConfig) -> None:
    shown = {cell.method.name: shown_by(cell) for cell in make_plan(few_shot(folder, model))}
    assert shown == {"direct": [], "direct 2": ["d0", "d1"], "rag 1": ["d0"]}


def test_demonstrations_are_no_part_of_the_key_of_a_cell_that_shows_none(folder: Path, model: ModelConfig) -> None:
    without = few_shot(folder, model, shown=None, methods=["direct"])
    assert keys(few_shot(folder, model))["direct"] == keys(without)["direct"]


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({0: {"question": "Who taught Ada?"}}, {"direct 2", "rag 1"}),
        ({1: {"answers": ["somebody"]}}, {"direct 2"}),
        ({2: {"question": "Which is not shown?"}}, set()),
        ({0: {"answers": ["t0", "another name"]}, 1: {"group": "g"}}, set()),
    ],
)
def test_what_is_shown_and_nothing_else_decides_the_key(
    folder: Path, model: ModelConfig, change: dict[int, dict[str, Any]], changed: set[str]
) -> None:
    before = keys(few_shot(folder, model))
    write(folder, [row | change.get(number, {}) for number, row in enumerate(SHOWN)])
    after = keys(few_shot(folder, model))
    assert {name for name in before if before[name] != after[name]} == changed


def test_their_number_and_order_decide_the_key(folder: Path, model: ModelConfig) -> None:
    def key(count: int) -> str:
        return keys(few_shot(folder, model, methods=[{"name": "direct", "demonstrations": count}]))["direct"]

    found = [key(count) for count in (0, 1, 2)]
    write(folder, [SHOWN[1], SHOWN[0]])
    assert len({*found, key(2)}) == 4


@pytest.mark.parametrize("method", ["direct", "rag", "regrad-online"])
def test_every_method_shows_them_before_its_own_prompt(
    folder: Path, tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], method: str
) -> None:
    meta_init.save(folder / "meta-init")
    start = {"meta_init": str(folder / "meta-init")} if method == "regrad-online" else {}
    one = {"name": method, "demonstrations": 2, **start}
    cell = make_plan(few_shot(folder, tiny.config, methods=[one]))[0]
    config = few_shot(folder, tiny.config)
    record = CellRunner(tiny, config).run(cell).records[0]
    shown = [passages[0]] if method == "rag" else []
    prompt = "".join(f"{tiny.config.prompts.prompt(str(row['question']))} {row['answers'][0]}\n" for row in SHOWN[:2])
    prompt += tiny.config.prompts.prompt(record.question, shown)
    knowledge = BoundMetaInit(tiny, meta_init)
    atom = knowledge.compute(passages[:1])[0].atom
    assert atom is not None
    updates = (knowledge.update(atom, 1.0),) if method == "regrad-online" else ()
    assert record.raw == generate(tiny, [GenerationRequest(prompt, updates, 6)])[0].text
    assert record.prompt_tokens == len(tiny.encode_prompt(prompt))


def test_passages_are_dropped_before_demonstrations_which_never_are(folder: Path, tiny: LanguageModel) -> None:
    def run(name: str, tokens: int | None) -> Any:
        config = few_shot(folder, tiny.config, context_tokens=tokens)
        return CellRunner(tiny, config).run(cell_of(config, name)).records

    alone = max(record.prompt_tokens for record in run("direct", None))
    whole = run("rag 1", None)
    limit = min(record.prompt_tokens for record in whole) - 1 + 6
    assert {record.note for record in run("rag 1", limit)} == {"drop: 1 of 1 passages did not fit into the prompt"}
    assert all(record.prompt_tokens > alone for record in run("rag 1", limit))
    assert run("direct", alone + 6)
    with refused(PromptTooLong, passages=0, demonstrations=1):
        run("rag 1", alone + 6)


@pytest.mark.parametrize(
    ("shown", "count", "found"),
    [(None, 1, 0), ("shown.jsonl", 4, 3)],
)
def test_a_set_with_too_few_is_refused(
    folder: Path, model: ModelConfig, shown: str | None, count: int, found: int
) -> None:
    few = {"name": "few", "method": "rag", "demonstrations": count}
    with refused(MethodError, "too_few_demonstrations", set="people", expected=count, found=found):
        make_plan(few_shot(folder, model, shown, methods=[few]))


def test_a_demonstration_that_is_a_test_question_is_refused_if_it_would_be_shown(
    folder: Path, model: ModelConfig, passages: list[Passage]
) -> None:
    leak = {"id": "leak", "question": f"who employs  {passages[2].title.upper()}", "answers": ["a2"]}
    write(folder, [SHOWN[0], leak, SHOWN[1]])
    with refused(EvaluationError, "demonstrations_in_test", demonstrations={"leak": "q2"}):
        make_plan(few_shot(folder, model))
    make_plan(few_shot(folder, model, methods=METHODS[2:]))


def test_a_file_of_another_format_is_refused(folder: Path, model: ModelConfig) -> None:
    (folder / "shown.jsonl").write_text('{"question": "Who?"}\n')
    with refused(EvaluationError, "missing_field", where=f"{folder / 'shown.jsonl'} line 1", field="answer"):
        make_plan(few_shot(folder, model))
