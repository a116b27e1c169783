"""The page when things go wrong, are hostile, narrow, dark or under a prefix, in a real Chromium."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.tools.page_server import Behaviour, serving
from tests.tools.visit import METHODS, Visit, open_visit

HOSTILE = """<img src=x onerror="window.ran='image'"></script><script>window.ran='script'</script>"""


def test_one_method_may_fail_and_another_be_degraded(visit: Visit) -> None:
    visit.server.failing, visit.server.degraded = frozenset({"rag"}), frozenset({"regrad"})
    visit.open()
    visit.ask()
    expect(visit.finished().locator(".note")).to_have_text("zero the bank has no gradient of the passage (les-gutror)")
    expect(visit.card("rag")).to_have_attribute("data-state", "failed")
    expect(visit.card("rag").locator(".note")).to_have_text("error the prompt is longer than the model's window")
    spoken = visit.page.get_by_role("log")
    expect(spoken).to_contain_text("rag failed: the prompt is longer")
    expect(spoken).to_contain_text("regrad answers: Rasoft")
    assert spoken.get_attribute("aria-live") == "polite"


def test_what_the_server_sends_is_only_ever_text(visit: Visit) -> None:
    visit.server.words = (HOSTILE, "</p>")
    visit.server.passages = (("<b>id</b>", HOSTILE, HOSTILE),)
    visit.open()
    visit.ask(HOSTILE)
    card = visit.finished()
    expect(card.locator(".answer")).to_have_text(HOSTILE + "</p>")
    expect(card.locator(".title")).to_have_text(HOSTILE)
    card.locator("summary").click()
    expect(card.locator(".text")).to_have_text(HOSTILE)
    expect(card.locator("code")).to_have_text("<b>id</b>")
    expect(visit.page.locator("#answers h2")).to_have_text(HOSTILE)
    assert visit.page.locator("main img, main script, #answers b").count() == 0
    assert visit.page.evaluate("window.ran") is None


def test_the_policy_refuses_code_in_the_page(browser: Browser) -> None:
    """Were some text ever parsed as HTML, the browser would still not run it; and this file would notice."""
    with pytest.raises(AssertionError, match="script-src-attr"), open_visit(browser) as visit:
        visit.open()
        html = "<img src='data:,' onerror='window.ran = 1'>"
        visit.page.evaluate("(html) => document.body.insertAdjacentHTML('beforeend', html)", html)
        visit.page.wait_for_timeout(300)
        assert visit.page.evaluate("window.ran") is None


def test_a_key_is_asked_for_only_when_the_server_wants_one(visit: Visit) -> None:
    visit.server.key = "sesame-1"
    visit.page.goto(visit.url)
    field_ = visit.page.get_by_label("API key")
    expect(field_).to_be_focused()
    assert field_.get_attribute("type") == "password"
    field_.fill("wrong")
    visit.page.keyboard.press("Enter")
    expect(visit.page.get_by_text("The server refused this key.")).to_be_visible()
    field_.fill("sesame-1")
    visit.page.keyboard.press("Enter")
    expect(visit.page.get_by_role("checkbox")).to_have_count(len(METHODS))
    expect(field_).to_be_hidden()
    visit.ask()
    visit.finished()
    kept = "[Object.values(sessionStorage), Object.values(localStorage), document.cookie, location.href]"
    assert visit.page.evaluate(kept) == [["sesame-1"], [], "", visit.url]


def test_a_question_waits_for_the_key(visit: Visit) -> None:
    visit.open()
    expect(visit.page.get_by_label("API key")).to_be_hidden()
    visit.server.key = "sesame-1"
    visit.ask()
    visit.page.get_by_label("API key").fill("sesame-1")
    visit.page.get_by_role("button", name="Use this key").click()
    expect(visit.finished().locator(".answer")).to_have_text("Rasoft")


def test_refusals_are_told(visit: Visit) -> None:
    visit.open()
    busy = {"type": "overloaded", "field": None, "message": "the server is full"}
    visit.server.refusal = (429, busy, {"retry-after": "7"})
    visit.ask()
    alert = visit.page.get_by_role("alert")
    expect(alert).to_have_text("the server is full Try again in 7 s.")
    visit.server.refusal = (422, {"type": "invalid_request", "field": "gamma", "message": "gamma: too large"}, {})
    visit.ask()
    expect(alert).to_have_text("gamma: too large")
    expect(visit.page.get_by_label("Step size")).to_have_attribute("aria-invalid", "true")
    expect(visit.page.get_by_label("Step size")).to_be_focused()
    visit.server.refusal = None
    visit.ask()
    visit.finished()
    expect(alert).to_be_empty()


def test_a_stream_that_breaks_off_is_told(visit: Visit) -> None:
    visit.server.cut = True
    visit.open()
    visit.ask()
    expect(visit.page.get_by_role("alert")).to_have_text("the connection ended before the answers did")
    expect(visit.card("regrad")).to_contain_text("Not finished.")


def test_events_may_be_cut_anywhere(visit: Visit) -> None:
    """Byte by byte: between CR and LF, and inside a character."""
    visit.open()
    text = ": hello\r\n\r\nevent: token\r\ndata: é\r\ndata: 漢\r\n\r\nid: 1\rdata:x\r\revent: none\n\ndata: y\n\n"
    read = """async ([address, bytes]) => {
        const { serverSentEvents } = await import(address);
        const chunks = bytes.map((byte) => new Uint8Array([byte]));
        const body = new ReadableStream({ start(out) { chunks.forEach((chunk) => out.enqueue(chunk)); out.close(); } });
        const found = [];
        for await (const { event, data } of serverSentEvents(body)) found.push([event, data]);
        return found;
    }"""
    found = visit.page.evaluate(read, [f"{visit.url}web/sse.js", list(text.encode())])
    assert found == [["token", "é\n漢"], ["message", "x"], ["message", "y"]]


def test_the_servers_state_is_shown(visit: Visit) -> None:
    visit.open()
    expect(visit.page.get_by_text("400 passages · bank 3")).to_be_visible()
    visit.page.locator("#server summary").click()
    sheet = visit.page.locator("#server-sheet")
    for text in ("100% of requests", "9f2c41d07ab3e865", "288 KiB, bf16", "64 tokens"):
        expect(sheet).to_contain_text(text)
    visit.page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()


@pytest.mark.parametrize("width", [320, 360, 768])
def test_narrow_screens_do_not_scroll_sideways(browser: Browser, width: int) -> None:
    with open_visit(browser, viewport={"width": width, "height": 700}) as visit:
        visit.open()
        assert visit.overflow() <= 0
        visit.server.words = ("Donaudampfschiff" * 12, " end")
        visit.server.passages = (("p" * 90, "t" * 120, "x" * 500),)
        visit.page.get_by_label("Contributions").select_option("norms")
        visit.ask()
        visit.finished().locator("summary").click()
        visit.page.locator("#server summary").click()
        assert visit.overflow() <= 0
        sheet = visit.page.locator("#server-sheet").bounding_box()
        assert sheet["x"] >= 0 and sheet["x"] + sheet["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Browser, scheme: str) -> None:
    """Contrast of at least 4.5 (WCAG AA) between each text colour and what it stands on."""
    with open_visit(browser, color_scheme=scheme) as visit:
        visit.open()
        pairs = [
            ("ink", "card"),
            ("ink", "wash"),
            ("soft", "page"),
            ("soft", "card"),
            ("soft", "wash"),
            ("soft", "track"),
        ]
        pairs += [("accent", "wash"), ("on-accent", "accent"), ("bad", "bad-wash"), ("warn", "warn-wash")]
        read = "(name) => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
        colours = {name: visit.page.evaluate(read, name) for pair in pairs for name in pair}
        assert (_luminance(colours["page"]) > 0.5) == (scheme == "light")
        for text, ground in pairs:
            light, dark = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_works_under_a_prefix(browser: Browser) -> None:
    behaviour = Behaviour()
    with serving(behaviour, prefix="/some/lab") as url:
        page = browser.new_page()
        page.goto(url.rstrip("/"))
        assert page.url == url
        expect(page.get_by_role("checkbox")).to_have_count(len(METHODS))
        page.get_by_label("Question").fill("Who?")
        page.keyboard.press("Enter")
        expect(page.locator('article[data-method="rag"] .answer')).to_have_text("Rasoft")
        page.close()


@pytest.mark.parametrize("prefix", ["", "/some/lab"])
def test_the_docs_page_asks_no_other_host(browser: Browser, prefix: str) -> None:
    with open_visit(browser, prefix=prefix) as visit:
        asked: list[str] = []
        visit.page.on("request", lambda request: asked.append(request.url))
        visit.page.goto(f"{visit.url}docs")
        operation = visit.page.locator(".opblock", has_text="/v1/compare")
        operation.locator("button").first.click()
        expect(operation.get_by_role("button", name="Try it out")).to_be_visible()
        assert len(asked) >= 5
        assert all(url.startswith((visit.url, "data:")) for url in asked), asked
