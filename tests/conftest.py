"""Real sound for all tests: the clips that lie beside them (`clips/CREDITS.md` says where they come from).

And the real tagger, loaded once.
"""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.tagger import Tagger
from tests.encoding import decode

# Whoever starts the tests in the background may have them ignore Ctrl-C, and so would what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

CLIPS = Path(__file__).parent / "clips"


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> None:
    for name in [name for name in os.environ if name.startswith(("TAGGER_", "MUSIC_TAGGER_"))]:
        del os.environ[name]


@pytest.fixture(scope="session")
def clips() -> dict[str, Path]:
    """Every clip by its name: sung_pop, club_track, orchestral_cue, speech."""
    return {path.stem: path for path in sorted(CLIPS.glob("*.opus"))}


@pytest.fixture(scope="session")
def song(clips: dict[str, Path]) -> NDArray[np.float32]:
    """The sung pop song as it is: [2, samples] at 48 kHz, in [-1, 1]."""
    return decode(clips["sung_pop"])


@pytest.fixture(scope="session")
def tagger() -> Tagger:
    """The shipped one, with the engine that a user gets on a CPU."""
    return Tagger.load(device="cpu")
