"""`regrad plan` from a profile that was measured before: nothing is started, and a server can read what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from regrad.bank.format import read_manifest
from regrad.cli.main import regrad
from regrad.cli.plan.report import CheckedRow
from regrad.cli.plan.server import can_change_embedded, candidate_of, changed_args, observed
from regrad.errors import PlanningError, RegradError
from regrad.meta_init import read_card
from regrad.planning.profile import Bank, read_profile, write_profile
from regrad.planning.users import RequestOutcome
from regrad.storage import Storage
from serve_app.app import load_serve_file
from serve_app.config import ServeConfig
from tests.tools.releasing import setup
from tests.unit.planning.examples import profile_of, with_embedded


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    monkeypatch.setattr("serve_app.app.check_index", lambda *_: None)  # nothing is searched here
    return setup(tmp_path)


@pytest.fixture
def folder(served: ServeConfig, tmp_path: Path) -> Path:
    """A serve configuration, questions, and a profile of this very server."""
    args = served.model_dump(mode="json", include={"meta_init", "bank", "index"})
    document = {"proxy_location": "HeadOnly", "applications": [{"import_path": "serve_app.app:build", "args": args}]}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "Who?", "answers": ["me"]}) + "\n")
    manifest = read_manifest(Storage(served.bank), None)
    bank = Bank(codec=manifest.codec, record_bytes=manifest.record_bytes, passages=manifest.passages)
    own = candidate_of(served)
    changes = {"fingerprint": read_card(served.meta_init)["fingerprint"], "bank": bank, "configuration": own}
    write_profile(str(tmp_path / "profile.json"), profile_of().model_copy(update=changes))
    return tmp_path


def run(folder: Path, *settings: str, options: tuple[str, ...] = ()) -> Result:
    places = {
        "serve": folder / "serve.yaml",
        "output": folder / "plan",
        "profile": folder / "profile.json",
        "questions.path": folder / "questions.jsonl",
        "machine.cores": 2,
        "machine.memory_bytes": 1 << 34,
        "most_rows": 8,
        "most_replicas": 2,
    }
    given = [f"{name}={value}" for name, value in places.items()] + list(settings)
    return CliRunner().invoke(regrad, ["plan", *options, *(word for one in given for word in ("--set", one))])


def refused(folder: Path, *settings: str) -> RegradError:
    error = run(folder, *settings).exception
    assert isinstance(error, RegradError), error
    assert not (folder / "plan").exists()
    return error


def test_a_plan_from_a_profile_is_a_configuration_that_a_server_reads(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert "Pareto front" in result.stdout
    written, _ = load_serve_file(folder / "plan" / "serve.yaml")
    plan = json.loads((folder / "plan" / "plan.json").read_text())
    assert candidate_of(written).model_dump() == plan["chosen"]["configuration"]
    assert plan["chosen"]["predicted"]["rate"] >= plan["given"]["predicted"]["rate"]
    assert written.groups.at_once == 1
    assert yaml.safe_load((folder / "plan" / "serve.yaml").read_text())["proxy_location"] == "HeadOnly"


def measure_both(folder: Path, share: float) -> None:
    """The profile then has an embedded server, too, which takes this share of the other's time."""
    place = str(folder / "profile.json")
    write_profile(place, with_embedded(read_profile(place), share))


def test_an_embedded_server_is_planned_where_it_is_predicted_to_be_better(folder: Path) -> None:
    measure_both(folder, 0.8)
    result = run(folder, "serve.applications.0.args.retriever={num_cpus: 0.2}")
    assert result.exit_code == 0, result.output
    written, _ = load_serve_file(folder / "plan" / "serve.yaml")
    plan = json.loads((folder / "plan" / "plan.json").read_text())
    assert written.embedded
    assert candidate_of(written).model_dump() == plan["chosen"]["configuration"]
    assert not plan["given"]["configuration"]["embedded"]
    assert plan["chosen"]["predicted"]["demand"] < 0.9 * plan["given"]["predicted"]["demand"]
    args = yaml.safe_load((folder / "plan" / "serve.yaml").read_text())["applications"][0]["args"]
    assert args["retriever"] == {"num_cpus": 0.2}
    given, chosen = result.stdout.split("Given, and chosen")[1].splitlines()[2:4]
    assert given.split().count("no") == chosen.split().count("yes") == 1
    assert "1+1+1+1" in given.split()
    assert "1+1" in chosen.split()


