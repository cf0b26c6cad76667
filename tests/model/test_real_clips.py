"""The shipped tagger on real music: what a listener would say, whatever the format."""

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from model.tagger import Tagger
from tests.encoding import ENCODINGS, decode, encode, nearest_rate_hz

MUSIC = ("sung_pop", "club_track", "orchestral_cue")
RATE_HZ = 48_000
SAME = {"sung_pop": 0.2, "club_track": 0.1, "orchestral_cue": 0.05}
"""How far scores of one clip may lie apart from lossy format to lossy format. The sung clip's voice is
synthetic and its scores are near one half, where the sigmoid is steepest: 10 ms move them by up to 0.13. The
club track's soundtrack goes from 0.11 to 0.17 in ADTS, which does not say where sound begins."""


@pytest.fixture(scope="module")
def expected(tagger: Tagger, clips: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Scores of the clips as they lie there."""
    return {name: tagger.tag(clips[name]).scores for name in MUSIC}


def resample(audio: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """[channels, samples] at 48 kHz -> at another rate, by FFmpeg."""
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(audio), "fltp", "stereo" if len(audio) == 2 else "mono"
    )
    frame.sample_rate = RATE_HZ
    resampler = av.AudioResampler("fltp", frame.layout, rate_hz)
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray() for part in frames], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("clip", "yes", "no"),
    [
        ("sung_pop", {"vocal", "pop"}, {"dance"}),
        ("club_track", {"dance"}, {"vocal", "pop"}),
        ("orchestral_cue", {"soundtrack"}, {"vocal", "dance", "pop"}),
        ("speech", set(), {"dance", "soundtrack", "pop"}),
    ],
)
def test_clips_get_the_tags_that_a_listener_would_give(
    tagger: Tagger, clips: dict[str, Path], clip: str, yes: set[str], no: set[str]
) -> None:
    scores = tagger.tag(clips[clip]).scores

    present = {tag for tag, score in scores.items() if score >= tagger.bundle.thresholds[tag]}
    assert yes <= present
    assert not no & present
    assert all(scores[tag] > 0.5 for tag in yes)


@pytest.mark.parametrize("clip", MUSIC)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_format_gives_the_same_scores(
    tagger: Tagger, clips: dict[str, Path], expected: dict[str, dict[str, float]], clip: str, encoding: str
) -> None:
    audio = decode(clips[clip])

    scores = tagger.tag(encode(audio, RATE_HZ, encoding)).scores

    tolerance = 0.05 if ENCODINGS[encoding].lossless else SAME[clip]
    assert scores == pytest.approx(expected[clip], abs=tolerance)


@pytest.mark.parametrize("clip", MUSIC)
@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_rate_and_layout_gives_the_same_scores(
    tagger: Tagger,
    clips: dict[str, Path],
    expected: dict[str, dict[str, float]],
    clip: str,
    rate_hz: int,
    channels: int,
) -> None:
    audio = decode(clips[clip])
    layout = audio.mean(0, keepdims=True) if channels == 1 else np.resize(audio, (2, audio.shape[1]))

    scores = tagger.tag(encode(resample(layout, rate_hz), rate_hz, "flac")).scores

    assert scores == pytest.approx(expected[clip], abs=0.05)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_telephone_rate_is_tagged_though_it_lacks_the_upper_half(
    tagger: Tagger, song: NDArray[np.float32], encoding: str
) -> None:
    rate_hz = nearest_rate_hz(encoding, 8_000)

    tagging = tagger.tag(encode(resample(song, rate_hz), rate_hz, encoding))

    assert tagging.audio.analysed_s == pytest.approx(song.shape[1] / RATE_HZ, abs=0.3)
    assert tagging.scores["vocal"] > tagging.scores["dance"]


def test_a_truncated_clip_is_tagged_on_what_is_left(tagger: Tagger, clips: dict[str, Path]) -> None:
    whole = encode(decode(clips["club_track"]), RATE_HZ, "mp3")

    tagging = tagger.tag(whole[: len(whole) // 2])

    assert 5.0 < tagging.audio.analysed_s < 8.0
    assert max(tagging.scores, key=lambda tag: tagging.scores[tag]) == "dance"
