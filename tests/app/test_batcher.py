"""The batcher by itself, around a function that is easy to follow: a segment's embedding is its sum."""

import ctypes
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_all
from itertools import chain

import numpy as np
import pytest
from numpy.typing import NDArray

from app.batcher import (
    MOST_FAILURES,
    SEGMENTS_IN_A_ROW,
    Batcher,
    BatchFailedError,
    QueueFullError,
    Row,
    StoppedError,
)
from app.pipeline import Work

PATIENCE_S = 10.0


class Device:
    """Sums rows; can be held, told to fail, and remembers the batches it saw."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Semaphore(0)
        self.failure: Exception | None = None

    def __call__(self, segments: NDArray[np.float32]) -> NDArray[np.float32]:
        self.entered.release()
        while not self.free.is_set():
            time.sleep(0.001)  # in Python, so that an asynchronous exception can strike here
        self.batches.append([float(row[0]) for row in segments])
        if self.failure:
            raise self.failure
        sums: NDArray[np.float32] = segments.sum(axis=1, keepdims=True)
        return sums

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_S)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def exhausted() -> threading.Event:
    return threading.Event()


@pytest.fixture
def batcher(device: Device, exhausted: threading.Event) -> Iterator[Batcher]:
    batcher = Batcher(
        device,
        batch_segments=4,
        batch_wait_s=0.02,
        queue_segments=40,
        max_deaths=2,
        on_exhausted=exhausted.set,
    )
    batcher.start()
    yield batcher
    device.free.set()
    batcher.stop()


def segment(value: float) -> NDArray[np.float32]:
    return np.full(2, value, np.float32)


def answer(future: Future[Row]) -> float:
    return float(future.result(PATIENCE_S).embedding[0])


def kill(thread_id: int | None) -> None:
    """Raise SystemExit inside a running thread: the worker dies wherever it is."""
    assert thread_id is not None
    struck = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread_id), ctypes.py_object(SystemExit)
    )
    assert struck == 1


def test_each_segment_gets_its_own_answer(batcher: Batcher) -> None:
    lane = batcher.admit(20)

    futures = [lane.submit(segment(value)) for value in range(20)]

    assert [answer(future) for future in futures] == [2.0 * value for value in range(20)]


def test_no_batch_is_larger_than_told(batcher: Batcher, device: Device) -> None:
    lane = batcher.admit(20)

    wait_all([lane.submit(segment(value)) for value in range(20)], PATIENCE_S)

    assert max(len(batch) for batch in device.batches) <= 4


def test_a_lone_segment_is_not_kept_waiting_for_company(batcher: Batcher) -> None:
    assert answer(batcher.admit(1).submit(segment(3))) == 6.0


def test_clips_take_turns_so_a_long_one_does_not_starve_a_short_one(batcher: Batcher, device: Device) -> None:
    device.free.clear()
    plug = batcher.admit(1).submit(segment(0))
    device.wait_until_entered()
    long, short = batcher.admit(20), batcher.admit(2)
    futures = [long.submit(segment(1)) for _ in range(20)] + [short.submit(segment(2)) for _ in range(2)]

    device.free.set()
    wait_all([plug, *futures], PATIENCE_S)

    assert list(chain(*device.batches[1:])) == [1] * SEGMENTS_IN_A_ROW + [2, 2] + [1] * 12


def test_clips_of_half_a_minute_are_done_one_after_the_other(batcher: Batcher, device: Device) -> None:
    device.free.clear()
    plug = batcher.admit(1).submit(segment(0))
    device.wait_until_entered()
    clips = [batcher.admit(6) for _ in range(3)]
    futures = [clip.submit(segment(number)) for number, clip in enumerate(clips, 1) for _ in range(6)]

    device.free.set()
    wait_all([plug, *futures], PATIENCE_S)

    assert list(chain(*device.batches[1:])) == [1] * 6 + [2] * 6 + [3] * 6


def test_a_live_segment_comes_before_the_clips_that_wait(batcher: Batcher, device: Device) -> None:
    device.free.clear()
    plug = batcher.admit(1).submit(segment(0))
    device.wait_until_entered()
    clip, stream = batcher.admit(6), batcher.admit(1, live=True)
    futures = [*(clip.submit(segment(1)) for _ in range(6)), stream.submit(segment(2))]

    device.free.set()
    wait_all([plug, *futures], PATIENCE_S)

    assert list(chain(*device.batches[1:])) == [2] + [1] * 6


@pytest.mark.parametrize("batch_segments", [1, 4])
def test_streams_that_never_stand_still_leave_clips_half_of_the_device(
    device: Device, batch_segments: int
) -> None:
    batcher = Batcher(
        device, batch_segments=batch_segments, batch_wait_s=0.02, queue_segments=40, max_deaths=2
    )
    device.free.clear()
    batcher.start()
    plug = batcher.admit(1).submit(segment(0))
    device.wait_until_entered()
    streams = [batcher.admit(1, live=True) for _ in range(8)]
    clip = batcher.admit(4)
    futures = [stream.submit(segment(1)) for stream in streams for _ in range(2)]
    futures += [clip.submit(segment(2)) for _ in range(4)]

    device.free.set()
    wait_all([plug, *futures], PATIENCE_S)
    batcher.stop()

    assert sorted(list(chain(*device.batches[1:]))[:8]) == [1] * 4 + [2] * 4


def test_as_many_batches_are_under_way_as_told(device: Device) -> None:
    batcher = Batcher(
        device, batch_segments=1, batch_wait_s=0, queue_segments=4, max_deaths=2, concurrent_batches=3
    )
    batcher.start()
    device.free.clear()
    lane = batcher.admit(4)

    futures = [lane.submit(segment(value)) for value in range(4)]
    for _ in range(3):
        device.wait_until_entered()

    assert batcher.depth == 1
    assert not device.entered.acquire(timeout=0.05)
    device.free.set()
    assert [answer(future) for future in futures] == [0.0, 2.0, 4.0, 6.0]
    batcher.stop()
    assert not batcher.alive


def test_a_device_with_a_full_queue_of_its_own_is_no_failure(batcher: Batcher, device: Device) -> None:
    device.failure = QueueFullError("come back later")

    refused = batcher.admit(1).submit(segment(1))

    with pytest.raises(QueueFullError, match="come back later"):
        refused.result(PATIENCE_S)


def test_a_failing_batch_fails_only_its_own(batcher: Batcher, device: Device) -> None:
    lane = batcher.admit(8)
    device.failure = RuntimeError("out of memory")
    unlucky = lane.submit(segment(1))
    with pytest.raises(BatchFailedError, match="out of memory"):
        unlucky.result(PATIENCE_S)

    device.failure = None

    assert answer(lane.submit(segment(2))) == 4.0
    assert batcher.alive


def test_a_device_on_which_every_pass_fails_is_given_up(
    batcher: Batcher, device: Device, exhausted: threading.Event
) -> None:
    lane = batcher.admit(8)
    device.failure = RuntimeError("device-side assert")
    for _ in range(MOST_FAILURES):
        assert batcher.alive
        with pytest.raises(BatchFailedError):
            lane.submit(segment(1)).result(PATIENCE_S)

    assert exhausted.wait(PATIENCE_S)
    with pytest.raises(StoppedError):
        lane.submit(segment(2))


def test_passes_that_fail_now_and_then_are_not_the_device_s_end(
    batcher: Batcher, device: Device, exhausted: threading.Event
) -> None:
    lane = batcher.admit(8)
    for _ in range(2):
        device.failure = RuntimeError("out of memory")
        for _ in range(MOST_FAILURES - 1):
            with pytest.raises(BatchFailedError):
                lane.submit(segment(1)).result(PATIENCE_S)
        device.failure = None
        answer(lane.submit(segment(2)))

    assert not exhausted.is_set()


def test_cancelled_segments_are_skipped(batcher: Batcher, device: Device) -> None:
    device.free.clear()
    plug = batcher.admit(1).submit(segment(0))
    device.wait_until_entered()
    lane = batcher.admit(3)
    kept, dropped = lane.submit(segment(1)), lane.submit(segment(2))

    dropped.cancel()
    device.free.set()
    wait_all([plug, kept], PATIENCE_S)

    assert device.batches == [[0], [1]]


def test_a_released_lane_leaves_nothing_behind(batcher: Batcher, device: Device) -> None:
    device.free.clear()
    plug_lane = batcher.admit(1)
    plug = plug_lane.submit(segment(0))
    device.wait_until_entered()
    lane = batcher.admit(39)
    waiting = [lane.submit(segment(1)) for _ in range(5)]
    assert batcher.depth == 5

    lane.release()

    assert batcher.depth == 0
    assert all(future.cancelled() for future in waiting)
    assert batcher.has_room(39)
    device.free.set()
    assert answer(plug) == 0.0


def test_the_queue_is_bounded_in_segments_and_says_when_to_come_back(batcher: Batcher) -> None:
    batcher.admit(30)

    with pytest.raises(QueueFullError):
        batcher.admit(11)

    assert batcher.admit(10)
    assert batcher.retry_after_s() >= 1


def test_room_that_is_not_needed_is_given_back(batcher: Batcher) -> None:
    lane = batcher.admit(40)

    lane.resize(6)

    assert batcher.has_room(34)
    assert not batcher.has_room(35)


def test_what_is_known_to_come_counts_as_work_but_takes_no_room(batcher: Batcher) -> None:
    song, clip = batcher.admit(8), batcher.admit(8)
    assert (batcher.expected, batcher.reserved) == (16, 16)

    song.expect(100)
    clip.expect(3)
    assert (batcher.expected, batcher.reserved) == (103, 16)

    song.expect(50)
    assert batcher.expected == 53
    song.release()
    clip.resize(2)
    assert (batcher.expected, batcher.reserved) == (3, 2)
    clip.release()
    assert (batcher.expected, batcher.reserved) == (0, 0)


def test_a_clip_of_which_nothing_is_known_counts_as_the_last_ones_did_and_as_its_room_at_most(
    batcher: Batcher,
) -> None:
    for segments in (1, 3):
        short = batcher.admit(8)
        short.expect(segments)
        short.release()

    unknown = [batcher.admit(8), batcher.admit(1)]
    assert batcher.expected == 2 + 1

    song = batcher.admit(8)
    song.expect(80)  # counts as 8 in the mean: no clip takes more room
    assert batcher.expected == 80 + 4 + 1
    for lane in (song, *unknown):
        lane.release()
    assert batcher.expected == 0


def test_retry_after_follows_the_measured_rate(batcher: Batcher, device: Device) -> None:
    device.free.clear()
    lane = batcher.admit(1)
    future = lane.submit(segment(1))
    device.wait_until_entered()
    time.sleep(0.3)  # one segment in at least 0.3 s: 40 admitted segments need at least 12 s
    device.free.set()
    answer(future)
    lane.release()

    batcher.admit(40)

    assert 12 <= batcher.retry_after_s() <= 60


def test_a_dead_worker_fails_only_its_batch_and_is_replaced(batcher: Batcher, device: Device) -> None:
    device.free.clear()
    lane = batcher.admit(8)
    in_the_batch = lane.submit(segment(1))
    device.wait_until_entered()
    behind_it = lane.submit(segment(2))
    first_worker = batcher.worker_id

    kill(first_worker)

    with pytest.raises(BatchFailedError, match="SystemExit"):
        in_the_batch.result(PATIENCE_S)
    device.free.set()
    assert answer(behind_it) == 4.0
    assert batcher.alive
    assert batcher.worker_id != first_worker


def test_after_repeated_deaths_it_gives_up_and_says_so(
    batcher: Batcher, device: Device, exhausted: threading.Event
) -> None:
    device.free.clear()
    lane = batcher.admit(8)
    lane.submit(segment(1))
    device.wait_until_entered()
    kill(batcher.worker_id)
    lane.submit(segment(2))
    device.wait_until_entered()
    left_waiting = lane.submit(segment(3))

    kill(batcher.worker_id)

    with pytest.raises(StoppedError):
        left_waiting.result(PATIENCE_S)
    assert exhausted.wait(PATIENCE_S)
    with pytest.raises(StoppedError):
        lane.submit(segment(4))


def test_the_age_of_the_oldest_work_is_seen(batcher: Batcher, device: Device) -> None:
    assert batcher.oldest_wait_s() == 0.0
    device.free.clear()
    future = batcher.admit(1).submit(segment(1))
    device.wait_until_entered()
    time.sleep(0.05)

    assert batcher.oldest_wait_s() >= 0.05

    device.free.set()
    answer(future)


def test_stopping_refuses_what_waits(batcher: Batcher, device: Device) -> None:
    device.free.clear()
    lane = batcher.admit(4)
    running = lane.submit(segment(1))
    device.wait_until_entered()
    waiting = lane.submit(segment(2))

    batcher.stop(0)

    with pytest.raises(StoppedError):
        waiting.result(PATIENCE_S)
    device.free.set()
    assert answer(running) == 2.0


def test_workers_that_die_now_and_then_are_replaced_for_ever(
    batcher: Batcher, device: Device, exhausted: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.batcher.DEATHS_WINDOW_S", 0.0)  # each death is long after the one before
    lane = batcher.admit(8)
    for _ in range(3):
        device.free.clear()
        doomed = lane.submit(segment(1))
        device.wait_until_entered()
        kill(batcher.worker_id)
        with pytest.raises(BatchFailedError):
            doomed.result(PATIENCE_S)
        device.free.set()

    assert not exhausted.is_set()
    assert answer(lane.submit(segment(2))) == 4.0


def test_a_full_queue_of_the_device_is_never_its_end(
    batcher: Batcher, device: Device, exhausted: threading.Event
) -> None:
    lane = batcher.admit(8)
    device.failure = QueueFullError("come back later")
    for _ in range(MOST_FAILURES + 1):
        with pytest.raises(QueueFullError):
            lane.submit(segment(1)).result(PATIENCE_S)

    assert not exhausted.is_set()


def test_a_clip_gets_no_more_room_than_it_asked_for(batcher: Batcher) -> None:
    lane = batcher.admit(8)
    lane.resize(6)

    lane.resize(20)

    assert batcher.reserved == 6


def test_what_is_known_to_come_counts_in_the_time_to_come_back_which_is_bounded(
    batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(batcher.admit(1).submit(segment(1)))
    song = batcher.admit(8)
    before_s = batcher.backlog_s()

    song.expect(8_000_000)

    assert batcher.backlog_s() > 1000 * before_s
    monkeypatch.setattr("app.batcher.MAX_RETRY_AFTER_S", 1)
    assert batcher.retry_after_s() == 1


def test_a_segment_tells_its_wait_and_its_share_of_the_pass(batcher: Batcher, device: Device) -> None:
    device.free.clear()
    lane = batcher.admit(8)
    lane.submit(segment(0))
    device.wait_until_entered()
    pending = [lane.submit(segment(value)) for value in range(4)]
    time.sleep(0.3)
    device.free.set()

    rows = [future.result(PATIENCE_S) for future in pending]

    assert all(row.queued_s >= 0.3 for row in rows)
    assert all(row.inference_s < 0.1 for row in rows)


def test_two_long_clips_take_turns_to_their_end(batcher: Batcher, device: Device) -> None:
    device.free.clear()
    plug = batcher.admit(1).submit(segment(0))
    device.wait_until_entered()
    clips = [batcher.admit(19) for _ in range(2)]
    futures = [clip.submit(segment(number)) for number, clip in enumerate(clips, 1) for _ in range(19)]

    device.free.set()
    wait_all([plug, *futures], PATIENCE_S)

    turn = SEGMENTS_IN_A_ROW
    assert list(chain(*device.batches[1:])) == 2 * ([1] * turn + [2] * turn) + [1] * (19 - 2 * turn) + [2] * (
        19 - 2 * turn
    )


def test_a_clip_waited_as_long_as_its_last_segment_and_computed_as_long_as_all() -> None:
    rows = [Row(np.zeros(1, np.float32), queued_s, 0.5) for queued_s in (1.0, 3.0, 2.0)]

    work = Work(waited_for_decoder_s=0.25, rows=rows)

    assert (work.queue_s, work.inference_s) == (3.25, 1.5)
