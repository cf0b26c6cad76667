"""The page at / as a person uses it: in Chromium, against the real server process, the network cut off."""

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, FilePayload, Page, Route, expect

from tests.app.browser import ELSEWHERE, Tab, new_tab
from tests.app.service import Process, server_process, tune

CLIPS = Path(__file__).parents[1] / "clips"
WEB = Path(__file__).parents[2] / "app" / "web"
SAMPLES = ("song", "club", "orchestra")
NOT_AUDIO: FilePayload = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"la la la " * 999}
SONG: FilePayload = {
    "name": "song.opus",
    "mimeType": "audio/ogg",
    "buffer": (WEB / "samples" / "song.opus").read_bytes(),
}
MOST_BYTES = 150_000
RETRIES_MS = 40_000
SOUNDING_MS = 30_000  # live scores come as the sound does


@pytest.fixture(scope="module")
def server(browser: Browser) -> Iterator[Process]:  # noqa: ARG001 - no server without a browser
    with server_process() as process:
        yield process


@contextmanager
def opened(browser: Browser, server: Process, **options: Any) -> Iterator[Tab]:  # noqa: ANN401 - Playwright's
    """The page, freshly opened; whatever a test does with it, it may load nothing from outside."""
    with new_tab(browser, **options) as tab:
        tab.page.goto(f"{server.url}/")
        expect(tab.page.locator("#model")).not_to_be_empty()
        yield tab
        assert tab.outside == []


@pytest.fixture
def tab(server: Process, browser: Browser) -> Iterator[Tab]:
    with opened(browser, server) as fresh:
        yield fresh


def click_sample(page: Page, name: str) -> None:
    page.locator(f"[data-sample={name}]").click()
    expect(page.locator("#clip-name")).to_have_text(f"{name}.opus")
    expect(page.locator("#scores li")).not_to_have_count(0)


def shown_scores(page: Page) -> dict[str, str]:
    rows = page.locator("#scores li").all()
    return {str(row.get_attribute("data-tag")): row.locator(".number").inner_text() for row in rows}


def scores_of(server: Process, clip: bytes) -> dict[str, str]:
    tags = server.post(clip).json()["tags"]
    return {tag["tag"]: f"{tag['score']:.2f}" for tag in tags}


def names(page: Page) -> list[str]:
    return page.locator("#rows td:first-child").all_inner_texts()


def is_drawn(page: Page, canvas: str, colours: int) -> bool:
    """Whether a canvas shows at least so many colours."""
    count = page.locator(canvas).evaluate(
        """canvas => new Set(new Uint32Array(
            canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"""
    )
    return bool(count >= colours)


def test_a_chosen_file_is_shown_with_its_scores_waveform_and_timeline(server: Process, tab: Tab) -> None:
    page, clip = tab.page, CLIPS / "sung_pop.opus"

    page.locator("#files").set_input_files(clip)

    expect(page.locator("#scores li")).to_have_count(len(server.get("/v1/model").json()["tags"]))
    assert shown_scores(page) == scores_of(server, clip.read_bytes())
    expect(page.locator("#clip-facts")).to_contain_text("opus")
    expect(page.locator("#clock")).to_have_text("0:00 / 0:14")
    expect(page.locator("#list")).to_be_hidden()
    page.wait_for_function("document.querySelector('#wave').height > 0")
    assert is_drawn(page, "#wave", 2)
    assert is_drawn(page, "#strips", 4)
    assert tab.errors == []


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_one_click_away(server: Process, tab: Tab, name: str) -> None:
    click_sample(tab.page, name)

    sample = (WEB / "samples" / f"{name}.opus").read_bytes()
    assert shown_scores(tab.page) == scores_of(server, sample)
    tab.page.wait_for_timeout(500)  # the bars have grown
    tab.screenshot(f"page-{name}")
    assert tab.errors == []


def test_each_bar_ends_at_its_score_and_bears_its_threshold(server: Process, tab: Tab) -> None:
    click_sample(tab.page, "song")

    thresholds = {tag["tag"]: tag["threshold"] for tag in server.get("/v1/model").json()["tags"]}
    for row in tab.page.locator("#scores li").all():
        tag, score = str(row.get_attribute("data-tag")), float(row.locator(".number").inner_text())
        fill = row.locator(".bar i").evaluate("bar => parseFloat(bar.style.width)")
        mark = row.locator(".bar b").evaluate("mark => parseFloat(mark.style.left)")
        assert fill == pytest.approx(100 * score, abs=0.51)
        assert mark == pytest.approx(100 * thresholds[tag], abs=1e-3)
        expect(row.locator(".verdict")).to_contain_text(
            "applies" if score >= thresholds[tag] else "does not apply"
        )


