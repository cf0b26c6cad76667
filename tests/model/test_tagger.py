"""The tagger: segments, windows, pooling, and one clip given in every way."""

import io
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.audio import (
    SILENCE_PEAK,
    AudioInfo,
    AudioReader,
    AudioTooLongError,
    AudioTooShortError,
    SilentAudioError,
    read_audio,
)
from model.bundle import Calibration, load_bundle
from model.network import SEGMENT_SAMPLES
from model.segments import TAIL_PARTS, cut_segments
from model.tagger import (
    HEAD_BATCH,
    LEAST_SOUNDING,
    DeviceError,
    Tagger,
    choose_device,
    pool_logits,
    score,
    sounding,
    weighted_window_means,
    window_means,
)
from model.tags import TAGS


def chords(seconds: float, rate: int = 16_000) -> NDArray[np.float32]:
    """A few decaying chords: music enough to have scores."""
    time = np.arange(int(seconds * rate)) / rate
    notes = np.array([220.0, 277.2, 329.6])[:, None] * (1 + (time // 2 % 3) / 4)
    decay = np.exp(-(time % 0.5) * 4)
    samples: NDArray[np.float64] = 0.2 * decay * np.sin(2 * np.pi * notes * time).sum(0)
    return samples.astype(np.float32)


def wav(samples: NDArray[np.float32], rate: int = 16_000) -> bytes:
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return sink.getvalue()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4 * SEGMENT_SAMPLES), st.integers(0, 2**32 - 1))
def test_segments_cover_the_clip_however_it_is_chunked(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    audio = np.arange(1, length + 1, dtype=np.float32)
    cuts = np.sort(rng.integers(0, length + 1, 7))

    segments = list(cut_segments(np.split(audio, cuts), SEGMENT_SAMPLES))

    whole, tail = divmod(length, SEGMENT_SAMPLES)
    assert all(segment.shape == (SEGMENT_SAMPLES,) for segment in segments)
    np.testing.assert_array_equal(
        np.concatenate([*segments[:whole], audio[:0]]), audio[: whole * SEGMENT_SAMPLES]
    )
    assert len(segments) == max(1, whole + (tail > SEGMENT_SAMPLES // TAIL_PARTS))
    if whole and tail > SEGMENT_SAMPLES // TAIL_PARTS:
        np.testing.assert_array_equal(segments[-1], audio[-SEGMENT_SAMPLES:])
    if not whole:
        np.testing.assert_array_equal(segments[0], np.resize(audio, SEGMENT_SAMPLES))


def test_no_audio_has_no_segments() -> None:
    assert list(cut_segments([], SEGMENT_SAMPLES)) == []
    assert list(cut_segments([np.empty(0, np.float32)], SEGMENT_SAMPLES)) == []


def test_a_window_is_the_mean_of_two_segments() -> None:
    embeddings = np.array([[0.0, 2.0], [4.0, 2.0], [8.0, 0.0]], np.float32)

    np.testing.assert_array_equal(window_means(embeddings), [[2.0, 2.0], [6.0, 1.0]])
    np.testing.assert_array_equal(window_means(embeddings[:1]), embeddings[:1])


def test_how_much_of_a_segment_sounds_is_told_in_tenths_of_a_second() -> None:
    silent, half, loud = (np.zeros(SEGMENT_SAMPLES, np.float32) for _ in range(3))
    silent += SILENCE_PEAK / 2  # dither
    half[: SEGMENT_SAMPLES // 2 : 1600] = -SILENCE_PEAK * 1.01
    loud[800::1600] = 1.0

    np.testing.assert_allclose(sounding(np.stack([silent, half, loud])), [[LEAST_SOUNDING], [0.5], [1.0]])


def test_silence_has_no_say_in_a_window_nor_in_a_clip() -> None:
    heard = np.array([[2.0, 1.0], [4.0, 1.0], [9.0, LEAST_SOUNDING], [9.0, LEAST_SOUNDING]], np.float32)

    windows, weights = weighted_window_means(heard)

    np.testing.assert_allclose(windows, [[3.0], [4.0], [9.0]])
    np.testing.assert_allclose(weights, [1.0, 0.5, 0.0], atol=1e-6)
    assert pool_logits(np.array([3.0, 4.0, -9.0]), -1.0, weights) == pytest.approx(
        -np.log((2 * np.exp(-3.0) + np.exp(-4.0)) / 3), abs=1e-3
    )


def test_where_all_sounds_windows_are_plain_means() -> None:
    heard = np.random.default_rng(0).standard_normal((5, 8), np.float32)
    heard[:, -1] = 1.0

    windows, weights = weighted_window_means(heard)

    np.testing.assert_array_equal(windows, window_means(heard[:, :-1]))
    np.testing.assert_array_equal(weights, np.ones(4))


@pytest.mark.parametrize("place", ["before", "within", "behind"])
def test_silence_hardly_moves_a_score(tagger: Tagger, clips: dict[str, Path], place: str) -> None:
    music, _ = read_audio(clips["orchestral_cue"])
    index = {"before": 0, "within": 2 * SEGMENT_SAMPLES, "behind": len(music)}[place]

    plain = tagger.tag(wav(music)).scores
    padded = tagger.tag(wav(np.insert(music, index, np.zeros(2 * SEGMENT_SAMPLES, np.float32)))).scores

    assert padded == pytest.approx(plain, abs=0.1)  # were silence music, soundtrack would fall by 0.2 to 0.5


def test_pooling_goes_from_the_minimum_over_the_mean_to_the_maximum() -> None:
    logits = np.array([-2.0, 0.0, 5.0])

    pooled = [pool_logits(logits, sharpness) for sharpness in (-1000.0, -1.0, -0.01, 0.0, 0.01, 1.0, 1000.0)]

    assert pooled == sorted(pooled)
    assert pooled[0] == pytest.approx(-2.0, abs=0.01)
    assert pooled[1] == pytest.approx(-np.log(np.exp(-logits).mean()))
    assert pooled[3] == pytest.approx(1.0)
    assert pooled[5] == pytest.approx(np.log(np.exp(logits).mean()))
    assert pooled[6] == pytest.approx(5.0, abs=0.01)


def test_calibration_is_a_line_before_the_sigmoid() -> None:
    assert score(np.array(2.0), Calibration(0.0, 3.0, -6.0)) == pytest.approx(0.5)
    assert score(np.array(-1000.0), Calibration()) == pytest.approx(0.0)


def test_a_clip_gives_the_same_tagging_as_path_bytes_and_file(tagger: Tagger, tmp_path: Path) -> None:
    data = wav(chords(12.0))
    path = tmp_path / "a.bin"
    path.write_bytes(data)

    taggings = [tagger.tag(source) for source in (path, str(path), data, io.BytesIO(data))]

    assert all(tagging == taggings[0] for tagging in taggings)
    assert tuple(taggings[0].scores) == TAGS
    assert all(0.0 <= value <= 1.0 for value in taggings[0].scores.values())


def test_scores_are_separate_questions_and_do_not_sum_to_one(tagger: Tagger) -> None:
    scores = tagger.tag(wav(chords(12.0))).scores

    assert sum(scores.values()) != pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("seconds", "windows"),
    [
        (1.0, [(0.0, 1.0)]),
        (5.0, [(0.0, 5.0)]),
        (7.0, [(0.0, 7.0)]),
        (10.0, [(0.0, 10.0)]),
        (21.0, [(0.0, 10.0), (5.0, 15.0), (10.0, 20.0), (15.0, 21.0)]),
    ],
)
def test_the_timeline_is_ten_seconds_every_five(
    tagger: Tagger, seconds: float, windows: list[tuple[float, float]]
) -> None:
    tagging = tagger.tag(wav(chords(seconds)))

    found = [(window.start_s, window.end_s) for window in tagging.windows]
    np.testing.assert_allclose(found, windows, atol=0.01)


def test_the_timeline_of_a_part_is_in_seconds_of_the_clip(tagger: Tagger) -> None:
    samples = chords(30.0)

    part = tagger.tag(wav(samples), start_s=10.0, duration_s=10.0)
    cut = tagger.tag(wav(samples[160_000:320_000]))

    np.testing.assert_allclose([(w.start_s, w.end_s) for w in part.windows], [(10.0, 20.0)], atol=0.01)
    assert part.scores == pytest.approx(cut.scores, abs=0.01)


def test_bad_clips_raise_and_the_next_good_one_works(tagger: Tagger) -> None:
    good = wav(chords(3.0))
    before = tagger.tag(good)

    with pytest.raises(SilentAudioError):
        tagger.tag(wav(np.zeros(48_000, np.float32)))
    with pytest.raises(AudioTooShortError):
        tagger.tag(wav(chords(0.05)))

    assert tagger.tag(good) == before


def test_three_steps_for_a_service_equal_one_call(tagger: Tagger) -> None:
    data = wav(chords(23.0))
    with AudioReader(data) as reader:
        embeddings = np.concatenate([tagger.embed(segment[None]) for segment in tagger.segments(reader)])
        tagging = tagger.finish(embeddings, reader.info)

    whole = tagger.tag(data)

    assert tagging.scores == pytest.approx(whole.scores, abs=1e-4)
    assert tagging.audio == whole.audio


@pytest.mark.parametrize("segments", [1, 2, HEAD_BATCH, HEAD_BATCH + 1, HEAD_BATCH + 2, 2 * HEAD_BATCH + 7])
def test_a_long_clip_is_finished_in_parts_as_if_it_were_whole(tagger: Tagger, segments: int) -> None:
    rng = np.random.default_rng(segments)
    heard = tagger.embed(rng.uniform(-0.1, 0.1, (2, tagger.segment_samples)).astype(np.float32))
    long = heard[rng.integers(2, size=segments)]
    long[:, -1] = rng.uniform(0.1, 1.0, segments)
    audio = AudioInfo("wav", "pcm", 16_000, 1, 5.0 * segments, 5.0 * segments)

    tagging = tagger.finish(long, audio)

    windows, weights = weighted_window_means(long)
    whole = tagger.conclude(tagger.classify(windows), weights, audio)
    assert len(tagging.windows) == max(1, segments - 1)
    assert tagging.scores == pytest.approx(whole.scores, abs=1e-6)
    for window, expected in zip(tagging.windows, whole.windows, strict=True):
        assert window.scores == pytest.approx(expected.scores, abs=1e-6)


def test_an_unknown_or_absent_device_is_refused_with_what_there_is() -> None:
    absent = [] if torch.cuda.is_available() else ["cuda"]
    for device in ("abacus", "cpu:x", "cpu:1", "cuda:99", "meta", *absent):
        with pytest.raises(DeviceError, match=f"no device '{device}' here.*cpu"):
            choose_device(device)
    assert choose_device("cpu").type == "cpu"


def test_the_trunk_of_one_tagger_may_be_the_engine_of_another(tagger: Tagger) -> None:
    class Elsewhere:
        name, precision = "elsewhere", "fp32"

        def __call__(self, segments: NDArray[np.float32]) -> NDArray[np.float32]:
            return tagger.trunk(segments)

    other = Tagger(*load_bundle(), torch.device("cpu"), Elsewhere())

    assert other.tag(wav(chords(12.0))) == tagger.tag(wav(chords(12.0)))


def test_how_short_and_how_long_a_clip_may_be_is_the_caller_s_choice(tagger: Tagger) -> None:
    with pytest.raises(AudioTooShortError):
        tagger.tag(wav(chords(2.0)), min_s=3.0)
    with pytest.raises(AudioTooLongError):
        tagger.tag(wav(chords(2.0)), max_s=1.5)
