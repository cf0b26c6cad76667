"""The Python client against the real server: results, problems, patience, memory."""

import io
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import anyio
import httpx
import pytest
from pydantic import BaseModel, ValidationError
from tenacity import Future, RetryCallState, Retrying

import music_tagger_client as wire
from app import schemas
from music_tagger_client import AsyncClient, Client, Model, Problem, Tagging
from music_tagger_client.problem import Members, problem_in, problem_of, seconds_until
from music_tagger_client.results import batch_in
from music_tagger_client.retries import CONNECT_S, Deadline, pause_s
from music_tagger_client.upload import form_body, raw_body
from tests.app.service import PATIENCE_S, Process, free_port, server_process, tune
from tests.client.full import KEY, filled, hang_up_after_a_refusal, refusals
from tests.client.network import breaking, proxy_that_answers, silent, trickling

CLIP = Path(__file__).parents[1] / "clips" / "sung_pop.opus"
NOISE = b"no music at all " * 99
MB = 1_000_000
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with server_process(api_keys=KEY) as process:
        yield process


@pytest.fixture(scope="module")
def narrow() -> Iterator[Process]:
    """A server with room for 1 MB of uploads."""
    with server_process(max_upload_mb=1, max_inflight_mb=1, upload_idle_s=60, drain_delay_s=60) as process:
        yield process


def call_sync(
    method: str, url: str, *args: object, client: dict[str, Any] | None = None, **how: object
) -> Any:  # noqa: ANN401
    with Client(url, **{"key": KEY, "timeout": PATIENCE_S, **(client or {})}) as opened:
        return getattr(opened, method)(*args, **how)


def call_async(
    method: str, url: str, *args: object, client: dict[str, Any] | None = None, **how: object
) -> Any:  # noqa: ANN401
    async def call() -> Any:  # noqa: ANN401
        async with AsyncClient(url, **{"key": KEY, "timeout": PATIENCE_S, **(client or {})}) as opened:
            return await getattr(opened, method)(*args, **how)

    return anyio.run(call)


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    """Call a method of either client: `call(method, url, *arguments, client={...}, **options)`."""
    return cast(Call, request.param)


@contextmanager
def pipe_of(clip: bytes) -> Iterator[BinaryIO]:
    """A stream that cannot be rewound."""
    end, beginning = os.pipe()
    with open(end, "rb") as readable, open(beginning, "wb") as writable:  # noqa: PTH123 - no paths

        def write() -> None:
            with writable:
                writable.write(clip)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        yield readable
        readable.read()
        thread.join()


@pytest.fixture(scope="module")
def posted(server: Process) -> Tagging:
    """The clip's answer, asked for without the client."""
    answer = server.post(CLIP.read_bytes(), headers={"Authorization": f"Bearer {KEY}"})
    return Tagging.model_validate_json(answer.text)


def check_same(found: Tagging, expected: Tagging) -> None:
    assert found.scores == pytest.approx(expected.scores, abs=1e-4)
    assert (found.present, found.audio, found.model) == (expected.present, expected.audio, expected.model)


# Clips


@pytest.mark.parametrize(
    "clip",
    [CLIP, str(CLIP), CLIP.read_bytes(), bytearray(CLIP.read_bytes()), memoryview(CLIP.read_bytes())],
    ids=["path", "str", "bytes", "bytearray", "memoryview"],
)
def test_a_clip_gets_its_tags(call: Call, server: Process, posted: Tagging, clip: Any) -> None:  # noqa: ANN401
    found = call("tag", server.url, clip)

    assert isinstance(found, Tagging)
    check_same(found, posted)
    assert found.windows is None
    assert found.present == tuple(tag.tag for tag in found.tags if tag.score >= tag.threshold)


def test_an_open_file_is_sent_from_where_it_stands(call: Call, server: Process, posted: Tagging) -> None:
    with io.BytesIO(NOISE + CLIP.read_bytes()) as file:
        file.seek(len(NOISE))

        check_same(call("tag", server.url, file), posted)


