"""Clip in, mono float32 samples out: streamed, bounded in time and memory, a typed error for each failure.

FFmpeg (through PyAV) decodes. What a clip is, is told by its content: FFmpeg gets bytes without a name, may
only take them for one of the containers of `_CONTAINERS`, may only run the decoders of `_DECODERS`, and may
open nothing else, so that a hostile upload (a playlist, a list of files, a text format) reaches neither files
nor the network.
"""

import hashlib
import io
import math
import re
import struct
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, groupby, pairwise
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from numpy.typing import NDArray

Source = str | Path | bytes | BinaryIO

MOST_S = 1_000_000
"""The furthest second of a clip that can be named: FFmpeg's 64-bit time stamps end, and no clip is longer."""

# FFmpeg's name of a container -> the name in AudioInfo.
_CONTAINERS = {
    "wav": "wav",
    "flac": "flac",
    "mp3": "mp3",
    "ogg": "ogg",
    "mov,mp4,m4a,3gp,3g2,mj2": "m4a",
    "matroska,webm": "webm",
    "aiff": "aiff",
    "aac": "aac",
    "caf": "caf",
    "au": "au",
    "w64": "w64",
}
# Decoders that these containers need. With this list FFmpeg also leaves pictures and film alone.
_DECODERS = frozenset(
    ["aac", "ac3", "alac", "eac3", "flac", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "opus"]
    + ["adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "gsm_ms", "speex", "vorbis", "wavpack"]
    + [name for name in av.codecs_available if name.startswith("pcm_")]
)
# Beginnings of the containers above. They tell damaged audio from what is no audio, when FFmpeg gives up.
_MAGIC = re.compile(
    rb"RIFF....WAVE|RF64....WAVE|fLaC|OggS|ID3|....(?:ftyp|moov|mdat)|\x1aE\xdf\xa3"
    rb"|FORM....AIF[FC]|caff|\.snd|riff\x2e\x91\xcf\x11|\xff[\xe2\xe3\xf0-\xf3\xf8-\xfb]",
    re.DOTALL,
)
_HEAD_BYTES = 16

# A seek lands near its aim, and decoders need a run-up (AAC one frame, MP3 its bit reservoir, Opus 80 ms);
# reading on is cheap. So aim early, and do not seek for less than this.
_SEEK_AHEAD_S = 2.0
_SEEK_FROM_S = 10.0
# Containers whose time stamps say to the sample where a seek landed: WebM's are off by the codec's delay, and
# ADTS has none. After a seek, a chained Ogg (a radio's recording) seems to end with its first link.
_SEEK_EXACT = frozenset({"flac", "mp3", "m4a", "aiff", "caf", "au"})
# These FFmpeg seeks by the bytes per second of the header, which may be wrong, and are but a mean for ADPCM.
_SEEK_BY_BIT_RATE = frozenset({"wav", "w64"})

SILENCE_PEAK = 10 ** (-70 / 20)
"""-70 dBFS: above the dither of 16-bit silence (-84 dBFS), below any music."""
_GARBAGE_PEAK = 2.0**20  # of a broken float
_SCALED_PEAK = 2.0**5  # 30 dB above full scale: floats that are scaled as integers of 16 bits peak at 2**15
_SCALED_SHARE = 0.1  # of the samples above that; some may be broken
_LENGTH_TOLERANCE_S = 0.01  # what a codec or the resampler may take off a clip of just the shortest length
_SOURCE_RATES_HZ = range(4_000, 768_001)  # outside, a small file could blow up by resampling
_MAX_CHANNELS = 64  # what FFmpeg's channel mixer takes
_MAX_DEMUX_ERRORS = 64  # a container that stumbles again and again has nothing more to give
_IO_BUFFER_BYTES = 1 << 17
_BLOCK_S = 1.0  # asking the mixer after every frame would cost more than all its arithmetic
_LIVE_BLOCK_S = 0.1
_LIVE_PROBE_US = 1_000_000  # FFmpeg would listen for up to 5 s before it hands out the first sample
_ENDLESS = 0xFFFFFFFF  # a length in a WAV that is still being written


class AudioError(ValueError):
    """A clip that cannot be used. `str(error)` says what is wrong, `error.hint` what to do next."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Cross from one process to another with both words."""
        return type(self), (str(self), self.hint)


class EmptyAudioError(AudioError):
    """The clip has no byte."""


class NotAudioError(AudioError):
    """The clip is in no known audio format, holds no sound track, or needs a decoder that is not there."""


class UndecodableAudioError(AudioError):
    """The clip is in a known format, but nothing in it can be decoded."""


class AudioTooShortError(AudioError):
    """The clip, or the chosen part of it, is shorter than `min_s`."""


class AudioTooLongError(AudioError):
    """The clip, or the chosen part of it, is longer than `max_s`."""


class SilentAudioError(AudioError):
    """The clip, or the chosen part of it, never rises above -70 dBFS."""


_FORMATS_HINT = "Send a WAV, FLAC, MP3, OGG, Opus, M4A, AAC, WebM or AIFF file with a sound track."
_DAMAGED = "The clip is damaged or cut off before its sound."
_DAMAGED_HINT = "Play the file to check it, then export or upload it again as a whole."


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What was found in a clip.

    `format` is the container (wav, flac, mp3, ogg, m4a, webm, aiff, aac, caf, au, w64) and `codec` FFmpeg's
    name of the codec in it (pcm_s16le, mp3, vorbis, opus, aac ...). `sample_rate_hz` and `channels` are the
    source's. `duration_s` is the length of the whole clip in seconds: as decoded if it was decoded to its
    end, else as the container claims. `analysed_s` is the length of what was handed out, in seconds.
    """

    format: str
    codec: str
    sample_rate_hz: int
    channels: int
    duration_s: float
    analysed_s: float


class AudioReader:
    """Decodes one clip into mono chunks; the memory it needs does not grow with the length.

    Use it as a context manager and iterate it once. Chunks are float32 arrays [samples] of arbitrary lengths
    at `sample_rate_hz`; they are empty while it decodes what is left out at the start, so that whoever
    iterates can turn to something else after every second of that. Samples are nominally in [-1, 1]: float
    files and lossy codecs may exceed that and are not clipped. The mean of the channels is taken, which
    leaves dual mono at its level (FFmpeg's own downmix adds 3 dB). It is taken before resampling: both are
    linear, so the order changes nothing but the cost. Samples that are not finite become 0. Damaged stretches
    are left out and reading goes on behind them: what follows counts as heard that much earlier.

    Args:
        source: a path, the bytes, or a binary file object, which is left open. One that can seek is read from
            its start; one that cannot works, too, but not for an M4A whose index is at its end.
        sample_rate_hz: rate of the chunks.
        start_s: seconds to leave out at the start.
        duration_s: seconds to read; None reads to the end. A clip that ends earlier is fine.
        min_s: what is handed out must be at least this long (10 ms of tolerance).
        max_s: what is handed out may be at most this long, counted while decoding, whatever the file claims.
            So a clip longer than `max_s` is refused as a whole, but a part of it that fits can be read. Where
            the format allows no seeking, what is left out at the start may not be longer than this either.
        live: the clip is still going on: each second of it is handed out within 0.1 s of having been read to
            its end, for some more work.

    Raises:
        EmptyAudioError, NotAudioError, UndecodableAudioError: on opening.
        UndecodableAudioError, AudioTooShortError, AudioTooLongError, SilentAudioError: on iterating; too
            short and silent are known at the end only.
        OSError: the path or file object cannot be read.
        ValueError: an argument out of its range.
    """

    info: AudioInfo
    """What is known of the clip; complete when the iteration has ended."""

    def __init__(
        self,
        source: Source,
        *,
        sample_rate_hz: int = 16000,
        start_s: float = 0.0,
        duration_s: float | None = None,
        min_s: float = 1.0,
        max_s: float = 7200.0,
        live: bool = False,
    ) -> None:
        if sample_rate_hz not in _SOURCE_RATES_HZ:
            raise ValueError(f"sample_rate_hz must be in 4000..768000, not {sample_rate_hz}")
        if not 0 <= start_s <= MOST_S:
            raise ValueError(f"start_s must be in 0..{MOST_S} seconds, not {start_s}")
        if duration_s is not None and not 0 < duration_s <= MOST_S:
            raise ValueError(f"duration_s must be more than 0 and at most {MOST_S} seconds, not {duration_s}")
        self._rate_hz = sample_rate_hz
        self._start_s = start_s
        self._duration_s = duration_s
        self._min_s = min_s
        self._max_s = max_s
        self._live = live
        self._floats = _FloatSamples()
        self._input = _Input(source)
        try:
            self._open()
        except BaseException:
            self._input.close()
            raise
        self._chunks = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return self._chunks

    def close(self) -> None:
        """Free the decoder and the file, also in the middle of the iteration, which then is over."""
        self._chunks.close()
        self._container.close()
        self._input.close()

    def _open(self) -> None:
        self._container = _open_container(self._input, self._live)
        try:
            self._stream = _sound_track(self._container)
        except BaseException:
            self._container.close()
            raise
        codec = self._stream.codec_context
        codec.thread_count = 1  # threads speed up no audio decoder but FLAC's, and a service has its own
        self.info = AudioInfo(
            format=_CONTAINERS[self._container.format.name],
            codec=codec.codec.canonical_name,
            sample_rate_hz=codec.sample_rate,
            channels=codec.channels,
            duration_s=max(0.0, (self._container.duration or 0) / av.time_base),
            analysed_s=0.0,
        )

    def _read(self) -> Generator[NDArray[np.float32]]:
        rate, limit = self._rate_hz, self._max_s * self._rate_hz
        first = round(self._start_s * rate)
        end = math.inf if self._duration_s is None else first + round(self._duration_s * rate)
        landed_s, frames = self._frames_from_start()
        if self.info.codec.startswith("pcm_f"):
            frames = map(self._floats.mend, frames)
        frames = self._noting_source(frames)
        landed = position = round(landed_s * rate)
        handed_out, peak = 0, 0.0
        for block in _mono_blocks(frames, rate, _LIVE_BLOCK_S if self._live else _BLOCK_S):
            part = block[max(0, first - position) : max(0, int(min(end - position, len(block))))]
            position += len(block)
            handed_out += len(part)
            if max(handed_out, min(position, first) - landed) > limit:
                raise self._too_long()
            if len(part):
                peak = max(peak, float(np.abs(part).max()))
                self.info = replace(self.info, analysed_s=handed_out / rate)
            yield part
            if position >= end:
                break
        else:
            self.info = replace(self.info, duration_s=position / rate)
        self.info = replace(self.info, duration_s=max(self.info.duration_s, position / rate))
        if position == 0:
            raise UndecodableAudioError(
                f"No sound could be decoded from this {self.info.format} clip.", _DAMAGED_HINT
            )
        if handed_out < max(1, (self._min_s - _LENGTH_TOLERANCE_S) * rate):
            raise self._too_short()
        self._floats.check()
        if peak < SILENCE_PEAK:
            raise self._silent()

    def _frames_from_start(self) -> tuple[float, Iterator[AudioFrame]]:
        """Where the frames begin, in seconds, at or before `start_s`; and the frames."""
        if self._start_s > _SEEK_FROM_S and self._input.seekable() and self._seeks_exactly():
            origin_s = _seconds(self._stream.start_time, self._stream.time_base)
            aim_s = origin_s + self._start_s - _SEEK_AHEAD_S
            with suppress(av.FFmpegError):
                self._container.seek(int(aim_s * av.time_base))
                frames = self._frames()
                landed = next(frames, None)
                if landed is not None and landed.pts is not None:
                    landed_s = _seconds(landed.pts, landed.time_base) - origin_s
                    if 0 <= landed_s <= self._start_s:
                        return landed_s, chain([landed], frames)
            self._container.close()
            self._input.rewind()
            self._open()
        return 0.0, self._frames()

    def _seeks_exactly(self) -> bool:
        if self.info.format not in _SEEK_BY_BIT_RATE:
            return self.info.format in _SEEK_EXACT
        bits = re.match(r"pcm_\D+(\d+)", self.info.codec)
        told = self._stream.codec_context.bit_rate
        return bits is not None and told == self.info.sample_rate_hz * self.info.channels * int(bits[1])

    def _frames(self) -> Iterator[AudioFrame]:
        for packet in self.packets():
            with suppress(av.FFmpegError):  # a broken packet is left out
                yield from packet.decode()

    def packets(self) -> Iterator["Packet[AudioStream]"]:
        """The sound as it is coded, in place of the chunks."""
        for _ in range(_MAX_DEMUX_ERRORS):
            with suppress(av.FFmpegError):
                yield from self._container.demux(self._stream)
                return

    def _noting_source(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """The same frames; the first tells rate and channels better than the container (HE-AAC)."""
        for first in frames:
            self.info = replace(
                self.info, sample_rate_hz=first.sample_rate, channels=first.layout.nb_channels
            )
            yield first
            yield from frames

    def _too_short(self) -> AudioTooShortError:
        info = self.info
        if self._start_s >= info.duration_s:
            return AudioTooShortError(
                f"The part starts at {self._start_s:.2f} s, but the clip ends at {info.duration_s:.2f} s.",
                "Choose a start_s inside the clip.",
            )
        return AudioTooShortError(
            f"Only {info.analysed_s:.2f} s of sound could be read, at least {self._min_s:.2f} s are needed.",
            "Send a longer clip, or choose a longer part of it.",
        )

    def _silent(self) -> SilentAudioError:
        channels = self.info.channels
        what = "it" if channels == 1 else f"the mean of its {channels} channels"
        hint = "Check that the right track was exported and that its volume is not at zero"
        return SilentAudioError(
            f"The clip is silent: all {self.info.analysed_s:.2f} s of {what} are below -70 dBFS.",
            f"{hint}." if channels == 1 else f"{hint}. Channels that cancel each other: send one alone.",
        )

    def _too_long(self) -> AudioTooLongError:
        return AudioTooLongError(
            f"The clip is longer than {self._max_s:.0f} s.",
            f"Cut it, or choose a part of at most {self._max_s:.0f} s with start_s and duration_s.",
        )


def read_audio(
    source: Source,
    *,
    sample_rate_hz: int = 16000,
    start_s: float = 0.0,
    duration_s: float | None = None,
    min_s: float = 1.0,
    max_s: float = 7200.0,
) -> tuple[NDArray[np.float32], AudioInfo]:
    """The whole clip as one array [samples], and what was found in it; see `AudioReader`."""
    with AudioReader(
        source,
        sample_rate_hz=sample_rate_hz,
        start_s=start_s,
        duration_s=duration_s,
        min_s=min_s,
        max_s=max_s,
    ) as reader:
        samples = np.concatenate(list(reader))
        return samples, reader.info


def sound_digest(source: Source) -> bytes:
    """A digest of a clip's sound as it is coded: the same whatever stands in the file beside it.

    Raises what `AudioReader` raises on opening.
    """
    digest = hashlib.blake2b()
    with AudioReader(source) as reader:
        for packet in reader.packets():
            digest.update(bytes(packet))
    return digest.digest()


def endless_wav_header(sample_rate_hz: int) -> bytes:
    """What makes mono 16-bit little-endian samples that follow a WAV whose end is not known yet."""
    form = struct.pack("<4sI4s", b"RIFF", _ENDLESS, b"WAVE")
    kind = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    return form + kind + struct.pack("<4sI", b"data", _ENDLESS)


class _FloatSamples:
    """Looks at the samples of a file that holds floats, which can be anything."""

    def __init__(self) -> None:
        self._seen = self._beyond = 0

    def mend(self, frame: AudioFrame) -> AudioFrame:
        """The same frame, what is not finite in it, or beyond all reason, 0."""
        samples = np.frombuffer(memoryview(frame.planes[0]), "f4" if frame.format.name == "flt" else "f8")
        sizes = np.abs(samples)
        self._seen += len(sizes)
        if not sizes.max(initial=0.0) < _SCALED_PEAK:  # NaN is not less, either
            self._beyond += int((sizes >= _SCALED_PEAK).sum())
            samples[~(sizes < _GARBAGE_PEAK)] = 0.0
        return frame

    def check(self) -> None:
        """Raise UndecodableAudioError if the samples are no sound between -1 and 1."""
        if self._beyond > _SCALED_SHARE * self._seen:
            share = 100 * self._beyond / self._seen
            raise UndecodableAudioError(
                f"{share:.0f} % of the samples are beyond {_SCALED_PEAK:.0f} times full scale.",
                "Samples that are floats lie between -1 and 1: divide them by the largest that their integers"
                " could be (32768 of 16 bits), or save them as integers.",
            )


class _Input:
    """The source as a file object with no name, so that FFmpeg cannot guess the format by one."""

    def __init__(self, source: Source) -> None:
        self._is_mine = isinstance(source, str | Path | bytes)
        self._file = _as_file(source)
        self._can_seek = self._file.seekable()
        self.rewind()
        self.head = self._file.read(_HEAD_BYTES)
        self._unread = b"" if self._can_seek else self.head
        self.rewind()

    def rewind(self) -> None:
        if self._can_seek:
            self._file.seek(0)

    def read(self, size: int) -> bytes:
        if self._unread:
            head, self._unread = self._unread, b""
            return head
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError:  # the byte before the end of a file that was emptied meanwhile: PyAV would print it
            return -1

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return self._can_seek

    def close(self) -> None:
        if self._is_mine:
            self._file.close()


def _as_file(source: Source) -> BinaryIO:
    if isinstance(source, str | Path):
        return Path(source).open("rb")
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return source


def _open_container(source: _Input, live: bool) -> InputContainer:
    options = {
        "format_whitelist": ",".join(_CONTAINERS),
        "codec_whitelist": ",".join(_DECODERS),
        "protocol_whitelist": "none",
    }
    if live:
        options["analyzeduration"] = str(_LIVE_PROBE_US)
    if not source.head:
        raise EmptyAudioError("The clip is empty: it has no bytes.", "Check the file and send it again.")
    if source.head.startswith(b"RIFX"):  # FFmpeg would take its samples for little-endian ones: noise
        raise NotAudioError("The clip is a big-endian WAV (RIFX), which is not supported.", _FORMATS_HINT)
    try:
        return av.open(
            source, "r", container_options=options, metadata_errors="replace", buffer_size=_IO_BUFFER_BYTES
        )
    except av.FFmpegError as error:
        if _MAGIC.match(source.head):
            raise UndecodableAudioError(_DAMAGED, _DAMAGED_HINT) from error
        raise NotAudioError("The clip is not in a supported audio format.", _FORMATS_HINT) from error


def _sound_track(container: InputContainer) -> AudioStream:
    best = container.streams.best("audio")
    if not isinstance(best, AudioStream):
        if container.streams.audio or not len(container.streams):
            raise UndecodableAudioError(_DAMAGED, _DAMAGED_HINT)
        raise NotAudioError("The file holds no sound track.", _FORMATS_HINT)
    for stream in (best, *container.streams.audio):  # FFmpeg may think best of one that has no decoder here
        codec = stream.codec_context
        if codec is not None and codec.codec.name in _DECODERS:
            return stream
    raise NotAudioError("There is no decoder for the sound track of this file.", _FORMATS_HINT)


class _SourceFormat(NamedTuple):
    sample_format: str
    layout: str
    channels: int
    rate_hz: int

    @classmethod
    def of(cls, frame: AudioFrame) -> Self:
        return cls(frame.format.name, frame.layout.name, frame.layout.nb_channels, frame.sample_rate)


def _mono_blocks(frames: Iterable[AudioFrame], rate_hz: int, block_s: float) -> Iterator[NDArray[np.float32]]:
    """Mono blocks [samples] of a second or less at `rate_hz`, asked for after every `block_s` seconds read.

    Frames may change their format on the way.
    """
    for source, alike in groupby(frames, key=_SourceFormat.of):
        graph = _mixer(source, rate_hz)
        waiting = 0
        for frame in alike:
            frame.pts = None
            graph.push(frame)
            waiting += frame.samples
            if waiting >= block_s * source.rate_hz:
                waiting = 0
                yield from _pull(graph)
        graph.push(None)
        yield from _pull(graph)


def _mixer(source: _SourceFormat, rate_hz: int) -> Graph:
    """Filter graph: any frames in, the mean of their channels at `rate_hz` out, as float32."""
    if source.rate_hz not in _SOURCE_RATES_HZ or not 1 <= source.channels <= _MAX_CHANNELS:
        raise UndecodableAudioError(
            f"The clip claims {source.channels} channels at {source.rate_hz} Hz, which cannot be mixed.",
            f"Send at most {_MAX_CHANNELS} channels at 4 to 768 kHz.",
        )
    try:
        return _mean_of_channels(source, rate_hz)
    except av.FFmpegError as error:  # such as a layout of 32 channels whose name FFmpeg cannot read back
        raise UndecodableAudioError(
            f"FFmpeg cannot mix the clip's {source.channels} channels ({source.layout[:60]}).",
            "Mix them down to stereo or mono and send that.",
        ) from error


def _mean_of_channels(source: _SourceFormat, rate_hz: int) -> Graph:
    graph = Graph()
    mean = "+".join(f"{1 / source.channels}*c{channel}" for channel in range(source.channels))
    chain_of_filters = [
        graph.add(
            "abuffer",
            sample_rate=str(source.rate_hz),
            sample_fmt=source.sample_format,
            channel_layout=source.layout,
            time_base=f"1/{source.rate_hz}",
        ),
        graph.add("aformat", sample_fmts="fltp"),
        graph.add("pan", f"mono|c0={mean}"),
        graph.add("aresample", str(rate_hz)),
        graph.add("abuffersink"),
    ]
    for one, following in pairwise(chain_of_filters):
        one.link_to(following)
    graph.configure()
    graph.set_audio_frame_size(rate_hz)
    return graph


def _pull(graph: Graph) -> Iterator[NDArray[np.float32]]:
    with suppress(av.BlockingIOError, av.EOFError):  # it needs more input; it has ended
        while True:
            frame = cast(AudioFrame, graph.pull())
            block = frame.to_ndarray()[0].astype(np.float32, copy=False)
            block[~(np.abs(block) < _GARBAGE_PEAK)] = 0.0
            yield block


def _seconds(stamp: int | None, time_base: Fraction | None) -> float:
    return 0.0 if stamp is None or time_base is None else float(stamp * time_base)
