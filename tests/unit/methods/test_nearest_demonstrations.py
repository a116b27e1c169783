"""The nearest solved questions: which they are, never the question itself, and what depends on them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import ConfigError, EvaluationError, MethodError
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.plan import PlannedCell, hashed_settings, make_plan
from regrad.evaluation.runner import CellRunner
from regrad.inference.decoding import GenerationRequest, generate
from regrad.methods import rag_gd
from regrad.methods.demonstrations import DemonstrationPool
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel
from serve_app.config import ServeConfig
from serve_app.methods import check_offers, demonstrations_of
from tests.tools.adapting import static_lora, untrained_predictor
from tests.tools.evaluating import method_settings, settings, write_set
from tests.tools.refusals import refused, refused_settings

SOLVED = [
    "Who taught the painter of the harbour?",
    "Which river passes Zalt?",
    "Who taught the painter of the harbour to paint?",
    "Which river passes Olm?",
    "who taught painter of the HARBOUR",
]
NEAREST = {"which_demonstrations": "nearest"}


def question(text: str, **fields: Any) -> Question:
    return Question("", text, ("an answer",), **fields)


@pytest.fixture(scope="module")
def pool() -> Iterator[DemonstrationPool]:
    with DemonstrationPool([question(text) for text in SOLVED], searched=True) as opened:
        yield opened


def places(pool: DemonstrationPool, text: str, count: int, **fields: Any) -> list[int]:
    """Which of the solved questions these are, in order."""
    (found,) = pool.nearest([question(text, **fields)], count)
    return [SOLVED.index(one.question) for one in found]


def test_the_nearest_is_the_last_and_equals_are_in_the_pools_order(pool: DemonstrationPool) -> None:
    assert places(pool, "Which river passes Olm and Bern?", 2) == [1, 3]
    assert places(pool, "What of a river?", 2) == [3, 1]


def test_where_few_share_a_word_the_pools_first_follow(pool: DemonstrationPool) -> None:
    assert places(pool, "How many rivers?", 4) == [2, 0, 3, 1]
    assert places(pool, "Why?", 3) == [2, 1, 0]


def test_a_question_is_never_its_own_demonstration_however_it_is_written(pool: DemonstrationPool) -> None:
    """Two of the pool ask the same, but for case, punctuation and articles."""
    assert places(pool, "Who taught a painter of the harbour ?", 3) == [3, 1, 2]
    assert 0 in places(pool, "Who taught painters of the harbour?", 3)


def test_what_was_said_before_counts(pool: DemonstrationPool) -> None:
    assert places(pool, "And there?", 1, turns=(("user", "Which river passes Olm?"),)) == [3]


def test_many_questions_get_what_each_gets_alone(pool: DemonstrationPool) -> None:
    asked = [question(text) for text in ("Which river?", "Who taught her?", "Why?")]
    assert pool.nearest(asked, 2) == [pool.nearest([one], 2)[0] for one in asked]


def test_a_question_for_which_too_few_are_left_is_refused(pool: DemonstrationPool) -> None:
    assert len(places(pool, "Why?", 5)) == 5
    with refused(MethodError, "too_few_demonstrations", question_id="", expected=4, found=3):
        places(pool, SOLVED[0], 4)


def test_a_pool_leaves_nothing_behind() -> None:
    with DemonstrationPool([question("Who?")], searched=True) as opened:
        folder = Path(opened._folder.name)
        assert folder.exists()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["rag", "rag-gd-constant"])
def test_none_cannot_be_chosen(name: str) -> None:
    with refused_settings("none_to_choose"):
        method_settings(name, **NEAREST)


def test_the_settings_of_the_first_are_hashed_as_before_there_was_a_choice() -> None:
    """Else every cell that was computed before would be computed again."""
    assert set(hashed_settings(method_settings("rag", demonstrations=2))) == {"name", "method", "prompt_style"}
    assert hashed_settings(method_settings("rag", demonstrations=2, **NEAREST))["which_demonstrations"] == "nearest"


@pytest.fixture
def folder(tmp_path: Path, passages: list[Passage]) -> Path:
    """A set of six questions, and a file in which each of them is solved, too, under a name of its own."""
    write_set(tmp_path, passages)
    write(tmp_path, passages)
    return tmp_path


def write(folder: Path, passages: Sequence[Passage], **last: Any) -> None:
    rows = [
        {"id": f"d{n}", "question": f"Who employs {p.title}?", "answers": [f"a{n}"]} for n, p in enumerate(passages)
    ]
    rows = [*rows[:6], {"id": "other", "question": "Where is it?", "answers": ["here"]} | last]
    (folder / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(folder: Path, model: ModelConfig, methods: Sequence[Any], **changes: Any) -> EvalConfig:
    gold = {"source": "gold", "corpus": str(folder / "corpus.jsonl")}
    one = {"name": "people", "path": str(folder / "questions.jsonl"), "passages": gold}
    one["demonstrations"] = str(folder / "solved.jsonl")
    return settings(folder, model, **{"sets": [one], "methods": methods, "k": [1], **changes})


def planned(folder: Path, model: ModelConfig, **values: Any) -> PlannedCell:
    (cell,) = make_plan(config_of(folder, model, [{"name": "rag", **values}]))
    return cell


def test_every_question_of_a_set_has_its_own_and_none_has_itself(folder: Path, tiny: LanguageModel) -> None:
    cell = planned(folder, tiny.config, demonstrations=2, **NEAREST)
    shown = {name: [one.id for one in ones] for name, ones in cell.demonstrations.of.items()}
    assert list(shown) == [f"q{n}" for n in range(6)]
    assert all(f"d{name[1:]}" not in ones and len(set(ones)) == 2 for name, ones in shown.items())
    assert len({tuple(ones) for ones in shown.values()}) > 1


def test_the_key_depends_on_the_choice_and_on_what_is_chosen(
    folder: Path, tiny: LanguageModel, passages: list[Passage]
) -> None:
    def key(**values: Any) -> str:
        return planned(folder, tiny.config, demonstrations=2, **values).key

    nearest = key(**NEAREST)
    write(folder, passages, question="Where is that?")
    assert key(**NEAREST) == nearest, "it is not shown"
    write(folder, passages, question="Who employs them?")
    assert key(**NEAREST) != nearest
    write(folder, [Passage(p.id, f"{p.title} now", p.text) for p in passages])
    assert len({key(**NEAREST), key(), nearest}) == 3


def test_each_prompt_shows_its_own_and_the_search_is_a_part_of_retrieval(folder: Path, tiny: LanguageModel) -> None:
    methods = [{"name": "direct", "demonstrations": 1, **NEAREST}]
    config = config_of(folder, tiny.config, methods)
    (cell,) = make_plan(config)
    result = CellRunner(tiny, config).run(cell)
    for record in result.records:
        (shown,) = cell.demonstrations.of[record.question_id]
        prompt = f"{tiny.config.prompts.prompt(shown.question)} {shown.answers[0]}\n"
        prompt += tiny.config.prompts.prompt(record.question)
        assert record.demonstration_ids == (shown.id,)
        assert record.prompt_tokens == len(tiny.encode_prompt(prompt))
        assert record.raw == generate(tiny, [GenerationRequest(prompt, (), 6)])[0].text
    assert result.seconds.retrieval >= cell.demonstrations.seconds > 0


def test_an_update_is_made_for_each_question_and_equal_ones_once(
    folder: Path, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    static_lora(tiny, 2, folder / "lora")
    made: list[int] = []
    updates = rag_gd.TtSgd.updates

    def counted(self: rag_gd.TtSgd, contexts: Any, gammas: Any) -> Any:
        made.append(len(contexts))
        return updates(self, contexts, gammas)

    monkeypatch.setattr(rag_gd.TtSgd, "updates", counted)
    method = {"name": "tt-sgd", "adapter": str(folder / "lora"), "demonstrations": 2, "steps": {"steps": 1}}
    config = config_of(folder, tiny.config, [method | NEAREST])
    (cell,) = make_plan(config)
    CellRunner(tiny, config).run(cell)
    assert made == [len(set(cell.demonstrations.of.values()))]
    assert made[0] > 1


def test_what_cannot_be_is_refused_before_any_work(
    folder: Path, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without_java:
        without_java.setattr(DemonstrationPool, "__init__", lambda *_: pytest.fail("something was indexed"))
        with refused(MethodError, "too_few_demonstrations", set="people", expected=8, found=7):
            planned(folder, tiny.config, demonstrations=8, **NEAREST)
        solved = (folder / "solved.jsonl").read_text()
        (folder / "solved.jsonl").write_text("")
        with refused(EvaluationError, "no_questions", uri=str(folder / "solved.jsonl")):
            planned(folder, tiny.config, demonstrations=1, **NEAREST)
        (folder / "solved.jsonl").write_text(solved)
    with refused(MethodError, "too_few_demonstrations", question_id="q0", expected=7, found=6):
        planned(folder, tiny.config, demonstrations=7, **NEAREST)
    untrained_predictor(tiny, static_lora(tiny, 2, folder / "lora"), folder / "predictor")
    places = {"adapter": str(folder / "lora"), "predictor": str(folder / "predictor")}
    shuffled = {"method": "rag-gd-shuffled", **places, **NEAREST}
    planned(folder, tiny.config, demonstrations=2, **shuffled)
    with refused(MethodError, "nothing_to_exchange", demonstrations=1):
        planned(folder, tiny.config, demonstrations=1, **shuffled)


def test_a_server_needs_one_more_as_any_of_them_may_be_asked(folder: Path) -> None:
    def config(count: int) -> ServeConfig:
        methods = [{"name": "rag", "demonstrations": count, **NEAREST}]
        places = {"meta_init": "m", "bank": "b", "index": "i", "demonstrations": str(folder / "solved.jsonl")}
        return ServeConfig.model_validate({**places, "methods": methods})

    assert len(demonstrations_of(config(6))) == 7, "all that there are"
    with refused(ConfigError, "too_few_demonstrations", expected=7, found=6):
        check_offers(config(7))