def test_a_stream_without_end_known_is_sent_too(call: Call, server: Process, posted: Tagging) -> None:
    with pipe_of(CLIP.read_bytes()) as stream:
        check_same(call("tag", server.url, stream), posted)


def test_a_name_that_no_header_can_hold_does_not_matter(
    call: Call, server: Process, posted: Tagging, tmp_path: Path
) -> None:
    path = tmp_path / '"été"\r\n\udcff.mp3'
    path.write_bytes(CLIP.read_bytes())

    check_same(call("tag", server.url, path), posted)
    check_same(call("tag_batch", server.url, [path])[0], posted)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.9, {"vocal": 0.9, "pop": 0.9}), ({"vocal": 0.0, "pop": 1}, {"vocal": 0.0, "pop": 1.0})],
)
def test_every_option_is_honoured(
    call: Call,
    server: Process,
    threshold: float | dict[str, float],
    expected: dict[str, float],
) -> None:
    found = call("tag", server.url, tune(20), windows=True, threshold=threshold, start_s=2, duration_s=12)

    assert found.audio.analysed_s == pytest.approx(12, abs=0.1)
    assert [window.start_s for window in found.windows] == [2, 7]
    assert {tag.tag: tag.threshold for tag in found.tags if tag.tag in expected} == expected


def test_a_batch_is_answered_in_order_each_clip_by_its_result_or_problem(
    call: Call, server: Process, posted: Tagging
) -> None:
    with pipe_of(tune(3)) as stream:
        first, second, third = call("tag_batch", server.url, [CLIP, NOISE, stream], windows=True)

    check_same(first, posted)
    assert isinstance(second, Problem)
    assert (second.status, second.type) == (415, "/problems/not-audio")
    assert second.hint
    assert second.request_id in second.instance
    assert third.audio.duration_s == pytest.approx(3)
    assert third.windows


def test_the_model_describes_itself(call: Call, server: Process) -> None:
    told = httpx.get(f"{server.url}/v1/model", headers={"Authorization": f"Bearer {KEY}"}).text

    assert call("model", server.url) == Model.model_validate_json(told)


# Problems


@pytest.mark.parametrize(
    ("clip", "how", "key", "status", "slug"),
    [
        (NOISE, {}, KEY, 415, "not-audio"),
        (b"", {}, KEY, 400, "empty-clip"),
        (tune(0.05), {}, KEY, 422, "too-short"),
        (tune(2), {"threshold": {"jazz": 0.5}}, KEY, 422, "bad-parameter"),
        (tune(2), {"start_s": -1}, KEY, 422, "bad-parameter"),
        (tune(2), {}, None, 401, "key-missing"),
        (tune(2), {}, "another", 403, "key-wrong"),
    ],
)
def test_a_problem_is_raised_whole(
    call: Call, server: Process, clip: bytes, how: dict[str, Any], key: str | None, status: int, slug: str
) -> None:
    with pytest.raises(Problem) as raised:
        call("tag", server.url, clip, client={"key": key}, **how)

    problem = raised.value
    assert (problem.status, problem.type) == (status, f"/problems/{slug}")
    assert problem.title
    assert problem.detail in str(problem)
    assert problem.hint in str(problem)
    assert problem.request_id
    assert problem.instance == f"/v1/tags#{problem.request_id}"
    assert problem.retry_after_s is None


def test_an_upload_over_the_limit_is_told_not_broken(call: Call, narrow: Process) -> None:
    with pytest.raises(Problem) as raised:
        call("tag", narrow.url, bytes(20 * MB))

    assert raised.value.type == "/problems/too-many-bytes"


