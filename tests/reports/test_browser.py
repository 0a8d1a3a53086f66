"""The page in a real Chromium: every figure drawn, nothing asked for, nothing said on the console."""

from __future__ import annotations

import shutil

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")


def test_the_page_draws_every_figure_and_loads_nothing(reported):
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install 'adapters-pl[browser]'")
    _, out = reported
    asked, said = [], []
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((out / "report.html").as_uri())
        page.eval_on_selector_all("details", "all => all.forEach(details => details.open = true)")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            drawings = page.eval_on_selector_all(
                "figure svg",
                """all => all.map(svg => [
                    svg.getBoundingClientRect().width, svg.getBBox().height, svg.querySelectorAll("path").length])""",
            )
            assert len(drawings) == 8
            assert all(across > 200 and high > 50 and marks > 8 for across, high, marks in drawings)
            # Wide tables and figures scroll in their own frame.
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert len(page.screenshot(full_page=True)) > 20_000
        browser.close()
    assert asked == [(out / "report.html").as_uri()]
    assert said == []
