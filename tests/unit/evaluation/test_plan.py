"""Which cells there are, when they are run again, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from regrad.data.passages import Passage, encode_passages
from regrad.data.question_sets import QuestionSetConfig
from regrad.errors import EvaluationError, MetaInitError, MethodError, ModelError, RegradError
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.output import plan_of
from regrad.evaluation.plan import make_plan
from regrad.meta_init import MetaInit
from regrad.methods.base import Artefacts, Method, MethodInfo, MethodSettings, PassageCosts
from regrad.methods.prompt_only import PromptOnly
from regrad.models.config import ModelConfig, SubspaceConfig
from regrad.models.loading import LanguageModel
from regrad.retrieval.base import RETRIEVERS
from regrad.settings import Location, parse_settings
from tests.tools.evaluating import settings, write_bank, write_set
from tests.tools.overlap import build_overlap_index
from tests.tools.refusals import refused, refused_settings


@pytest.fixture
def folder(tmp_path: Path, passages: list[Passage]) -> Path:
    write_set(tmp_path, passages)
    return tmp_path


@pytest.fixture
def model(tiny_path: Path) -> ModelConfig:
    return ModelConfig(path=str(tiny_path), subspace=SubspaceConfig(rank=4, alpha=8))


def cells(config: EvalConfig) -> list[tuple[str, int, int]]:
    return [(cell.method.name, cell.k, cell.seed) for cell in make_plan(config)]


def keys(config: EvalConfig) -> set[str]:
    return {cell.key for cell in make_plan(config)}


def test_what_retrieves_nothing_runs_once_and_seeds_count_where_something_is_random(
    folder: Path, model: ModelConfig
) -> None:
    found = cells(settings(folder, model, seeds=[0, 1]))
    assert found == [("direct", 0, 0), ("rag", 1, 0), ("rag", 1, 1), ("rag", 3, 0), ("rag", 3, 1)]


def test_without_anything_random_there_is_one_seed(folder: Path, model: ModelConfig) -> None:
    gold = {"source": "gold", "corpus": str(folder / "corpus.jsonl")}
    one = {"name": "people", "path": str(folder / "questions.jsonl"), "passages": gold}
    assert cells(settings(folder, model, seeds=[0, 1], sets=[one])) == [("direct", 0, 0), ("rag", 1, 0), ("rag", 3, 0)]


def gold(folder: Path) -> dict[str, Any]:
    """A set in which nothing is random."""
    passages = {"source": "gold", "corpus": str(folder / "corpus.jsonl")}
    return {"name": "people", "path": str(folder / "questions.jsonl"), "passages": passages}


def test_seeds_count_for_a_method_that_starts_at_random_and_for_no_other(folder: Path, model: ModelConfig) -> None:
    methods = ["rag", {"name": "tta", "seed": 10}]
    plan = make_plan(settings(folder, model, seeds=[0, 2], sets=[gold(folder)], k=[1], methods=methods))
    assert [(cell.method.name, cell.seed, getattr(cell.method, "seed", 0)) for cell in plan] == [
        ("rag", 0, 0),
        ("tta", 0, 10),
        ("tta", 2, 12),
    ]
    assert len({cell.key for cell in plan}) == 3


def test_whether_passages_go_into_the_prompt_decides_the_key(folder: Path, model: ModelConfig) -> None:
    config = settings(folder, model, methods=["tta", {"name": "alone", "method": "tta", "in_prompt": False}], k=[1])
    assert [cell.method.info.passages_in_prompt for cell in make_plan(config)] == [True, False]
    assert len(keys(config)) == 2


def test_the_seed_in_a_location_makes_a_cell_for_each(folder: Path, model: ModelConfig, meta_init: MetaInit) -> None:
    for seed in (0, 1):
        meta_init.save(folder / f"tiny-{seed}")
    method = {"name": "online", "method": "regrad-online", "meta_init": str(folder / "{model}-{seed}")}
    plan = make_plan(settings(folder, model, seeds=[0, 1], methods=[method], k=[1]))
    assert [cell.method.artefacts.meta_init for cell in plan] == [str(folder / "tiny-0"), str(folder / "tiny-1")]


class Predicting(MethodSettings):
    """A method with an artefact of its own kind."""

    METHODS: ClassVar = (MethodInfo("predicting", "for a test", passages_in_prompt=False, update="predicted"),)

    predictor: Location

    @property
    def artefacts(self) -> Artefacts:
        return Artefacts(others={"predictor": self.predictor})

    def costs(self) -> PassageCosts:
        return PassageCosts(storage_bytes=7.0)

    def open(self, lm: LanguageModel) -> Method:
        return PromptOnly(self)


def test_a_methods_own_artefact_is_in_the_key_and_its_costs_are_in_the_plan(folder: Path, model: ModelConfig) -> None:
    method = Predicting(name="predicting", predictor=str(folder / "predictor"))
    config = settings(folder, model, k=[1]).model_copy(update={"methods": (method,)})
    with refused(MethodError, "artefact_not_found", artefact="predictor", uri=method.predictor):
        make_plan(config)
    found = []
    for weights in (b"trained", b"trained", b"retrained"):
        (folder / "predictor").mkdir(exist_ok=True)
        (folder / "predictor" / "weights").write_bytes(weights)
        found.append(keys(config))
    assert found[0] == found[1]
    assert not found[0] & found[2]
    (cell,) = make_plan(config)
    assert cell.k == 1, "an update from a source that is not known here still needs passages"
    (card,) = plan_of(config, [cell]).cells
    assert (card.preparation_ms, card.storage_bytes) == (None, 7.0)


def test_what_decides_no_answer_is_not_in_the_key(folder: Path, model: ModelConfig) -> None:
    before = keys(settings(folder, model))
    other = settings(folder, model, batch={"rows": 3}, cluster={"workers": 1}, compare_to="rag", output="elsewhere")
    assert keys(other) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 7},
        {"context_tokens": 100},
        {"models": {"tiny": {"path": "PATH", "subspace": {"rank": 3}}}},
        {"methods": [{"name": n, "prompt_style": "pe"} for n in ("direct", "rag")]},
    ],
)
def test_settings_that_decide_answers_change_every_key(
    folder: Path, model: ModelConfig, changes: dict[str, Any]
) -> None:
    changes = json.loads(json.dumps(changes).replace("PATH", model.path))
    assert not keys(settings(folder, model)) & keys(settings(folder, model, **changes))


def test_other_questions_change_every_key_and_another_corpus_those_that_use_it(
    folder: Path, model: ModelConfig, passages: list[Passage]
) -> None:
    config = settings(folder, model)
    before = {cell.label: cell.key for cell in make_plan(config)}
    write_set(folder, passages[:9])
    corpus = {cell.label: cell.key for cell in make_plan(config)}
    assert [label for label in before if before[label] == corpus[label]] == [next(iter(before))]
    write_set(folder, passages[:9], questions=5)
    assert not set(corpus.values()) & keys(config)


def test_an_added_cell_leaves_the_others_their_keys(folder: Path, model: ModelConfig) -> None:
    assert keys(settings(folder, model)) < keys(settings(folder, model, methods=["rag", "pe-rag", "direct"]))


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"methods": ["regrad-online"]}, MethodError, "setting_missing"),
        ({"methods": [{"name": "regrad-online", "meta_init": "nowhere"}]}, MetaInitError, "not_found"),
    ],
)
def test_a_method_that_cannot_run_is_refused(
    folder: Path, model: ModelConfig, changes: dict[str, Any], error: type[RegradError], code: str
) -> None:
    with refused(error, code):
        make_plan(settings(folder, model, **changes))


def test_a_model_that_is_not_there_is_refused_before_a_worker_starts(folder: Path) -> None:
    with refused(ModelError, "not_found", path="/nowhere"):
        make_plan(settings(folder, ModelConfig(path="/nowhere")))


@pytest.mark.parametrize(
    ("changes", "code", "fields"),
    [
        ({"passages": {"source": "given"}}, "questions_lack_passages", {"source": "given", "questions": 6}),
        ({"sha256": "0" * 64}, "other_file", {"expected": "0" * 64}),
        ({"format": "hotpotq"}, "unknown_name", {"name": "hotpotq"}),
    ],
)
def test_a_set_that_lacks_something_is_refused(
    folder: Path, model: ModelConfig, changes: dict[str, Any], code: str, fields: dict[str, Any]
) -> None:
    passages = {"source": "gold", "corpus": str(folder / "corpus.jsonl")}
    one = {"name": "people", "path": str(folder / "questions.jsonl"), "passages": passages} | changes
    with refused(EvaluationError, code, **fields):
        make_plan(settings(folder, model, sets=[one]))


def test_a_gold_passage_that_the_corpus_lacks_is_found_before_the_run(
    folder: Path, model: ModelConfig, passages: list[Passage]
) -> None:
    (folder / "corpus.jsonl").write_bytes(encode_passages(passages[1:]))
    with refused(EvaluationError, "passage_not_found", question_id="q0", passage_id=passages[0].id):
        make_plan(settings(folder, model))


def one_source(**passages: str) -> dict[str, Any]:
    return {"name": "a", "path": "a", "passages": passages}


@pytest.mark.parametrize(
    ("changes", "problem", "key", "near"),
    [
        ({"metods": []}, "extra_forbidden", "metods", "methods"),
        ({"methods": ["pe-rga"]}, "unknown_method", "methods.0", "pe-rag"),
        ({"methods": [{"name": "rag", "in_prompt": False}]}, "foreign_setting", "methods.0", ""),
        ({"k": [0]}, "k_below_1", "", ""),
        ({"k": [3, 3]}, "repeated", "", ""),
        ({"methods": ["rag", "rag"]}, "repeated", "", ""),
        ({"compare_to": "regrad"}, "unknown_method", "", ""),
        ({"sets": [one_source(source="index")]}, "index_missing", "sets.0.passages", ""),
        ({"sets": [one_source(source="random")]}, "corpus_missing", "sets.0.passages", ""),
        (
            {"sets": [one_source(source="given", distractors="random")]},
            "distractors_without_gold",
            "sets.0.passages",
            "",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(
    folder: Path, model: ModelConfig, changes: dict[str, Any], problem: str, key: str, near: str
) -> None:
    values = settings(folder, model).model_dump(mode="json") | changes
    with refused_settings(problem, key, near):
        parse_settings(EvalConfig, values, "test")


def one_set(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    passages = {"source": "gold", "corpus": str(folder / "corpus.jsonl"), "distractors": "random"}
    return [{"name": "people", "path": str(folder / "questions.jsonl"), "passages": passages} | changes]


def test_only_scoring_that_differs_from_squads_changes_the_keys(folder: Path, model: ModelConfig) -> None:
    before = keys(settings(folder, model))
    assert keys(settings(folder, model, sets=one_set(folder, rules="squad", prag_style_cut=False))) == before
    others = [
        keys(settings(folder, model, sets=one_set(folder, **c)))
        for c in ({"rules": "hotpotqa"}, {"prag_style_cut": True})
    ]
    assert not before & others[0] and not before & others[1] and not others[0] & others[1]


def test_scoring_of_open_answers_is_no_part_of_a_closed_sets_keys(folder: Path, model: ModelConfig) -> None:
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    closed = [row | {"kind": "yes-no", "answers": ["yes"]} for row in rows]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in closed))
    before = keys(settings(folder, model))
    assert keys(settings(folder, model, sets=one_set(folder, rules="hotpotqa", prag_style_cut=True))) == before


@pytest.mark.parametrize(
    ("format_", "rules", "expected"),
    [
        ("jsonl", None, "squad"),
        ("hotpotqa", None, "hotpotqa"),
        ("2wikimultihopqa", None, "hotpotqa"),
        ("musique", None, "squad"),
        ("hotpotqa", "squad", "squad"),
        ("jsonl", "hotpotqa", "hotpotqa"),
    ],
)
def test_the_rules_go_by_the_format_unless_they_are_set(format_: str, rules: str | None, expected: str) -> None:
    config = parse_settings(QuestionSetConfig, {"name": "a", "path": "a", "format": format_, "rules": rules}, "test")
    assert config.scoring_rules == expected


def banked(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"name": "regrad", "meta_init": str(folder / "meta-init"), "bank": str(folder / "bank")} | changes


def test_a_bank_of_another_corpus_is_refused_before_a_model_is_loaded(
    folder: Path, model: ModelConfig, passages: list[Passage], meta_init: MetaInit
) -> None:
    meta_init.save(folder / "meta-init")
    write_bank(folder / "bank", meta_init, [Passage(f"else-{p.id}", p.title, p.text) for p in passages])
    config = settings(folder, model, methods=["direct", banked(folder, on_missing="fewer")])
    with refused(MethodError, "bank_of_other_passages"):
        make_plan(config)
    make_plan(settings(folder, model, methods=[banked(folder)]))


def test_a_bank_of_other_texts_is_refused_and_one_of_some_passages_is_not(
    folder: Path, model: ModelConfig, passages: list[Passage], meta_init: MetaInit
) -> None:
    meta_init.save(folder / "meta-init")
    write_bank(folder / "bank", meta_init, [Passage(p.id, p.title, f"{p.text} New.") for p in passages])
    with refused(MethodError, "bank_of_other_passages"):
        make_plan(settings(folder, model, methods=[banked(folder, on_missing="rag")]))
    write_bank(folder / "some", meta_init, passages[5:6])
    some = banked(folder, bank=str(folder / "some"), on_missing="rag")
    assert make_plan(settings(folder, model, methods=[some]))


def test_a_meta_init_of_another_rank_or_scale_is_refused(folder: Path, model: ModelConfig, meta_init: MetaInit) -> None:
    meta_init.save(folder / "meta-init")
    online = {"name": "regrad-online", "meta_init": str(folder / "meta-init")}
    rank, scale = meta_init.subspace.rank, meta_init.subspace.scaling
    for subspace in (SubspaceConfig(rank=rank + 1, alpha=scale * (rank + 1)), SubspaceConfig(rank=rank, alpha=scale)):
        other = model.model_copy(update={"subspace": subspace})
        with refused(MetaInitError, "other_subspace", rank=rank, scale=scale):
            make_plan(settings(folder, other, methods=[online]))


@pytest.fixture
def indexes(folder: Path, passages: list[Passage], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two of the same corpus, of a kind that these tests bring along."""
    monkeypatch.setitem(RETRIEVERS, "overlap", "tests.tools.overlap:OverlapRetriever")
    places = [f"{folder}/index-{number}" for number in range(2)]
    for place in places:
        build_overlap_index(passages, place)
    return places