@pytest.mark.parametrize(("share", "embedded"), [(0.8, True), (1.25, False)])
def test_a_plan_may_start_from_an_embedded_server(folder: Path, share: float, embedded: bool) -> None:
    measure_both(folder, share)
    result = run(folder, "serve.applications.0.args.embedded=true")
    assert result.exit_code == 0, result.output
    written, _ = load_serve_file(folder / "plan" / "serve.yaml")
    assert written.embedded is embedded
    plan = json.loads((folder / "plan" / "plan.json").read_text())
    assert plan["given"]["configuration"]["embedded"]
    assert candidate_of(written).model_dump() == plan["chosen"]["configuration"]


def test_embedded_stays_as_it_is_where_it_may_not_change(folder: Path) -> None:
    measure_both(folder, 0.8)
    for setting in ("change_embedded=false", "serve.applications.0.args.bank_loader.resources={near_store: 1}"):
        result = run(folder, setting)
        assert result.exit_code == 0, result.output
        assert not load_serve_file(folder / "plan" / "serve.yaml")[0].embedded


def test_of_a_profile_with_one_server_only_such_are_searched_and_it_is_said(folder: Path) -> None:
    result = run(folder)
    assert "no server with `embedded: true` was measured" in result.stderr
    assert not load_serve_file(folder / "plan" / "serve.yaml")[0].embedded


def test_a_profile_without_a_server_like_the_given_one_is_refused(folder: Path) -> None:
    error = refused(folder, "serve.applications.0.args.embedded=true")
    assert error.code == "planning.other_profile"
    assert error.fields == {"what": "`embedded`", "expected": True, "found": False}


def test_the_same_profile_plans_for_a_larger_machine(folder: Path) -> None:
    rates = []
    for cores in (2, 8):
        result = run(folder, f"machine.cores={cores}", "users=64", options=("--json",))
        rates.append(json.loads(result.stdout)["chosen"]["predicted"]["rate"])
    assert rates[1] > 1.5 * rates[0]


def test_what_cannot_be_planned_is_refused_before_anything_is_written(folder: Path) -> None:
    assert refused(folder, "method=regard").code == "planning.not_offered"
    assert refused(folder, "k=4").code == "planning.other_profile"
    assert refused(folder, "machine.memory_bytes=1000").code == "planning.no_room"
    assert refused(folder, "machine.cores=1").code == "planning.no_cores"
    assert refused(folder, "profile=none.json").code == "planning.no_profile"
    unreachable = refused(folder, "bound_ms=1")
    assert unreachable.code == "planning.bound_out_of_reach"
    assert unreachable.fields["best_ms"] > 1
    (folder / "questions.jsonl").write_text("")
    assert refused(folder).code == "evaluation.no_questions"


def test_a_profile_of_another_model_is_refused(folder: Path) -> None:
    place = folder / "profile.json"
    profile: dict[str, Any] = json.loads(place.read_text())
    place.write_text(json.dumps({**profile, "fingerprint": "f" * 16}))
    error = refused(folder)
    assert (error.code, error.fields["what"]) == ("planning.other_profile", "MetaInit")


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(bytes(2000))  # nothing that could be loaded
    given = ["profile=null", f"serve.applications.0.args.model_path={folder}/model"]
    error = refused(folder, *given, "machine.memory_bytes=1000")
    assert (error.code, error.fields["model"]) == ("planning.no_room", 2000)