@pytest.mark.parametrize(
    ("method", "given", "error", "told"),
    [
        ("tag", None, TypeError, "not <class 'NoneType'>"),
        ("tag", [b"clip"], TypeError, "not <class 'list'>"),
        ("tag_batch", "a.opus", TypeError, "a single one is for `tag`"),
        ("tag_batch", [], ValueError, "no clip"),
    ],
)
def test_what_is_no_clip_is_refused_in_words(
    call: Call, server: Process, method: str, given: object, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        call(method, server.url, given)


def test_a_file_opened_as_text_is_refused_in_words(call: Call, server: Process) -> None:
    with pytest.raises(TypeError, match="binary mode"), Path(__file__).open(encoding="utf-8") as file:
        call("tag", server.url, file)


def test_a_missing_file_is_the_system_s_own_error(call: Call, server: Process, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        call("tag", server.url, tmp_path / "missing.mp3")


def test_a_proxy_s_page_is_a_problem_too(call: Call) -> None:
    with proxy_that_answers(502, "<h1>Bad gateway</h1>") as proxy, pytest.raises(Problem) as raised:
        call("model", proxy.url, client={"attempts": 1})

    problem = raised.value
    assert (problem.status, problem.type, problem.title) == (502, "about:blank", "Bad Gateway")
    assert "<h1>Bad gateway</h1>" in str(problem)


def test_a_proxy_s_own_words_in_json_are_not_lost(call: Call) -> None:
    words = "API rate limit exceeded"
    with proxy_that_answers(403, f'{{"message": "{words}"}}') as proxy, pytest.raises(Problem, match=words):
        call("model", proxy.url)


def test_who_is_no_tagger_is_found_out(call: Call) -> None:
    with proxy_that_answers(200, "<h1>Welcome</h1>") as other, pytest.raises(ValueError, match="Model"):
        call("model", other.url)


# Patience


def test_a_full_server_is_asked_again_when_it_said(call: Call, narrow: Process) -> None:
    before = refusals(narrow)
    started = time.monotonic()

    with filled(narrow) as other, hang_up_after_a_refusal(narrow, other):
        found = call("tag", narrow.url, CLIP)

    assert isinstance(found, Tagging)
    assert refusals(narrow) - before == 1
    assert time.monotonic() - started >= 1  # the least that the service says


def test_no_pause_is_begun_that_would_miss_the_deadline(call: Call, narrow: Process) -> None:
    before = refusals(narrow)

    with filled(narrow), pytest.raises(Problem) as raised:
        call("tag", narrow.url, CLIP, timeout=1)

    assert raised.value.type == "/problems/bytes-full"
    assert raised.value.retry_after_s == 1
    assert refusals(narrow) - before == 1


def test_attempts_are_bounded(call: Call, narrow: Process) -> None:
    before = refusals(narrow)

    with filled(narrow), pytest.raises(Problem):
        call("tag", narrow.url, CLIP, client={"attempts": 2})

    assert refusals(narrow) - before == 2


def test_a_stream_that_cannot_be_rewound_is_sent_once(call: Call, narrow: Process) -> None:
    before = refusals(narrow)

    with filled(narrow), pipe_of(CLIP.read_bytes()) as stream, pytest.raises(Problem) as raised:
        call("tag", narrow.url, stream)

    assert raised.value.status == 429
    assert refusals(narrow) - before == 1


def test_a_date_in_retry_after_is_waited_for(call: Call) -> None:
    soon = datetime.fromtimestamp(time.time() + 2, UTC)
    headers = {"Retry-After": f"{soon:%a, %d %b %Y %H:%M:%S} GMT"}

    with proxy_that_answers(503, "", headers) as proxy, pytest.raises(Problem):
        call("model", proxy.url, client={"attempts": 2})

    assert proxy.connections == 2
    assert time.time() >= soon.replace(microsecond=0).timestamp()


def test_a_broken_connection_is_tried_again(call: Call, server: Process, posted: Tagging) -> None:
    with breaking(server.url, times=2) as line:
        check_same(call("tag", line.url, CLIP), posted)

    assert line.connections == 3


def test_a_stream_on_a_broken_connection_is_lost(call: Call, server: Process) -> None:
    with breaking(server.url, times=2) as line, pipe_of(CLIP.read_bytes()) as stream:
        with pytest.raises(httpx.TransportError):
            call("tag", line.url, stream)

        assert line.connections == 1


def test_who_cannot_be_reached_is_told(call: Call) -> None:
    with pytest.raises(httpx.ConnectError):
        call("model", f"http://127.0.0.1:{free_port()}", client={"attempts": 2})


def test_silence_is_given_up_in_time_which_the_server_was_told(call: Call) -> None:
    with silent() as line:
        with pytest.raises(TimeoutError, match=r"within 0\.5 s"):
            call("tag", line.url, CLIP, timeout=0.5)

        assert line.connections == 1
        assert b"X-Request-Timeout: 0.4" in line.received or b"X-Request-Timeout: 0.5" in line.received
        assert CLIP.name.encode() not in line.received


def test_an_answer_that_trickles_is_given_up_in_time(call: Call) -> None:
    with trickling(5.0) as line:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"within 0\.5 s"):
            call("model", line.url, timeout=0.5)

        assert time.monotonic() - started < 2.5


def test_the_time_of_the_upload_counts(call: Call) -> None:
    class SlowFile(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            time.sleep(0.2)
            return super().read(size)

    with silent() as line:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="within 4 s"):
            call("tag", line.url, SlowFile(bytes(15 << 16)), timeout=4.0)

        assert 3.9 < time.monotonic() - started < 6.0


def test_a_stream_that_has_nothing_for_ever_is_given_up_in_time() -> None:
    end, beginning = os.pipe()
    with open(end, "rb") as readable, open(beginning, "wb"), silent() as line:  # noqa: PTH123 - no paths
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="within 1 s"):
            call_async("tag", line.url, readable, timeout=1.0)

        assert time.monotonic() - started < 5.0


