"""The tagger beside public ones, from the same MP3 to scores: `python -m benchmarks.rivals`.

YAMNet, Jamendo FCN and musicnn as a PyTorch graph come from `teach.py` in the teachers' folder and get audio
that our reader decoded. The `musicnn` package itself decodes with librosa and runs in TensorFlow, in an
interpreter of its own, kept warm. All may use all cores.
"""

import argparse
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import make_clip, medians, seconds_of, show, show_machine
from model.audio import read_audio
from model.tagger import Tagger

WORKER = Path(__file__).with_name("musicnn_worker.py")
PACKAGE = "musicnn (package)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teachers", type=Path, required=True, help="Folder with teach.py and its networks.")
    parser.add_argument("--musicnn", type=Path, required=True, help="Folder of the unpacked musicnn wheel.")
    parser.add_argument("--musicnn-python", help="Interpreter that can import musicnn (README.md says how).")
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 240.0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rivals = load_rivals(arguments.teachers, arguments.musicnn)
    tagger = Tagger.load(device="cpu")
    with tempfile.TemporaryDirectory() as folder, package(arguments.musicnn_python) as run_package:
        rows: list[list[object]] = []
        for seconds in arguments.seconds:
            clip = Path(folder, f"{seconds:g}.mp3")
            clip.write_bytes(make_clip(seconds, "mp3"))
            rows += compare(clip, tagger, rivals, run_package, arguments.rounds)
    title = f"MP3 to scores, all cores, median ms of {arguments.rounds} rounds"
    show(title, ["clip", "tagger", "ms", "times ours"], rows)
    show_machine()


def compare(
    clip: Path,
    tagger: Tagger,
    rivals: dict[str, Callable[[torch.Tensor], object]],
    run_package: Callable[[Path], float] | None,
    rounds: int,
) -> list[list[object]]:
    """Rows of the table for one clip."""
    ours = f"ours ({tagger.engine} {tagger.precision})"
    jobs: dict[str, Callable[[], float]] = {
        ours: partial(seconds_of, partial(tagger.tag, clip)),
        "our decoding alone": partial(seconds_of, partial(read_audio, clip)),
    }
    for name, rival in rivals.items():
        jobs[name] = partial(seconds_of, partial(listen, rival, clip))
    if run_package is not None:
        jobs[PACKAGE] = partial(run_package, clip)
    times = medians(jobs, rounds)
    return [[clip.stem + " s", name, time, time / times[ours]] for name, time in times.items()]


def listen(rival: Callable[[torch.Tensor], object], clip: Path) -> None:
    """One clip through our reader and a network of teach.py."""
    rival(torch.from_numpy(read_audio(clip)[0]))


def load_rivals(teachers: Path, musicnn: Path) -> dict[str, Callable[[torch.Tensor], object]]:
    """The networks of teach.py that can be run here: audio [T] at 16 kHz -> scores."""
    spec = importlib.util.spec_from_file_location("teach", teachers / "teach.py")
    assert spec is not None  # noqa: S101 - a .py file always has a loader
    assert spec.loader is not None  # noqa: S101
    teach: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(teach)
    return {
        "YAMNet (LiteRT)": teach.Yamnet(teachers / "yamnet.tflite"),
        "Jamendo FCN (PyTorch)": teach.Jamendo(teachers / "jamendo_fcn.pth"),
        "musicnn (PyTorch graph)": teach.Musicnn(musicnn, "MSD"),
    }


@contextmanager
def package(interpreter: str | None) -> Iterator[Callable[[Path], float] | None]:
    """The musicnn package in a process of its own: a function from a path to the seconds it took."""
    if interpreter is None:
        yield None
        return
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(  # noqa: S603 - the interpreter that the user named
        [interpreter, str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:

        def run(clip: Path) -> float:
            assert process.stdin is not None  # noqa: S101 - pipes were asked for
            assert process.stdout is not None  # noqa: S101
            process.stdin.write(f"{clip}\n")
            process.stdin.flush()
            for line in process.stdout:  # the package prints, too
                if line.startswith("seconds "):
                    return float(line.split()[1])
            raise RuntimeError(f"{interpreter} cannot run musicnn; run {WORKER} in it to see why")

        yield run
        process.terminate()


if __name__ == "__main__":
    main()