def test_a_method_with_an_index_of_its_own_is_asked_with_that_one(
    folder: Path, model: ModelConfig, indexes: list[str]
) -> None:
    sets = one_set(folder, passages={"source": "index", "index": indexes[0]})
    own = {"name": "rag, other index", "method": "rag", "index": indexes[1]}
    alone = make_plan(settings(folder, model, sets=sets, k=[2]))
    plan = make_plan(settings(folder, model, sets=sets, k=[2], methods=["direct", "rag", own]))
    assert [cell.key for cell in plan[:2]] == [cell.key for cell in alone], "the others are not computed again"
    assert [cell.set.passages.index for cell in plan[1:]] == indexes
    assert [cell.retriever for cell in plan] == ["", "overlap: index-0", "overlap: index-1"]
    config = settings(folder, model, sets=sets, k=[2], methods=["rag", own])
    given = plan_of(config, make_plan(config))
    assert [card.retriever for card in given.cells] == ["overlap: index-0", "overlap: index-1"]


@pytest.mark.parametrize(
    ("source", "method"),
    [
        ("gold", {"name": "rag", "index": "index-0"}),
        ("index", {"name": "direct", "index": "index-0"}),
        ("index", {"name": "rag", "retrieval": {"bm25": {"k1": 1.0}}}),
    ],
)
def test_an_index_that_would_not_be_used_is_refused(
    folder: Path, model: ModelConfig, indexes: list[str], source: str, method: dict[str, Any]
) -> None:
    where = {"index": indexes[0]} if source == "index" else {"corpus": str(folder / "corpus.jsonl")}
    sets = one_set(folder, passages={"source": source, **where})
    with refused(MethodError, "index_not_used", method=method["name"], set="people"):
        make_plan(settings(folder, model, sets=sets, methods=[method]))