def test_one_may_wait_for_ever(call: Call, server: Process) -> None:
    assert call("model", server.url, timeout=float("inf")).tags


@pytest.mark.parametrize(
    ("seconds", "status", "is_why"), [(0.0, 504, True), (60.0, 504, False), (0.0, 429, False)]
)
def test_a_service_that_met_the_deadline_first_is_no_other_failure(
    seconds: float, status: int, is_why: bool
) -> None:
    problem = problem_in(httpx.Response(status, request=httpx.Request("GET", "http://tagger.example")))

    assert Deadline(seconds).is_why(problem) is is_why


def test_it_is_told_whether_the_service_is_ready(call: Call, narrow: Process) -> None:
    assert call("ready", narrow.url) is True

    with proxy_that_answers(503, "") as draining:
        assert call("ready", draining.url) is False
        assert draining.connections == 1


@pytest.mark.parametrize("form", [False, True], ids=["raw", "form"])
def test_a_file_that_grows_while_it_is_sent_is_sent_as_long_as_it_was(tmp_path: Path, form: bool) -> None:
    clip = tmp_path / "growing.wav"
    clip.write_bytes(b"x" * 200_000)

    with form_body([clip]) if form else raw_body(clip) as body:
        with clip.open("ab") as file:
            file.write(b"y" * 100_000)
        sent = b"".join(body.pieces())

    assert len(sent) == int(body.headers["Content-Length"])
    assert b"x" * 200_000 in sent


def test_a_file_that_shrinks_while_it_is_sent_is_an_error_of_its_own(
    call: Call, server: Process, tmp_path: Path
) -> None:
    clip = tmp_path / "shrinking.wav"
    clip.write_bytes(tune(2))

    class Shrinking(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            os.truncate(clip, 10)
            return super().read(size)

    with Shrinking(clip) as file, pytest.raises(OSError, match="became shorter"):
        call("tag", server.url, file)


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_what_cannot_be_a_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="no key can hold") as refused:
        Client(key=key)

    assert key not in str(refused.value)


