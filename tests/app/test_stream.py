"""WS /v1/stream: live audio in, rolling scores out, against the real server process."""

import asyncio
import io
import json
import re
import socket as sockets
import time
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from uvicorn import Config
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.listener import Pipe
from app.problems import PROBLEMS
from app.schemas import StreamFinal, StreamProblem, StreamWindow
from app.stream_connection import StreamConnection
from tests.app.service import PATIENCE_S, RATE, Process, server_process, tune
from tests.encoding import ENCODINGS, decode, encode

pytestmark = pytest.mark.anyio
CLIPS = Path(__file__).parents[1] / "clips"
PCM = {"encoding": "pcm_s16le", "sample_rate_hz": RATE}
CONTAINER = {"encoding": "container"}
END = json.dumps({"end": True})


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with server_process(
        max_listeners=4, stream_idle_s=2, max_audio_s=90, cors_origins="https://a.example"
    ) as (process):
        yield process


@asynccontextmanager
async def listening(
    server: Process,
    start: dict[str, Any] | str | bytes | None = None,
    **options: Any,  # noqa: ANN401 - websockets' own
) -> AsyncIterator[ClientConnection]:
    url = server.url.replace("http", "ws") + "/v1/stream"
    async with asyncio.timeout(PATIENCE_S), connect(url, proxy=None, **options) as socket:
        if start is not None:
            await socket.send(json.dumps(start) if isinstance(start, dict) else start)
        yield socket


async def rest(socket: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """All that is told until the end, and the code that the socket is closed with."""
    told = [json.loads(message) async for message in told_by(socket)]
    assert socket.close_code is not None
    return told, socket.close_code


async def told_by(socket: ClientConnection) -> AsyncIterator[str]:
    try:
        async for message in socket:
            yield str(message)
    except ConnectionClosed:
        return


async def stream(
    server: Process, start: dict[str, Any], sound: bytes, piece: int = 10_000
) -> tuple[list[dict[str, Any]], int]:
    """Send a clip in pieces and its end; returns what is told, and the code at the end."""
    async with listening(server, start) as socket:
        telling = asyncio.create_task(rest(socket))
        for at in range(0, len(sound), piece):
            await socket.send(sound[at : at + piece])
        await socket.send(END)
        return await telling


def check_problem(told: list[dict[str, Any]], code: int, slug: str, expected_code: int) -> StreamProblem:
    """The last message is this problem, complete, and the code fits."""
    problem = StreamProblem.model_validate(told[-1])
    assert (problem.type, code) == (f"/problems/{slug}", expected_code), problem
    assert problem.event == "problem"
    assert problem.status == PROBLEMS[slug].status
    assert problem.instance.startswith("/v1/stream#")
    return problem


def samples(clip: bytes) -> bytes:
    with wave.open(io.BytesIO(clip)) as file:
        return bytes(file.readframes(file.getnframes()))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.05)


async def until_all_is_free(server: Process) -> None:
    """No place is taken."""

    async def free() -> bool:
        return await asyncio.to_thread(server.metric, "music_tagger_streams_open") == 0

    await until(free)


def threads_of(server: Process) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


def as_posted(server: Process, clip: bytes) -> dict[str, Any]:
    return cast(dict[str, Any], server.post(clip, params={"windows": "true"}).json())


def check_same(told: list[dict[str, Any]], posted: dict[str, Any]) -> None:
    """What a stream was told is what the whole clip gets, but for the last milliseconds of an encoded one."""
    *rolling, last = told
    windows = [StreamWindow.model_validate(window) for window in rolling]
    final = StreamFinal.model_validate(last)
    assert (windows[0].start_s, windows[0].end_s) == (0, 5)
    assert len(windows) == len(posted["windows"]) + 1
    for window, expected in zip(windows[1:], posted["windows"], strict=True):
        assert window.start_s == expected["start_s"]
        assert window.end_s == pytest.approx(expected["end_s"], abs=0.1)
        assert window.scores == pytest.approx(expected["scores"], abs=0.05)
    thresholds = {tag["tag"]: tag["threshold"] for tag in posted["tags"]}
    for window in windows:
        assert window.present == {tag: score >= thresholds[tag] for tag, score in window.scores.items()}
    assert [tag.tag for tag in final.tags] == [tag["tag"] for tag in posted["tags"]]
    for tag, expected in zip(final.tags, posted["tags"], strict=True):
        assert tag.score == pytest.approx(expected["score"], abs=0.02)
        assert (tag.threshold, tag.present) == (expected["threshold"], tag.score >= tag.threshold)
    assert final.audio.analysed_s == pytest.approx(posted["audio"]["analysed_s"], abs=0.1)
    assert final.model.sha256 == posted["model"]["sha256"]