def test_only_what_the_search_changes_is_changed_in_the_args(served: ServeConfig) -> None:
    args = {"bank": "b", "generator": {"num_cpus": 2}, "tiers": {"disk": "d", "memory_bytes": 5}}
    candidate = candidate_of(served).model_copy(update={"generator": 3, "cache_bytes": 7})
    changed = changed_args(args, candidate)
    assert changed["generator"] == {"num_cpus": 2, "min_replicas": 3, "max_replicas": 3}
    assert changed["tiers"] == {"disk": "d", "memory_bytes": 7}
    assert changed["bank"] == "b"
    assert args["tiers"] == {"disk": "d", "memory_bytes": 5}


def test_an_embedded_server_is_written_with_the_replicas_of_its_gateways(served: ServeConfig) -> None:
    candidate = candidate_of(served.model_copy(update={"embedded": True})).model_copy(
        update={"gateway": 2, "retriever": 2, "bank_loader": 2}
    )
    changed = changed_args({"bank_loader": {"max_ongoing_requests": 8}, "gateway": {"num_cpus": 1}}, candidate)
    assert changed["embedded"] is True
    assert changed["gateway"] == {"num_cpus": 1, "min_replicas": 2, "max_replicas": 2}
    assert changed["bank_loader"] == {"max_ongoing_requests": 8}
    assert "retriever" not in changed
    assert changed_args(changed, candidate_of(served))["embedded"] is False


def test_what_retriever_or_loader_reserve_for_themselves_keeps_embedded_as_it_is(served: ServeConfig) -> None:
    assert can_change_embedded(served)
    for role, own in (("retriever", {"num_gpus": 1}), ("bank_loader", {"resources": {"near_store": 1}})):
        config = ServeConfig.model_validate({**served.model_dump(), role: own})
        assert not can_change_embedded(config)


def test_a_load_is_summed_up_and_one_that_was_refused_is_an_error() -> None:
    outcomes = [RequestOutcome(n, float(n), 0.5, 200, "a", batch_size=2) for n in range(10)]
    found = observed(4, outcomes, {"gateway": 1.0, "rest": 2.0})
    assert found.rate == pytest.approx(10 / 9.5)
    assert found.p50 == 0.5
    assert found.processor["gateway"] == pytest.approx(0.1)
    assert found.processor["generator"] == 0
    with pytest.raises(PlanningError) as caught:
        observed(4, [*outcomes, *[RequestOutcome(0, 0.0, 0.1, 429)] * 10], {})
    assert caught.value.code == "planning.not_answered"


def test_the_error_is_the_largest_of_rate_and_p50_of_both_configurations(folder: Path) -> None:
    from regrad.cli.plan import job
    from regrad.planning.config import PlanConfig
    from regrad.settings import load_settings

    settings = [
        f"serve={folder}/serve.yaml",
        f"output={folder}/plan",
        f"profile={folder}/profile.json",
        f"questions={{name: q, path: {folder}/questions.jsonl}}",
        "machine={cores: 2, memory_bytes: 17179869184}",
        "most_rows=8",
    ]
    report = job.plan(load_settings(PlanConfig, None, settings), lambda _: None)
    (like,) = [one for one in profile_of().observed if one.users == 16]
    rows = [
        CheckedRow("given", 0, report.given.predicted, like.model_copy(update={"rate": 100.0})),
        CheckedRow("chosen", 0, report.chosen.predicted, like.model_copy(update={"rate": 150.0})),
    ]
    figures = report.checked(rows).figures
    assert figures["gain_over_default"] == pytest.approx(1.5)
    errors = [
        abs(expected / found - 1)
        for speed, rate in ((report.given.predicted, 100.0), (report.chosen.predicted, 150.0))
        for expected, found in ((speed.rate, rate), (speed.p50, like.p50))
    ]
    assert figures["worst_prediction_error"] == pytest.approx(max(errors))