def test_a_click_on_the_timeline_plays_from_there(tab: Tab) -> None:
    page = tab.page
    click_sample(page, "song")
    stage = page.locator("#stage")
    box = stage.bounding_box()
    assert box

    stage.click(position={"x": box["width"] / 2, "y": 40})

    page.wait_for_function("!document.querySelector('#audio').paused")
    assert page.evaluate("document.querySelector('#audio').currentTime") == pytest.approx(6, abs=1.5)
    expect(page.locator("#play")).to_have_accessible_name("Pause")
    page.locator("#play").click()
    expect(page.locator("#play")).to_have_accessible_name("Play")
    assert tab.errors == []


def test_hover_and_keyboard_read_the_timeline(tab: Tab) -> None:
    page = tab.page
    page.locator("#files").set_input_files({"name": "long.wav", "mimeType": "audio/wav", "buffer": tune(40)})
    stage = page.get_by_role("slider", name="Position in the clip")
    box = stage.bounding_box()
    assert box

    stage.hover(position={"x": box["width"] - 5, "y": 100})
    expect(page.locator("#reading")).to_contain_text(re.compile(r"0:30.0:40: vocal 0\.\d\d"))
    page.mouse.move(0, 0)
    stage.focus()
    for _ in range(3):
        stage.press("ArrowRight")

    expect(stage).to_have_attribute("aria-valuenow", "15")
    expect(stage).to_have_attribute("aria-valuetext", re.compile(r"^0:10.0:20: vocal 0\.\d\d, "))
    expect(page.locator("#clock")).to_have_text("0:15 / 0:40")
    stage.press("Enter")
    page.wait_for_function("!document.querySelector('#audio').paused")
    stage.press(" ")
    page.wait_for_function("document.querySelector('#audio').paused")
    tab.screenshot("page-timeline")


