"""Real sound for all tests: the clips that lie beside them (`clips/CREDITS.md` says where they come from)."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.encoding import decode

CLIPS = Path(__file__).parent / "clips"


@pytest.fixture(scope="session")
def clips() -> dict[str, Path]:
    """Every clip by its name: sung_pop, club_track, orchestral_cue, speech."""
    return {path.stem: path for path in sorted(CLIPS.glob("*.opus"))}


@pytest.fixture(scope="session")
def song(clips: dict[str, Path]) -> NDArray[np.float32]:
    """The sung pop song as it is: [2, samples] at 48 kHz, in [-1, 1]."""
    return decode(clips["sung_pop"])
