"""The official `openai` client, unchanged, against the routes on a real port."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from ray.serve.exceptions import BackPressureError

from regrad.errors import BankError, PromptTooLong
from serve_app.messages import Turn
from tests.tools.answering import StandIn, api_of, served


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[StandIn, str]]:
    standin = StandIn()
    with served(api_of(standin)) as url:
        yield standin, url


@pytest.fixture
def standin(server: tuple[StandIn, str]) -> StandIn:
    standin = server[0]
    standin.errors.clear()
    standin.late_errors.clear()
    standin.asks.clear()
    return standin


@pytest.fixture
def client(server: tuple[StandIn, str], standin: StandIn) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server[1]}/v1", api_key="none", max_retries=0, timeout=None) as client:
        yield client


def test_a_chat_that_goes_on(client: openai.OpenAI, standin: StandIn) -> None:
    messages: list = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    first = client.chat.completions.create(model="regrad", messages=messages, temperature=0, max_tokens=5)
    assert first.choices[0].message.content == "London."
    assert (first.choices[0].finish_reason, first.object) == ("stop", "chat.completion")
    assert first.usage is not None and first.usage.total_tokens == 10
    assert first._request_id and first.id == f"chatcmpl-{first._request_id}"
    assert first.model_extra is not None and first.model_extra["regrad"]["bank_version"] == "3"
    messages += [first.choices[0].message, {"role": "user", "content": "Really?"}]
    client.chat.completions.create(model="regrad", messages=messages)
    assert standin.asks[1].turns[-1] == Turn("assistant", "London.")


def test_a_completion(client: openai.OpenAI, standin: StandIn) -> None:
    completion = client.completions.create(
        model="rag", prompt="Ada was born in", stop=["\n"], seed=3, extra_body={"k": 2, "passage_ids": ["p1"]}
    )
    assert (completion.choices[0].text, completion.model) == ("London.", "rag")
    assert completion.usage is not None and completion.usage.completion_tokens == 3
    assert (standin.asks[0].k, standin.asks[0].passage_ids) == (2, ("p1",))


def test_a_stream_of_chat(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="regrad+icl",
        messages=[{"role": "user", "content": "Where?"}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"gamma": 0.5},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "London."
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == 7
    assert chunks[-1].model_extra is not None and chunks[-1].model_extra["regrad"]["gamma"] == 0.5


def test_the_helper_that_gathers_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="rag", messages=[{"role": "user", "content": "Where?"}]) as stream:
        gathered = stream.get_final_completion()
    assert gathered.choices[0].message.content == "London."


def test_a_stream_of_completion(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="direct", prompt="x", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "London."


def test_the_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"regrad", "regrad+icl", "rag", "direct", "regrad-online"}
    assert client.models.retrieve("regrad+icl").id == "regrad+icl"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BackPressureError(3, 2), openai.RateLimitError),
        (BankError("x"), openai.InternalServerError),
        (ValueError("x"), openai.InternalServerError),
        (TimeoutError(), openai.InternalServerError),
        (PromptTooLong("300 tokens, 256 fit"), openai.APIStatusError),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_errors_are_the_clients_own(
    client: openai.OpenAI, standin: StandIn, error: Exception, kind: type[openai.APIStatusError], stream: bool
) -> None:
    standin.errors["regrad"] = error
    with pytest.raises(kind) as raised:
        client.chat.completions.create(model="regrad", messages=[{"role": "user", "content": "x"}], stream=stream)
    assert isinstance(raised.value, openai.APIStatusError)
    assert raised.value.type == raised.value.code


def test_what_is_refused_names_the_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="direct, rag, regrad") as unknown:
        client.completions.create(model="gpt-5", prompt="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.completions.create(model="rag", prompt="x", n=2)
    assert refused.value.param == "n"


def test_an_error_within_a_stream_is_raised(client: openai.OpenAI, standin: StandIn) -> None:
    standin.late_errors["regrad"] = BankError("x")
    stream = client.chat.completions.create(
        model="regrad", messages=[{"role": "user", "content": "Where?"}], stream=True
    )
    with pytest.raises(openai.APIError) as raised:
        list(stream)
    assert raised.value.type == "unavailable"