def test_a_bad_file_is_told_in_plain_words_with_its_hint(server: Process, tab: Tab) -> None:
    page = tab.page
    known = server.post(NOT_AUDIO["buffer"]).json()

    page.locator("#files").set_input_files(NOT_AUDIO)

    expect(page.locator("#problem")).to_be_visible()
    expect(page.locator("#problem-title")).to_have_text(known["title"])
    expect(page.locator("#problem-detail")).to_have_text(known["detail"])
    expect(page.locator("#problem-hint")).to_have_text(known["hint"])
    expect(page.locator("#news")).to_contain_text(known["title"])
    expect(page.locator("#findings")).to_be_hidden()
    tab.screenshot("page-problem")
    page.get_by_role("button", name="Try again", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#again")).to_be_focused()


def test_a_service_that_is_gone_is_told_and_can_be_tried_again(tab: Tab) -> None:
    page = tab.page
    page.route("**/v1/tags*", lambda route: route.abort())
    page.locator("[data-sample=song]").click()
    expect(page.locator("#progress-text")).to_have_text("No connection to the service. Trying again in 1 s")
    expect(page.locator("#problem-title")).to_have_text("The service cannot be reached", timeout=RETRIES_MS)

    page.unroute("**/v1/tags*")
    page.get_by_role("button", name="Try again", exact=True).click()

    expect(page.locator("#scores li")).not_to_have_count(0)
    expect(page.locator("#problem")).to_be_hidden()


def test_a_connection_that_comes_back_is_waited_for(server: Process, tab: Tab) -> None:
    broken = []

    def break_twice(route: Route) -> None:
        broken.append(route)
        if len(broken) < 3:
            route.abort()
        else:
            route.continue_()

    tab.page.route("**/v1/tags*", break_twice)

    tab.page.locator("#files").set_input_files(CLIPS / "sung_pop.opus")

    expect(tab.page.locator("#progress-text")).to_have_text(re.compile("Trying again in 2 s"))
    expect(tab.page.locator("#progress-text")).to_have_text(re.compile("Trying again in 1 s"))
    expect(tab.page.locator("#scores li")).not_to_have_count(0)
    assert shown_scores(tab.page) == scores_of(server, (CLIPS / "sung_pop.opus").read_bytes())


def test_all_that_failed_for_want_of_the_service_is_tried_again_at_once(tab: Tab) -> None:
    page = tab.page
    page.route("**/v1/tags*", lambda route: route.fulfill(status=504, body="<h1>nginx</h1>"))
    page.locator("#files").set_input_files([CLIPS / "sung_pop.opus", CLIPS / "speech.opus"])
    expect(page.locator("#rows td.bad")).to_have_count(2)
    page.unroute("**/v1/tags*")
    page.locator("#files").set_input_files(NOT_AUDIO)
    expect(page.locator("#rows td.bad")).to_have_count(3)

    page.get_by_role("button", name="Try failed again").click()

    expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(2)
    expect(page.locator("#rows td.bad")).to_have_count(1)
    expect(page.locator("#again-all")).to_be_hidden()


def test_a_file_that_was_taken_away_is_told_so(tab: Tab, tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    song.write_bytes(tune(3))

    def take_away(route: Route) -> None:
        song.unlink(missing_ok=True)
        route.continue_()

    tab.page.route("**/v1/tags*", take_away)

    tab.page.locator("#files").set_input_files(song)

    expect(tab.page.locator("#problem-title")).to_have_text("The file cannot be read")


def test_a_dropped_album_gives_its_songs(tab: Tab, tmp_path: Path) -> None:
    album = tmp_path / "album"
    (album / "disc 2").mkdir(parents=True)
    for name in ("10.wav", "2.wav", "disc 2/1.wav", ".hidden.wav"):
        (album / name).write_bytes(tune(2))
    (album / "cover.jpg").write_bytes(b"\xff\xd8\xff")

    drop(tab.page, album)

    expect(tab.page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(3)
    assert names(tab.page) == ["2.wav", "10.wav", "1.wav"]


def test_a_page_that_may_not_listen_says_how_it_may(server: Process, browser: Browser) -> None:
    with new_tab(browser) as tab:
        tab.page.goto(server.url.replace("127.0.0.1", ELSEWHERE) + "/")
        expect(tab.page.locator("#model")).not_to_be_empty()

        tab.page.locator("#record").click()

        expect(tab.page.locator("#problem-title")).to_contain_text("neither record nor listen live")
        expect(tab.page.locator("#problem-hint")).to_contain_text("https")
        click_sample(tab.page, "song")


def test_what_is_chosen_far_down_in_the_table_is_brought_into_sight(tab: Tab) -> None:
    page = tab.page
    clips: list[FilePayload] = [
        {"name": f"{number}.wav", "mimeType": "audio/wav", "buffer": tune(1)} for number in range(24)
    ]
    page.locator("#files").set_input_files(clips)
    expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(24)
    row = page.locator("#rows tr").nth(20)
    row.scroll_into_view_if_needed()

    row.get_by_role("button").click()

    expect(page.locator("#clip-name")).to_have_text("20.wav")
    expect(page.locator("#clip-name")).to_be_in_viewport()


def test_a_row_stays_the_same_while_its_clip_is_tagged(tab: Tab) -> None:
    page = tab.page
    page.locator("#files").set_input_files([CLIPS / "sung_pop.opus", CLIPS / "speech.opus"])
    page.evaluate("window.row = document.querySelector('#rows tr')")

    expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(2)

    assert page.evaluate("window.row === document.querySelector('#rows tr')")


def drop(page: Page, path: Path) -> None:
    """Drop a file or a folder on the page, as a file manager does."""
    wire = page.context.new_cdp_session(page)
    for step in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        wire.send("Input.dispatchDragEvent", {"type": step, "x": 300, "y": 300, "data": data})


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (502, "The service cannot be reached"),
        (413, "The file is too large"),
        (200, "The service cannot be reached"),
    ],
)
def test_what_a_proxy_answers_is_told_in_the_page_s_words(tab: Tab, status: int, title: str) -> None:
    page = tab.page
    page.route("**/v1/tags*", lambda route: route.fulfill(status=status, body="<h1>nginx</h1>"))

    page.locator("#files").set_input_files(CLIPS / "sung_pop.opus")

    expect(page.locator("#problem-title")).to_have_text(title, timeout=RETRIES_MS)
    expect(page.locator("#problem-detail")).to_have_text(f"HTTP {status}")
    expect(page.locator("#problem-hint")).not_to_be_empty()


def test_a_key_that_a_proxy_kept_from_the_service_is_told_so(server: Process, browser: Browser) -> None:
    with opened(browser, server) as tab:
        page = tab.page
        page.route(
            "**/v1/tags*", lambda route: route.fulfill(status=401, json={"title": "A key", "status": 401})
        )
        page.locator("#files").set_input_files(CLIPS / "sung_pop.opus")
        page.route("**/v1/model", lambda route: route.fulfill(status=502, body="<h1>nginx</h1>"))

        page.locator("#key").fill("open-sesame")
        page.locator("#key-send").click()

        expect(page.locator("#key-problem")).to_contain_text("The service cannot be reached")


def test_a_sample_that_cannot_be_had_is_told_and_can_be_tried_again(tab: Tab) -> None:
    page = tab.page
    page.route("**/web/samples/*", lambda route: route.abort())
    page.locator("[data-sample=song]").click()
    expect(page.locator("#problem-title")).to_have_text("The service cannot be reached")
    expect(page.locator("#remove")).to_be_hidden()

    page.unroute("**/web/samples/*")
    page.get_by_role("button", name="Try again").click()

    expect(page.locator("#scores li")).not_to_have_count(0)


def test_a_clip_is_removed_and_the_one_beside_it_is_shown(tab: Tab) -> None:
    page = tab.page
    page.locator("#files").set_input_files([CLIPS / "sung_pop.opus", CLIPS / "club_track.opus"])
    expect(page.locator("#rows td.present")).not_to_have_count(0)
    expect(page.locator("#clip-name")).to_have_text("sung_pop.opus")

    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#clip-name")).to_have_text("club_track.opus")
    expect(page.locator("#remove")).to_be_focused()
    tab.screenshot("page-remove")
    expect(page.locator("#remove")).to_have_text("Remove")
    page.locator("#remove").click()

    expect(page.locator("#result")).to_be_hidden()
    expect(page.locator("#choose")).to_be_focused()


def test_a_clip_that_is_cancelled_while_it_waits_is_not_sent(tab: Tab) -> None:
    page = tab.page
    sent: list[str] = []

    def refuse(route: Route) -> None:
        sent.append(route.request.url)
        route.fulfill(status=503, headers={"Retry-After": "1"}, json={"title": "Later", "status": 503})

    page.route("**/v1/tags*", refuse)
    page.locator("#files").set_input_files(CLIPS / "sung_pop.opus")
    expect(page.locator("#progress-text")).to_contain_text("again")

    page.get_by_role("button", name="Cancel").click()
    page.wait_for_timeout(1500)

    assert len(sent) == 1


def test_a_model_that_could_not_be_had_is_asked_for_again(server: Process, browser: Browser) -> None:
    with opened(browser, server) as tab:
        page = tab.page
        page.route("**/v1/model", lambda route: route.abort())
        page.reload()
        expect(page.locator("#columns th")).to_have_count(2)
        page.unroute("**/v1/model")

        page.locator("#files").set_input_files(CLIPS / "sung_pop.opus")

        expect(page.locator("#columns th")).to_have_count(6)


def test_the_focus_stays_on_a_clip_while_others_are_tagged(tab: Tab) -> None:
    page = tab.page
    page.locator("#files").set_input_files([WEB / "samples" / "song.opus", WEB / "samples" / "club.opus"])
    expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(2)
    button = page.locator("#rows button").first
    button.focus()

    page.locator("#files").set_input_files(CLIPS / "sung_pop.opus")
    expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(3)

    expect(button).to_be_focused()


def test_scores_of_another_model_than_the_page_met_stand_under_their_own_tags(
    server: Process, tab: Tab
) -> None:
    page = tab.page
    model = server.get("/v1/model").json()
    clip = (WEB / "samples" / "song.opus").read_bytes()
    answer = server.post(clip, params={"windows": "true"}).json()
    others = list(reversed(model["tags"]))[1:]  # soundtrack, dance, vocal
    page.locator("#files").set_input_files(WEB / "samples" / "song.opus")
    expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(1)
    other = {"tags": others, "sha256": "another"}
    tags = [next(tag for tag in answer["tags"] if tag["tag"] == each["tag"]) for each in others]
    page.route("**/v1/model", lambda route: route.fulfill(json=model | other))
    answer |= {"tags": tags, "model": answer["model"] | {"sha256": "another"}}
    page.route("**/v1/tags*", lambda route: route.fulfill(json=answer))

    page.locator("#files").set_input_files(WEB / "samples" / "club.opus")

    columns = page.locator("#columns th")
    expect(columns).to_have_text(["Clip", "Length", *(tag["tag"] for tag in others)])
    scores = [f"{tag['score']:.2f}" for tag in tags]
    for row in range(2):  # of the former model's answer, too
        assert page.locator("#rows tr").nth(row).locator("td").all_inner_texts()[2:] == scores


def test_keys_read_the_timeline_of_a_clip_that_the_browser_cannot_play(tab: Tab) -> None:
    page = tab.page
    page.locator("#files").set_input_files({"name": "long.wav", "mimeType": "audio/wav", "buffer": tune(40)})
    stage = page.get_by_role("slider", name="Position in the clip")
    stage.focus()
    page.evaluate("document.querySelector('#play').disabled = true")

    for _ in range(3):
        stage.press("ArrowRight")

    expect(stage).to_have_attribute("aria-valuenow", "15")
    expect(page.locator("#reading")).to_contain_text(re.compile(r"^0:10.0:20: vocal"))


def test_the_playhead_is_drawn_once_a_frame_however_often_it_was_moved(tab: Tab) -> None:
    page = tab.page
    click_sample(page, "song")
    stage = page.locator("#stage")
    page.evaluate(
        """() => {
            window.frames_ = 0;
            const ask = window.requestAnimationFrame;
            window.requestAnimationFrame = (then) => ask((time) => { window.frames_ += 1; then(time); });
        }"""
    )
    stage.press("Enter")
    for _ in range(10):
        stage.press("ArrowRight")
        stage.press("ArrowLeft")

    drawn = page.evaluate(
        """() => new Promise((done) => {
            let frames = 0;
            const before = window.frames_;
            const count = () => {
                frames += 1;
                if (frames < 30) requestAnimationFrame(count);
                else done((window.frames_ - before) / frames);
            };
            requestAnimationFrame(count);
        })"""
    )

    assert drawn < 4  # this counting among them


def test_the_browser_s_own_keys_are_left_to_it_on_the_timeline(tab: Tab) -> None:
    page = tab.page
    click_sample(page, "song")
    swallowed = """event => new Promise(resolve => {
        const key = new KeyboardEvent("keydown", {...event, cancelable: true, bubbles: true});
        document.getElementById("stage").dispatchEvent(key); resolve(key.defaultPrevented); })"""

    assert page.evaluate(swallowed, {"key": "ArrowLeft"})
    assert not page.evaluate(swallowed, {"key": "ArrowLeft", "altKey": True})


def test_several_files_make_a_table_that_sorts_and_filters(server: Process, tab: Tab) -> None:
    page = tab.page
    files = [WEB / "samples" / f"{name}.opus" for name in SAMPLES]
    answers = {
        path.stem: {tag["tag"]: tag for tag in server.post(path.read_bytes()).json()["tags"]}
        for path in files
    }

    page.locator("#files").set_input_files(files)
    page.locator("#files").set_input_files(NOT_AUDIO)
    expect(page.locator("#rows td.bad")).to_have_count(1)
    expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(3)

    by_score = sorted(SAMPLES, key=lambda name: answers[name]["soundtrack"]["score"])
    rising = [f"{name}.opus" for name in by_score]
    vocal = [f"{name}.opus" for name in by_score if "o" in name and answers[name]["vocal"]["present"]]

    assert names(page) == ["song.opus", "club.opus", "orchestra.opus", "notes.txt"]
    page.get_by_role("button", name="soundtrack").click()
    assert names(page) == [*reversed(rising), "notes.txt"]
    head = page.get_by_role("columnheader", name="soundtrack")
    expect(head).to_have_attribute("aria-sort", "descending")
    page.get_by_role("button", name="soundtrack").click()
    assert names(page) == [*rising, "notes.txt"]
    page.get_by_label("Filter").fill("O")
    page.locator("#carries").select_option("vocal")
    assert names(page) == vocal
    expect(page.locator("#shown")).to_have_text(f"{len(vocal)} of 4 clips shown")
    page.get_by_label("Filter").fill("")
    page.locator("#carries").select_option("")
    page.locator("#rows").get_by_role("button", name="club.opus").click()
    expect(page.locator("#clip-name")).to_have_text("club.opus")
    tab.screenshot("page-table")


def test_the_table_is_exported_as_it_is_shown(server: Process, tab: Tab) -> None:
    page = tab.page
    clip: FilePayload = {"name": '=SUM(1) "a", b.wav', "mimeType": "audio/wav", "buffer": tune(3)}
    page.locator("#files").set_input_files([clip, NOT_AUDIO])
    expect(page.locator("#rows td.bad")).to_have_count(1)
    expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(1)

    with page.expect_download() as table:
        page.get_by_role("button", name="CSV").click()
    with page.expect_download() as objects:
        page.get_by_role("button", name="JSON").click()

    written = table.value.path().read_bytes()
    assert written.startswith("\ufeff".encode()), "Excel takes it for another encoding without"
    rows = list(csv.DictReader(io.StringIO(written.decode("utf-8-sig"))))
    found = json.loads(objects.value.path().read_text())
    known = server.post(tune(3)).json()["tags"]
    assert rows[0]["clip"] == "'" + clip["name"], "a spreadsheet must not run a clip's name"
    assert {tag["tag"]: float(rows[0][tag["tag"]]) for tag in known} == pytest.approx(
        {tag["tag"]: tag["score"] for tag in known}, abs=1e-4
    )
    assert rows[1]["problem"]
    assert found[0]["name"] == clip["name"]
    assert found[0]["windows"]
    assert found[1]["problem"]["slug"] == "not-audio"


def test_the_upload_s_progress_is_shown(server: Process, browser: Browser) -> None:
    with opened(browser, server) as tab:
        wire = tab.page.context.new_cdp_session(tab.page)
        wire.send("Network.enable")
        slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 500_000}
        wire.send("Network.emulateNetworkConditions", slow)
        clip: FilePayload = {"name": "song.wav", "mimeType": "audio/wav", "buffer": tune(60)}

        tab.page.locator("#files").set_input_files(clip)

        text = tab.page.locator("#progress-text")
        expect(text).to_have_text(re.compile(r"Uploading, [1-9]\d? %"))
        expect(text).to_have_text("Listening")
        expect(tab.page.locator("#scores li")).not_to_have_count(0)
        expect(tab.page.locator("#progress-area")).to_be_hidden()


