"""Asking on the page, in a real Chromium, against a server that speaks the contract."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.tools.patience import patient
from tests.tools.visit import METHODS, Visit


def test_answers_passages_and_times_are_shown_side_by_side(visit: Visit) -> None:
    visit.open()
    visit.ask()
    for method in METHODS:
        expect(visit.finished(method).locator(".answer")).to_have_text("Rasoft")
    tops = {round(visit.card(method).bounding_box()["y"]) for method in METHODS[:3]}
    assert len(tops) == 1
    card = visit.card("regrad")
    expect(card.get_by_role("row", name="prefill")).to_contain_text("7.0 ms")
    expect(card.get_by_role("row", name="total")).to_contain_text("47 ms")
    expect(card.locator(".passages li")).to_have_count(3)
    first = card.locator(".passages li").first
    expect(first).to_contain_text("les-dripen")
    expect(first).to_contain_text("score 11.37")
    expect(first).to_contain_text("memory")
    expect(first.locator(".text")).to_be_hidden()
    first.locator("summary").click()
    expect(first.locator(".text")).to_contain_text("She is on the staff of Rasoft.")
    expect(card.locator("footer")).to_contain_text("release main bank 3", use_inner_text=True)
    expect(visit.card("direct")).to_contain_text("this method does not retrieve")
    assert visit.server.asked == [
        {
            "question": "Who employs Les Dripen?",
            "methods": METHODS,
            "k": 3,
            "gamma": 1,
            "max_new_tokens": 20,
            "stream": True,
        }
    ]


def test_bars_share_one_scale(visit: Visit) -> None:
    visit.page.emulate_media(reduced_motion="reduce")
    visit.open()
    visit.ask()
    boxes = {method: visit.finished(method).locator("tr.total .bar").bounding_box() for method in METHODS}
    assert boxes["regrad"]["width"] / boxes["regrad+icl"]["width"] == pytest.approx(47.1 / 67.3, abs=0.03)
    prefill, decode = (visit.card("rag").locator(f"tr.{stage} .bar").bounding_box() for stage in ("prefill", "decode"))
    assert decode["x"] == pytest.approx(prefill["x"] + prefill["width"], abs=2)


def test_tokens_are_shown_before_the_end_and_stop_ends_it(visit: Visit) -> None:
    visit.server.hang = 1
    visit.open()
    visit.ask()
    expect(visit.card("regrad").locator(".answer")).to_have_text("Ra")
    expect(visit.card("regrad")).to_have_attribute("aria-busy", "true")
    expect(visit.card("regrad").locator(".passages li")).to_have_count(3)
    visit.page.get_by_role("button", name="Stop").click()
    expect(visit.card("regrad")).to_have_attribute("data-state", "stopped")
    expect(visit.card("regrad")).to_contain_text("Stopped.")
    expect(visit.card("regrad").locator(".answer")).to_have_text("Ra")
    expect(visit.page.get_by_role("button", name="Stop")).to_be_hidden()
    assert visit.server.disconnected.wait(patient(10))


def test_the_keyboard_is_enough(visit: Visit) -> None:
    visit.server.hang = 0
    visit.open()
    keyboard = visit.page.keyboard
    expect(visit.page.get_by_label("Question")).to_be_focused()
    keyboard.type("Who employs")
    keyboard.press("Shift+Enter")
    keyboard.type("Les Dripen?")
    keyboard.press("Enter")
    expect(visit.card("regrad")).to_have_attribute("data-state", "working")
    keyboard.press("Escape")
    expect(visit.card("regrad")).to_have_attribute("data-state", "stopped")
    visit.page.get_by_label("Passages k").focus()
    visit.server.hang = None
    keyboard.press("Control+Enter")
    visit.finished()
    assert [asked["question"] for asked in visit.server.asked] == ["Who employs\nLes Dripen?"] * 2


def test_asking_twice_in_a_row_asks_once_and_another_question_replaces_the_first(visit: Visit) -> None:
    visit.server.hang = 1
    visit.open()
    visit.ask("one?")
    expect(visit.card("regrad").locator(".answer")).to_have_text("Ra")
    visit.page.keyboard.press("Control+Enter")
    visit.server.hang = None
    visit.ask("two?")
    visit.finished()
    assert [asked["question"] for asked in visit.server.asked] == ["one?", "two?"]
    expect(visit.page.get_by_role("heading", name="two?")).to_be_visible()


def test_options_are_sent_and_contributions_drawn(visit: Visit) -> None:
    visit.page.emulate_media(reduced_motion="reduce")
    visit.open()
    visit.page.get_by_role("checkbox", name="rag").uncheck()
    visit.page.get_by_role("checkbox", name="direct").uncheck()
    visit.page.get_by_label("Passages k").fill("2")
    visit.page.get_by_label("Step size").fill("0.5")
    visit.page.get_by_label("Longest answer").fill("8")
    visit.page.get_by_label("Contributions").select_option("leave one out")
    visit.ask()
    for_, against = visit.finished().locator(".part").all()
    expect(for_).to_contain_text("+6.31")
    expect(against).to_contain_text("−0.42")
    middle = for_.locator(".track").bounding_box()
    middle = middle["x"] + middle["width"] / 2
    assert for_.locator(".bar").bounding_box()["x"] == pytest.approx(middle, abs=2)
    assert against.locator(".bar").bounding_box()["x"] < middle - 1
    (asked,) = visit.server.asked
    assert asked["methods"] == ["regrad", "regrad+icl", "regrad-online"]
    assert (asked["k"], asked["gamma"], asked["max_new_tokens"]) == (2, 0.5, 8)
    assert asked["contributions"] == "leave_one_out"


def test_the_form_keeps_to_the_servers_limits(visit: Visit) -> None:
    visit.open()
    expect(visit.page.get_by_label("Passages k")).to_have_attribute("max", "10")
    visit.ask("a" * 201)
    expect(visit.page.get_by_text("201 of 200 characters")).to_be_visible()
    visit.ask("  ")
    visit.page.get_by_label("Question").fill("one?")
    for box in visit.page.get_by_role("checkbox").all():
        box.uncheck()
    visit.page.get_by_role("button", name="Ask").click()
    visit.page.get_by_role("checkbox").first.check()
    visit.page.get_by_role("button", name="Ask").click()
    visit.finished("direct")
    assert [asked["methods"] for asked in visit.server.asked] == [["direct"]]
