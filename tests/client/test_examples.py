"""The page for programmers: its examples are shown as they are, and run as the page says."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.app.browser import chromium, new_tab
from tests.app.service import PATIENCE_S, Process, free_port, scores, server_process
from tests.client.full import KEY, filled, hang_up_after_a_refusal, refusals
from tests.encoding import encode

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / "clients.md").read_text(encoding="utf-8"), re.M | re.S)
COMMANDS = [block for language, block in BLOCKS if language == "sh" and "song.mp3" in block]
PAGE_PORT = free_port()


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with server_process(
        api_keys=KEY,
        max_upload_mb=1,
        max_inflight_mb=1,
        upload_idle_s=60,
        cors_origins=f"http://127.0.0.1:{PAGE_PORT}",
    ) as process:
        yield process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, song: NDArray[np.float32]) -> Path:
    """A user's folder: the examples and two songs."""
    folder = tmp_path_factory.mktemp("folder")
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    for name in ("song.mp3", "other.mp3"):
        (folder / name).write_bytes(encode(song, 48_000, "mp3"))
    return folder


@pytest.fixture(scope="module")
def expected(server: Process, folder: Path) -> dict[str, float]:
    clip = (folder / "song.mp3").read_bytes()
    return scores(server.post(clip, headers={"Authorization": f"Bearer {KEY}"}))


def run(command: str, server: Process, folder: Path, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """Run a command of the page in bash, where `python` is the one that runs the tests."""
    program = command.split()[0]
    if program != "python" and not shutil.which(program):
        assert os.environ.get("CI") != "true", f"{program} is missing, and .ci/run installs it"
        pytest.skip(f"{program} is missing: install it to test the examples")
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(DOCS.parent),
        "MUSIC_TAGGER_URL": server.url,
        "MUSIC_TAGGER_KEY": key,
    }
    shell = ["bash", "-euo", "pipefail", "-c", command]
    return subprocess.run(
        shell, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def scores_in(output: str, tag: str) -> list[float]:
    """What an output, JSON or words, says of a tag."""
    return [float(number) for number in re.findall(rf'{tag}"?,?\s*(?:"score":\s*)?([01]\.\d+)', output)]


def check_scores(output: str, expected: dict[str, float], clips: int = 1) -> None:
    for tag, score in expected.items():
        assert scores_in(output, tag)[-clips:] == pytest.approx([score] * clips, abs=0.006), output


def test_the_page_shows_the_examples_as_they_are() -> None:
    shown = {block for language, block in BLOCKS if language != "sh"}

    assert shown == {path.read_text(encoding="utf-8") for path in EXAMPLES.glob("tag*")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_works(
    command: str, server: Process, folder: Path, expected: dict[str, float]
) -> None:
    done = run(command, server, folder)

    assert done.returncode == 0, done.stderr
    check_scores(done.stdout, expected, clips=2 if "other.mp3" in command else 1)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_tells_a_problem(command: str, server: Process, folder: Path) -> None:
    done = run(command, server, folder, key="another")

    assert "The key is wrong" in done.stdout + done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if "tag_httpx" not in command])
def test_every_command_but_the_plainest_waits_for_a_full_server(
    command: str, server: Process, folder: Path, expected: dict[str, float]
) -> None:
    before = refusals(server)

    with filled(server) as other, hang_up_after_a_refusal(server, other):
        done = run(command, server, folder)

    assert refusals(server) > before
    assert done.returncode == 0, done.stderr
    check_scores(done.stdout, expected)


def test_the_example_page_tags_a_file(server: Process, folder: Path, expected: dict[str, float]) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", PAGE_PORT), partial(Quiet, directory=folder)) as pages:
        threading.Thread(target=pages.serve_forever, args=(0.01,)).start()
        try:
            with chromium() as browser, new_tab(browser) as tab:
                tab.page.goto(f"http://127.0.0.1:{PAGE_PORT}/tag.html")
                tab.page.get_by_label("Service").fill(server.url)
                tab.page.get_by_label("Key").fill(KEY)
                tab.page.get_by_label("Clip").set_input_files(folder / "song.mp3")
                tab.page.get_by_text("pop").wait_for()
                check_scores(tab.page.get_by_role("status").inner_text(), expected)
                assert tab.outside == []
        finally:
            pages.shutdown()
