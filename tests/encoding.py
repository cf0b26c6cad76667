"""Encode an array to every format that the tagger promises to read, with PyAV: no test needs another tool.

An encoding is a container, a codec and what each needs; `ENCODINGS` names those that are promised.
"""

import io
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way to write a clip.

    `found_format` and `found_codec` are what `AudioInfo` must say of it. `lossless` tells whether samples
    come back as they were, but for their rounding. At most `delay_samples` come in front of them, and at most
    `padding_samples` are added in all.
    """

    container: str
    codec: str
    found_format: str
    found_codec: str
    lossless: bool = False
    delay_samples: int = 0
    padding_samples: int = 0
    bit_rate: int | None = None
    options: dict[str, str] = field(default_factory=dict)
    only_stereo: bool = False


# MP3, Vorbis, Opus and MP4 note their encoder's delay, so that decoders remove it, but MP4 does not note how
# much its last frame is padded. A bare ADTS stream notes nothing.
ENCODINGS = {
    "wav-s16": Encoding("wav", "pcm_s16le", "wav", "pcm_s16le", lossless=True),
    "wav-s24": Encoding("wav", "pcm_s24le", "wav", "pcm_s24le", lossless=True),
    "wav-f32": Encoding("wav", "pcm_f32le", "wav", "pcm_f32le", lossless=True),
    "flac": Encoding("flac", "flac", "flac", "flac", lossless=True),
    "aiff": Encoding("aiff", "pcm_s16be", "aiff", "pcm_s16be", lossless=True),
    "mp3": Encoding("mp3", "libmp3lame", "mp3", "mp3", bit_rate=192_000),
    "ogg-vorbis": Encoding(
        "ogg", "vorbis", "ogg", "vorbis", padding_samples=64, bit_rate=192_000, only_stereo=True
    ),
    "ogg-opus": Encoding("ogg", "libopus", "ogg", "opus", padding_samples=960, bit_rate=160_000),
    "webm-opus": Encoding("webm", "libopus", "webm", "opus", padding_samples=960, bit_rate=160_000),
    "m4a-index-last": Encoding("ipod", "aac", "m4a", "aac", padding_samples=1024, bit_rate=192_000),
    "m4a-index-first": Encoding(
        "ipod", "aac", "m4a", "aac", padding_samples=1024, bit_rate=192_000, options={"movflags": "faststart"}
    ),
    "aac-adts": Encoding(
        "adts", "aac", "aac", "aac", delay_samples=1024, padding_samples=2048, bit_rate=192_000
    ),
}

# What else the decoder lets in and PyAV can write: none of it is promised, all of it must be borne.
RARE_ENCODINGS = {
    "caf-alac": Encoding("caf", "alac", "caf", "alac", lossless=True),
    "au": Encoding("au", "pcm_alaw", "au", "pcm_alaw"),
    "w64": Encoding("w64", "pcm_f64le", "w64", "pcm_f64le", lossless=True),
    "wav-adpcm-ms": Encoding("wav", "adpcm_ms", "wav", "adpcm_ms"),
    "wav-adpcm-ima": Encoding("wav", "adpcm_ima_wav", "wav", "adpcm_ima_wav"),
    "mov-adpcm-qt": Encoding("mov", "adpcm_ima_qt", "m4a", "adpcm_ima_qt"),
    "mov-eac3": Encoding("mov", "eac3", "m4a", "eac3", bit_rate=192_000),
    "webm-ac3": Encoding("matroska", "ac3", "webm", "ac3", bit_rate=192_000),
    "webm-wavpack": Encoding("matroska", "wavpack", "webm", "wavpack", lossless=True),
    "m4a-fragments": Encoding(
        "ipod",
        "aac",
        "m4a",
        "aac",
        padding_samples=1024,
        bit_rate=192_000,
        options={"movflags": "frag_keyframe+empty_moov", "frag_duration": "1000000"},
    ),
    "mp2": Encoding("mp2", "mp2", "mp3", "mp2", bit_rate=192_000),
}
ALL_ENCODINGS = {**ENCODINGS, **RARE_ENCODINGS}


def decode(path: Path) -> NDArray[np.float32]:
    """A clip as PyAV alone decodes it, with its own rate and channels: [channels, samples]."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.concatenate(frames, axis=1).astype(np.float32)


def nearest_rate_hz(encoding: str, rate_hz: int) -> int:
    """The rate nearest to `rate_hz` that the codec of `encoding` can store."""
    rates = av.Codec(ALL_ENCODINGS[encoding].codec, "w").audio_rates
    return min(rates or [rate_hz], key=lambda rate: abs(rate - rate_hz))


def encode(
    audio: NDArray[np.float32], rate_hz: int, encoding: str, metadata: dict[str, str] | None = None
) -> bytes:
    """Store `audio` [channels, samples] at `rate_hz` as `encoding`, at the nearest rate of its codec."""
    how = ALL_ENCODINGS[encoding]
    if how.only_stereo and len(audio) == 1:
        audio = np.repeat(audio, 2, axis=0)
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(audio)]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio, dtype=np.float32), "fltp", layout)
    frame.sample_rate = rate_hz
    frame.pts, frame.time_base = 0, Fraction(1, rate_hz)  # without it MP4 does not note the encoder's delay
    # Moving an MP4's index to its front needs a real file that can be read again.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip")
        with av.open(str(path), "w", format=how.container, options=how.options) as container:
            container.metadata.update(metadata or {})
            stream = container.add_stream(how.codec, rate=nearest_rate_hz(encoding, rate_hz), layout=layout)
            assert isinstance(stream, av.AudioStream)
            if how.bit_rate:
                stream.bit_rate = how.bit_rate
            # FFmpeg's own Vorbis encoder, the only one in PyAV, takes stereo only and is marked experimental.
            if how.only_stereo:
                stream.codec_context.options = {"strict": "experimental"}
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()


class Pipe(io.RawIOBase):
    """Bytes that can be read only once, from front to end and at most so many at a time, as from a stream."""

    def __init__(self, data: bytes, most: int = 1000) -> None:
        self._data = io.BytesIO(data)
        self._most = most

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """None at the end."""
        return self._data.read(min(size, self._most))
