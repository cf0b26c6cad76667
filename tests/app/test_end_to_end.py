"""The real server process, real sockets, real bytes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from tests.app.service import PATIENCE_S, Process, check_problem, scores, server_process, tune

MORTAL = """
import signal
from app import server
from app.settings import Settings
from model.tagger import Tagger

embed, dying = Tagger.embed, []

def embed_or_die(tagger, segments):
    if dying:
        raise SystemExit
    return embed(tagger, segments)

Tagger.embed = embed_or_die
signal.signal(signal.SIGUSR1, lambda *_: dying.append(True))
raise SystemExit(server.serve(Settings()))
"""
"""The server, whose workers die again and again from SIGUSR1 on.

They die in the network: an exception that struck them anywhere might leave a lock taken for ever.
"""

STUCK = """
import signal, threading
from app import server
from app.settings import Settings
from model.tagger import Tagger

embed, free = Tagger.embed, threading.Event()
free.set()

def embed_when_free(tagger, segments):
    free.wait()
    return embed(tagger, segments)

Tagger.embed = embed_when_free
signal.signal(signal.SIGUSR1, lambda *_: free.clear())
raise SystemExit(server.serve(Settings()))
"""
"""The server, whose network never answers from SIGUSR1 on."""


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with server_process(max_upload_mb=4, upload_idle_s=1) as process:
        yield process


def in_pieces(body: bytes, size: int = 8192) -> Iterator[bytes]:
    """Without a Content-Length: the transfer is chunked."""
    for start in range(0, len(body), size):
        yield body[start : start + size]


def test_form_raw_and_chunked_bodies_give_the_same_scores(server: Process) -> None:
    clip = tune(11)

    form = httpx.post(f"{server.url}/v1/tags", files={"file": ("song.wav", clip)}, timeout=30)
    raw = server.post(clip, headers={"Content-Type": "application/octet-stream"})
    chunked = server.post(in_pieces(clip))

    assert scores(form) == scores(raw) == scores(chunked)


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [(b"", 400, "empty-clip"), (b"text " * 999, 415, "not-audio"), (tune(0.05), 422, "too-short")],
    ids=["empty", "text", "too short"],
)
def test_a_bad_clip_is_told_why_and_the_next_good_one_works(
    server: Process, body: bytes, status: int, slug: str
) -> None:
    check_problem(server.post(body), status, slug)

    assert scores(server.post(tune(2)))


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_too_many_bytes_are_refused_long_before_they_all_arrived(server: Process, chunked: bool) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2000):  # 131 MB, of which 4 MB may come
            sent += 65_536
            yield b"\0" * 65_536

    headers = {} if chunked else {"Content-Length": str(2000 * 65_536)}
    try:
        response = server.post(endless(), headers=headers)
    except httpx.WriteError:  # the server hung up before the client looked at its answer
        response = None

    assert response is None or check_problem(response, 413, "too-many-bytes")
    assert scores(server.post(tune(2)))


def test_a_slow_body_gets_408(server: Process) -> None:
    def stalling() -> Iterator[bytes]:
        yield b"RIFF"
        time.sleep(2)
        yield b"more"

    check_problem(server.post(stalling()), 408, "slow-body")


def test_a_client_that_hangs_up_leaves_nothing_behind(server: Process) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/tags", content=tune(120), timeout=httpx.Timeout(10, read=0.05))

    deadline = time.monotonic() + 10
    while server.metric("music_tagger_inflight_bytes") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("music_tagger_inflight_bytes") == 0
    assert scores(server.post(tune(2)))


def test_every_log_line_is_json(server: Process) -> None:
    def found() -> bool:
        return any(line.get("request_id") == "look-for-me" for line in server.log_lines())

    server.post(tune(2), headers={"X-Request-ID": "look-for-me"})

    deadline = time.monotonic() + 10  # the line is written after the answer has left
    while not found() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found()


def wait_until_busy(server: Process) -> None:
    """Return while segments wait in the queue; a busy machine may see them pass, and then this fails."""
    until_s = time.monotonic() + PATIENCE_S
    while not server.metric("music_tagger_queue_segments"):
        assert time.monotonic() < until_s, "no segment was seen waiting"
        time.sleep(0.01)


def test_sigterm_finishes_what_was_admitted_and_exits_with_0() -> None:
    with server_process(drain_delay_s=1) as server, ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(server.post, tune(240, 100.0 + n)) for n in range(4)]
        wait_until_busy(server)
        time.sleep(0.3)  # all four are admitted

        exit_code: list[int] = []
        stopping = threading.Thread(target=lambda: exit_code.append(server.stop()))
        stopping.start()
        while (ready := server.get("/health/ready")).status_code == 200:
            time.sleep(0.01)

        check_problem(ready, 503, "draining")
        check_problem(server.post(tune(2)), 503, "draining")
        assert all(scores(answer.result()) for answer in answers)
        stopping.join()
        assert exit_code == [0]


def test_readiness_answers_for_the_drain_delay_also_where_there_is_no_grace() -> None:
    with server_process(grace_s=0, drain_delay_s=2) as server, ThreadPoolExecutor(1) as operator:
        stopped = operator.submit(server.stop)
        told = time.monotonic()
        answers = []
        with suppress(httpx.TransportError):  # the port is closed at last
            while True:
                answers.append(server.get("/health/ready").status_code)
                time.sleep(0.02)

        assert answers[-1] == 503
        assert time.monotonic() - told > 1.5
        assert stopped.result() == 0


def test_work_beyond_the_grace_time_is_cut_off_with_a_problem() -> None:
    program = ["-c", STUCK]
    with server_process(program, grace_s=1, drain_delay_s=0) as server, ThreadPoolExecutor(1) as client:
        server.process.send_signal(signal.SIGUSR1)
        server.get("/health/live")  # by now the signal was seen
        answer = client.submit(server.post, tune(300))
        wait_until_busy(server)

        assert server.stop() == 0

        check_problem(answer.result(), 503, "draining")


def test_a_client_that_sent_a_second_request_and_left_is_noticed() -> None:
    clip = tune(300)
    head = f"POST /v1/tags HTTP/1.1\r\nHost: x\r\nContent-Length: {len(clip)}\r\n\r\n".encode()
    with server_process(["-c", STUCK]) as server:
        server.process.send_signal(signal.SIGUSR1)
        server.get("/health/live")  # by now the signal was seen
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as line:
            line.sendall(head + clip)
            wait_until_busy(server)
            line.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.5)  # it was read

        until_s = time.monotonic() + 10
        while 'outcome="disconnected"' not in server.get("/metrics").text:
            assert time.monotonic() < until_s
            time.sleep(0.1)
        assert server.metric("music_tagger_inflight_bytes") == 0


def test_a_worker_that_keeps_dying_ends_the_process_with_1() -> None:
    with server_process(["-c", MORTAL]) as server:
        server.process.send_signal(signal.SIGUSR1)

        with suppress(httpx.TransportError):  # in the end nobody answers
            until_s = time.monotonic() + PATIENCE_S
            while server.process.poll() is None:
                assert time.monotonic() < until_s
                assert server.post(tune(2)).status_code in (200, 500, 503)

        assert server.process.wait(PATIENCE_S) == 1
    assert any("cannot recover" in line["message"] for line in server.log_lines())


def test_a_taken_port_is_named_and_ends_the_start(server: Process) -> None:
    port = server.url.rpartition(":")[2]

    process = subprocess.run(
        [sys.executable, "-m", "app.server"],
        env={**os.environ, "TAGGER_PORT": port, "TAGGER_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )

    assert process.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in process.stderr


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TAGGER_WEIGHTS", "/nowhere", "/nowhere/tagger.json: cannot be read"),
        ("TAGGER_DEVICE", "cuda:9", "no device 'cuda:9' here; choose auto"),
    ],
)
def test_what_cannot_be_loaded_is_named_and_ends_the_start(name: str, value: str, told: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "app.server"],
        env={**os.environ, "TAGGER_PORT": "0", name: value},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )

    assert process.returncode == 3
    last = json.loads(process.stderr.splitlines()[-1])
    assert [last["level"], told in last["message"], name in last["message"]] == ["critical", True, True]
    assert "Traceback" not in process.stderr


def test_the_log_says_once_where_it_is_ready(server: Process) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s and not (told := [line for line in server.log if "ready on" in line]):
        time.sleep(0.05)

    assert [json.loads(line)["message"] for line in told] == [f"ready on {server.url}"]
