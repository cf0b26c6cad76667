#!/usr/bin/env python3
"""Make the page's samples `club.opus` and `orchestra.opus`; `song.opus` is cut from `sung_pop.opus`.

Two short pieces composed for this project, as MIDI, played by fluidsynth. Needs what no test needs: the
Debian packages fluidsynth, fluid-soundfont-gm and ffmpeg.

    make_samples.py app/web/samples
"""

import struct
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 12
SOUNDFONT = "/usr/share/sounds/sf2/FluidR3_GM.sf2"
TICKS = 480
DRUMS = 9
Event = tuple[int, bytes]


class Score:
    """Notes by channel, to be written as a Standard MIDI file (format 0)."""

    def __init__(self, beats_per_minute: float, programs: dict[int, int]) -> None:
        self._tempo = round(60e6 / beats_per_minute)
        self._events: list[Event] = [
            (0, bytes([0xC0 | channel, program])) for channel, program in programs.items()
        ]

    def play(self, channel: int, note: int, velocity: int, beat: float, beats: float) -> None:
        """One note; `velocity` in 1..127, times in beats from the start."""
        self._events.append((round(beat * TICKS), bytes([0x90 | channel, note, velocity])))
        self._events.append((round((beat + beats) * TICKS) - 1, bytes([0x80 | channel, note, 0])))

    def midi(self) -> bytes:
        """The whole file."""
        track, now = b"\x00\xff\x51\x03" + self._tempo.to_bytes(3, "big"), 0
        for tick, message in sorted(self._events):
            track += _variable_length(tick - now) + message
            now = tick
        track += b"\x00\xff\x2f\x00"
        return (
            b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS) + b"MTrk" + struct.pack(">I", len(track)) + track
        )


def _variable_length(value: int) -> bytes:
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(0x80 | (value & 0x7F))
    return bytes(reversed(parts))


def club() -> Score:
    """Trance in A minor at 132: four on the floor, an off-beat bass, an arpeggio and a pad."""
    score = Score(132, {0: 81, 1: 38, 2: 90, 3: 80})
    roots = (45, 41, 48, 43)
    for bar in range(8):
        start, root = bar * 4, roots[bar // 2 % 4]
        minor = root == 45
        chord = (root + 12, root + (15 if minor else 16), root + 19)
        for beat in range(4):
            score.play(DRUMS, 36, 127, start + beat, 0.25)
            score.play(DRUMS, 46, 95, start + beat + 0.5, 0.25)
            score.play(1, root - 12, 118, start + beat + 0.25, 0.2)
            score.play(1, root - 12, 118, start + beat + 0.5, 0.2)
            score.play(1, root - 12, 118, start + beat + 0.75, 0.2)
        for snare in (1, 3):
            score.play(DRUMS, 39, 110, start + snare, 0.25)
        for sixteenth in range(16):
            score.play(DRUMS, 42, 60, start + sixteenth / 4, 0.1)
            score.play(
                0, chord[(sixteenth * 2) % 3] + 12 * (1 + sixteenth % 2), 88, start + sixteenth / 4, 0.2
            )
        for note in chord:
            score.play(2, note, 70, start, 4)
    return score


def orchestra() -> Score:
    """A slow, dark theme in D minor at 66: strings that swell, horns, a choir of cellos, timpani."""
    score = Score(66, {0: 48, 1: 60, 2: 43, 3: 47, 4: 49, 5: 46})
    chords = ((50, 57, 62, 65), (46, 58, 62, 65), (43, 58, 62, 67), (45, 57, 61, 64))
    melody = ((74, 1.5), (72, 0.5), (70, 1), (69, 1), (67, 2), (69, 1), (73, 1), (74, 3), (76, 1))
    for bar, chord in enumerate(chords):
        start = bar * 4
        score.play(2, chord[0] - 12, 105, start, 4)
        score.play(3, chord[0] - 12, 100, start, 1)
        for roll in range(8):
            score.play(3, chord[0] - 12, 45 + roll * 6, start + 3 + roll / 8, 0.12)
        for note in chord:
            score.play(0, note, 88, start, 4)
            score.play(4, note + 12, 60, start, 4)
        score.play(1, chord[1], 90, start + 1, 3)
        for eighth in range(8):
            score.play(5, chord[eighth % 4] + 12, 60, start + eighth / 2, 0.5)
    beat = 0.0
    for note, beats in melody:
        score.play(1, note - 12, 108, beat, beats)
        score.play(0, note, 112, beat, beats)
        beat += beats
    return score


def render(score: Score, out: Path) -> None:
    """Play the score into an Opus file."""
    with tempfile.TemporaryDirectory() as folder:
        midi, wave = Path(folder, "score.mid"), Path(folder, "score.wav")
        midi.write_bytes(score.midi())
        _run("fluidsynth", "-ni", "-q", "-r", "48000", "-g", "0.4", "-F", str(wave), SOUNDFONT, str(midi))
        encode(wave, out)


def encode(source: Path, out: Path) -> None:
    """Cut the source to `SECONDS`, fade its last half second, and encode it: mono, 32 kbit/s."""
    fade = f"afade=t=out:st={SECONDS - 0.5}:d=0.5"
    form = ("-fflags", "+bitexact", "-c:a", "libopus", "-ac", "1", "-b:a", "32k")
    _run("ffmpeg", "-v", "error", "-y", "-i", str(source), "-t", str(SECONDS), "-af", fade, *form, str(out))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def main(folder: str) -> None:
    """Make all three."""
    clips = Path(__file__).parent
    render(club(), Path(folder, "club.opus"))
    render(orchestra(), Path(folder, "orchestra.opus"))
    encode(clips / "sung_pop.opus", Path(folder, "song.opus"))


if __name__ == "__main__":
    main(sys.argv[1])
