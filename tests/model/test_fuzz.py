"""A small part of the fuzzing, always the same, and the proof that the fuzzer finds what it looks for.

`python -m tests.fuzz` does the large part.
"""

import os
import random
from pathlib import Path

import pytest

from tests import fuzz
from tests.fuzz import input_of, sources

INPUTS = 300


def test_no_damaged_clip_crashes_hangs_or_leaks() -> None:
    report = fuzz.fuzz(range(INPUTS), seed=7)

    assert report.failures == []
    assert sum(report.kinds.values()) == INPUTS
    assert report.kinds["decoded"] > INPUTS / 10  # enough of the damage gets past the container
    assert report.before is not None
    assert report.after is not None
    assert report.after.rss_mb - report.before.rss_mb < 10
    assert (report.after.threads, report.after.files) == (report.before.threads, report.before.files)


def misbehave(_: bytes, rng: random.Random) -> None:
    """Fail as native code might, in a way that the input's dice choose."""
    way = rng.choice(["abort", "spin", "raise", "decode"])
    if way == "abort":
        os.abort()
    while way == "spin":
        pass
    if way == "raise":
        raise MemoryError


def test_a_crash_a_hang_and_a_stray_exception_are_found_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "KEPT", tmp_path)
    ways = [input_of(3, number)[2].choice(["crash", "hang", "MemoryError", "decoded"]) for number in range(8)]
    assert set(ways) == {"crash", "hang", "MemoryError", "decoded"}

    report = fuzz.fuzz(range(8), seed=3, read=misbehave)

    assert report.kinds == {way: ways.count(way) for way in ways}
    failed = [number for number, way in enumerate(ways) if way != "decoded"]
    assert [failure.number for failure in report.failures] == failed
    assert {path.name for path in tmp_path.iterdir()} == {f"3-{number}.bin" for number in failed}
    assert (tmp_path / f"3-{failed[0]}.bin").read_bytes() == input_of(3, failed[0])[1]


def test_inputs_follow_from_the_seed_and_their_number() -> None:
    assert input_of(1, 5)[:2] == input_of(1, 5)[:2] != input_of(1, 6)[:2]
    assert len(sources()) >= 20