@pytest.mark.parametrize("piece", [777, 100_000])
async def test_samples_get_the_scores_of_the_whole_clip(server: Process, piece: int) -> None:
    clip = tune(33)

    told, code = await stream(server, PCM, samples(clip), piece)

    assert code == 1000
    check_same(told, as_posted(server, clip))
    assert told[-1]["audio"]["sample_rate_hz"] == RATE


@pytest.mark.parametrize("name", ["sung_pop", "club_track", "orchestral_cue"])
async def test_a_container_s_pieces_get_the_scores_of_the_whole_clip(server: Process, name: str) -> None:
    clip = (CLIPS / f"{name}.opus").read_bytes()

    told, code = await stream(server, CONTAINER, clip, 1000)

    assert code == 1000
    check_same(told, as_posted(server, clip))


@pytest.mark.parametrize("name", ["webm-opus", "mp3", "flac", "wav-f32", "aac-adts", "m4a-index-first"])
async def test_every_format_can_be_streamed(server: Process, name: str) -> None:
    clip = encode(decode(CLIPS / "club_track.opus"), 48_000, name)

    told, code = await stream(server, CONTAINER, clip, 3000)

    assert code == 1000
    check_same(told, as_posted(server, clip))
    assert told[-1]["audio"]["format"] == ENCODINGS[name].found_format


async def test_a_clip_of_less_than_a_hop_gets_one_window(server: Process) -> None:
    told, code = await stream(server, PCM, samples(tune(3)))

    assert code == 1000
    assert [(window["start_s"], window["end_s"]) for window in told[:-1]] == [(0, 3)]
    assert {tag["tag"]: tag["score"] for tag in told[-1]["tags"]} == pytest.approx(told[0]["scores"])


async def test_a_window_is_told_as_soon_as_it_is_complete(server: Process) -> None:
    sound = samples(tune(10.3))
    half = 2 * int(5.3 * RATE)  # FFmpeg takes WAV in packets of up to 0.13 s
    async with listening(server, PCM) as socket:
        await socket.send(sound[:half])
        first = json.loads(await socket.recv())
        await socket.send(sound[half:])
        second = json.loads(await socket.recv())

    assert [first["end_s"], second["end_s"]] == [5, 10]
    assert all(0 < told["latency_ms"] < 5000 for told in (first, second))


async def test_the_threshold_is_the_client_s_choice(server: Process) -> None:
    told, _ = await stream(server, {**PCM, "threshold": "0"}, samples(tune(6)))

    assert all(all(window["present"].values()) for window in told[:-1])
    assert all(tag["threshold"] == 0 and tag["present"] for tag in told[-1]["tags"])


async def test_several_listen_at_once_beside_uploads(server: Process) -> None:
    clips = [tune(21, pitch) for pitch in (110.0, 220.0, 330.0, 440.0)]
    posted = [as_posted(server, clip) for clip in clips]

    streams = [stream(server, PCM, samples(clip)) for clip in clips]
    uploads = [asyncio.to_thread(server.post, clip) for clip in clips]
    heard = await asyncio.gather(*streams)
    answers = await asyncio.gather(*uploads)

    for (told, code), expected in zip(heard, posted, strict=True):
        assert code == 1000
        check_same(told, expected)
    assert all(answer.status_code == 200 for answer in answers)


async def test_no_more_listen_than_there_are_places(server: Process) -> None:
    await until_all_is_free(server)
    async with listening(server, PCM) as a, listening(server, PCM) as b, listening(server, PCM) as c:
        async with listening(server, PCM):

            async def full() -> bool:
                return await asyncio.to_thread(server.metric, "music_tagger_streams_open") == 4

            await until(full)
            async with listening(server, PCM) as late:
                told, code = await rest(late)
            problem = check_problem(told, code, "listeners-full", 1013)
            assert problem.retry_after_s
        for socket in (a, b, c):
            await socket.close()
    await until_all_is_free(server)


