"""What strangers send to the real server: it answers or hangs up, and nothing of it stays behind."""

import io
import json
import re
import resource
import socket
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest

from app.admission import LINGER_S
from app.connection import HEAD_S, MOST_HEAD_BYTES
from tests.app.service import PATIENCE_S, RATE, Process, check_problem, scores, server_process, tune
from tests.encoding import encode

MB = 1_000_000
PAUSE = b""
"""Of what is said: wait a moment before the next piece."""


class Footprint(NamedTuple):
    """What a process holds, by /proc: its threads and its open files."""

    threads: int
    files: int


def footprint(server: Process) -> Footprint:
    process = Path(f"/proc/{server.process.pid}")
    return Footprint(len(list((process / "task").iterdir())), len(list((process / "fd").iterdir())))


def grew(before: Footprint, after: Footprint) -> bool:
    return after.threads > before.threads or after.files > before.files


def script_of(server: Process) -> str:
    """A path with 1 MB behind it."""
    found = re.search(r"/static-offline-docs/[\w.-]+\.js", server.get("/docs").text)
    assert found is not None
    return found[0]


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with server_process(max_upload_mb=16, upload_idle_s=1, max_audio_s=60, keep_alive_s=2) as process:
        with ThreadPoolExecutor(8) as clients:  # until each decoder's thread was started
            assert all(map(scores, clients.map(process.post, [tune(10)] * 16)))
            assert all(clients.map(process.get, [script_of(process)] * 16))  # and each that reads files
        yield process


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(server: Process) -> Iterator[None]:
    before = footprint(server)
    yield
    assert scores(server.post(tune(2)))
    until_s = time.monotonic() + PATIENCE_S
    while grew(before, after := footprint(server)) or server.metric("music_tagger_inflight_bytes"):
        assert time.monotonic() < until_s, f"{before} became {after}"
        time.sleep(0.1)


def say(server: Process, *pieces: bytes, hang_up: bool = False) -> bytes:
    """Speak raw bytes to the server. Returns all that it says until it hangs up, or until we do."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), PATIENCE_S) as line:
        answer = b""
        try:
            for piece in pieces:
                line.sendall(piece)
                time.sleep(0 if piece else 0.2)
            while not hang_up and (said := line.recv(65_536)):
                answer += said
        except (BrokenPipeError, ConnectionResetError):
            pass
        return answer


GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def connected(server: Process) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), PATIENCE_S)


def heard(line: socket.socket) -> bytes:
    """One answer whose length is declared."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += line.recv(65_536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += line.recv(65_536)
    return head


