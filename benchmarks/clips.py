"""Clips to measure with: the page's samples, joined and repeated to any length, in every promised format."""

import io
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

RATE_HZ: Final = 44_100
SAMPLES: Final = Path(__file__).parents[1] / "app" / "web" / "samples"

# A format by its name: container, codec, bits a second.
ENCODINGS: Final = {
    "mp3": ("mp3", "libmp3lame", 192_000),
    "ogg-vorbis": ("ogg", "vorbis", 192_000),
    "ogg-opus": ("ogg", "libopus", 160_000),
    "m4a": ("ipod", "aac", 192_000),
    "aac": ("adts", "aac", 192_000),
    "webm-opus": ("webm", "libopus", 160_000),
    "flac": ("flac", "flac", None),
    "wav": ("wav", "pcm_s16le", None),
    "aiff": ("aiff", "pcm_s16be", None),
}


@cache
def make_clip(seconds: float, encoding: str) -> bytes:
    """A clip of that length as `encoding` (of `ENCODINGS`): stereo at 44.1 kHz, or 48 kHz in Opus."""
    music = _music()
    samples = round(seconds * RATE_HZ)
    return _encode(np.tile(music, -(-samples // music.shape[1]))[:, :samples], encoding)


def make_silence(seconds: float) -> bytes:
    """Digital silence of that length, as WAV."""
    return _encode(np.zeros((2, round(seconds * RATE_HZ)), np.float32), "wav")


def make_song(hours: float, kbit_s: int) -> bytes:
    """A long MP3, a minute short of that: one minute's frames over and over, as encoding all takes long."""
    minute = _encode(np.tile(_music(), 4)[:, : 60 * RATE_HZ], "mp3", {"write_xing": "0"}, 1000 * kbit_s)
    return minute * (round(60 * hours) - 1)  # each has some milliseconds more than a minute


@cache
def _music() -> NDArray[np.float32]:
    return np.concatenate([_decode(path) for path in sorted(SAMPLES.glob("*.opus"))], axis=1)


def _decode(path: Path) -> NDArray[np.float32]:
    resampler = AudioResampler("fltp", "stereo", RATE_HZ)
    with av.open(str(path)) as container:
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1).astype(np.float32)


def _encode(
    audio: NDArray[np.float32],
    encoding: str,
    options: dict[str, str] | None = None,
    bit_rate: int | None = None,
) -> bytes:
    container_name, codec, usual_bit_rate = ENCODINGS[encoding]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio), "fltp", "stereo")
    frame.sample_rate = RATE_HZ
    frame.pts, frame.time_base = 0, Fraction(1, RATE_HZ)
    clip = io.BytesIO()
    with av.open(clip, "w", format=container_name, options=options or {}) as container:
        rates = av.Codec(codec, "w").audio_rates
        rate_hz = min(rates or [RATE_HZ], key=lambda rate: abs(rate - RATE_HZ))
        stream = container.add_stream(codec, rate=rate_hz, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        if chosen_bit_rate := bit_rate or usual_bit_rate:
            stream.bit_rate = chosen_bit_rate
        stream.codec_context.options = {"strict": "experimental"}  # FFmpeg's own Vorbis encoder is marked so
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return clip.getvalue()
