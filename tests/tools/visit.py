"""A visit to the page in a browser, which notes what the browser complains of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Locator, Page, expect

from tests.tools.page_server import Behaviour, serving
from tests.tools.patience import patient

METHODS = ["direct", "rag", "regrad", "regrad+icl", "regrad-online"]
RECORD = """
window.refused = [];
document.addEventListener("securitypolicyviolation", (event) => window.refused.push(event.violatedDirective));
"""


@dataclass
class Visit:
    """A page that is open, what its server does, and what the browser complained of."""

    page: Page
    server: Behaviour
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self) -> None:
        self.page.goto(self.url)
        expect(self.page.get_by_role("checkbox")).to_have_count(len(METHODS))

    def ask(self, question: str = "Who employs Les Dripen?") -> None:
        self.page.get_by_label("Question").fill(question)
        self.page.get_by_role("button", name="Ask").click()

    def card(self, method: str) -> Locator:
        return self.page.locator(f'article[data-method="{method}"]')

    def finished(self, method: str = "regrad") -> Locator:
        expect(self.card(method)).to_have_attribute("data-state", "done")
        return self.card(method)

    def overflow(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@contextmanager
def open_visit(browser: Browser, prefix: str = "", **options: Any) -> Iterator[Visit]:
    """A visit that must leave the browser's console empty (refusals of requests, which it always logs, aside)."""
    behaviour = Behaviour()
    context = browser.new_context(**options)
    with serving(behaviour, prefix) as url:
        visit = Visit(context.new_page(), behaviour, url)
        visit.page.set_default_timeout(1000 * patient(15))
        expect.set_options(timeout=1000 * patient(5))
        visit.page.add_init_script(RECORD)
        visit.page.on("console", lambda message: _note(visit, message.type, message.text))
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        try:
            yield visit
            refused = visit.page.evaluate("window.refused")
        finally:
            context.close()
    complaints = visit.complaints + refused
    assert not complaints, complaints


def _note(visit: Visit, kind: str, text: str) -> None:
    if kind in {"error", "warning"} and "the server responded with a status of" not in text:
        visit.complaints.append(text)
