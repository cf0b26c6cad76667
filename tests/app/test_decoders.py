"""Decoders in processes of their own: what they hand over, and what happens when one dies."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.decoder_process import ReaderOptions
from app.decoders import Decoders, Decoding
from app.problems import ProblemError
from app.uploads import memory_file
from model.audio import AudioError, AudioTooShortError, NotAudioError, UndecodableAudioError, read_audio
from model.network import SEGMENT_SAMPLES
from model.tagger import Tagger
from tests.app.service import Service, check_problem, scores, serving, tune
from tests.encoding import encode

pytestmark = pytest.mark.anyio
HOW = ReaderOptions(16_000, 0.0, None, 1.0, 7200.0, SEGMENT_SAMPLES)


@pytest.fixture
def deaths() -> list[int]:
    return []


@pytest.fixture
def decoders(deaths: list[int]) -> Iterator[Decoders]:
    """One process, so that every clip meets it."""
    running = Decoders(1, lambda: deaths.append(1))
    yield running
    running.stop()


@contextmanager
def decoding(decoders: Decoders, clip: bytes, how: ReaderOptions = HOW) -> Iterator[Decoding]:
    with memory_file() as file:
        file.write(clip)
        found = decoders.open(file, how)
        yield found
        found.close()


def take(clip: Decoding, count: int, began: Callable[[], None] = lambda: None) -> list[NDArray[np.float32]]:
    return clip.take(count, began).result(timeout=60)


def rest(clip: Decoding) -> list[NDArray[np.float32]]:
    """All that is left, in turns of a few segments; turns in which a start is left out give none."""
    found: list[NDArray[np.float32]] = []
    while not clip.ended:
        found += take(clip, 3)
    return found


def pids(parent: int | None = None) -> list[int]:
    """The processes of this program's decoders."""
    children = Path(f"/proc/{parent or os.getpid()}/task").glob("*/children")
    found = [int(pid) for task in children for pid in task.read_text().split()]
    return [pid for pid in found if b"app.decoder_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_turns_hand_over_all_segments_and_what_was_found(decoders: Decoders) -> None:
    samples, info = read_audio(tune(32))

    with decoding(decoders, tune(32)) as clip:
        turns = [take(clip, 3), take(clip, 3), take(clip, 3)]

        assert [len(turn) for turn in turns] == [3, 3, 1]
        whole = np.concatenate([segment for turn in turns for segment in turn[: 6 - len(turn)]])
        assert np.array_equal(whole[: len(samples)], samples[: len(whole)])
        assert clip.info == info


def test_a_clip_s_last_turn_is_known_as_such(decoders: Decoders) -> None:
    with decoding(decoders, tune(30)) as clip:
        ended = [(len(take(clip, 3)), clip.ended) for _ in range(2)]

    assert ended == [(3, False), (3, True)]


def test_a_request_that_is_given_up_gives_its_memory_back_and_does_not_hurt_the_decoder(
    decoders: Decoders, deaths: list[int]
) -> None:
    with memory_file() as file:
        file.write(tune(120))
        descriptor = os.dup(file.fileno())
        given_up = decoders.open(file, HOW)
        assert len(take(given_up, 2)) == 2

    assert os.fstat(descriptor).st_size == 0
    os.close(descriptor)
    with suppress(AudioError):
        take(given_up, 22)
    given_up.close()
    with decoding(decoders, tune(10)) as other:
        assert len(take(other, 2)) == 2
    assert deaths == []


@pytest.mark.parametrize("encoding", ["ogg-opus", "aac-adts"])
def test_a_start_that_must_be_decoded_to_be_left_out_takes_turns_of_half_a_minute(
    decoders: Decoders, song: NDArray[np.float32], encoding: str
) -> None:
    clip = encode(np.tile(song, 7), 48_000, encoding)  # 103 s
    expected, _ = read_audio(clip, start_s=95, duration_s=5)

    with decoding(decoders, clip, replace(HOW, start_s=95.0, duration_s=5.0)) as far:
        turns = [take(far, 6) for _ in range(4)]

        assert [len(turn) for turn in turns] == [0, 0, 0, 1]
        assert far.ended
        assert np.array_equal(turns[-1][0], expected)


def test_several_clips_take_turns_in_one_process(decoders: Decoders) -> None:
    with decoding(decoders, tune(20, 220)) as one, decoding(decoders, tune(20, 330)) as other:
        pairs = [(take(one, 1)[0], take(other, 1)[0]) for _ in range(4)]

    assert np.array_equal(np.concatenate([pair[0] for pair in pairs]), read_audio(tune(20, 220))[0])
    assert np.array_equal(np.concatenate([pair[1] for pair in pairs]), read_audio(tune(20, 330))[0])


@pytest.mark.parametrize(
    ("clip", "error"),
    [(b"no audio at all, but text", NotAudioError), (tune(0.5), AudioTooShortError)],
)
def test_what_is_wrong_with_a_clip_is_told_as_in_this_process(
    decoders: Decoders, deaths: list[int], clip: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error) as here:
        read_audio(clip)

    with decoding(decoders, clip) as broken, pytest.raises(error) as there:
        take(broken, 6)

    assert vars(there.value) == vars(here.value)
    assert str(there.value) == str(here.value)
    assert deaths == []


def test_a_clip_goes_on_where_it_was_when_its_decoder_died_between_turns(
    decoders: Decoders, deaths: list[int]
) -> None:
    with decoding(decoders, tune(30)) as clip:
        first = take(clip, 2)
        os.kill(pids()[0], signal.SIGKILL)
        after = rest(clip)

    assert len(deaths) == 1
    assert np.array_equal(np.concatenate([*first, *after]), read_audio(tune(30))[0])


def test_a_clip_that_kills_every_decoder_is_given_up_and_hurts_no_other(
    decoders: Decoders, deaths: list[int]
) -> None:
    with decoding(decoders, tune(30)) as other, decoding(decoders, tune(600)) as deadly:
        before = take(other, 2)
        turn = deadly.take(120, lambda: None)
        while not turn.done():
            for pid in pids():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        with pytest.raises(UndecodableAudioError, match="twice"):
            turn.result()
        after = rest(other)

    assert len(deaths) >= 2
    assert np.array_equal(np.concatenate([*before, *after]), read_audio(tune(30))[0])


@pytest.fixture
def two_decoders(deaths: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoders]:
    """They are given up after a few seconds; the first process is that of the first clip."""
    monkeypatch.setattr("app.decoders.TURN_LIMIT_S", 3.0)
    running = Decoders(2, lambda: deaths.append(1))
    for there in running.ping():
        there.result(timeout=60)
    yield running
    running.stop()


def test_a_decoder_that_does_not_answer_is_replaced(two_decoders: Decoders, deaths: list[int]) -> None:
    with decoding(two_decoders, tune(10)) as clip:
        os.kill(pids()[0], signal.SIGSTOP)
        segments = take(clip, 6)

    assert deaths == [1]
    assert len(segments) == 2


def test_one_that_does_not_answer_at_the_start_is_replaced_and_asked_again(
    two_decoders: Decoders, deaths: list[int]
) -> None:
    os.kill(pids()[0], signal.SIGSTOP)

    for there in two_decoders.ping():
        there.result(timeout=60)

    assert deaths == [1]


def test_a_decoder_that_dies_while_no_file_is_left_is_replaced_when_there_is_one(
    decoders: Decoders, deaths: list[int]
) -> None:
    with decoding(decoders, tune(10)) as clip, decoding(decoders, tune(10)) as other:
        assert len(take(clip, 1)) == 1
        os.kill(pids()[0], signal.SIGKILL)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
            for refused in (clip, other):
                with pytest.raises(ProblemError, match="files"):
                    take(refused, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

        assert len(rest(clip)) == 1
        assert deaths == [1]


def test_a_decoder_that_is_stuck_in_a_clip_that_was_given_up_gets_no_other(
    two_decoders: Decoders, deaths: list[int]
) -> None:
    began = threading.Event()
    with decoding(two_decoders, tune(10)) as given_up:
        os.kill(pids()[0], signal.SIGSTOP)
        stuck = given_up.take(6, began.set)
        assert began.wait(60)

    for _ in range(3):
        with decoding(two_decoders, tune(10)) as clip:
            assert len(take(clip, 6)) == 2
            assert not stuck.done()
    with suppress(AudioError):
        stuck.result(timeout=60)
    assert deaths == [1]


def test_a_decoder_does_not_load_what_it_does_not_need() -> None:
    program = "import app.decoder_process, sys; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert {"torch", "fastapi", "openvino"} & set(loaded.stdout.split()) == set()


def test_a_decoder_knows_no_setting_and_no_key(monkeypatch: pytest.MonkeyPatch, deaths: list[int]) -> None:
    monkeypatch.setenv("TAGGER_API_KEYS", "secret-key")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret-token")

    running = Decoders(1, lambda: deaths.append(1))
    running.ping()[0].result(timeout=60)
    [environment] = [Path(f"/proc/{pid}/environ").read_bytes() for pid in pids()]
    running.stop()

    assert b"PYTHONPATH" in environment
    assert b"secret" not in environment


def test_a_folder_of_the_same_name_where_it_is_started_is_not_taken_for_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: list[int]
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)

    running = Decoders(1, lambda: deaths.append(1))
    running.ping()[0].result(timeout=60)
    running.stop()

    assert deaths == []


def test_stopping_leaves_no_process(deaths: list[int]) -> None:
    running = Decoders(2, lambda: deaths.append(1))
    for there in running.ping():
        there.result(timeout=60)
    assert len(pids()) == 2

    running.stop()

    assert pids() == []
    assert deaths == []


async def test_requests_do_not_notice_that_decoders_are_killed(tagger: Tagger) -> None:
    async with serving(tagger, decoders=2) as service:
        expected = scores(await service.tag(tune(20)))
        for pid in pids():
            os.kill(pid, signal.SIGKILL)

        answers = [await service.tag(tune(20)) for _ in range(3)]

        assert [scores(answer) for answer in answers] == [expected] * 3
        assert service.metric("music_tagger_decoder_deaths_total") >= 1


async def test_the_memory_of_the_decoders_is_told_as_the_service_s_own_does_not_hold_it(
    tagger: Tagger,
) -> None:
    async with serving(tagger, decoders=1) as one, serving(tagger, decoders=3) as three:
        of_one, of_three = (service.metric("music_tagger_decoder_memory_bytes") for service in (one, three))

        assert 5e6 < of_one < 100e6
        assert 2 < of_three / of_one < 4


async def test_a_form_of_many_clips_opens_no_more_files_than_it_may(service: Service) -> None:
    before = open_files()
    many = [("file", (f"{number}.wav", b"x", "audio/wav")) for number in range(500)]

    single = await service.client.post("/v1/tags", files=many)
    batch = await service.client.post("/v1/tags/batch", files=many)

    check_problem(single, 400, "bad-combination")
    check_problem(batch, 413, "too-many-clips")
    assert open_files() <= before
