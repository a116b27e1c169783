"""The OpenAI-compatible routes: what is taken, what is refused, and how answers look."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.messages import Ask, Sampling, Turn
from tests.tools.answering import StandIn, api_of, events_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Where?"}


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


@pytest.fixture
def client(standin: StandIn) -> TestClient:
    limits = {"max_turns": 3, "max_turn_characters": 50, "max_question_characters": 20, "max_new_tokens": 30}
    return TestClient(api_of(standin, **limits))


def only_ask(standin: StandIn) -> Ask:
    (ask,) = standin.asks
    return ask


def test_a_conversation_becomes_a_question_and_its_turns(client: TestClient, standin: StandIn) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Who"}, {"type": "text", "text": "is Ada?"}]},
        {"role": "assistant", "content": "A person.", "refusal": None, "annotations": [], "tool_calls": None},
        {"role": "user", "content": "Where?", "name": "me"},
    ]
    assert client.post(CHAT, json={"messages": messages}).status_code == 200
    ask = only_ask(standin)
    assert ask.question == "Where?"
    assert ask.turns == (Turn("system", "Be brief."), Turn("user", "Who\nis Ada?"), Turn("assistant", "A person."))
    assert (ask.method, ask.raw, ask.sampling) == ("regrad", False, Sampling(max_new_tokens=30))


def test_a_prompt_goes_as_it_is(client: TestClient, standin: StandIn) -> None:
    assert client.post(TEXT, json={"prompt": " Ada was born in ", "model": "rag"}).status_code == 200
    ask = only_ask(standin)
    assert (ask.question, ask.raw, ask.turns, ask.method) == (" Ada was born in ", True, (), "rag")
    assert ask.sampling == Sampling(max_new_tokens=16)


@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": [USER]}), (TEXT, {"prompt": "Where?"})])
def test_every_option_reaches_the_gateway(
    client: TestClient, standin: StandIn, path: str, body: dict[str, Any]
) -> None:
    options = {
        "model": "regrad",
        "max_tokens": 7,
        "temperature": 0.25,
        "top_p": 0.5,
        "seed": -1,
        "stop": "\n",
        "method": "regrad+icl",
        "k": 5,
        "gamma": 0.5,
        "passage_ids": ["p1"],
        "release": "next",
        "contributions": "norms",
    }
    answer = client.post(path, json={**body, **options}, headers={"x-request-id": "r-1"}).json()
    assert answer["model"] == "regrad+icl"
    ask = only_ask(standin)
    assert ask.sampling == Sampling(7, 0.25, 0.5, 2**63 - 1, ("\n",))
    assert (ask.method, ask.k, ask.gamma, ask.passage_ids) == ("regrad+icl", 5, 0.5, ("p1",))
    assert (ask.release, ask.contributions, ask.request_id) == ("next", "norms", "r-1")


HARMLESS: dict[str, Any] = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "cache_control": {"type": "ephemeral"},
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "temperature": None,
    "top_p": None,
    "seed": None,
    "stop": None,
    "max_tokens": None,
    "stream": None,
    "stream_options": None,
    "stop_token_ids": [],
    "include_stop_str_in_output": False,
    "length_penalty": 1.0,
    "use_beam_search": False,
    "best_of": 1,
    "echo": False,
    "do_sample": False,
    "think": False,
    "documents": [],
    "cache_salt": "s",
    "request_id": "r",
    "guided_json": None,
    "k": None,
    "gamma": None,
    "model": None,
    "method": None,
}
HARMLESS_IN_CHAT: dict[str, Any] = {
    "logprobs": False,
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "reasoning_effort": None,
    "chat_template_kwargs": {},
    "audio": None,
    "verbosity": "medium",
    "add_generation_prompt": True,
    "add_special_tokens": False,
    "thinking": {"type": "disabled"},
}


def test_what_changes_nothing_is_accepted(client: TestClient, standin: StandIn) -> None:
    assert client.post(CHAT, json={"messages": [USER], **HARMLESS, **HARMLESS_IN_CHAT}).status_code == 200
    assert client.post(TEXT, json={"prompt": ["x"], **HARMLESS, "logprobs": False}).status_code == 200
    assert [ask.sampling for ask in standin.asks] == [Sampling(30), Sampling(16)]
    assert {(ask.method, ask.k, ask.gamma) for ask in standin.asks} == {("regrad", 3, 1.0)}


def test_what_clients_add_to_messages_is_no_part_of_them(client: TestClient, standin: StandIn) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    echoed = {
        **dict.fromkeys(("refusal", "audio", "function_call", "tool_calls", "tool_call_id")),
        **dict.fromkeys(("reasoning", "reasoning_content")),
        "annotations": [],
        "citations": [],
        "images": [],
        "metadata": {},
        "status": "completed",
        "type": "message",
        "reasoning_details": [],
        "provider_specific_fields": {"refusal": None},
        "id": "chatcmpl-1",
        "usage": None,
    }
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief.", **mark}]},
        {"role": "assistant", "content": "A person.", **echoed},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Yes.", "annotations": [], "id": "m-1", "metadata": None}],
        },
        {**USER, **mark},
    ]
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    assert client.post(CHAT, json={"messages": messages, **options}).status_code == 200
    ask = only_ask(standin)
    assert ask.turns == (Turn("system", "Be brief."), Turn("assistant", "A person."), Turn("assistant", "Yes."))
    assert ask.question == "Where?"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [USER] * 5}, "messages"),
    (CHAT, {"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    (CHAT, {"messages": [USER, {"role": "system", "content": "x"}]}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": " "}]}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 21}]}, "messages"),
    (CHAT, {"messages": [{"role": "system", "content": "x" * 51}, USER]}, "messages"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}, USER]}, "messages.0.role"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content"),
    (CHAT, {"messages": [{**USER, "tool_calls": [{}]}]}, "messages.0.tool_calls"),
    (CHAT, {"messages": [{**USER, "audio": {"id": "a"}}]}, "messages.0.audio"),
    (CHAT, {"messages": [{**USER, "reasoning_content": "Hm."}]}, "messages.0.reasoning_content"),
    (CHAT, {"messages": [{**USER, "prefix": True}]}, "messages.0.prefix"),
    (CHAT, {"messages": [{**USER, "weight": 0}]}, "messages.0.weight"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "annotations": [{}]}]}]},
        "messages.0.content",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "file": 1}]}]},
        "messages.0.content",
    ),
    (CHAT, {"messages": [USER], "top_k": 5}, "top_k"),
    (CHAT, {"messages": [USER], "repetition_penalty": 1.1}, "repetition_penalty"),
    (CHAT, {"messages": [USER], "ignore_eos": True}, "ignore_eos"),
    (CHAT, {"messages": [USER], "skip_special_tokens": False}, "skip_special_tokens"),
    (CHAT, {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
    (CHAT, {"messages": [USER], "n": 2}, "n"),
    (CHAT, {"messages": [USER], "add_generation_prompt": False}, "add_generation_prompt"),
    (CHAT, {"messages": [USER], "stop_token_ids": [5]}, "stop_token_ids"),
    (CHAT, {"messages": [USER], "echo": True}, "echo"),
    (CHAT, {"messages": [USER], "top_p": -0.1}, "top_p"),
    (CHAT, {"messages": [USER], "tools": [{"type": "function"}]}, "tools"),
    (CHAT, {"messages": [USER], "tool_choice": "required"}, "tool_choice"),
    (CHAT, {"messages": [USER], "logprobs": True}, "logprobs"),
    (CHAT, {"messages": [USER], "response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {"messages": [USER], "presence_penalty": 0.5}, "presence_penalty"),
    (CHAT, {"messages": [USER], "logit_bias": {"5": 1}}, "logit_bias"),
    (CHAT, {"messages": [USER], "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    (CHAT, {"messages": [USER], "max_completion_tokens": 31}, "max_completion_tokens"),
    (CHAT, {"messages": [USER], "stop": ["a"] * 5}, "stop"),
    (CHAT, {"messages": [USER], "stop": ""}, "stop.0"),
    (CHAT, {"messages": [USER], "stop": 5}, "stop"),
    (CHAT, {"messages": [USER], "stream_options": {"include_usage": True}}, "body"),
    (CHAT, {"messages": [USER], "k": 11}, "k"),
    (CHAT, {"messages": [USER], "method": "regard"}, "method"),
    (CHAT, {"messages": [USER], "bank": "x"}, "bank"),
    (TEXT, {"prompt": ["a", "b"]}, "prompt"),
    (TEXT, {"prompt": [1, 2]}, "prompt"),
    (TEXT, {"prompt": ""}, "prompt"),
    (TEXT, {"prompt": "x" * 21}, "prompt"),
    (TEXT, {"prompt": "x", "logprobs": 1}, "logprobs"),
    (TEXT, {"prompt": "x", "echo": True}, "echo"),
    (TEXT, {"prompt": "x", "best_of": 2}, "best_of"),
    (TEXT, {"prompt": "x", "suffix": "y"}, "suffix"),
]


@pytest.mark.parametrize(("path", "body", "field"), REFUSED, ids=lambda value: repr(value)[:70])
def test_what_would_change_the_answer_is_refused(
    client: TestClient, standin: StandIn, path: str, body: dict[str, Any], field: str
) -> None:
    response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["field"]) == (422, field), response.text
    assert standin.asks == []


@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": [USER]}), (TEXT, {"prompt": "Where?"})])
def test_an_unknown_model_is_answered_with_those_that_there_are(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    responses = [client.post(path, json={**body, "model": "gpt-5"}), client.get("/v1/models/gpt-5")]
    for response in responses:
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "direct, rag, regrad, regrad+icl" in error["message"]


def chunks(client: TestClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = client.post(path, json={**body, "stream": True}, headers={"x-request-id": "r-1"})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert {name for name, _ in events} == {"message"}
    assert events.pop() == ("message", "[DONE]")
    return [json.loads(data) for _, data in events]


def test_a_chat_in_chunks(client: TestClient) -> None:
    found = chunks(client, CHAT, {"messages": [USER]})
    assert {(c["id"], c["object"], c["model"]) for c in found} == {("chatcmpl-r-1", "chat.completion.chunk", "regrad")}
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1:] == [{"content": "Lon"}, {"content": "don"}, {"content": "."}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None] * 4 + ["stop"]
    assert ["regrad" in chunk for chunk in found] == [False] * 4 + [True]
    assert found[-1]["regrad"]["passages"][0]["id"] == "p1"
    assert not any("usage" in chunk for chunk in found)


def test_the_usage_is_a_chunk_of_its_own(client: TestClient) -> None:
    found = chunks(client, TEXT, {"prompt": "Where?", "stream_options": {"include_usage": True}})
    assert "".join(chunk["choices"][0]["text"] for chunk in found[:-1]) == "London."
    assert [chunk["usage"] for chunk in found[:-1]] == [None] * 4
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert (found[-1]["choices"], found[-1]["usage"]["total_tokens"]) == ([], 10)
    assert ["regrad" in chunk for chunk in found] == [False] * 4 + [True]


def test_every_answer_states_what_it_rests_on(client: TestClient) -> None:
    for path, body in ((CHAT, {"messages": [USER]}), (TEXT, {"prompt": "Where?"})):
        stated = client.post(path, json={**body, "gamma": 0.5}).json()["regrad"]
        assert (stated["method"], stated["k"], stated["gamma"], stated["release"]) == ("regrad", 1, 0.5, "main")
        assert (stated["bank_version"], stated["degraded"]) == ("3", [])
        assert (stated["passages"][0]["id"], stated["passages"][0]["tier"]) == ("p1", "memory")
        assert stated["milliseconds"]["total"] == 9.0
