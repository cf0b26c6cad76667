"""Where the time of one clip goes, in this process: `python -m benchmarks.pipeline`.

Each column does what the one before does, and more: decode makes segments of bytes; + log-mel; + network is
`Tagger.embed` of all segments; whole is `Tagger.tag`, from bytes to scores. On one core, then on two.
"""

import argparse
import multiprocessing
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.clips import ENCODINGS, make_clip
from benchmarks.measuring import medians_ms, show, show_machine, timed, use_cores

COLUMNS = ("decode", "+ log-mel", "+ network", "whole")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 240.0])
    parser.add_argument("--formats", nargs="+", default=list(ENCODINGS), choices=ENCODINGS)
    parser.add_argument("--engine", default="auto", help="as TAGGER_ENGINE")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")  # PyTorch counts the cores when it is imported
    for cores in arguments.cores:
        for seconds in arguments.seconds:
            job = (cores, seconds, arguments.formats, arguments.engine, arguments.rounds)
            measuring = spawn.Process(target=measure, args=job)
            measuring.start()
            measuring.join()
            if measuring.exitcode:
                raise SystemExit(measuring.exitcode)
    show_machine()


def measure(cores: int, seconds: float, formats: list[str], engine: str, rounds: int) -> None:
    """One table, a row a format."""
    use_cores(cores)
    import torch

    from model.audio import AudioReader
    from model.frontend import LogMel
    from model.network import SEGMENT_SAMPLES
    from model.segments import cut_segments
    from model.tagger import BATCH, Tagger

    torch.set_num_threads(1)  # as the engine does for the log-mel
    tagger = Tagger.load(device="cpu", engine=engine, threads=cores)
    log_mel = LogMel()

    def decode(clip: bytes) -> list[NDArray[np.float32]]:
        with AudioReader(clip) as reader:
            return list(cut_segments(reader, SEGMENT_SAMPLES))

    @torch.inference_mode()
    def transform(clip: bytes) -> None:
        for segment in decode(clip):
            log_mel(torch.from_numpy(segment)[None])

    def embed(clip: bytes) -> None:
        segments = decode(clip)
        for start in range(0, len(segments), BATCH):
            tagger.embed(np.stack(segments[start : start + BATCH]))

    rows = []
    for encoding in formats:
        clip = make_clip(seconds, encoding)
        jobs: tuple[Callable[[bytes], object], ...] = (decode, transform, embed, tagger.tag)
        steps = zip(COLUMNS, jobs, strict=True)
        times = medians_ms({name: timed(step, clip) for name, step in steps}, rounds)
        rows.append([encoding, *times.values(), times["whole"] / times["decode"]])
    engine = f"{tagger.engine} {tagger.precision}"
    title = f"{seconds:g} s clips, {cores} core(s), {engine}: median ms of {rounds} rounds"
    show(title, ["format", *COLUMNS, "whole / decode"], rows)


if __name__ == "__main__":
    main()