BAD_STARTS: dict[str, tuple[dict[str, Any] | str | bytes, str, int]] = {
    "binary": (b"RIFF", "media-type", 1003),
    "not JSON": ("hello", "bad-json", 1007),
    "a long text": ("{" + 9_999 * " " + "}", "bad-json", 1007),
    "not an object": ("7", "bad-parameter", 1007),
    "no encoding": ({}, "bad-parameter", 1007),
    "an unknown encoding": ({"encoding": "pcm_f64"}, "bad-parameter", 1007),
    "no rate": ({"encoding": "pcm_s16le"}, "bad-parameter", 1007),
    "a rate too many": ({"encoding": "container", "sample_rate_hz": 44_100}, "bad-parameter", 1007),
    "a rate that cannot be": ({"encoding": "pcm_s16le", "sample_rate_hz": 7}, "bad-parameter", 1007),
    "an unknown name": ({**CONTAINER, "encodng": "x"}, "bad-parameter", 1007),
    "an unknown tag": ({**CONTAINER, "threshold": "rock:0.5"}, "bad-parameter", 1007),
}


@pytest.mark.parametrize("name", BAD_STARTS)
async def test_a_bad_first_message_is_told_why(server: Process, name: str) -> None:
    start, slug, expected_code = BAD_STARTS[name]

    async with listening(server, start) as socket:
        told, code = await rest(socket)

    check_problem(told, code, slug, expected_code)


async def test_a_text_that_is_not_the_end_is_told(server: Process) -> None:
    async with listening(server, PCM) as socket:
        await socket.send('{"end": false}')
        told, code = await rest(socket)

    assert '{"end": true}' in check_problem(told, code, "bad-parameter", 1007).hint


BAD_SOUND: dict[str, tuple[dict[str, Any], bytes, str, int]] = {
    "garbage": (CONTAINER, np.random.default_rng(5).bytes(50_000), "not-audio", 1003),
    "text": (CONTAINER, b"la la la " * 5000, "not-audio", 1003),
    "a header only": (CONTAINER, tune(3)[:44], "undecodable", 1007),
    "nothing": (CONTAINER, b"", "empty-clip", 1007),
    "no sample": (PCM, b"", "undecodable", 1007),
    "too short": (PCM, samples(tune(0.3)), "too-short", 1007),
    "silent": (PCM, bytes(2 * 6 * RATE), "silent", 1007),
    "too long": (PCM, samples(tune(100)), "too-many-seconds", 1008),
}


@pytest.mark.parametrize("name", BAD_SOUND)
async def test_bad_sound_is_told_why_and_frees_its_place(server: Process, name: str) -> None:
    start, sound, slug, expected_code = BAD_SOUND[name]

    async with listening(server, start) as socket:
        telling = asyncio.create_task(rest(socket))
        try:
            for at in range(0, len(sound), 50_000):
                await socket.send(sound[at : at + 50_000])
            await socket.send(END)
        except ConnectionClosed:
            pass  # it was refused before its end
        told, code = await telling

    check_problem(told, code, slug, expected_code)
    await until_all_is_free(server)


async def test_a_message_that_is_too_big_is_refused(server: Process) -> None:
    async with listening(server, PCM) as socket:
        await socket.send(bytes(2_000_000))
        _, code = await rest(socket)

    assert code == 1009
    await until_all_is_free(server)


@pytest.mark.parametrize("empty", [0, 1000], ids=["nothing", "empty messages"])
async def test_a_stream_that_stands_still_is_closed(server: Process, empty: int) -> None:
    async with listening(server, PCM) as socket:
        await socket.send(samples(tune(1)))
        telling = asyncio.create_task(rest(socket))
        with suppress(ConnectionClosed):
            for _ in range(empty):
                await socket.send(b"")
                await asyncio.sleep(0.1)
        told, code = await telling

    check_problem(told, code, "stream-idle", 1008)
    await until_all_is_free(server)


async def test_whoever_vanishes_leaves_nothing_behind(server: Process) -> None:
    await until_all_is_free(server)
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(listening(server, PCM)) for _ in range(4)]
        for socket, seconds in zip(sockets, (1, 2, 6, 30), strict=True):
            await socket.send(samples(tune(seconds)))
        await sockets[-1].recv()
        threads = threads_of(server)
        for socket in sockets:
            socket.transport.abort()

        await until_all_is_free(server)

        async def threads_are_gone() -> bool:
            return threads_of(server) <= threads - 4

        await until(threads_are_gone)


UPGRADE = (
    b"GET /v1/stream?secret=query HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YWFhYWFhYWFhYWFhYWFhYQ==\r\n\r\n"
)