def post(*headers: str, body: bytes = b"") -> bytes:
    lines = ["POST /v1/tags HTTP/1.1", "Host: test", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@cache
def ten_hours_of_silence() -> bytes:
    """FLAC's smallest frames, again and again: 4 MB that decode to 2.3 GB."""
    second = encode(np.zeros((1, 48_000), np.float32), 48_000, "flac")
    sync = second[second.index(b"\xff\xf8") :][:2]
    frames = second[second.index(sync) :]
    return second[: -len(frames)] + frames * 36_000


def zipped(clip: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("song.txt", "la la la " * 999)
    return buffer.getvalue() + clip


MP3 = cache(
    lambda: encode(np.random.default_rng(1).normal(0, 0.1, (1, 48_000)).astype(np.float32), RATE, "mp3")
)
POLYGLOTS = {
    "a zip before an mp3": lambda: zipped(MP3()),
    "html before an mp3": lambda: b"<!doctype html><script>alert(1)</script>" * 50 + MP3(),
    "a pdf": lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n" * 99 + b"%%EOF",
    "a list of files": lambda: b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n" * 9,
    "an elf": lambda: Path(sys.executable).resolve().read_bytes()[:100_000],
}


@pytest.mark.parametrize("name", POLYGLOTS)
def test_what_only_contains_sound_is_heard_or_refused(server: Process, name: str) -> None:
    answer = server.post(POLYGLOTS[name]())

    if answer.status_code != 200:  # FFmpeg finds an MP3 behind other bytes: then its sound is tagged, no more
        check_problem(answer, 415, "not-audio")


def test_ten_hours_of_silence_in_a_few_mb_are_refused(server: Process) -> None:
    assert len(ten_hours_of_silence()) < 16 * MB

    check_problem(server.post(ten_hours_of_silence()), 413, "too-many-seconds")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/dev/null", "a\x00b\r\nc.mp3", "C:\\con", "\u202e3pm.exe", "x" * 1000]
)
def test_a_file_s_name_means_nothing(server: Process, name: str) -> None:
    answer = httpx.post(f"{server.url}/v1/tags", files={"file": (name, tune(2))}, timeout=PATIENCE_S)

    assert scores(answer)
    assert not any("passwd" in line or "xxxx" in line for line in server.log)


LENGTHS = {
    "negative": (post("Content-Length: -1", body=b"x"), b"400"),
    "two of them": (post("Content-Length: 5", "Content-Length: 6", body=b"hello!"), b"400"),
    "no number": (post("Content-Length: ten", body=b"hello"), b"400"),
    "beyond 64 bits": (post("Content-Length: 99999999999999999999999", body=b"hello"), b"400"),
    "beside chunks": (post("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), b"400"),
    "too large": (post("Content-Length: 100", body=b"hello"), b"408"),
    "too small": (post("Content-Length: 5", body=b"hello, and more"), b"415"),
    "no chunk's length": (post("Transfer-Encoding: chunked", body=b"zzz\r\nhello\r\n"), b"400"),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_wrong_length_is_told(server: Process, name: str) -> None:
    request, status = LENGTHS[name]

    answer = say(server, request)

    assert answer.startswith(b"HTTP/1.1 " + status), answer


def test_who_asks_before_sending_a_body_that_is_refused_need_not_send_it(server: Process) -> None:
    answer = say(server, post(f"Content-Length: {17 * MB}", "Expect: 100-continue"))

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_who_asks_before_sending_a_clip_is_told_to(server: Process) -> None:
    clip = tune(2)
    with connected(server) as line:
        line.sendall(post(f"Content-Length: {len(clip)}", "Content-Type: audio/wav", "Expect: 100-continue"))
        asked = line.recv(65_536)
        line.sendall(clip)
        head = heard(line)

    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert head.startswith(b"HTTP/1.1 200 ")


FLOODS = {
    "many headers": [f"X-{number}: {'a' * 100}\r\n".encode() for number in range(20_000)],
    "one header": [b"X-Long: ", *[b"a" * 65_536] * 40],
    "a path": [b"a" * 65_536] * 40,
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_headers_is_cut_off(server: Process, name: str) -> None:
    line = b"GET /" if name == "a path" else b"GET /health/live HTTP/1.1\r\n"
    assert sum(map(len, FLOODS[name])) > 10 * MOST_HEAD_BYTES

    answer = say(server, line, *FLOODS[name])

    assert answer.startswith(b"HTTP/1.1 400") or not answer  # the answer may be lost where we still write


@pytest.mark.parametrize("name", ["many headers", "one header"])
def test_a_flood_behind_a_chunked_body_is_cut_off(server: Process, name: str) -> None:
    head = b"POST /v1/tags HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    answer = say(server, head, b"5\r\nhello\r\n0\r\n", *FLOODS[name])

    assert not answer


def test_a_header_behind_a_chunked_body_is_left_out(server: Process) -> None:
    head = b"POST /v1/tags HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    answer = say(server, head, b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 415"), answer


UNENDING = {
    "silence": (b"",),
    "half a head": (b"GET /health/live HTTP/1.1\r\nX-Slow: ",),
    "an empty line behind a request": (GET, PAUSE, b"\r\n"),
}


@pytest.fixture(scope="module")
def unending(server: Process) -> dict[str, tuple[bytes, float]]:
    """What is answered to heads that never end, and after how many seconds the connection closes."""

    def converse(name: str) -> tuple[bytes, float]:
        started = time.monotonic()
        return say(server, *UNENDING[name]), time.monotonic() - started

    with ThreadPoolExecutor(len(UNENDING)) as clients:  # at once, as each takes long
        return dict(zip(UNENDING, clients.map(converse, UNENDING), strict=True))


@pytest.mark.parametrize("name", UNENDING)
def test_a_head_that_never_ends_is_given_up(unending: dict[str, tuple[bytes, float]], name: str) -> None:
    answer, seconds = unending[name]

    assert HEAD_S - 1 < seconds < HEAD_S + 10
    status = {"silence": b"", "half a head": b"HTTP/1.1 400"}.get(name, b"HTTP/1.1 200")
    assert answer[: len(b"HTTP/1.1 400")] == status


def test_what_is_no_http_gets_a_problem_and_is_counted(server: Process) -> None:
    def count() -> float:
        return server.metric('music_tagger_requests_total{operation="unmatched",outcome="bad-request"}')

    say(server, b"\x16\x03\x01 TLS, say\r\n\r\n")
    before = count()

    answer = say(server, b"\x16\x03\x01 TLS, say\r\n\r\n")

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"content-type: application/problem+json" in head
    problem = json.loads(body)
    assert problem["type"] == "/problems/bad-request"
    assert count() == before + 1
    assert f"x-request-id: {problem['instance'].removeprefix('#')}\r\n".encode() in head
    told = [f"#{line.get('request_id')}" for line in server.log_lines()]
    assert told.count(problem["instance"]) == 1


OPENING = (
    *("GET /v1/stream HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket"),
    *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
)


@pytest.mark.parametrize(
    "headers",
    [["Cookie: " + 9000 * "x"], [f"X-{number}: 1" for number in range(130)], ["Content-Length: 5"]],
    ids=["long", "many", "a body"],
)
def test_a_stream_s_opening_that_cannot_be_read_is_refused(server: Process, headers: list[str]) -> None:
    answer = say(server, "\r\n".join([*OPENING, *headers, "", ""]).encode())

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["type"] == "/problems/bad-request"


@pytest.mark.parametrize("lacking", ["Sec-WebSocket-Version", "Sec-WebSocket-Key"])
def test_a_stream_s_opening_that_is_none_gets_a_problem_and_is_counted(server: Process, lacking: str) -> None:
    lines = [line for line in OPENING if not line.startswith(lacking)]
    say(server, "\r\n".join([*lines, "", ""]).encode())
    before = server.metric('music_tagger_requests_total{operation="unmatched",outcome="bad-request"}')

    answer = say(server, "\r\n".join([*lines, "", ""]).encode())

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert lacking in json.loads(body)["detail"]
    after = server.metric('music_tagger_requests_total{operation="unmatched",outcome="bad-request"}')
    assert after == before + 1


def test_a_stream_that_is_opened_behind_an_answer_under_way_leaves_nothing_behind(server: Process) -> None:
    for _ in range(3):
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # so that it takes a while
            line.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
            for _ in range(2):
                line.sendall(f"GET {script_of(server)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                time.sleep(0.2)
            line.sendall("\r\n".join([*OPENING, "", ""]).encode())
            time.sleep(0.2)


def test_a_chunk_that_is_none_ends_its_request_which_is_counted_once(server: Process) -> None:
    def counts() -> dict[str, str]:
        lines = server.get("/metrics").text.splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if line.startswith("music_tagger_requests_total"))

    torn = post("Transfer-Encoding: chunked", "X-Request-ID: torn", body=b"3\r\nabc\r\nZZ\r\n")
    say(server, torn)
    before = counts()

    answer = say(server, torn)

    assert answer.startswith(b"HTTP/1.1 400")
    assert b"x-request-id: torn\r\n" in answer
    counted = 'music_tagger_requests_total{operation="POST /v1/tags",outcome="bad-request"}'
    changed = {name for name, count in counts().items() if before.get(name) != count}
    assert counted in changed
    assert all("POST /v1/tags" in name or "GET" in name for name in changed)


def test_a_chunked_body_that_is_refused_when_it_has_come_is_not_waited_for(server: Process) -> None:
    started = time.monotonic()

    answer = say(
        server, post("Transfer-Encoding: chunked", "Content-Type: text/plain", body=b"1\r\na\r\n0\r\n\r\n")
    )

    assert answer.startswith(b"HTTP/1.1 415")
    assert time.monotonic() - started < LINGER_S


def test_a_content_type_that_would_take_long_to_parse_is_refused(server: Process) -> None:
    answer = say(server, post("Content-Length: 0", f"Content-Type: multipart/form-data{';' * 50_000}"))

    assert answer.startswith(b"HTTP/1.1 415")
    assert b"Content-Type has 50019 characters" in answer


def test_a_connection_is_kept_for_the_next_request_and_closed_when_none_comes(server: Process) -> None:
    with connected(server) as line:
        line.sendall(GET)
        heard(line)
        time.sleep(1)
        line.sendall(GET)
        heard(line)
        answered = time.monotonic()

        assert line.recv(1) == b""

    assert 1.5 < time.monotonic() - answered < PATIENCE_S


H2C = ("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")


@pytest.mark.parametrize("connection", ["Upgrade, HTTP2-Settings", "upgrade"])
@pytest.mark.parametrize("pieces", [1, 2, 50])
def test_an_offer_of_another_protocol_is_ignored(server: Process, pieces: int, connection: str) -> None:
    clip = tune(2)
    lines = ["POST /v1/tags HTTP/1.1", "Host: x", f"Content-Length: {len(clip)}", f"Connection: {connection}"]
    request = "\r\n".join([*lines, *H2C, "", ""]).encode() + clip
    size = -(-len(request) // pieces)
    parts = [request[at : at + size] for at in range(0, len(request), size)]

    with connected(server) as line:
        for _ in range(2):
            for part in parts:
                line.sendall(part)
                time.sleep(0.002)
            assert heard(line).startswith(b"HTTP/1.1 200")
        line.sendall(post(*H2C, "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n"))
        assert heard(line).startswith(b"HTTP/1.1 415")


def test_a_second_request_before_the_answer_is_left_to_another_connection(server: Process) -> None:
    clip = tune(2)
    head = f"POST /v1/tags HTTP/1.1\r\nHost: x\r\nContent-Length: {len(clip)}\r\n\r\n"

    answer = say(server, head.encode() + clip + GET + b"garbage\0")

    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer
    assert answer.count(b"HTTP/1.1") == 1


def ask_for_ever(line: socket.socket) -> None:
    """Ask again as soon as the last answer is written, until none can be written any more."""
    while True:
        line.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.004)


def test_who_takes_no_answer_is_hung_up_on() -> None:
    program = "from app import connection, server; connection.SEND_S = 1\n"
    program += "raise SystemExit(server.serve(server.Settings()))"
    with server_process(["-c", program]) as server, connected(server) as line:
        line.settimeout(10)

        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            ask_for_ever(line)


def test_who_sends_a_refused_body_to_its_end_can_read_the_refusal_then(server: Process) -> None:
    started = time.monotonic()

    answer = say(server, post(f"Content-Length: {17 * MB}"), *[bytes(MB)] * 17)

    assert answer.startswith(b"HTTP/1.1 413")
    assert answer.count(b"HTTP/1.1") == 1
    assert time.monotonic() - started < LINGER_S


def test_who_does_not_say_how_much_comes_can_read_the_refusal_at_its_end_too(server: Process) -> None:
    chunk = b"%x\r\n" % MB + bytes(MB) + b"\r\n"

    answer = say(server, post("Transfer-Encoding: chunked"), *[chunk] * 40, b"0\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 413")


def test_uploads_that_are_cancelled_leave_nothing_behind(server: Process) -> None:
    for _ in range(20):
        say(server, post("Content-Length: 1000000", body=tune(2)), hang_up=True)


def test_a_full_disk_is_no_matter_as_nothing_is_spooled() -> None:
    """No file can be made where files are spooled, and yet forms are taken that others would spool."""
    program = "import tempfile; tempfile.tempdir = '/dev/full'\n"
    program += "from app.server import serve, Settings; raise SystemExit(serve(Settings()))"
    with server_process(["-c", program]) as server:
        answer = httpx.post(f"{server.url}/v1/tags", files={"file": tune(60)}, timeout=PATIENCE_S)

        assert scores(answer)
        assert server.stop() == 0


FEW_FILES = """
import resource
from app import server
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
raise SystemExit(server.serve(server.Settings()))
"""


def test_forms_that_would_open_too_many_files_are_refused_and_hurt_no_other() -> None:
    form = "Content-Type: multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nRIFF\r\n'
    body = post(form, "Content-Length: 100000", body=part * 32).replace(b"/v1/tags", b"/v1/tags/batch")
    with server_process(["-c", FEW_FILES], upload_idle_s=3) as server:
        limit = Path(f"/proc/{server.process.pid}/limits").read_text()
        assert re.search(r"open files +200 +200", limit)

        with ThreadPoolExecutor(12) as clients:
            answers = list(clients.map(lambda _: say(server, body), range(12)))

        statuses = Counter(answer.split()[1] for answer in answers)
        assert statuses.keys() == {b"408", b"429"}, statuses
        refused = next(answer for answer in answers if b" 429 " in answer)
        assert b"/problems/bytes-full" in refused
        assert b"retry-after: 1\r\n" in refused
        assert scores(server.post(tune(2)))


def test_clips_for_which_no_file_is_left_are_refused_and_kill_no_decoder() -> None:
    many = [("file", (f"{number}.wav", tune(2), "audio/wav")) for number in range(32)]
    with server_process(decoders=1) as server:
        server.post(tune(2))
        most = footprint(server).files + len(many) + 8
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (most, most))

        batch = httpx.post(f"{server.url}/v1/tags/batch", files=many, timeout=PATIENCE_S)

        statuses = Counter(item["status"] for item in batch.json()["items"])
        assert statuses.keys() == {200, 429}, statuses
        assert server.metric("music_tagger_decoder_deaths_total") == 0


FAILS_AT_AN_UPLOAD = """
import threading, time
from app import server

def fail(state):
    while not state.admitted:
        time.sleep(0.01)
    state.fail()

def create_app(settings, create_app=server.create_app):
    app = create_app(settings)
    threading.Thread(target=fail, args=[app.state.tagger_service], daemon=True).start()
    return app

server.create_app = create_app
raise SystemExit(server.serve(server.Settings()))
"""


def test_an_upload_to_a_service_that_gives_up_is_told_so() -> None:
    with server_process(["-c", FAILS_AT_AN_UPLOAD]) as server:
        answer = say(server, post("Content-Length: 100"), b"half")

        assert answer.startswith(b"HTTP/1.1 503")
        assert b"/problems/draining" in answer
        assert server.process.wait(PATIENCE_S) == 1


@pytest.mark.parametrize(
    ("option", "code", "named"),
    [
        (["--host", "203.0.113.1"], 3, "cannot listen on 203.0.113.1:8000: Cannot"),  # nobody's (RFC 5737)
        (["--host", "nowhere.invalid"], 3, "cannot listen on nowhere.invalid:8000: "),
        (["--port", "70000"], 2, "port"),
        (["--engine", "abacus"], 2, "engine"),
    ],
)
def test_a_start_that_cannot_succeed_says_why(option: list[str], code: int, named: str) -> None:
    command = [sys.executable, "-c", "from app.cli import main; main()", "serve", *option]

    start = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)

    assert start.returncode == code
    assert named in start.stderr
