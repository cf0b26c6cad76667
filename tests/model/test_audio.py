"""Clips in every format become the same mono samples; every failure has its own error and a hint."""

import functools
import gc
import io
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchaudio.functional import resample

from model.audio import (
    AudioError,
    AudioReader,
    AudioTooLongError,
    AudioTooShortError,
    EmptyAudioError,
    NotAudioError,
    SilentAudioError,
    Source,
    UndecodableAudioError,
    read_audio,
)
from tests.encoding import ENCODINGS, Pipe, encode, nearest_rate_hz

RATE = 16000
Samples = NDArray[np.float32]

ANY_ENCODING = pytest.mark.parametrize("encoding", ENCODINGS)
LOSSLESS = [name for name, encoding in ENCODINGS.items() if encoding.lossless]


def at_rate(audio: Samples, rate_hz: int, from_hz: int = 48000) -> Samples:
    """`audio` [..., samples] resampled by torchaudio, which shares no code with FFmpeg."""
    samples: Samples = resample(torch.from_numpy(audio), from_hz, rate_hz).numpy()
    return samples


def lag_of(heard: Samples, meant: Samples) -> int:
    """By how many samples `heard` comes later than `meant`, by their cross-correlation."""
    size = 2 * max(len(heard), len(meant))
    correlation = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(meant, size)))
    best = int(np.argmax(correlation))
    return best if best < size // 2 else best - size


def likeness(heard: Samples, meant: Samples) -> float:
    """Correlation coefficient of what both have in common, from their starts on."""
    length = min(len(heard), len(meant))
    return float(np.corrcoef(heard[:length], meant[:length])[0, 1])


def sine(pitch_hz: float, rate_hz: int) -> Samples:
    """Two seconds with a peak of 1."""
    wave: Samples = np.sin(2 * np.pi * pitch_hz / rate_hz * np.arange(2 * rate_hz)).astype(np.float32)
    return wave


def wav_of(samples: Samples | bytes, rate_hz: int = RATE, channels: int = 1) -> bytes:
    """A 32-bit float WAV whose samples are taken as they are, broken ones, too."""
    data = samples if isinstance(samples, bytes) else samples.astype("<f4").tobytes()
    layout = struct.pack("<HHIIHH", 3, channels, rate_hz, rate_hz * 4 * channels, 4 * channels, 32)
    body = (
        b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(data)) + data
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def matroska_of(tracks: list[tuple[str, Samples]]) -> bytes:
    """A Matroska file with several sound tracks, each a codec and samples [2, N] at 48 kHz."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        streams = [container.add_stream(codec, rate=48000, layout="stereo") for codec, _ in tracks]
        for stream, (_, samples) in zip(streams, tracks, strict=True):
            assert isinstance(stream, av.AudioStream)
            floats = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", "stereo")
            floats.sample_rate = 48000
            context = stream.codec_context
            for frame in av.AudioResampler(context.format, "stereo", 48000).resample(floats):
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="session")
def verse(song: Samples) -> Samples:
    """Three seconds of the song in stereo at 48 kHz, with different channels."""
    cut = song[:, 48000 : 4 * 48000].copy()
    cut[1] *= 0.5
    return cut


@pytest.fixture(scope="session")
def verse_as(verse: Samples) -> Callable[[str], bytes]:
    """The verse in an encoding."""
    return functools.cache(lambda encoding: encode(verse, 48000, encoding))


@pytest.fixture(scope="session")
def long_clip(song: Samples) -> Samples:
    """18 s of sound that does not repeat, the song and then its mirror: [2, samples] at 48 kHz."""
    return np.concatenate([song, song[:, ::-1]], axis=1)[:, : 18 * 48000]


@pytest.fixture(scope="session")
def long_clip_as(long_clip: Samples) -> Callable[[str], bytes]:
    """The long clip in an encoding."""
    return functools.cache(lambda encoding: encode(long_clip, 48000, encoding))


@pytest.fixture(scope="session")
def ten_hours(verse: Samples) -> bytes:
    """Ten hours of quiet sound in 36 MB: one second of MP3, again and again."""
    second = encode(at_rate(0.1 * verse[:1, :48000], 8000), 8000, "mp3")
    return second * 36_000


class Counting(io.BytesIO):
    """Counts what is read."""

    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        got = super().read(size)
        self.bytes_read += len(got)
        return got


def png(side: int) -> bytes:
    """A picture of noise, `side` pixels high and wide."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + np.random.default_rng(row).bytes(side) for row in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def id3_with_cover(picture: bytes) -> bytes:
    """An ID3v2.3 tag that holds nothing but a front cover."""
    content = b"\0image/png\0\x03\0" + picture
    frame = b"APIC" + struct.pack(">IH", len(content), 0) + content
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + frame


