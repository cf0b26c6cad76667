"""The tagger beside public ones, from the same MP3 to scores: `python -m benchmarks.rivals --teachers DIR`.

DIR holds `teach.py`, which runs YAMNet and Jamendo FCN on audio that our reader decoded. The `musicnn`
package decodes with librosa and runs its MSD model in TensorFlow, in an environment of its own that is made
on the first run (2.6 GB), kept warm. Its weights do not load in today's TensorFlow, so its answers are
worthless; its work is the same. All may use all cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import torch

from benchmarks.clips import make_clip
from benchmarks.measuring import medians_ms, show, show_machine, timed
from model.audio import read_audio
from model.tagger import Tagger
from model.training.teachers import load_teach

WORKER: Final = Path(__file__).with_name("musicnn_worker.py")
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "music-tagger", "musicnn")
OURS: Final = "this tagger"
Rival = Callable[[torch.Tensor], object]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teachers", type=Path, help="folder with teach.py and its networks")
    parser.add_argument("--musicnn", type=Path, default=CACHE, help="environment of the musicnn package")
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 240.0])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    rivals = load_rivals(arguments.teachers) if arguments.teachers else {}
    tagger = Tagger.load(device="cpu")
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder, musicnn(install(arguments.musicnn)) as run_musicnn:
        for seconds in arguments.seconds:
            clip = Path(folder, f"{seconds:g} s.mp3")
            clip.write_bytes(make_clip(seconds, "mp3"))
            jobs = {OURS: timed(tagger.tag, clip), "our decoding alone": timed(read_audio, clip)}
            jobs |= {name: timed(listen, rival, clip) for name, rival in rivals.items()}
            jobs["musicnn package"] = partial(run_musicnn, clip)
            times = medians_ms(jobs, arguments.rounds)
            rows += [[clip.stem, name, time, time / times[OURS]] for name, time in times.items()]
    show(f"MP3 to scores: median ms of {arguments.rounds} rounds", ["clip", "tagger", "ms", "/ ours"], rows)
    show_machine("ai-edge-litert")


def listen(rival: Rival, clip: Path) -> None:
    """One clip through our reader and a network of teach.py."""
    rival(torch.from_numpy(read_audio(clip)[0]))


def load_rivals(teachers: Path) -> dict[str, Rival]:
    """The networks of teach.py: audio [T] at 16 kHz -> scores."""
    teach = load_teach(teachers)
    return {
        "YAMNet (LiteRT)": teach.Yamnet(teachers / "yamnet.tflite"),
        "Jamendo FCN (PyTorch)": teach.Jamendo(teachers / "jamendo_fcn.pth"),
    }


def install(folder: Path) -> Path:
    """Make the environment of the musicnn package if it is not there; its interpreter."""
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [*pip, "tensorflow-cpu", "tf_keras", "librosa", "setuptools"],
            [*pip, "--no-deps", "musicnn==0.1.0"],  # it asks for a TensorFlow that is gone
        ):
            subprocess.run(command, check=True)
        done.touch()
    return python


@contextmanager
def musicnn(python: Path) -> Iterator[Callable[[Path], float]]:
    """The musicnn package in a process of its own: a function from a path to the seconds it took."""
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(
        [python, str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:

        def run(clip: Path) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{clip}\n")
            process.stdin.flush()
            for line in process.stdout:  # the package prints, too
                if line.startswith("seconds "):
                    return float(line.split()[1])
            raise RuntimeError(f"musicnn failed: echo {clip} | {python} {WORKER} shows why")

        yield run
        process.terminate()


if __name__ == "__main__":
    main()
