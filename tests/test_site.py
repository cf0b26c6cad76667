"""The documentation's site, built as `make docs` does: made of code and model, and complete offline."""

import doctest
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import expect

from app.problems import PROBLEMS
from app.settings import Settings
from model.tagger import Tagger
from tests.app.browser import chromium, new_tab
from tests.app.service import PATIENCE_S

ROOT = Path(__file__).parents[1]
LOADED = re.compile(r"<(?:script|img|audio|source|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?([^\"'\s>]+)")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_no_page_names_a_resource_from_outside(site: Path) -> None:
    loaded = {
        address
        for page in site.rglob("*.html")
        for address in LOADED.findall(page.read_text(encoding="utf-8"))
    }
    styled = {
        address
        for style in site.rglob("*.css")
        for address in re.findall(r"url\(([^)]+)\)", style.read_text(encoding="utf-8"))
    }

    assert len(loaded) > 10
    assert [address for address in loaded | styled if re.match(r"[\"']?(https?:)?//", address)] == []


def test_every_page_opens_with_nothing_but_this_machine(site: Path, url: str) -> None:
    pages = sorted(path.name for path in site.glob("*.html"))
    assert {"index.html", "api.html", "settings.html", "MODEL_CARD.html", "faq.html"} <= set(pages)

    with chromium() as browser, new_tab(browser, reduced_motion="reduce") as tab:
        for page in pages:
            tab.page.goto(f"{url}/{page}", wait_until="networkidle")
            if page in ("index.html", "tags.html"):
                tab.screenshot(f"site-{page.removesuffix('.html')}")
        tab.page.goto(f"{url}/reference.html")
        expect(tab.page.get_by_role("heading", name="Tag one clip").first).to_be_visible(
            timeout=PATIENCE_S * 1000
        )

    assert tab.outside == []


def test_the_reference_can_be_read_from_the_disk(site: Path) -> None:
    with chromium() as browser, new_tab(browser) as tab:
        tab.page.goto((site / "reference.html").as_uri())

        heading = tab.page.get_by_role("heading", name="Tag one clip").first
        expect(heading).to_be_visible(timeout=PATIENCE_S * 1000)


def test_every_setting_is_told(site: Path) -> None:
    page = (site / "settings.html").read_text(encoding="utf-8")

    assert [name for name in Settings.model_fields if f"TAGGER_{name.upper()}</code>" not in page] == []


def test_every_problem_is_told(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")

    assert [slug for slug in PROBLEMS if f"<code>/problems/{slug}</code>" not in page] == []


def test_the_clips_are_there_with_the_tagger_s_own_scores(site: Path) -> None:
    page = (site / "tags.html").read_text(encoding="utf-8")
    row = next(row for row in page.split("<tr>") if "clips/club.opus" in row)
    told = [float(score) for score in re.findall(r">(\d\.\d\d)<", row)]

    clip = site / "clips" / "club.opus"
    assert told == pytest.approx(list(Tagger.load(device="cpu").tag(clip).scores.values()), abs=0.0051)


def test_the_worked_loss_is_right() -> None:
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```pycon\n(.*?)```", text, re.DOTALL))
    worked = doctest.DocTestParser().get_doctest(code, {}, "faq", "docs/faq.md", 0)

    result = doctest.DocTestRunner().run(worked)

    assert (result.attempted, result.failed) == (8, 0)