def masked(opcode: int, payload: bytes) -> bytes:
    """A frame as a client sends it, with a mask that changes nothing."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


def test_who_pings_and_takes_no_answer_is_held_off_then_hung_up_on(server: Process) -> None:
    pings = masked(9, b"p" * 125) * 10_000
    started = time.monotonic()
    with sockets.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), PATIENCE_S) as line:
        line.sendall(UPGRADE)
        assert line.recv(4096).startswith(b"HTTP/1.1 101")
        line.sendall(masked(1, json.dumps(PCM).encode()))

        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            line.sendall(pings * 20)  # 26 MB, more than the system holds of both ways

    assert time.monotonic() - started < PATIENCE_S / 2


@pytest.mark.parametrize("messages", [1, 1000], ids=["closed behind", "written to for ever"])
async def test_a_stream_whose_client_takes_nothing_is_hung_up_on_whatever_the_application_does(
    monkeypatch: pytest.MonkeyPatch, messages: int
) -> None:
    monkeypatch.setattr("app.stream_connection.SEND_S", 0.5)
    ended = asyncio.Event()

    async def tell(_scope: Any, _receive: Any, send: Any) -> None:  # noqa: ANN401 - as ASGI has it
        try:
            await send({"type": "websocket.accept"})
            for _ in range(messages):
                await send({"type": "websocket.send", "bytes": bytes(16_000_000)})
            await send({"type": "websocket.close"})
        finally:
            ended.set()

    def made() -> StreamConnection:
        return StreamConnection(config=config, server_state=ServerState(), app_state={})

    config = Config(tell, log_config=None, ws_per_message_deflate=False)
    config.load()
    listening = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    with sockets.create_connection(listening.sockets[0].getsockname(), PATIENCE_S) as line:
        await asyncio.get_running_loop().sock_sendall(unblocking(line), UPGRADE)
        await asyncio.wait_for(ended.wait(), PATIENCE_S)

    listening.close()
    await listening.wait_closed()


def unblocking(line: sockets.socket) -> sockets.socket:
    line.setblocking(False)
    return line


async def test_who_pings_and_takes_the_answers_goes_on(server: Process) -> None:
    async with listening(server, PCM) as socket:
        answered = [await socket.ping(b"%125d" % number) for number in range(5000)]
        await asyncio.gather(*answered)
        await socket.send(samples(tune(2)))
        await socket.send(END)
        _, code = await rest(socket)

    assert code == 1000


@pytest.mark.parametrize(("path", "outcome"), [("/v1/stream", "bad-json"), ("/nowhere", "not-found")])
async def test_a_stream_is_logged_without_address_query_and_key(path: str, outcome: str) -> None:
    with server_process(log_level="debug") as server:
        url = server.url.replace("http", "ws") + path + "?secret=query"
        headers = {"Authorization": "Bearer secret-key", "Origin": server.url}
        with suppress(InvalidStatus):
            async with connect(url, proxy=None, additional_headers=headers) as socket:
                await socket.send("x")
                await rest(socket)
        assert server.stop() == 0

    assert [line["outcome"] for line in server.log_lines() if line["message"] == "stream"] == [outcome]
    lines = [line for line in server.log if "running on" not in line and "ready on" not in line]
    assert not any("secret" in line or "127.0.0.1:" in line for line in lines)


async def test_a_slow_client_is_followed_at_its_pace(server: Process) -> None:
    sound = samples(tune(7))
    async with listening(server, PCM) as socket:
        for at in range(0, len(sound), RATE):
            await socket.send(sound[at : at + RATE])
            await asyncio.sleep(0.2)
        await socket.send(END)
        told, code = await rest(socket)

    assert (code, [window["end_s"] for window in told[:-1]]) == (1000, [5, 7])


async def test_a_fast_sender_is_slowed_down_and_loses_nothing(server: Process) -> None:
    clip = tune(88)

    told, code = await stream(server, PCM, samples(clip), 500_000)

    assert code == 1000
    check_same(told, as_posted(server, clip))


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://a.example.evil.example", "http://[::1"]
)
async def test_pages_of_other_sites_are_kept_out(server: Process, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with listening(server, origin=origin):
            pass

    response = refused.value.response
    assert response.status_code == 403
    assert response.body is not None
    problem = json.loads(response.body)
    assert problem["type"] == "/problems/origin"
    assert problem["instance"] == f"/v1/stream#{response.headers['X-Request-ID']}"
    server.get("/health/live")  # what was logged before has arrived when this is answered
    assert not [line for line in server.log_lines() if "handshake" in line["message"]]


@pytest.mark.parametrize("path", ["/v1/strem", "/v1/tags", "/"])
async def test_a_websocket_to_another_path_is_told_that_there_is_none(server: Process, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(server.url.replace("http", "ws") + path, proxy=None):
            pass

    response = refused.value.response
    assert response.status_code == 404
    assert response.body is not None
    assert json.loads(response.body)["instance"] == f"{path}#{response.headers['X-Request-ID']}"


def test_a_request_that_opens_no_websocket_is_told_to(server: Process) -> None:
    answer = server.get("/v1/stream")

    assert answer.status_code == 404
    assert "WebSockets" in answer.json()["detail"]
    assert "Upgrade" in answer.json()["hint"]


async def test_a_start_that_does_not_fit_is_told_in_words(server: Process) -> None:
    async with listening(server, {"encoding": "pcm_s16le"}) as socket:
        problem = check_problem(*await rest(socket), "bad-parameter", 1007)

    assert problem.detail == "sample_rate_hz belongs to pcm_s16le, and to it alone"


@pytest.mark.parametrize(("sent", "expected"), [("my-id.1", "my-id.1"), ("no/good", "[0-9a-f]{32}")])
async def test_a_stream_is_known_by_its_id(server: Process, sent: str, expected: str) -> None:
    async with listening(server, PCM, additional_headers={"X-Request-ID": sent}) as socket:
        assert socket.response is not None
        found = socket.response.headers["X-Request-ID"]
        await socket.send(END)
        told, _ = await rest(socket)

    assert re.fullmatch(expected, found)
    assert told[-1]["instance"] == f"/v1/stream#{found}"


@pytest.mark.parametrize("origin", ["own", "https://a.example"])
async def test_the_own_page_and_those_that_are_named_may_listen(server: Process, origin: str) -> None:
    async with listening(server, PCM, origin=server.url if origin == "own" else origin) as socket:
        await socket.send(samples(tune(2)))
        await socket.send(END)
        _, code = await rest(socket)

    assert code == 1000


async def test_keys_come_as_a_header_or_in_the_first_message() -> None:
    with server_process(api_keys="right-key-1") as closed:
        bearers: list[tuple[dict[str, str], dict[str, str], str]] = [
            ({}, {}, "key-missing"),
            ({}, {"key": "bad-key-1"}, "key-wrong"),
            ({"Authorization": "Bearer bad-key-1"}, {"key": "right-key-1"}, "key-wrong"),
            ({}, {"key": "right-key-1"}, ""),
            ({"Authorization": "Basic dTpw"}, {"key": "right-key-1"}, ""),
            ({"Authorization": "Bearer right-key-1"}, {}, ""),
        ]
        for headers, sent, slug in bearers:
            async with listening(closed, {**PCM, **sent}, additional_headers=headers) as socket:
                await socket.send(samples(tune(2)))
                await socket.send(END)
                told, code = await rest(socket)
            if slug:
                check_problem(told, code, slug, 1008)
            else:
                assert (told[-1]["event"], code) == ("final", 1000)
        assert not any("key-1" in line for line in closed.log)


async def test_what_comes_after_the_end_of_a_pipe_is_not_held() -> None:
    pipe = Pipe(100)
    await pipe.put(b"heard")
    pipe.end()

    for _ in range(1000):
        await pipe.put(b"x" * 1000)

    assert (pipe.read(5000), pipe.read(5000)) == (b"heard", b"")


async def test_a_stop_tells_what_was_heard_and_asks_to_come_again() -> None:
    with server_process(grace_s=10) as server:
        async with listening(server, PCM) as socket, listening(server, PCM) as quiet:
            await socket.send(samples(tune(7)))
            assert json.loads(await socket.recv())["end_s"] == 5
            stopping = time.monotonic()
            stopped = asyncio.create_task(asyncio.to_thread(server.stop))
            told, code = await rest(socket)
            assert ([message["event"] for message in told], code) == (["window", "final"], 1012)
            check_problem(*await rest(quiet), "draining", 1012)
            assert await stopped == 0
            assert time.monotonic() - stopping < 8
        lines = [line for line in server.log_lines() if line["message"] == "stream"]
        assert {line["operation"] for line in lines} == {"WS /v1/stream"}
        assert sorted(line["outcome"] for line in lines) == ["draining", "ok"]


async def test_streams_are_counted(server: Process) -> None:
    before = server.metric("music_tagger_stream_windows_total")

    await stream(server, PCM, samples(tune(16)))

    assert server.metric("music_tagger_stream_windows_total") == before + 4
    assert server.metric("music_tagger_stream_latency_seconds_count") >= 4