def test_the_microphone_is_recorded_and_tagged(server: Process, browser: Browser) -> None:
    with opened(browser, server, permissions=["microphone"]) as tab:
        page = tab.page
        page.locator("#record").click()
        expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#record-text")).to_have_text("Stop 0:02")
        page.locator("#record").click()

        expect(page.locator("#scores li")).not_to_have_count(0)
        expect(page.locator("#clip-name")).to_contain_text("Recording")
        expect(page.locator("#clip-facts")).to_contain_text("webm")
        assert tab.errors == []


def test_the_microphone_is_tagged_live_until_it_is_stopped(server: Process, browser: Browser) -> None:
    with opened(browser, server, permissions=["microphone"]) as tab:
        page = tab.page
        page.get_by_role("button", name="Microphone").click()
        expect(page.locator("#progress-text")).to_have_text("Listening. The first scores come after 5 s")
        expect(page.get_by_role("button", name="Stop")).to_be_focused()
        facts = page.locator("#clip-facts")
        expect(facts).to_contain_text(re.compile(r"The last 5 s, scored \d+ ms after"), timeout=SOUNDING_MS)
        expect(page.locator("#scores li")).to_have_count(len(server.get("/v1/model").json()["tags"]))
        expect(facts).to_contain_text("The last 10 s", timeout=SOUNDING_MS)
        expect(page.locator("#clock")).to_have_text(re.compile(r"^0:1\d$"))
        assert is_drawn(page, "#wave", 2)
        assert is_drawn(page, "#strips", 4)
        assert hindrances(page) == []
        tab.screenshot("page-live")

        page.keyboard.press("Enter")

        expect(facts).to_contain_text("pcm_s16le")
        expect(page.locator("#news")).to_contain_text("Live")
        expect(page.locator("#live-stop")).to_be_hidden()
        expect(page.locator("#stage")).to_be_focused()
        expect(page.locator("#play")).to_be_disabled()
        expect(page.locator("#wave-note")).to_contain_text("The sound was not kept")
        assert server.metric("music_tagger_streams_open") == 0
        tab.screenshot("page-live-done")
        assert tab.errors == []


