"""Pieces to learn from: where those of a track start, and what mixes, voices and noise are."""

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.audio import read_audio
from model.frontend import SAMPLE_RATE_HZ
from model.tags import TAGS
from model.training.augmentation import Samples
from model.training.corpus import SEPARATOR, Clip
from model.training.gather import write_flac
from model.training.packages import read_track
from model.training.pieces import (
    PIECE,
    PIECE_S,
    Piece,
    apart_pieces,
    as_piece,
    choir_piece,
    debian_pieces,
    field_pieces,
    mix_piece,
    read_prompt,
    sounds_piece,
    speech_piece,
    spread,
    sung_piece,
)
from tests.model.tones import hears_high_notes, hears_low_notes, tone

CLIPS = Path(__file__).parents[1] / "clips"


@given(length=st.integers(0, 40 * PIECE), most=st.integers(1, 6))
def test_pieces_lie_within_their_track_and_do_not_overlap(length: int, most: int) -> None:
    starts = spread(length, most)

    assert len(starts) == max(min(most, length // PIECE), min(1, length))
    assert all(0 <= start <= max(0, length - PIECE) for start in starts)
    # Both ends are left out by 3%, so that a fade is not a piece: pieces may share that much.
    assert all(later - earlier >= 0.94 * PIECE for earlier, later in pairwise(starts))


@pytest.mark.parametrize("seconds", [10.0, 29.0, 40.0])
def test_a_piece_is_as_long_as_all_others(seconds: float) -> None:
    samples = np.arange(int(seconds * 16_000), dtype=np.float32)

    piece = as_piece(samples)

    assert len(piece) == PIECE
    np.testing.assert_array_equal(piece[:1000], samples[:1000])


def test_a_mix_is_vocal_and_names_the_sources_of_both() -> None:
    voice = Clip("v", CLIPS / "sung_pop.opus", "train", True, "singer", (1.0,), ("",))
    bed = Piece("b", "band", "a tune", as_piece(read_track(CLIPS / "club_track.opus")), {})

    mix = mix_piece(3, voice, bed, random.Random(0))

    assert mix.source.split(SEPARATOR) == ["singer", "band"]
    assert mix.labels == {"vocal": 1}
    assert np.abs(mix.samples).max() == pytest.approx(0.9, abs=0.01)
    assert 0.2 < abs(np.corrcoef(mix.samples, bed.samples)[0, 1]) < 0.9


def song_of(folder: Path, *notes: float) -> Clip:
    """A clip of tones, those above 3 kHz its voice."""
    samples = sum((tone(hertz, 29.0) for hertz in notes), torch.zeros(PIECE))
    write_flac(folder / "song.flac", samples.numpy())
    return Clip("song", folder / "song.flac", "train", True, "singer", (1.0, 0.0, None, 1.0), ("",) * 4)


def loudest_hz(samples: Samples) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax()) * SAMPLE_RATE_HZ / len(samples)


def test_a_song_that_is_taken_apart_is_its_voice_and_what_is_left(tmp_path: Path) -> None:
    song = song_of(tmp_path, 1500, 5000)

    voice, rest = apart_pieces(0, song, [], hears_high_notes(3000), random.Random(0))

    assert (voice.labels, rest.labels) == ({"vocal": 1}, {"dance": 0, "pop": 1})
    assert (voice.source, rest.source) == ("singer", "singer")
    assert loudest_hz(voice.samples) > 4000  # moved in pitch by up to three semitones
    assert loudest_hz(rest.samples) == pytest.approx(1500, abs=1)
    assert len(voice.samples) == len(rest.samples) == PIECE


def test_a_voice_that_was_taken_out_may_lie_over_another_piece(tmp_path: Path) -> None:
    song = song_of(tmp_path, 1500, 5000)
    bed = Piece("b", "band", "a tune", tone(800, 29.0).numpy(), {})

    alone, over = (
        apart_pieces(0, song, [bed], hears_high_notes(3000), random.Random(seed))[0] for seed in (4, 0)
    )

    assert alone.source == "singer"
    assert over.source.split(SEPARATOR) == ["singer", "band"]
    assert over.labels == {"vocal": 1}
    assert np.abs(over.samples).max() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(("notes", "pieces"), [((1500,), []), ((5000,), ["voice-0", "rest-0"])])
def test_only_a_song_with_a_voice_is_taken_apart(
    notes: tuple[float, ...], pieces: list[str], tmp_path: Path
) -> None:
    song = song_of(tmp_path, *notes)

    found = apart_pieces(0, song, [], hears_high_notes(3000), random.Random(0))

    assert [piece.id for piece in found] == pieces


VOICE = tuple(range(220, 2800, 220))
"""A tone with overtones, as WORLD needs them to hear a pitch."""


def test_the_voice_of_a_song_is_sung_by_many_over_another_piece(tmp_path: Path) -> None:
    song = song_of(tmp_path, *VOICE, 5000)
    bed = Piece("b", "band", "a tune", tone(6000, 29.0).numpy(), {})

    choir = choir_piece(0, song, [bed], hears_low_notes(3000), random.Random(0))

    assert choir is not None
    assert (choir.id, choir.title, choir.labels) == ("choir-0", "song as a choir over a tune", {"vocal": 1})
    assert choir.source.split(SEPARATOR) == ["singer", "band"]
    spectrum = np.abs(np.fft.rfft(choir.samples))
    bed_at, gap_at, song_at = (round(hertz * PIECE_S) for hertz in (6000, 5500, 5000))
    assert spectrum[bed_at] > 30 * spectrum[gap_at : gap_at + 100].max()
    assert spectrum[song_at] < spectrum[bed_at] / 30
    assert len(choir.samples) == PIECE


@pytest.mark.parametrize(("edge_hz", "notes"), [(3000, (5000,)), (8000, range(20, 7990, 7))])
def test_a_song_without_a_voice_and_a_voice_without_a_pitch_make_no_choir(
    edge_hz: float, notes: Sequence[float], tmp_path: Path
) -> None:
    song = song_of(tmp_path, *notes)

    assert choir_piece(0, song, [], hears_low_notes(edge_hz), random.Random(1)) is None


def test_files_that_cannot_be_read_are_passed_over_and_told_of_where_all_are(tmp_path: Path) -> None:
    torn, good = tmp_path / "torn.wav", tmp_path / "good.wav"
    torn.write_bytes(b"RIFF")
    write_flac(good, tone(440, 3.0).numpy())

    piece = sounds_piece(0, [torn, good], random.Random(1))

    assert np.abs(piece.samples).max() > 0.1
    with pytest.raises(ValueError, match=r"none of 1 files can be read, .*torn\.wav"):
        sounds_piece(0, [torn], random.Random(1))


def test_a_track_that_lies_in_two_folders_of_a_package_is_one(tmp_path: Path) -> None:
    for folder in ("music", "backup"):
        (tmp_path / "game" / folder).mkdir(parents=True)
        write_flac(
            tmp_path / "game" / folder / "theme.flac",
            np.random.default_rng(1).normal(0, 0.1, 12 * SAMPLE_RATE_HZ).astype(np.float32),
        )

    pieces = list(debian_pieces("game", tmp_path, 4, random.Random(1)))

    assert [piece.title for piece in pieces] == ["theme.flac"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One speaker's prompts as G.722, as telephone exchanges keep them."""
    folder = tmp_path_factory.mktemp("prompts")
    speech = (read_audio(CLIPS / "speech.opus")[0] * 32767).astype(np.int16)
    paths = [folder / f"{index}.g722" for index in range(2)]
    for path, half in zip(paths, np.array_split(speech, 2), strict=True):
        with av.open(str(path), "w", format="g722") as container:
            stream = container.add_stream("g722", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(half[None, : len(half) // 2 * 2], format="s16", layout="mono")
            frame.sample_rate = 16_000
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    return paths


def test_sung_pieces_are_vocal_and_name_what_is_played_under_them(prompts: list[Path]) -> None:
    bed = Piece("b", "band", "a tune", as_piece(read_track(CLIPS / "club_track.opus")), {"vocal": 0})

    pieces = [sung_piece(index, [prompts], [bed], random.Random(index)) for index in (0, 3)]

    assert all(piece.labels == {"vocal": 1} and len(piece.samples) == PIECE for piece in pieces)
    assert {piece.source for piece in pieces} == {"sung", SEPARATOR.join(("sung", "band"))}
    for piece in pieces:
        assert np.abs(piece.samples).max() == pytest.approx(0.9 if "band" in piece.source else 0.8, abs=0.01)


def test_speech_is_prompts_with_pauses(prompts: list[Path]) -> None:
    piece = speech_piece(0, prompts, random.Random(0))

    assert piece.labels == dict.fromkeys(TAGS, 0)
    assert np.abs(piece.samples).max() > 0.1
    assert (piece.samples == 0).mean() > 0.001


def test_long_field_recordings_are_pieces_and_short_ones_are_joined(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 12 * 16_000).astype(np.float32)
    (tmp_path / "menu").mkdir()
    for name, seconds in {"water-long": 12, "water-1": 5, "water-2": 4, "song": 12}.items():
        write_flac(tmp_path / "menu" / f"{name}.flac", noise[: seconds * 16_000])

    pieces = list(field_pieces("krank", tmp_path, 40, random.Random(0)))

    assert len(pieces) == 2
    assert all(len(piece.samples) == PIECE for piece in pieces)
    assert all(piece.source == SEPARATOR.join(("field", "Debian package krank")) for piece in pieces)
    assert all(piece.labels == dict.fromkeys(TAGS, 0) for piece in pieces)
    assert sum("water-long" in piece.id for piece in pieces) == 1


def test_prompts_are_read_at_their_rate(prompts: list[Path], tmp_path: Path) -> None:
    whole = len(read_audio(CLIPS / "speech.opus")[0])
    (tmp_path / "empty.g722").touch()

    assert sum(len(read_prompt(path)) for path in prompts) == pytest.approx(whole, abs=1000)
    assert len(read_prompt(tmp_path / "empty.g722")) == 0
