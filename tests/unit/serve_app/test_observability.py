"""Metrics, their dashboard, the request log and traces."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from regrad.bank.tiers import Tier
from regrad.errors import ConfigError
from regrad.methods.base import Note, PassageUse
from regrad.settings import parse_settings
from serve_app.config import ObservabilityConfig
from serve_app.http.errors import FULL, Problem
from serve_app.messages import Answered, Ask, Reply, Retrieved
from serve_app.observability import DEFINITIONS, Metrics, RequestLog, Tracing, Watch, open_tracing
from tests.tools.recording import Recorded
from tests.tools.refusals import refused

DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana" / "regrad.json"
ALERTS = DASHBOARD.parents[1] / "prometheus" / "regrad-rules.yaml"
SECRET = "Who is my doctor?\n{"
ASK = Ask(SECRET, method="regrad", request_id="r-1")
ANSWERED = Answered(
    text="Doctor No",
    finish_reason="stop",
    prompt_tokens=11,
    completion_tokens=5,
    bank_version="00000002",
    release="main",
    uses=(PassageUse("a", Tier.MEMORY), PassageUse("b", Tier.MEMORY), PassageUse("c", problem="missing")),
    degraded=(Note("fewer", "no atom", ("c",)), Note("fewer", "damaged", ("d",))),
    load_milliseconds=20,
    queue_milliseconds=30,
    prefill_milliseconds=40,
    decode_milliseconds=500,
    batch_size=3,
)
REPLY = Reply(ASK, ANSWERED, Retrieved((), 10), total_milliseconds=600)
DIRECT = Reply(replace(ASK, method="direct"), replace(ANSWERED, uses=(), degraded=(), load_milliseconds=0))


def test_an_answer_is_counted(recorded: Recorded) -> None:
    Metrics().answered(REPLY)
    assert recorded.of("regrad_requests") == [(1, "regrad", "200", "ok")]
    assert recorded.of("regrad_first_token_seconds") == [(0.1, "regrad")]
    assert dict(reversed(call) for call in recorded.of("regrad_stage_seconds")) == {
        "retrieve": 0.01,
        "load": 0.02,
        "queue": 0.03,
        "prefill": 0.04,
        "decode": 0.5,
        "total": 0.6,
    }
    assert recorded.of("regrad_tokens") == [(11, "in"), (5, "out")]
    assert recorded.of("regrad_atoms") == [(1, "memory"), (1, "memory"), (1, "none")]
    assert recorded.of("regrad_degraded") == [(1, "fewer")], "an answer is degraded once by a policy"


def test_stages_that_were_not_gone_through_are_not_counted(recorded: Recorded) -> None:
    Metrics().answered(DIRECT, first_token_seconds=0.25)
    assert {call[1] for call in recorded.of("regrad_stage_seconds")} == {"queue", "prefill", "decode", "total"}
    assert recorded.of("regrad_first_token_seconds") == [(0.25, "direct")]
    assert recorded.of("regrad_degraded") == recorded.of("regrad_atoms") == []


def test_what_callers_invent_makes_no_series(recorded: Recorded) -> None:
    metrics = Metrics()
    for number in range(3):
        metrics.failed("overloaded", 429, f"method {number}")
    assert recorded.of("regrad_requests") == [(1, "other", "429", "overloaded")] * 3


def test_requests_in_flight_go_up_and_down(recorded: Recorded) -> None:
    metrics = Metrics()
    with metrics.working(), pytest.raises(KeyError), metrics.working():
        raise KeyError
    assert recorded.of("regrad_requests_in_flight") == [(1,), (2,), (1,), (0,)]


def test_the_other_stages_count_what_they_know(recorded: Recorded) -> None:
    metrics = Metrics()
    metrics.batch(4)
    metrics.queue(7)
    metrics.queue(0)
    metrics.prefix(0, 0)
    metrics.prefix(120, 4096)
    metrics.read(Tier.DISK, 1024)
    assert recorded.calls == [
        ("regrad_decode_batch_size", 4, {}),
        ("regrad_generator_queue", 7, {}),
        ("regrad_generator_queue", 0, {}),
        ("regrad_prefix_bytes", 0, {}),
        ("regrad_prefix_hits", 1, {}),
        ("regrad_prefix_tokens", 120, {}),
        ("regrad_prefix_bytes", 4096, {}),
        ("regrad_atom_bytes", 1024, {"tier": "disk"}),
    ]


def test_outside_a_replica_the_metrics_do_nothing() -> None:
    metrics = Metrics()
    metrics.answered(REPLY)
    metrics.failed("timeout", 504)
    metrics.batch(1)
    metrics.queue(1)
    metrics.prefix(1, 1)
    metrics.read(Tier.STORE, 1)
    with metrics.working():
        pass


def exported() -> dict[str, set[str]]:
    """The names that Prometheus sees, with the tags of each."""
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        f"ray_{name}{ending}": {*definition.tags, "application", "replica", "deployment"}
        | ({"le"} if ending == "_bucket" else set())
        for name, definition in DEFINITIONS.items()
        for ending in endings[definition.kind]
    }


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def test_alerts_are_rules_of_prometheus_and_each_has_its_line_in_the_runbook() -> None:
    assert all(
        set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        and re.fullmatch(r"\d+m", rule["for"])
        and rule["labels"]["severity"] in ("page", "ticket")
        and rule["annotations"]["summary"]
        for rule in alerts()
    )
    runbook = (ALERTS.parents[1] / "operations.md").read_text()
    assert [rule["alert"] for rule in alerts()] == re.findall(r"^\| `(Regrad\w+)`", runbook, re.MULTILINE)


def test_alerts_ask_for_metrics_tags_and_values_that_there_are() -> None:
    stages = {"total", "retrieve", "load", "queue", "prefill", "decode"}
    values = {"stage": stages, "tier": {"none", *(tier.value for tier in Tier)}, "kind": {FULL.type}}
    for rule in alerts():
        for name, filters in re.findall(r"\b(ray_\w+)(?:\{([^}]*)\})?", rule["expr"]):
            assert name in exported(), rule["alert"]
            for tag, value in re.findall(r'(\w+)=~?"([^"]*)"', filters):
                assert tag in exported()[name], rule["alert"]
                assert value in values.get(tag, {value}), rule["alert"]
        grouped = {tag for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]) for tag in group.split(", ")}
        assert grouped <= {"application", "le"}, rule["alert"]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = {name for text in expressions() for name in re.findall(r"\bray_\w+", text)}
    assert shown <= set(exported()), "a panel of something that is not exported"
    unshown = [name for name in DEFINITIONS if not any(each.startswith(f"ray_{name}") for each in shown)]
    assert unshown == []


def test_the_dashboard_groups_and_filters_by_tags_that_there_are() -> None:
    for text in expressions():
        tags = set.intersection(*(exported()[name] for name in re.findall(r"\bray_\w+", text)))
        used = {tag for group in re.findall(r"\bby \(([^)]*)\)", text) for tag in re.split(r",\s*", group)}
        used |= set(re.findall(r'(\w+)(?:=~|!=|!~|=)"', text))
        assert used <= tags, text


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["application"]["query"]["query"] == "label_values(ray_regrad_requests_total, application)"
    assert dashboard["uid"] and dashboard["title"] and "__inputs" not in dashboard and "id" not in dashboard
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in dashboard["panels"]}) == len(places)
    for panel in dashboard["panels"]:
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}
        assert {target["refId"] for target in panel["targets"]} == set("ABCDE"[: len(panel["targets"])])


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "requests.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_request_is_one_line_without_the_question(log_path: Path) -> None:
    log = RequestLog(ObservabilityConfig(request_log=str(log_path)))
    log.answered(REPLY, caller="0123456789ab")
    log.failed(ASK, Problem("overloaded", 429, None, f"full of {SECRET}"))
    log.failed(None, Problem("invalid_json", 400, "body", "the body is not JSON"))
    answered, failed, unread = lines(log_path)
    assert answered.pop("time") <= failed.pop("time") <= unread.pop("time")
    assert answered == {
        "request_id": "r-1",
        "method": "regrad",
        "k": 3,
        "caller": "0123456789ab",
        "status": 200,
        "release": "main",
        "bank_version": "00000002",
        "milliseconds": {"retrieve": 10, "load": 20, "queue": 30, "prefill": 40, "decode": 500, "total": 600},
        "tokens": {"prompt": 11, "completion": 5},
        "tiers": ["memory", "memory", ""],
        "batch_size": 3,
        "finish_reason": "stop",
        "degraded": [{"policy": "fewer", "reason": "no atom"}, {"policy": "fewer", "reason": "damaged"}],
    }
    who = {"request_id": "r-1", "method": "regrad", "k": 3, "caller": None}
    assert failed == {**who, "status": 429, "error": "overloaded"}
    assert unread == {"caller": None, "status": 400, "error": "invalid_json"}
    assert "doctor" not in log_path.read_text().lower(), "neither the question nor the answer"


def test_the_question_is_logged_if_that_is_asked_for(log_path: Path) -> None:
    RequestLog(ObservabilityConfig(request_log=str(log_path), log_questions=True)).answered(REPLY)
    assert lines(log_path)[0]["question"] == SECRET
    assert "Doctor No" not in log_path.read_text()


def test_nobody_can_forge_a_line(log_path: Path) -> None:
    forged = replace(ASK, request_id='x"}\n{"status": 200}\u2028\x1b[2J', method="m\n" * 1000)
    RequestLog(ObservabilityConfig(request_log=str(log_path))).failed(forged, Problem("timeout", 504, None, ""))
    (line,) = lines(log_path)
    assert line["request_id"] == forged.request_id and len(line["method"]) == 500
    assert log_path.read_text().isascii() and "\x1b" not in log_path.read_text()


def test_a_log_that_was_moved_away_is_begun_again(log_path: Path) -> None:
    log = RequestLog(ObservabilityConfig(request_log=str(log_path)))
    log.answered(REPLY)
    log_path.rename(log_path.with_suffix(".old"))
    log.answered(REPLY)
    assert len(lines(log_path)) == len(lines(log_path.with_suffix(".old"))) == 1


def test_standard_error_is_the_default_and_off_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    RequestLog(ObservabilityConfig(log_requests=False)).answered(REPLY)
    assert capsys.readouterr().err == ""
    RequestLog(ObservabilityConfig()).answered(REPLY)
    assert json.loads(capsys.readouterr().err)["status"] == 200


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Tracing(provider)


CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_one_trace_goes_through_all_stages(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    with tracing.span("gateway", CALLER, method="regrad") as here:
        for stage in ("retrieve", "load", "generate"):
            with tracing.span(stage, here):
                pass
    found = {span.name: span for span in spans.get_finished_spans()}
    gateway = found["gateway"]
    assert here == f"00-{gateway.context.trace_id:032x}-{gateway.context.span_id:016x}-01"
    assert gateway.parent is not None and f"{gateway.parent.span_id:016x}" == "b7ad6b7169203331"
    assert dict(gateway.attributes or {}) == {"method": "regrad"}
    for span in found.values():
        assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    for stage in ("retrieve", "load", "generate"):
        assert found[stage].parent is not None and found[stage].parent.span_id == gateway.context.span_id


@pytest.mark.parametrize("parent", [None, "", "x", "00-0-0-01", f"00-{'0' * 32}-{'0' * 16}-01", "y" * 100_000])
def test_what_is_no_parent_begins_a_new_trace(tracing: Tracing, spans: InMemorySpanExporter, parent: str) -> None:
    with tracing.span("gateway", parent) as here:
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", here)
    assert spans.get_finished_spans()[0].parent is None


def test_requests_at_once_do_not_mix(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    async def pieces() -> AsyncIterator[str]:
        with tracing.span("gateway") as here:
            for _ in range(3):
                await asyncio.sleep(0)
                with tracing.span("generate", here):
                    yield here

    async def consume() -> set[str]:
        return {piece async for piece in pieces()}

    async def run() -> list[set[str]]:
        return await asyncio.gather(*(consume() for _ in range(5)))

    assert len({piece for found in asyncio.run(run()) for piece in found}) == 5
    finished = spans.get_finished_spans()
    roots = {span.context.span_id: span.context.trace_id for span in finished if span.name == "gateway"}
    children = [span for span in finished if span.name == "generate"]
    assert len(roots) == len(set(roots.values())) == 5 and len(children) == 15
    assert all(span.parent and roots[span.parent.span_id] == span.context.trace_id for span in children)


def test_an_error_marks_its_span_without_its_text(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError), tracing.span("generate"):
        raise ValueError(SECRET)
    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError")
    assert "doctor" not in span.to_json()


def test_without_tracing_the_context_is_passed_along() -> None:
    with open_tracing(None, "gateway").span("gateway", CALLER) as here:
        assert here == CALLER
    with Tracing().span("gateway") as here:
        assert here == ""


def test_tracing_without_opentelemetry_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with refused(ConfigError, "not_installed", package="opentelemetry"):
        Watch(ObservabilityConfig(tracing="http://127.0.0.1:4318"), "gateway")


@pytest.mark.parametrize(
    "endpoint", ["http://collector:4318", "http://collector:4318/", "http://collector:4318/v1/traces"]
)
def test_spans_are_sent_to_the_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    from opentelemetry.exporter.otlp.proto.http import trace_exporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    sent = []

    class Exporter(InMemorySpanExporter):
        def __init__(self, endpoint: str) -> None:
            super().__init__()
            self.endpoint = endpoint

        def export(self, spans: Any) -> SpanExportResult:
            sent.extend((self.endpoint, span.name, span.resource.attributes["service.name"]) for span in spans)
            return super().export(spans)

    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", Exporter)
    tracing = open_tracing(endpoint, "generator")
    with tracing.span("generate"):
        pass
    tracing.close()
    assert sent == [("http://collector:4318/v1/traces", "generate", "generator")]


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector", "http://", "http://a b"])
def test_an_endpoint_is_an_address(endpoint: str) -> None:
    with refused(ConfigError, "invalid") as error:
        parse_settings(ObservabilityConfig, {"tracing": endpoint}, "args")
    assert [problem["key"] for problem in error.value.fields["problems"]] == ["tracing"]


def test_a_watch_counts_and_logs(recorded: Recorded, log_path: Path) -> None:
    watch = Watch(ObservabilityConfig(request_log=str(log_path)), "gateway")
    watch.observe(REPLY, caller="0123456789ab", first_token_seconds=0.5)
    watch.failed(ASK, Problem("timeout", 504, None, "late"))
    watch.failed(None, Problem("invalid_json", 400, "body", ""))
    assert [call[1:] for call in recorded.of("regrad_requests")] == [
        ("regrad", "200", "ok"),
        ("regrad", "504", "timeout"),
        ("other", "400", "invalid_json"),
    ]
    assert [line["status"] for line in lines(log_path)] == [200, 504, 400]
    with watch.span("gateway") as here:
        assert here == ""
