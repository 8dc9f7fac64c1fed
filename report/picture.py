"""A picture of a run's page, by a Chromium that is installed."""

import os
import shutil

from config import UserError

BROWSERS = "chromium-headless-shell chromium chromium-browser google-chrome chrome".split()
WIDTH = 1360  # pixels
# Shown are the headline, the E-step's curves (without any, those on held-out code), and the first
# held-out snippet.
STYLE = """nav, .note, #results, #rlvr, #frequent, #programs, #settings,
.group:not(#curves-estep, #curves-heldout), #curves-estep ~ #curves-heldout,
#snippets details ~ details { display: none } h2 { margin-top: 1.2rem }"""


def picture_of(page):
    """The bytes of a PNG. page: path of an HTML file. Raises UserError."""
    try:
        from playwright import sync_api
    except ImportError:
        raise UserError(
            "--picture needs the package playwright (extra report): pip install playwright==1.65.2"
        ) from None
    path = next((candidate for name in BROWSERS if (candidate := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path)
        except sync_api.Error as e:
            raise UserError(
                f"--picture: no Chromium that starts ({str(e).splitlines()[0]}); install one, such "
                "as Debian's chromium-headless-shell, or python -m playwright install chromium"
            ) from None
        view = browser.new_page(viewport={"width": WIDTH, "height": 100}, color_scheme="light")
        view.goto(f"file://{os.path.abspath(page)}")
        view.add_style_tag(content=STYLE)
        image = view.screenshot(full_page=True)
        browser.close()
    return image