def test_what_is_live_can_be_stopped_though_a_clip_was_added(server: Process, browser: Browser) -> None:
    with opened(browser, server, permissions=["microphone"]) as tab:
        page = tab.page
        page.get_by_role("button", name="Microphone").click()
        page.locator("#files").set_input_files(CLIPS / "sung_pop.opus")
        expect(page.locator("#rows td.present")).not_to_have_count(0)
        expect(page.locator("#clip-name")).to_contain_text("Live")
        page.route("**/web/samples/*", lambda route: route.abort())
        page.locator("[data-sample=song]").click()
        expect(page.locator("#problem")).to_be_visible()
        assert page.locator("#rows [aria-current]").count() == 0

        page.locator("#live-stop").click()

        expect(page.locator("#live-stop")).to_be_hidden()
        assert server.metric("music_tagger_streams_open") == 0


def test_a_file_is_tagged_live_as_it_plays(server: Process, tab: Tab) -> None:
    page = tab.page
    page.locator("#live-files").set_input_files(CLIPS / "sung_pop.opus")
    expect(page.locator("#clip-facts")).to_contain_text("The last 10 s", timeout=SOUNDING_MS)

    # When it has ended, so has the stream.
    expect(page.locator("#clip-facts")).to_contain_text("pcm_s16le", timeout=SOUNDING_MS)

    posted = {
        tag: float(score) for tag, score in scores_of(server, (CLIPS / "sung_pop.opus").read_bytes()).items()
    }
    heard = {tag: float(score) for tag, score in shown_scores(page).items()}
    assert heard == pytest.approx(
        posted, abs=0.15
    )  # the browser resamples, and its clock has its own seconds
    expect(page.locator("#play")).to_be_enabled()
    assert tab.errors == []