def test_a_key_beside_a_user_in_the_url_is_refused() -> None:
    with pytest.raises(ValueError, match="only one of them can be sent"):
        Client("http://user:password@tagger.example", key="key")


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        ("120", 120.0),
        ("Tue, 24 Nov 2026 12:00:30 GMT", 30.0),
        ("Tuesday, 24-Nov-26 12:00:30 GMT", 30.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ("Tue, 24 Nov 2026 12:00:30 -0000", 30.0),
        ("soon", None),
        ("Tue, 24 Nov 99999999999999999999 12:00:30 GMT", None),
        ("-1", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(
    monkeypatch: pytest.MonkeyPatch, retry_after: str, expected: float | None
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert seconds_until(retry_after, datetime(2026, 11, 24, 12, tzinfo=UTC)) == expected
    finally:
        monkeypatch.undo()
        time.tzset()


# Memory


@pytest.mark.parametrize("method", ["tag", "tag_batch"])
def test_a_large_file_is_never_held_whole(call: Call, server: Process, tmp_path: Path, method: str) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(64 * MB)
    tracemalloc.start()
    try:
        answers = call(method, server.url, [path] if method == "tag_batch" else path)
    except Problem as problem:
        answers = [problem]
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert [answer.type for answer in answers] == ["/problems/not-audio"]  # all of it arrived and was judged
    assert peak < 4 * MB


# The environment, and the contract


def test_url_and_key_may_come_from_the_environment(server: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSIC_TAGGER_URL", server.url)
    monkeypatch.setenv("MUSIC_TAGGER_KEY", KEY)

    with Client() as client:
        assert client.tag(CLIP).scores


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (wire.Tagging, schemas.TagResponse),
        (wire.TagScore, schemas.TagScore),
        (wire.Window, schemas.Window),
        (wire.Audio, schemas.Audio),
        (wire.ModelName, schemas.ModelName),
        (wire.Timing, schemas.Timing),
        (wire.Model, schemas.ModelResponse),
        (wire.TagMeaning, schemas.TagMeaning),
    ],
)
def test_the_results_are_those_of_the_wire(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    def kinds(model: type[BaseModel]) -> dict[str, Any]:
        properties = model.model_json_schema(mode="serialization")["properties"]
        return {name: told.get("type") for name, told in properties.items()}

    assert kinds(ours) == kinds(theirs)


def test_results_let_new_fields_by_and_cannot_be_changed(posted: Tagging) -> None:
    newer = Tagging.model_validate({**posted.model_dump(), "mood": "calm"})

    assert newer == posted
    with pytest.raises(ValidationError):
        newer.windows = ()


@pytest.mark.parametrize(("status", "times"), [(429, 2), (502, 2), (503, 2), (500, 1), (504, 1)])
def test_only_what_may_pass_is_asked_for_again(call: Call, status: int, times: int) -> None:
    with proxy_that_answers(status, "") as proxy, pytest.raises(Problem):
        call("model", proxy.url, client={"attempts": 2})

    assert proxy.connections == times


def test_clients_that_were_refused_together_do_not_come_back_together() -> None:
    state = RetryCallState(Retrying(), None, (), {})
    state.outcome = Future.construct(1, problem_of(Members(), "", 3.0), has_exception=True)

    pauses = {pause_s(state) for _ in range(20)}

    assert min(pauses) >= 3.0
    assert len(pauses) > 10


def test_a_service_that_answers_no_connection_is_not_waited_for_all_the_time() -> None:
    assert Deadline(120.0).allows().connect == CONNECT_S
    assert Deadline(2.0).allows().connect == pytest.approx(2.0, abs=0.5)


def test_whoever_is_not_ready_for_another_reason_is_told(call: Call) -> None:
    with proxy_that_answers(401, "") as proxy, pytest.raises(Problem):
        call("ready", proxy.url)


def test_a_form_with_a_stream_cannot_be_sent_again() -> None:
    with pipe_of(NOISE) as stream, form_body([NOISE, stream]) as body:
        assert not body.rewindable
    with form_body([NOISE, NOISE]) as body:
        assert body.rewindable


def test_when_to_send_a_clip_of_a_batch_again_is_told() -> None:
    items = [{"problem": {"type": "/problems/late-in-queue", "status": 503}, "retry_after_s": 7}]

    [problem] = batch_in(httpx.Response(200, json={"items": items}))

    assert isinstance(problem, Problem)
    assert (problem.status, problem.retry_after_s) == (503, 7.0)
