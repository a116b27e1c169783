"""The demo as a user runs it, with fewer steps, and the server that it leaves running."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.integration.conftest import BIN, RunningDemo, environment, stop
from tests.tools.patience import completed, patient


def post(demo: RunningDemo, body: Any, raw: bytes | None = None) -> requests.Response:
    data = raw if raw is not None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    return requests.post(f"{demo.url}/v1/answer", data=data, headers=headers, timeout=patient(60))


def question(demo: RunningDemo, number: int = 0) -> dict[str, Any]:
    line = (demo.runs / "lab" / "questions.jsonl").read_text().splitlines()[number]
    record: dict[str, Any] = json.loads(line)
    return record


def test_the_report_has_every_key_and_shows_the_effect(demo: RunningDemo) -> None:
    em = demo.report["em"]
    assert em["direct"] <= 0.10
    assert em["random"] <= 0.15
    assert em["rag_k1"] >= 0.95
    assert em["rag_k3"] >= 0.93
    assert em["regrad_k1"] >= 0.90
    assert em["regrad_k3"] >= 0.55
    assert em["regrad_icl"] >= 0.85
    assert 0 <= em["raw"] < em["regrad_k3"]
    assert set(demo.report["seconds"]) >= {"meta_train", "index", "build", "serve_ready", "total"}
    assert demo.report["bank"]["passages"] == 400
    assert demo.report["bank"]["codec"] == "float32"
    assert demo.report["bank"]["bytes_per_atom"] == 4 * 147456
    assert demo.report["weights_unchanged"] is True


def test_the_output_says_what_was_made_and_how_to_go_on(demo: RunningDemo) -> None:
    text = "".join(demo.output)
    for piece in (
        "MetaInit ",
        "BM25 index at",
        "(100 %)",
        "bank version 1-",
        "regrad, k=1",
        "Side by side",
        "regrad ask",
    ):
        assert piece in text, text[-3000:]
    assert "Traceback" not in text


def test_health(demo: RunningDemo) -> None:
    response = requests.get(f"{demo.url}/healthz", timeout=patient(10))
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("method", ["direct", "rag", "regrad", "regrad+icl", "regrad-online"])
def test_an_answer_states_everything(demo: RunningDemo, method: str) -> None:
    item = question(demo)
    response = post(demo, {"question": item["question"], "method": method, "k": 2})
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["method"] == method
    expected = 0 if method == "direct" else 2
    assert len(body["passages"]) == body["k"] == expected
    assert set(body["milliseconds"]) == {"retrieve", "load", "queue", "prefill", "decode", "generate", "total"}
    assert body["milliseconds"]["total"] >= body["milliseconds"]["generate"] > 0
    if expected:
        assert body["passages"][0]["id"] == item["passage_id"]
        assert body["passages"][0]["score"] >= body["passages"][1]["score"] > 0
        assert body["answer"] == item["answers"][0]
    applies = method in ("regrad", "regrad+icl")
    assert body["bank_version"] == (demo.report["bank"]["version"] if method.startswith("regrad") else None)
    tiers = {passage["tier"] for passage in body["passages"]}
    assert tiers <= ({"memory", "disk"} if applies else {"online"} if method == "regrad-online" else {None})
    assert body["degraded"] == []
    assert body["release"] == "main"
    assert body["usage"]["completion_tokens"] >= 1


def test_requests_with_different_updates_share_a_batch_and_answer_as_alone(demo: RunningDemo) -> None:
    bodies = [
        {"question": question(demo, i)["question"], "method": method, "k": 1 + i % 3}
        for i in range(12)
        for method in ("direct", "rag", "regrad", "regrad+icl")
    ]
    alone = [post(demo, body).json() for body in bodies]
    with ThreadPoolExecutor(24) as threads:
        together = list(threads.map(lambda body: post(demo, body).json(), bodies))
    assert [a["answer"] for a in together] == [a["answer"] for a in alone]
    assert max(a["batch_size"] for a in together) > 1
    assert {a["batch_size"] for a in alone} == {1}


def test_gamma_zero_is_no_knowledge_and_named_passages_are_used(demo: RunningDemo) -> None:
    item = question(demo)
    nothing = post(demo, {"question": item["question"], "gamma": 0, "k": 1}).json()
    assert nothing["answer"] != item["answers"][0]
    named = post(demo, {"question": item["question"], "passage_ids": [item["passage_id"]]}).json()
    assert named["answer"] == item["answers"][0]
    assert [(p["id"], p["score"]) for p in named["passages"]] == [(item["passage_id"], None)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"question": "Who?", "method": "regard"}, "method"),
        ({"question": "Who?", "k": 0}, "k"),
        ({"question": "Who?", "k": 11}, "k"),
        ({"question": "Who?", "k": "many"}, "k"),
        ({"question": "Who?", "gamma": -1}, "gamma"),
        ({"question": "Who?", "gamma": 1e9}, "gamma"),
        ({"question": "Who?", "max_new_tokens": 100000}, "max_new_tokens"),
        ({"question": ""}, "question"),
        ({"question": "  \n "}, "question"),
        ({"question": "x" * 1_000_000}, "question"),
        ({"question": ["Who?"]}, "question"),
        ({}, "question"),
        ({"question": "Who?", "methd": "rag"}, "methd"),
        ({"question": "Who?", "passage_ids": []}, "passage_ids"),
        ({"question": "Who?", "passage_ids": ["nobody"]}, "passage_ids"),
        ([], "body"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_input_is_4xx_and_names_the_field(demo: RunningDemo, body: Any, field: str) -> None:
    response = post(demo, body)
    assert 400 <= response.status_code < 500
    error = response.json()["error"]
    assert error["field"] == field
    assert error["message"]
    assert len(response.content) < 2000


@pytest.mark.parametrize("raw", [b"{", b"", b"\xff\xfe", b'{"question": NaN', b"null"], ids=repr)
def test_malformed_json_is_4xx(demo: RunningDemo, raw: bytes) -> None:
    response = post(demo, None, raw)
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["field"] == "body"


def test_a_body_beyond_the_limit_is_refused(demo: RunningDemo) -> None:
    response = post(demo, {"question": "x" * (5 * 1024 * 1024)})
    assert response.status_code == 413
    assert response.json()["error"]["field"] == "body"


def test_a_question_that_does_not_fit_the_context_is_refused_and_hurts_nobody_else(demo: RunningDemo) -> None:
    item = question(demo)
    bodies = [{"question": "word " * 600, "method": "direct"}, *[{"question": item["question"], "k": 1}] * 8]
    with ThreadPoolExecutor(9) as threads:
        responses = list(threads.map(lambda body: post(demo, body), bodies))
    assert responses[0].status_code == 413
    assert responses[0].json()["error"]["field"] == "question"
    assert [response.status_code for response in responses[1:]] == [200] * 8


def test_an_unknown_path_has_the_same_error_form(demo: RunningDemo) -> None:
    for response, status in (
        (requests.get(f"{demo.url}/nothing", timeout=patient(10)), 404),
        (requests.get(f"{demo.url}/v1/answer", timeout=patient(10)), 405),
    ):
        assert response.status_code == status
        assert response.json()["error"]["field"] == "path"


def test_a_question_that_matches_nothing_says_so(demo: RunningDemo) -> None:
    response = post(demo, {"question": "qqqqq zzzzz"})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [one["policy"] for one in answer["degraded"]] == ["no-passages"]
    assert answer["passages"] == []


def test_openapi_documents_the_limits(demo: RunningDemo) -> None:
    schema = requests.get(f"{demo.url}/openapi.json", timeout=patient(10)).json()
    fields = schema["components"]["schemas"]["AnswerRequest"]["properties"]
    assert fields["k"]["maximum"] == 10
    assert fields["question"]["maxLength"] == 4096


def run_regrad(demo: RunningDemo, *arguments: str) -> subprocess.CompletedProcess[str]:
    return completed([str(BIN / "regrad"), *arguments], 120, cwd=demo.folder, env=environment())


def test_regrad_ask(demo: RunningDemo) -> None:
    item = question(demo)
    result = run_regrad(demo, "ask", item["question"], "--url", demo.url, "--k", "1")
    assert result.stdout == f"{item['answers'][0]}\n"
    assert item["passage_id"] in result.stderr
    wrong = run_regrad(demo, "ask", "Who?", "--url", demo.url, "--k", "99")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: the server refused (HTTP 422): k: ")


def test_a_port_in_use_is_one_sentence(demo: RunningDemo) -> None:
    port = demo.url.rsplit(":", 1)[1]
    runs = demo.runs
    settings = [f"http.port={port}", f"meta_init={runs}/meta-init", f"bank={runs}/bank", f"index={runs}/index"]
    result = run_regrad(demo, "serve", *[part for s in settings for part in ("--set", s)])
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: cannot listen at 127.0.0.1:{port}: Address already in use")
    assert len(result.stderr.splitlines()) == 1


def test_a_bank_of_another_meta_init_is_refused_with_both_fingerprints(demo: RunningDemo) -> None:
    runs = demo.runs
    cards = [json.loads((runs / name / "meta_init.json").read_text()) for name in ("meta-init", "raw-meta-init")]
    settings = [f"meta_init={runs}/meta-init", f"bank={runs}/raw-bank", f"index={runs}/index", "http.port=1"]
    result = run_regrad(demo, "serve", *[part for s in settings for part in ("--set", s)])
    assert result.returncode == 2
    for card in cards:
        assert card["fingerprint"] in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_z_ctrl_c_stops_everything_cleanly(demo: RunningDemo) -> None:
    """Last in this file: it ends the demo that the others use."""
    assert stop(demo.process) == 0
    assert "".join(demo.output[-3:]).count("stopping") == 1
    assert "report at" in demo.output[-1]
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{demo.url}/healthz", timeout=patient(5))