def test_a_live_mode_that_is_stopped_before_it_begins_leaves_nothing(
    server: Process, browser: Browser
) -> None:
    with opened(browser, server) as tab:
        page = tab.page
        page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => new Promise(() => {}); }")
        page.get_by_role("button", name="Microphone").click()

        page.locator("#live-stop").click()

        expect(page.locator("#result")).to_be_hidden()
        expect(page.get_by_role("button", name="Microphone")).to_be_focused()
        assert tab.errors == []


def test_a_live_mode_that_cannot_begin_is_told(server: Process, browser: Browser) -> None:
    with opened(browser, server) as tab:
        page = tab.page
        page.evaluate(
            """() => {
                navigator.mediaDevices.getUserMedia =
                    () => Promise.reject(new DOMException("no", "NotAllowedError"));
            }"""
        )
        page.get_by_role("button", name="Microphone").click()
        expect(page.locator("#problem-title")).to_have_text("The microphone cannot be used")

        page.locator("#live-files").set_input_files(NOT_AUDIO)
        expect(page.locator("#clip-name")).to_have_text("notes.txt")
        expect(page.locator("#problem-title")).to_have_text("The file cannot be played")
        expect(page.locator("#live-stop")).to_be_hidden()


def test_dropped_and_pasted_files_are_taken(tab: Tab) -> None:
    for event, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        tab.page.evaluate(
            """async ([event, field]) => {
                const sample = await (await fetch("web/samples/song.opus")).arrayBuffer();
                const data = new DataTransfer();
                data.items.add(new File([sample], `${event}.opus`));
                const kind = event === "drop" ? DragEvent : ClipboardEvent;
                document.body.dispatchEvent(new kind(event, {bubbles: true, [field]: data}));
            }""",
            [event, field],
        )
        expect(tab.page.locator("#clip-name")).to_have_text(f"{event}.opus")
        expect(tab.page.locator("#scores li")).not_to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_system_s_light_is_followed_and_nothing_serious_hinders_anyone(
    server: Process, browser: Browser, scheme: str
) -> None:
    with opened(browser, server, color_scheme=scheme, reduced_motion="reduce") as tab:
        page = tab.page
        assert hindrances(page) == []
        click_sample(page, "song")
        page.locator("#files").set_input_files(WEB / "samples" / "orchestra.opus")
        expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(2)
        assert hindrances(page) == []
        tab.screenshot(f"page-{scheme}")
        page.locator("#files").set_input_files(NOT_AUDIO)
        expect(page.locator("#problem")).to_be_visible()
        assert hindrances(page) == []

        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 27)"
        assert dark == (scheme == "dark")


