"""Singing that is made of speech: it keeps to its notes, its seconds and its scale."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.audio import read_audio
from model.frontend import SAMPLE_RATE_HZ
from model.training.singing import (
    Syllable,
    Voice,
    analyse,
    choir,
    draw_voice,
    hook,
    many,
    melody,
    scale_notes,
    sing,
    solo,
    syllables,
)

CLIPS = Path(__file__).parents[1] / "clips"
STEADY = Voice(1.0, 5.5, 0.0)


@pytest.fixture(scope="module")
def heard() -> list[Syllable]:
    return list(syllables(read_audio(CLIPS / "speech.opus")[0]))


def loudest_hertz(samples: np.ndarray, lowest: float, highest: float) -> float:
    """Where the spectrum between two frequencies peaks."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)
    within = (hertz >= lowest) & (hertz <= highest)
    return float(hertz[within][spectrum[within].argmax()])


def test_speech_is_cut_into_voiced_syllables(heard: list[Syllable]) -> None:
    assert len(heard) > 10
    for syllable in heard:
        assert len(syllable.envelope) == len(syllable.aperiodicity) == len(syllable.voiced)
        assert syllable.voiced.sum() >= 16
        assert syllable.voiced[syllable.loudest]


def test_silence_has_no_syllables() -> None:
    assert list(syllables(np.zeros(SAMPLE_RATE_HZ, np.float32))) == []


@pytest.mark.parametrize("note", [57, 60, 64])
def test_a_long_note_is_sung_at_its_pitch(heard: list[Syllable], note: int) -> None:
    longest = max(heard, key=lambda syllable: int(syllable.voiced.sum()))

    sung = sing([longest], [(note, 2.0)], STEADY, np.random.default_rng(1))

    hertz = 440 * 2 ** ((note - 69) / 12)
    held = sung[SAMPLE_RATE_HZ // 2 : -SAMPLE_RATE_HZ // 2]
    assert loudest_hertz(held, 0.8 * hertz, 1.3 * hertz) == pytest.approx(hertz, rel=0.03)


def test_a_rest_is_silent(heard: list[Syllable]) -> None:
    sung = sing(heard, [(60, 1.0), (None, 1.0), (62, 1.0)], STEADY, np.random.default_rng(1))

    rest = sung[int(1.3 * SAMPLE_RATE_HZ) : int(1.9 * SAMPLE_RATE_HZ)]
    assert np.abs(rest).max() < 0.01 * np.abs(sung).max()


@pytest.mark.parametrize("notes", [[], [(60, 1.0)]])
def test_nothing_to_sing_is_said(notes: list[tuple[int | None, float]]) -> None:
    with pytest.raises(ValueError, match="at least one syllable and one note"):
        sing([], notes, STEADY, np.random.default_rng(1))


@given(seconds=st.floats(0.1, 60.0), beat_s=st.floats(0.3, 2.0), seed=st.integers(0, 2**32))
def test_a_melody_stays_in_its_voice_and_its_scale(seconds: float, beat_s: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (_, register), scale = draw_voice(rng), scale_notes(rng)

    notes = melody(seconds, beat_s, register, rng, rests=0.1, scale=scale)

    assert sum(length for _, length in notes) >= seconds
    sounding = [note for note, _ in notes if note is not None]
    assert all(register[0] <= note <= register[1] and note in scale for note in sounding)


@pytest.mark.parametrize("seed", range(3))
def test_every_kind_of_song_lasts_and_is_as_loud_as_it_should_be(heard: list[Syllable], seed: int) -> None:
    rng = np.random.default_rng(seed)

    songs = [solo(heard, 6.0, rng), hook(heard, 6.0, rng), choir([heard, heard], 6.0, rng)]

    for song in songs:
        assert len(song) >= 5.5 * SAMPLE_RATE_HZ
        assert np.abs(song).max() == pytest.approx(0.8, abs=1e-3)
        assert np.isfinite(song).all()


@pytest.fixture(scope="module")
def held() -> np.ndarray:
    """A voice that holds one note for eight seconds, in the middle of two of silence."""
    speech = list(syllables(read_audio(CLIPS / "speech.opus")[0]))
    longest = max(speech, key=lambda syllable: int(syllable.voiced.sum()))
    sung = sing([longest], [(None, 1.0), (57, 8.0), (None, 1.0)], STEADY, np.random.default_rng(1))
    return np.asarray(sung)


@pytest.mark.parametrize("seed", range(4))
def test_many_sing_what_one_sang_on_the_notes_of_a_chord(held: np.ndarray, seed: int) -> None:
    sung = many(analyse(held), 9.0, np.random.default_rng(seed))

    spectrum = np.abs(np.fft.rfft(sung * np.hanning(len(sung))))
    hertz = np.fft.rfftfreq(len(sung), 1 / SAMPLE_RATE_HZ)
    semitones = 12 * np.log2(np.maximum(hertz, 1) / 220)
    sung_note, in_no_chord = (spectrum[np.abs(semitones - at) < 0.5].max() for at in (0, 2))
    assert sung_note > 5 * in_no_chord
    assert 9.0 <= len(sung) / SAMPLE_RATE_HZ <= 10.0
    assert np.abs(sung).max() == pytest.approx(0.8, abs=1e-3)


def test_many_sing_as_long_as_the_voice_lasts_at_their_pace(held: np.ndarray) -> None:
    sung = many(analyse(held), 60.0, np.random.default_rng(1))

    assert len(held) <= len(sung) < 2.2 * len(held) + 1.1 * SAMPLE_RATE_HZ


def test_what_has_no_pitch_is_not_sung_by_many() -> None:
    hiss = np.random.default_rng(1).normal(0, 0.1, 4 * SAMPLE_RATE_HZ).astype(np.float32)

    with pytest.raises(ValueError, match="less than 25% of the voice has a pitch"):
        many(analyse(hiss), 4.0, np.random.default_rng(1))


def test_the_same_seed_sings_the_same(heard: list[Syllable]) -> None:
    first, again = (choir([heard], 3.0, np.random.default_rng(7)) for _ in range(2))

    np.testing.assert_array_equal(first, again)