def film_of(path: Path, sound: Samples | None) -> Path:
    """An MP4: three seconds of picture, then `sound` [2, samples] at 48 kHz, if any, as its second stream."""
    with av.open(str(path), "w", format="mp4") as container:
        film = container.add_stream("mpeg4", rate=25)
        assert isinstance(film, av.VideoStream)
        film.width, film.height, film.pix_fmt = 320, 240, "yuv420p"
        track = None if sound is None else container.add_stream("aac", rate=48000, layout="stereo")
        for number in range(75):
            picture = np.random.default_rng(number).integers(0, 255, (240, 320, 3), np.uint8)
            container.mux(film.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(film.encode(None))
        if isinstance(track, av.AudioStream) and sound is not None:
            frame = av.AudioFrame.from_ndarray(sound, "fltp", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return path


class TestFormats:
    @pytest.mark.parametrize("rate_hz", [8000, 44100, 96000])
    @pytest.mark.parametrize("channels", [1, 2])
    @ANY_ENCODING
    def test_every_format_gives_the_same_samples(
        self, verse: Samples, encoding: str, channels: int, rate_hz: int
    ) -> None:
        source = at_rate(verse[:channels], rate_hz)
        meant = at_rate(source.mean(axis=0), RATE, rate_hz)
        how = ENCODINGS[encoding]

        heard, info = read_audio(encode(source, rate_hz, encoding))

        lag = lag_of(heard, meant)
        slack = round((how.delay_samples / rate_hz + 0.001) * RATE)
        assert 0 <= lag <= slack
        assert abs(len(heard) - len(meant)) <= round((how.padding_samples / rate_hz + 0.001) * RATE)
        assert likeness(heard[lag:], meant) > (0.999 if how.lossless else 0.97)
        assert heard.std() / meant.std() == pytest.approx(1.0, abs=0.01 if how.lossless else 0.08)
        assert heard.dtype == np.float32
        assert (info.format, info.codec) == (how.found_format, how.found_codec)
        # Opus is always decoded at 48 kHz, whatever went in.
        assert info.sample_rate_hz == (
            48000 if how.codec == "libopus" else nearest_rate_hz(encoding, rate_hz)
        )
        assert info.channels == (2 if how.only_stereo else channels)
        assert info.duration_s == info.analysed_s == len(heard) / RATE

    @ANY_ENCODING
    def test_dual_mono_keeps_its_level(self, encoding: str) -> None:
        tone = 0.9 * sine(440, 48000)

        heard, _ = read_audio(encode(np.stack([tone, tone]), 48000, encoding))

        # FFmpeg's own downmix would give 1.27. LAME itself takes off up to 5 %.
        middle = heard[RATE // 2 : -RATE // 2]
        assert np.abs(middle).max() == pytest.approx(0.9, abs=0.005 if ENCODINGS[encoding].lossless else 0.05)

    @pytest.mark.parametrize("encoding", [*LOSSLESS, "ogg-opus"])
    def test_all_of_six_channels_count_the_same(self, encoding: str) -> None:
        tone = sine(100, 48000)
        six = np.stack([level * tone for level in (0.6, 0.1, 0.2, 0.3, 0.5, 0.4)])

        heard, info = read_audio(encode(six, 48000, encoding))

        assert info.channels == 6
        assert np.abs(heard[RATE // 2 : -RATE // 2]).max() == pytest.approx(0.35, abs=0.02)

    @pytest.mark.parametrize("rate_hz", [8000, 22050, 44100, 192000])
    def test_samples_come_at_the_rate_that_is_asked_for(self, verse: Samples, rate_hz: int) -> None:
        heard, info = read_audio(encode(verse, 48000, "wav-f32"), sample_rate_hz=rate_hz)

        assert len(heard) == pytest.approx(3 * rate_hz, abs=2)
        assert likeness(heard, at_rate(verse.mean(axis=0), rate_hz)) > 0.999
        assert info.sample_rate_hz == 48000

    def test_a_clip_at_192_khz_is_read(self, verse: Samples) -> None:
        heard, info = read_audio(wav_of(at_rate(verse[0], 192000), 192000))

        assert info.sample_rate_hz == 192000
        assert likeness(heard, at_rate(verse[0], RATE)) > 0.999

    def test_the_sound_track_of_a_film_is_read(self, tmp_path: Path, verse: Samples) -> None:
        film = film_of(tmp_path / "film.mp4", verse)

        heard, info = read_audio(film)

        assert info.format == "m4a"
        assert likeness(heard, at_rate(verse.mean(axis=0), RATE)) > 0.98

    def test_cover_art_does_not_get_in_the_way(self, verse_as: Callable[[str], bytes]) -> None:
        with_cover = id3_with_cover(png(600)) + verse_as("mp3")

        heard, info = read_audio(with_cover)

        assert info.codec == "mp3"
        assert np.array_equal(heard, read_audio(verse_as("mp3"))[0])

    def test_metadata_in_an_unknown_encoding_does_no_harm(self, verse: Samples) -> None:
        clip = encode(verse, 48000, "flac", {"title": "QQQQ"})
        assert clip.count(b"QQQQ") == 1

        _, info = read_audio(clip.replace(b"QQQQ", b"\xff\xfe\xfa\xc0"))

        assert info.duration_s == pytest.approx(3.0)

    def test_samples_that_are_no_numbers_become_silence(self) -> None:
        tone = 0.5 * sine(440, RATE)
        broken = tone.copy()
        broken[1000:1004] = [np.nan, np.inf, -np.inf, 1e38]

        heard, _ = read_audio(wav_of(broken))

        assert np.array_equal(heard[1000:1004], np.zeros(4))
        assert np.array_equal(np.delete(heard, range(1000, 1004)), np.delete(tone, range(1000, 1004)))

    @pytest.mark.parametrize("broken", [np.nan, np.inf, 1e8])
    def test_a_broken_sample_leaves_those_beside_it(self, broken: float) -> None:
        tone = 0.5 * sine(440, 48000)
        tone[50_000] = broken

        heard, _ = read_audio(wav_of(tone, 48000))

        assert np.abs(heard).max() < 0.6

    def test_a_broken_channel_leaves_the_other(self) -> None:
        tone = sine(440, 48000)

        heard, _ = read_audio(wav_of(np.stack([np.full_like(tone, np.nan), tone], 1), 48000, 2))

        assert likeness(heard, sine(440, RATE)) > 0.999

    def test_a_track_that_has_no_decoder_gives_way_to_one_that_has(self, verse: Samples) -> None:
        clip = matroska_of([("tta", 0.5 * verse), ("aac", verse)])

        heard, info = read_audio(clip)

        assert info.codec == "aac"
        assert likeness(heard, at_rate(verse.mean(axis=0), RATE)) > 0.98

    def test_the_format_may_change_midway(self, verse: Samples) -> None:
        one = encode(at_rate(verse, 22050), 22050, "mp3")
        other = encode(verse[:1], 48000, "mp3")

        heard, _ = read_audio(one + other)

        assert len(heard) / RATE == pytest.approx(6.0, abs=0.2)
        assert likeness(heard, at_rate(verse.mean(axis=0), RATE)) > 0.98

    def test_an_ogg_chain_of_two_rates_gives_at_least_its_first_link(self, verse: Samples) -> None:
        chain = encode(verse, 48000, "ogg-vorbis") + encode(at_rate(verse, 22050), 22050, "ogg-vorbis")

        heard, _ = read_audio(chain)

        assert len(heard) / RATE >= 2.9

    @pytest.mark.parametrize("start_s", [9.0, 17.0, 20.0])
    def test_a_part_of_an_ogg_chain_may_lie_in_any_link(
        self, long_clip_as: Callable[[str], bytes], start_s: float
    ) -> None:
        chain = 2 * long_clip_as("ogg-opus")
        whole, _ = read_audio(chain)

        part, _ = read_audio(chain, start_s=start_s, duration_s=4.0)

        assert len(part) == 4 * RATE
        assert likeness(part, whole[int(start_s * RATE) :][: 4 * RATE]) > 0.99


class TestSources:
    def test_bytes_path_and_file_give_the_same(
        self, tmp_path: Path, verse_as: Callable[[str], bytes]
    ) -> None:
        data = verse_as("mp3")
        path = tmp_path / "clip.mp3"
        path.write_bytes(data)
        file = io.BytesIO(data)
        file.seek(1000)

        results = [read_audio(source) for source in (data, path, str(path), file)]

        assert all(np.array_equal(samples, results[0][0]) for samples, _ in results)
        assert all(info == results[0][1] for _, info in results)
        assert not file.closed

    @pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name != "m4a-index-last"])
    def test_a_file_that_cannot_seek_is_read(self, verse_as: Callable[[str], bytes], encoding: str) -> None:
        data = verse_as(encoding)

        heard, _ = read_audio(cast(BinaryIO, Pipe(data)))

        # Without a look at the end of an MP3, the padding of its last frame stays.
        whole, _ = read_audio(data)
        assert 0 <= len(heard) - len(whole) < 1152
        assert np.array_equal(heard[: len(whole) - 100], whole[:-100])

    @pytest.mark.parametrize(
        "name", ["clip.txt", "clip.m3u8", "clip.svg", "clip.wav", "clip", "list.ffconcat"]
    )
    def test_the_name_of_a_file_means_nothing(
        self, tmp_path: Path, verse_as: Callable[[str], bytes], name: str
    ) -> None:
        path = tmp_path / name
        path.write_bytes(verse_as("mp3"))

        _, info = read_audio(path)

        assert info.format == "mp3"

    def test_a_missing_file_is_not_a_broken_clip(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_audio(tmp_path / "nowhere.mp3")

    def test_addresses_are_not_fetched(self) -> None:
        with pytest.raises(FileNotFoundError):
            read_audio("http://127.0.0.1:9/clip.mp3")

    def test_an_unreadable_file_object_says_so(self) -> None:
        class Broken(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def read(self, size: int = -1) -> bytes:  # noqa: ARG002 - a file object's signature
                raise OSError("the disk is on fire")

        with pytest.raises(OSError, match="on fire"):
            read_audio(cast(BinaryIO, Broken()))


class TestFailures:
    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(np.random.default_rng(0).bytes(10_000), id="random"),
            pytest.param(b"\x00" * 10_000, id="zeros"),
            pytest.param(b"All work and no play makes Jack a dull boy.\n" * 200, id="text"),
            pytest.param("Füße".encode("utf-16") * 100, id="utf-16"),
            pytest.param(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + b"1 0 obj\n" * 100, id="pdf"),
            pytest.param(b"x", id="one byte"),
        ],
    )
    def test_what_is_no_audio_is_refused(self, data: bytes) -> None:
        check_refused(data, NotAudioError)

    def test_a_zip_is_refused(self, verse_as: Callable[[str], bytes]) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("clip.wav", verse_as("wav-s16"))

        check_refused(packed.getvalue(), NotAudioError)

    def test_a_picture_is_refused(self) -> None:
        check_refused(png(64), NotAudioError)

    def test_a_film_without_sound_is_refused(self, tmp_path: Path) -> None:
        check_refused(film_of(tmp_path / "film.mp4", None), NotAudioError)

    @pytest.mark.parametrize(
        "text",
        [
            "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\n{path}\n#EXT-X-ENDLIST\n",
            "#EXTM3U\n#EXTINF:3,song\n{path}\n",
            "ffconcat version 1.0\nfile '{path}'\n",
            '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file://{path}"/></svg>',
            '<?xml version="1.0"?><MPD><Period><BaseURL>file://{path}</BaseURL></Period></MPD>',
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
            "[playlist]\nFile1={path}\nNumberOfEntries=1\n",
        ],
        ids=["hls", "m3u", "concat", "svg", "dash", "sdp", "pls"],
    )
    @pytest.mark.parametrize("name", ["list.wav", "list.m3u8", "list.ffconcat"])
    def test_a_list_of_files_opens_no_file(
        self, tmp_path: Path, verse_as: Callable[[str], bytes], text: str, name: str
    ) -> None:
        secret = tmp_path / "secret.wav"
        secret.write_bytes(verse_as("wav-s16"))
        attack = tmp_path / name
        attack.write_text(text.format(path=secret))

        check_refused(attack, NotAudioError)
        check_refused(attack.read_bytes(), NotAudioError)

    def test_an_empty_clip_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.mp3"
        path.touch()

        check_refused(b"", EmptyAudioError)
        check_refused(path, EmptyAudioError)
        check_refused(Pipe(b""), EmptyAudioError)

    @pytest.mark.parametrize("size", [16, 40])
    @ANY_ENCODING
    def test_a_header_without_sound_is_refused(
        self, verse_as: Callable[[str], bytes], encoding: str, size: int
    ) -> None:
        check_refused(verse_as(encoding)[:size], UndecodableAudioError)

    def test_a_wav_without_samples_is_refused(self) -> None:
        check_refused(wav_of(b""), UndecodableAudioError)

    def test_an_m4a_without_its_index_is_refused(self, verse_as: Callable[[str], bytes]) -> None:
        clip = verse_as("m4a-index-last")

        check_refused(clip[: len(clip) // 2], UndecodableAudioError)

    def test_more_named_channels_than_ffmpeg_can_read_back_are_refused(self) -> None:
        guid = bytes.fromhex("0100000000001000800000aa00389b71")
        layout = struct.pack("<HHIIHHHHI", 0xFFFE, 32, RATE, 64 * RATE, 64, 16, 22, 16, 0xFFFFFFFF) + guid
        data = np.random.default_rng(0).integers(-9999, 9999, 32 * 2 * RATE).astype("<i2").tobytes()
        body = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout
        body += b"data" + struct.pack("<I", len(data)) + data

        check_refused(b"RIFF" + struct.pack("<I", len(body)) + body, UndecodableAudioError)

    @pytest.mark.parametrize(("channels", "rate_hz"), [(1, 100), (1, 4_000_000), (100, 16000)])
    def test_a_clip_that_would_blow_up_is_refused(self, channels: int, rate_hz: int) -> None:
        noise = np.random.default_rng(0).standard_normal(2 * rate_hz * channels // 10).astype(np.float32)

        check_refused(wav_of(noise[: 4000 * channels], rate_hz, channels), UndecodableAudioError)

    @ANY_ENCODING
    def test_a_clip_of_a_twentieth_of_a_second_is_too_short(self, verse: Samples, encoding: str) -> None:
        check_refused(encode(verse[:, :2400], 48000, encoding), AudioTooShortError)

    @ANY_ENCODING
    def test_a_silent_clip_is_refused(self, encoding: str) -> None:
        check_refused(encode(np.zeros((2, 96000), np.float32), 48000, encoding), SilentAudioError)

    def test_channels_that_cancel_each_other_are_told(self, verse: Samples) -> None:
        error = check_refused(encode(np.stack([verse[0], -verse[0]]), 48000, "wav-f32"), SilentAudioError)

        assert "the mean of its 2 channels" in str(error)
        assert "cancel each other" in error.hint

    @pytest.mark.parametrize("bits", [16, 24, 32])
    def test_floats_that_are_scaled_as_integers_are_refused_and_loud_ones_are_not(
        self, verse: Samples, bits: int
    ) -> None:
        loud, _ = read_audio(encode(8 * verse, 48000, "wav-f32"))

        error = check_refused(encode(2 ** (bits - 1) * verse, 48000, "wav-f32"), UndecodableAudioError)

        assert np.abs(loud).max() > 1.0
        assert "times full scale" in str(error)
        assert "32768" in error.hint

    def test_a_big_endian_wav_is_not_taken_for_noise(self, verse_as: Callable[[str], bytes]) -> None:
        error = check_refused(b"RIFX" + verse_as("wav-s16")[4:], NotAudioError)

        assert "RIFX" in str(error)

    @pytest.mark.parametrize(("level_db", "is_silent"), [(-74, True), (-66, False)])
    def test_silence_ends_at_minus_70_db(self, level_db: float, is_silent: bool) -> None:
        tone = np.float32(10 ** (level_db / 20)) * sine(1000, RATE)

        if is_silent:
            check_refused(wav_of(tone), SilentAudioError)
        else:
            assert read_audio(wav_of(tone))[1].analysed_s == 2.0

    def test_a_silent_part_is_refused_though_its_clip_is_not(self) -> None:
        clip = wav_of(np.concatenate([sine(440, RATE)[: RATE * 3 // 2], np.zeros(2 * RATE, np.float32)]))

        check_refused(clip, SilentAudioError, start_s=1.5)
        assert read_audio(clip, start_s=0.5)[1].analysed_s == 3.0

    def test_ten_milliseconds_may_be_missing_of_the_shortest_length(self) -> None:
        tone = sine(440, RATE)

        assert read_audio(wav_of(tone[: round(0.991 * RATE)]))[1].analysed_s == 0.991
        check_refused(wav_of(tone[: round(0.985 * RATE)]), AudioTooShortError)

    @pytest.mark.parametrize("reads", range(1, 7))
    @pytest.mark.parametrize("encoding", ["mp3", "wav-s16"])
    def test_a_file_that_is_emptied_meanwhile_ends_and_prints_nothing(
        self, verse_as: Callable[[str], bytes], capfd: pytest.CaptureFixture[str], encoding: str, reads: int
    ) -> None:
        class Emptied(io.BytesIO):
            left = reads

            def read(self, size: int | None = -1) -> bytes:
                piece = super().read(size)
                self.left -= 1
                if self.left == 0:
                    self.truncate(0)
                return piece

            def seek(self, offset: int, whence: int = 0) -> int:
                if whence == 2 and offset + self.getbuffer().nbytes < 0:
                    raise OSError(22, "Invalid argument")  # as a file does, and a BytesIO does not
                return super().seek(offset, whence)

        with suppress(AudioError):
            read_audio(Emptied(verse_as(encoding)))

        assert capfd.readouterr() == ("", "")

    def test_failures_print_nothing(self, capfd: pytest.CaptureFixture[str]) -> None:
        check_refused(np.random.default_rng(1).bytes(5000), NotAudioError)
        check_refused(b"ID3" + b"\x00" * 5000, UndecodableAudioError)

        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"start_s": -1},
            {"start_s": float("nan")},
            {"start_s": 1e305},
            {"duration_s": 1e305},
            {"duration_s": 0},
            {"duration_s": float("inf")},
            {"sample_rate_hz": 0},
        ],
    )
    def test_senseless_arguments_are_the_callers_fault(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))) as caught:
            AudioReader(b"never looked at", **wrong)  # type: ignore[arg-type]

        assert not isinstance(caught.value, AudioError)


class TestDamage:
    @pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name != "m4a-index-last"])
    def test_a_truncated_clip_is_read_as_far_as_it_goes(
        self, verse_as: Callable[[str], bytes], encoding: str
    ) -> None:
        clip = verse_as(encoding)
        whole, _ = read_audio(clip)

        heard, info = read_audio(clip[: len(clip) * 7 // 10])

        # Bits are not spread evenly, and Ogg loses the page that was cut.
        assert 1.0 <= info.analysed_s <= 2.6
        assert likeness(heard[: -RATE // 10], whole) > 0.999

    @pytest.mark.parametrize(
        "encoding", ["mp3", "aac-adts", "flac", "m4a-index-first", "ogg-opus", "wav-s16"]
    )
    def test_reading_goes_on_behind_a_damaged_stretch(
        self, verse_as: Callable[[str], bytes], encoding: str
    ) -> None:
        clip = bytearray(verse_as(encoding))
        middle = len(clip) // 2
        clip[middle : middle + 2000] = b"\xaa" * 2000
        whole, _ = read_audio(verse_as(encoding))

        heard, info = read_audio(bytes(clip))

        assert info.analysed_s >= 1.9  # Ogg loses the whole page of a second
        end = slice(-RATE // 2, None)
        lag = lag_of(heard[end], whole[end])
        assert likeness(np.roll(heard[end], -lag)[2000:6000], whole[end][2000:6000]) > 0.95


class TestLimits:
    def test_a_clip_of_many_hours_stops_early(self, ten_hours: bytes) -> None:
        file = Counting(ten_hours)

        check_refused(file, AudioTooLongError, max_s=60)

        assert file.bytes_read < 2_000_000 < len(ten_hours)

    def test_a_part_of_a_clip_that_is_too_long_is_read(self, ten_hours: bytes) -> None:
        heard, info = read_audio(ten_hours, start_s=30, duration_s=3, max_s=60)

        assert len(heard) == 3 * RATE
        assert info.analysed_s == 3.0
        assert info.duration_s > 30_000

    def test_a_part_that_is_too_long_is_refused(self, ten_hours: bytes) -> None:
        check_refused(ten_hours, AudioTooLongError, start_s=5, duration_s=61, max_s=60)

    def test_what_is_skipped_is_bounded_where_there_is_no_seeking(self, song: Samples) -> None:
        clip = encode(song, 48000, "aac-adts")

        check_refused(clip, AudioTooLongError, start_s=12, duration_s=1, max_s=10)

    def test_a_clip_of_just_the_longest_length_is_read(self, verse: Samples) -> None:
        assert read_audio(encode(verse, 48000, "wav-s16"), max_s=3.0)[1].analysed_s == 3.0

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
    def test_memory_does_not_grow_with_the_length(self, tmp_path: Path, ten_hours: bytes) -> None:
        path = tmp_path / "long.mp3"
        path.write_bytes(ten_hours[: len(ten_hours) // 20])  # half an hour: 115 MB of samples
        script = """
import resource, sys
from model.audio import AudioReader
def peak_kib(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with AudioReader(sys.argv[1]) as reader:
    seconds = 0.0
    for chunk in reader:
        seconds += len(chunk) / 16000
        if seconds < 60: early = peak_kib()
print(seconds, peak_kib() - early)
"""

        out = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path.cwd(),
        )

        seconds, growth_kib = map(float, out.stdout.split())
        assert seconds > 1700
        assert growth_kib < 8192


class TestParts:
    @pytest.mark.parametrize("start_s", [0.0, 1.25, 12.3, 15.01])
    @ANY_ENCODING
    def test_a_part_is_cut_to_the_sample(
        self, long_clip_as: Callable[[str], bytes], encoding: str, start_s: float
    ) -> None:
        clip = long_clip_as(encoding)
        whole, _ = read_audio(clip)
        first = round(start_s * RATE)
        meant = whole[first : first + 2 * RATE]

        heard, info = read_audio(clip, start_s=start_s, duration_s=2.0)

        assert len(heard) == 2 * RATE
        assert info.analysed_s == 2.0
        # ADTS does not state its length: FFmpeg guesses it by the bit rate.
        assert info.duration_s == pytest.approx(18.0, abs=1.0 if encoding == "aac-adts" else 0.1)
        # After a seek the resampler may start between two of its samples: at most half a sample off.
        assert lag_of(heard, meant) == 0
        assert likeness(heard, meant) > 0.99
        assert np.array_equal(heard, meant) or start_s > 10

    @pytest.mark.parametrize("encoding", ["wav-adpcm-ms", "wav-adpcm-ima", "w64", "au"])
    def test_a_part_of_a_rare_format_is_the_same_by_seeking_and_by_reading_on(
        self, long_clip_as: Callable[[str], bytes], encoding: str
    ) -> None:
        clip = long_clip_as(encoding)

        by_seeking, _ = read_audio(clip, start_s=15.0, duration_s=2.0)

        by_reading_on, _ = read_audio(cast(BinaryIO, Pipe(clip)), start_s=15.0, duration_s=2.0)
        assert lag_of(by_seeking, by_reading_on) == 0
        assert likeness(by_seeking, by_reading_on) > 0.99

    def test_a_wav_that_tells_a_wrong_byte_rate_is_not_seeked_by_it(
        self, long_clip_as: Callable[[str], bytes]
    ) -> None:
        clip = long_clip_as("wav-s16")
        byte_rate = struct.pack("<I", 48000 * 2 * 2)
        assert clip.count(byte_rate) == 1
        wrong = clip.replace(byte_rate, struct.pack("<I", 48000))

        parts = [read_audio(data, start_s=15.0, duration_s=2.0)[0] for data in (clip, wrong)]

        assert likeness(*parts) > 0.99

    def test_a_part_may_reach_beyond_the_end(self, long_clip_as: Callable[[str], bytes]) -> None:
        heard, info = read_audio(long_clip_as("flac"), start_s=16.5, duration_s=60)

        assert len(heard) == pytest.approx(1.5 * RATE, abs=1)
        assert info.duration_s == pytest.approx(18.0)

    def test_a_clip_whose_length_nobody_tells_is_as_long_as_was_heard(
        self, verse_as: Callable[[str], bytes]
    ) -> None:
        _, info = read_audio(cast(BinaryIO, Pipe(verse_as("mp3"))), start_s=0.5, duration_s=1.0)

        assert 1.5 <= info.duration_s <= 3.1

    @ANY_ENCODING
    def test_a_start_beyond_the_end_is_told(
        self, long_clip_as: Callable[[str], bytes], encoding: str
    ) -> None:
        error = check_refused(long_clip_as(encoding), AudioTooShortError, start_s=30)

        assert "30.00 s" in str(error)
        assert "18." in str(error)
        assert "start_s" in error.hint

    def test_a_part_that_is_too_short_is_refused(self, long_clip_as: Callable[[str], bytes]) -> None:
        check_refused(long_clip_as("wav-s16"), AudioTooShortError, duration_s=0.5)
        check_refused(long_clip_as("wav-s16"), AudioTooShortError, start_s=17.5)


class TestResources:
    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
    def test_nothing_is_left_open(self, tmp_path: Path, verse_as: Callable[[str], bytes]) -> None:
        path = tmp_path / "clip"

        def use_all_ways() -> None:
            for encoding in ENCODINGS:
                path.write_bytes(verse_as(encoding))
                read_audio(path)
                with AudioReader(path, sample_rate_hz=8000) as reader:
                    next(iter(reader))
                path.write_bytes(verse_as(encoding)[:40])
                check_refused(path, AudioError)
            path.write_bytes(b"text")
            check_refused(path, NotAudioError)

        def held() -> tuple[int, ...]:
            gc.collect()
            kernel = [len([*Path("/proc/self", kind).iterdir()]) for kind in ("fd", "task")]
            return *kernel, threading.active_count()

        use_all_ways()
        before = held()

        use_all_ways()

        assert held() == before

    def test_a_closed_reader_gives_no_more(self, verse_as: Callable[[str], bytes]) -> None:
        reader = AudioReader(verse_as("flac"), sample_rate_hz=4000)
        chunks = iter(reader)
        next(chunks)

        reader.close()
        reader.close()

        assert list(chunks) == []

    def test_clips_can_be_read_in_many_threads(self, verse_as: Callable[[str], bytes]) -> None:
        alone = {encoding: read_audio(verse_as(encoding))[0] for encoding in ENCODINGS}
        order = [*ENCODINGS] * 4

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda encoding: read_audio(verse_as(encoding))[0], order))

        assert all(np.array_equal(heard, alone[name]) for name, heard in zip(order, together, strict=True))


FUZZ = settings(
    max_examples=60,
    deadline=timedelta(seconds=20),  # what is asked for is an end, not speed: test machines are busy
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


class TestHostileBytes:
    @FUZZ
    @given(
        start=st.sampled_from(
            [b"", b"RIFF\x00\x10\x00\x00WAVEfmt ", b"fLaC", b"OggS", b"ID3\x03", b"\xff\xfb\x90\x64"]
        )
        | st.sampled_from(
            [b"\x00\x00\x00\x20ftypM4A ", b"\x1aE\xdf\xa3", b"FORM\x00\x00\x10\x00AIFF", b"caff"]
        ),
        rest=st.binary(max_size=4000),
    )
    def test_any_bytes_end_in_an_audio_error(self, start: bytes, rest: bytes) -> None:
        read_or_refuse(start + rest)

    @FUZZ
    @given(data=st.data(), encoding=st.sampled_from([*ENCODINGS]))
    def test_any_damage_ends_in_samples_or_in_an_audio_error(
        self, verse_as: Callable[[str], bytes], data: st.DataObject, encoding: str
    ) -> None:
        clip = bytearray(verse_as(encoding))
        # Headers are where damage hurts most.
        places = st.integers(0, 300) | st.integers(0, len(clip) - 1)
        for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=20)):
            clip[place] = byte
        begin, end = sorted(data.draw(st.tuples(places, places)))
        cut = data.draw(st.sampled_from(["nothing", "tail", "hole", "twice"]))
        if cut == "tail":
            del clip[end:]
        elif cut == "hole":
            del clip[begin:end]
        elif cut == "twice":
            clip[begin:begin] = clip[begin:end]

        read_or_refuse(bytes(clip))


def read_or_refuse(data: bytes) -> None:
    """Any bytes give finite samples, or an error with a hint; never another exception."""
    try:
        heard, info = read_audio(data, max_s=60)
    except AudioError as error:
        refusal = error
        assert refusal.hint, refusal
        return
    assert np.isfinite(heard).all()
    assert info.analysed_s == len(heard) / RATE


def check_refused(
    source: bytes | Path | io.IOBase, error: type[AudioError], **arguments: float
) -> AudioError:
    """Reading raises just this error, and its hint is a sentence."""
    with pytest.raises(error) as caught:
        read_audio(cast(Source, source), **arguments)  # type: ignore[arg-type]
    assert type(caught.value) is error or error is AudioError
    assert str(caught.value).endswith(".")
    assert caught.value.hint.endswith(".")
    return caught.value
