"""Sounds that are no music: which are scored, and how their scores are summed up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.audio import read_audio
from model.evaluation.not_music import KINDS, SYNTHETIC, not_music, not_music_section, score_kinds
from model.tagger import Tagger
from model.training.corpus import SEPARATOR, Clip


def speech(path: Path) -> Clip:
    return Clip("speech-0", path, "train", True, "speech", (), ())


def test_clips_stand_under_their_first_source_and_what_is_made_here_behind(clips: dict[str, Path]) -> None:
    sounds = not_music([replace(speech(clips["speech"]), source=SEPARATOR.join(("speech", "prompts")))])

    assert sounds[0] == ("speech", clips["speech"])
    assert [kind for kind, _ in sounds[1:]] == [kind for kind in KINDS for _ in range(SYNTHETIC)]


@pytest.mark.parametrize(
    ("kind", "lowest", "highest"),
    [("near-silence (made here)", -61, -59), ("noise (made here)", -7, -5), ("tones (made here)", -20, -5)],
)
def test_a_sound_is_as_loud_as_its_kind(kind: str, lowest: float, highest: float) -> None:
    files = [file for name, file in not_music([]) if name == kind]

    peaks = [20 * np.log10(np.abs(read_audio(file)[0]).max()) for file in files]

    assert lowest < min(peaks) <= max(peaks) < highest


def test_every_sound_is_scored_but_what_cannot_be_read(tmp_path: Path, clips: dict[str, Path]) -> None:
    sounds = not_music([speech(clips["speech"]), speech(tmp_path / "nowhere.flac")])

    scores = score_kinds(Tagger.load(device="cpu"), sounds)

    assert {kind: found.shape for kind, found in scores.items()} == {
        "speech": (1, 4),
        **dict.fromkeys(KINDS, (SYNTHETIC, 4)),
    }


def test_section_sums_scores_up() -> None:
    scores = {"speech": np.array([[0.0, 0.9], [0.1, 0.9], [0.2, 0.9], [0.3, 0.9]])}

    lines = not_music_section(("vocal", "pop"), scores)

    assert lines[-2:] == [
        "| speech | 4 | vocal | 0.150 | 0.285 | 0.300 | 25.0% |",
        "| speech | 4 | pop | 0.900 | 0.900 | 0.900 | 100.0% |",
    ]
