"""The methods that a server offers: which settings it takes, what each asks of the others, and what callers see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from regrad.errors import ConfigError, MethodError
from regrad.methods.base import BankNeed
from regrad.methods.regrad import ReGradConfig
from regrad.settings import parse_settings
from serve_app.config import OFFERED, ServeConfig
from serve_app.http.app import make_app
from serve_app.messages import Ask, Release
from serve_app.methods import check_offers, demonstrations_of, offers_of
from tests.tools.answering import StandIn
from tests.tools.refusals import refused, refused_settings

RELEASE = Release("main", "meta-init", "bank", 1, "f" * 16)
METHODS = [
    "rag",
    {"name": "mean", "method": "regrad", "weighting": "mean", "on_missing": "fewer"},
    {"name": "regrad+icl", "gamma": 0.5},
    {"name": "prag", "bank": "/adapters"},
]


def config(**changes: Any) -> ServeConfig:
    return parse_settings(ServeConfig, {"meta_init": "m", "bank": "b", "index": "i", **changes}, "test")


def test_without_a_list_those_are_offered_that_a_release_has_all_for() -> None:
    offers = offers_of(config(on_missing="rag"))
    assert tuple(offers) == OFFERED == ("direct", "rag", "regrad", "regrad+icl", "regrad-online")
    settings = [offer.settings for offer in offers.values()]
    assert [one.on_missing for one in settings if isinstance(one, ReGradConfig)] == ["rag", "rag"]


def test_a_method_asks_the_others_for_what_it_needs() -> None:
    offers = offers_of(config(methods=[*METHODS, "regrad-online", "direct"]))
    routed = {name: offer.routed(Ask("Who?", name), RELEASE) for name, offer in offers.items()}
    assert {name: (each.retrieves, each.bank) for name, each in routed.items()} == {
        "rag": (True, BankNeed.NOTHING),
        "mean": (True, BankNeed.PARTS),
        "regrad+icl": (True, BankNeed.SUM),
        "prag": (True, BankNeed.NOTHING),
        "regrad-online": (True, BankNeed.DELETIONS),
        "direct": (False, BankNeed.NOTHING),
    }
    each_alone = Ask("Who?", "regrad+icl", contributions="norms")
    assert offers["regrad+icl"].routed(each_alone, RELEASE).bank is BankNeed.PARTS
    assert [offers[name].settings.on_missing for name in ("mean", "regrad+icl")] == ["fewer", "online"]


@pytest.mark.parametrize(
    ("changes", "problem", "near"),
    [
        ({"methods": [{"name": "regrad", "bank": "b"}]}, "release_decides", ""),
        ({"methods": [{"name": "regrad-online", "meta_init": "m"}]}, "release_decides", ""),
        ({"methods": ["rag", {"name": "rag", "prompt_style": "pe"}]}, "repeated", ""),
        ({"methods": [{"name": "rag", "demonstrations": 2}]}, "demonstrations_missing", ""),
        ({"methods": [{"name": "direct", "one_by_one": {}}]}, "no_passages_to_read", ""),
        ({"methods": ["regrat"]}, "unknown_method", "regrad"),
        ({"methods": []}, "too_short", ""),
    ],
)
def test_what_cannot_be_offered_is_refused(changes: dict[str, Any], problem: str, near: str) -> None:
    with refused_settings(problem, near=near):
        config(**changes)


def test_too_few_solved_questions_are_refused_before_the_server_starts(tmp_path: Path) -> None:
    (tmp_path / "solved.jsonl").write_text(json.dumps({"id": "d", "question": "Who?", "answers": ["Ada"]}) + "\n")
    shots = {"methods": [{"name": "rag", "demonstrations": 2}], "demonstrations": str(tmp_path / "solved.jsonl")}
    with refused(ConfigError, "too_few_demonstrations", expected=2, found=1):
        check_offers(config(**shots))
    shots["methods"] = ["direct", {"name": "rag", "demonstrations": 1}]
    check_offers(config(**shots))
    assert [one.id for one in demonstrations_of(config(**shots))] == ["d"]


def test_callers_see_the_offered_methods_and_get_the_first_by_default() -> None:
    standin = StandIn({"prag": MethodError("LoRAs need rank 6")})
    client = TestClient(make_app(config(methods=METHODS), lambda: standin))
    listed = client.get("/v1/methods").json()["methods"]
    assert [(one["name"], one["retrieves"], one["applies_gradients"]) for one in listed] == [
        ("rag", True, False),
        ("mean", True, True),
        ("regrad+icl", True, True),
        ("prag", True, False),
    ]
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["rag", "mean", "regrad+icl", "prag"]
    assert client.post("/v1/answer", json={"question": "Who?"}).json()["method"] == "rag"
    wrong = client.post("/v1/answer", json={"question": "Who?", "method": "regrad"})
    assert (wrong.status_code, wrong.json()["error"]["field"]) == (422, "method")
    full = client.post("/v1/answer", json={"question": "Who?", "method": "prag"})
    assert (full.status_code, full.json()["error"]["field"]) == (422, "k")
    chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Who?"}], "model": "rag"})
    assert chat.status_code == 200