def hindrances(page: Page) -> list[str]:
    """What axe finds that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]


def test_the_switch_chooses_the_light_and_it_is_remembered(tab: Tab) -> None:
    page = tab.page
    theme = page.get_by_role("button", name="Theme")
    expect(theme).to_have_accessible_name("Theme: system")

    theme.click()
    theme.click()
    page.reload()

    expect(theme).to_have_accessible_name("Theme: dark")
    expect(page.locator("body")).to_have_css("background-color", "rgb(19, 20, 27)")


@pytest.mark.parametrize(("locale", "title"), [("en-GB", "Drop music here"), ("zh-CN", "把音乐拖到这里")])
def test_the_browser_s_language_is_spoken(server: Process, browser: Browser, locale: str, title: str) -> None:
    with opened(browser, server, locale=locale) as tab:
        expect(tab.page.locator("#drop-title")).to_have_text(title)


def test_the_language_is_switched_with_all_that_is_shown(tab: Tab) -> None:
    page = tab.page
    page.locator("#files").set_input_files([SONG, NOT_AUDIO])
    expect(page.locator("#rows td.bad")).to_have_count(1)
    expect(page.locator("#scores li")).not_to_have_count(0)

    page.get_by_role("button", name="中文").click()

    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("#scores .tag-name").first).to_have_text("人声")
    expect(page.locator("#rows td.bad")).to_have_text("这不是可识别的音频")
    tab.screenshot("page-chinese")
    page.get_by_role("button", name="English").click()
    expect(page.locator("#scores .tag-name").first).to_have_text("vocal")


def test_a_narrow_screen_needs_no_sideways_scrolling(server: Process, browser: Browser) -> None:
    with opened(browser, server, viewport={"width": 320, "height": 640}, has_touch=True) as tab:
        page = tab.page
        page.locator("#files").set_input_files([SONG, NOT_AUDIO])
        expect(page.locator("#rows td.bad")).to_have_count(1)
        expect(page.locator("#scores li")).not_to_have_count(0)

        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        outside_their_card = page.locator("#result").evaluate(
            """card => [...card.querySelectorAll("*:not(.visually-hidden)")]
                .filter(part => part.getBoundingClientRect().right > card.getBoundingClientRect().right)
                .map(part => part.outerHTML)"""
        )
        assert outside_their_card == []
        tab.screenshot("page-narrow")


def test_nothing_jumps_while_a_clip_is_tagged(tab: Tab) -> None:
    page = tab.page
    page.evaluate(
        """() => { window.shifts = 0; new PerformanceObserver((list) => {
            for (const shift of list.getEntries()) if (!shift.hadRecentInput) window.shifts += shift.value;
        }).observe({type: "layout-shift", buffered: true}); }"""
    )

    click_sample(page, "song")
    page.wait_for_timeout(1000)

    assert page.evaluate("window.shifts") < 0.1, "the bound of what web.dev calls good"


def test_a_key_is_asked_for_where_one_is_needed(browser: Browser) -> None:
    with server_process(api_keys="the-key") as closed, new_tab(browser) as tab:
        page = tab.page
        page.goto(f"{closed.url}/")
        page.get_by_label("This service asks for a key").fill("the-key")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#model")).not_to_be_empty()
        click_sample(page, "song")


@pytest.fixture(scope="module")
def closed(browser: Browser) -> Iterator[Process]:  # noqa: ARG001 - no server without a browser
    with server_process(api_keys="the-key") as process:
        yield process


@pytest.mark.parametrize(
    ("key", "locale", "told"),
    [
        ("wrong", "en-GB", "The key is wrong. Ask"),
        ("wrong", "zh-CN", "密钥不正确"),
        ("the-key\N{SNOWMAN}", "en-GB", "This cannot be a key"),
        ("the-key\N{ZERO WIDTH SPACE}", "zh-CN", "这不可能是密钥"),
    ],
)
def test_a_key_that_does_not_fit_is_told_and_the_right_one_tries_again(
    browser: Browser, closed: Process, key: str, locale: str, told: str
) -> None:
    with new_tab(browser, locale=locale) as tab:
        page = tab.page
        page.goto(f"{closed.url}/")
        page.locator("#files").set_input_files([CLIPS / "sung_pop.opus", WEB / "samples" / "song.opus"])
        expect(page.locator("#rows td.bad")).to_have_count(2)

        page.locator("#key").fill(key)
        page.locator("#key-send").click()

        expect(page.locator("#key-problem")).to_contain_text(told)
        expect(page.locator("#news")).to_contain_text(told[:10])
        expect(page.locator("#key")).to_be_focused()
        assert hindrances(page) == []
        page.keyboard.type("the-key")
        page.keyboard.press("Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        expect(page.locator("#choose")).to_be_focused()
        expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(2)
        expect(page.locator("#rows td.bad")).to_have_count(0)


def test_an_error_that_nobody_thought_of_can_be_tried_again(tab: Tab) -> None:
    page = tab.page
    page.evaluate(
        """() => {
            const send = XMLHttpRequest.prototype.setRequestHeader;
            XMLHttpRequest.prototype.setRequestHeader = function () {
                XMLHttpRequest.prototype.setRequestHeader = send;
                throw new TypeError("no");
            };
        }"""
    )
    page.locator("#files").set_input_files(SONG)
    expect(page.locator("#problem-title")).to_have_text("Something went wrong on this page")

    page.get_by_role("button", name="Try again").click()

    expect(page.locator("#scores li")).not_to_have_count(0)


def test_the_page_allows_itself_nothing_but_its_own_files(server: Process) -> None:
    policy = server.get("/").headers["content-security-policy"]

    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_page_is_asked_for_again_but_not_sent_again(server: Process) -> None:
    for path in ("/", "/web/main.js", "/web/samples/song.opus"):
        first = server.get(path)
        again = httpx.get(f"{server.url}{path}", headers={"If-None-Match": first.headers["etag"]})

        assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("ranges", ["bytes=0-9", "bytes=999999999-", "bytes=9-0", "nonsense"])
def test_the_page_s_files_come_whole_whatever_range_is_asked_for(server: Process, ranges: str) -> None:
    answer = httpx.get(f"{server.url}/web/main.js", headers={"Range": ranges})

    assert (answer.status_code, answer.content) == (200, (WEB / "main.js").read_bytes())


def test_the_page_is_small() -> None:
    files = [path for path in WEB.iterdir() if path.is_file()]

    assert sum(path.stat().st_size for path in files) < MOST_BYTES
