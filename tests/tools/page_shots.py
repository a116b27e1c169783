"""Pictures of the page, as in docs/images: `python -m tests.tools.page_shots FOLDER [--url URL --question TEXT]`.

Without a URL the answers are made up, see `page_server`.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.tools.browser import chromium
from tests.tools.page_server import Behaviour, serving

SHOTS = {
    "wide": (1440, 900, "light"),
    "dark": (1440, 900, "dark"),
    "narrow": (360, 780, "light"),
}


def shoot(browser: Browser, url: str, question: str, name: str, path: Path) -> None:
    """Asks one question with everything on, and saves the whole page."""
    width, height, scheme = SHOTS[name]
    options = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "reduced_motion": "reduce"}
    page = browser.new_page(**options)  # type: ignore[arg-type]
    page.goto(url)
    page.locator("input[name=methods]").first.wait_for()
    page.fill("#question", question)
    if name == "narrow":
        page.uncheck("input[value=direct]")
        page.uncheck("input[value='regrad+icl']")
    page.select_option("select[name=contributions]", "leave_one_out")
    page.click("#send")
    page.locator("#stop").wait_for(state="hidden")
    page.locator("article[data-method=regrad] summary").first.click()
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(2, 2)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--question", default="Which company employs Les Dripen?")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    made_up = Behaviour(own_words={"direct": ("Tom", "soft")})
    with serving(made_up) as own, chromium() as browser:
        for name in SHOTS:
            shoot(browser, options.url or own, options.question, name, options.folder / f"page-{name}.png")


if __name__ == "__main__":
    main()
