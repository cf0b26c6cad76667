"""Where the time of one clip goes, in this process: `python -m benchmarks.pipeline`.

decode: bytes to segments; log-mel: of these segments, in PyTorch; embed: log-mel and trunk, by engine;
whole: `Tagger.tag`, from bytes to scores. On one core unless told otherwise.
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import make_clip, median_ms, show, show_machine, use_cores

FORMATS = [
    "mp3",
    "ogg-vorbis",
    "ogg-opus",
    "m4a-index-last",
    "aac-adts",
    "webm-opus",
    "flac",
    "wav-s16",
    "aiff",
]
ENGINES = ["torch", "openvino-fp32", "openvino"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 240.0])
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    use_cores(arguments.cores)
    for seconds in arguments.seconds:
        measure(seconds, arguments.formats, arguments.engines, arguments.rounds)
    show_machine()


def measure(seconds: float, formats: list[str], engines: list[str], rounds: int) -> None:
    """One table: a row a format."""
    import torch

    from model.audio import AudioReader
    from model.frontend import LogMel
    from model.tagger import BATCH, Tagger, cut_segments

    taggers = {engine: Tagger.load(device="cpu", engine=engine) for engine in engines}
    log_mel = torch.inference_mode()(LogMel())

    def cut(clip: bytes) -> list[NDArray[np.float32]]:
        with AudioReader(clip) as reader:
            return list(cut_segments(reader))

    def transform(batches: list[NDArray[np.float32]]) -> None:
        for batch in batches:
            log_mel(torch.from_numpy(batch))

    def embed(tagger: Tagger, batches: list[NDArray[np.float32]]) -> None:
        for batch in batches:
            tagger.embed(batch)

    rows: list[list[object]] = []
    for name in formats:
        clip = make_clip(seconds, name)
        segments = cut(clip)
        batches = np.array_split(np.stack(segments), -(-len(segments) // BATCH))
        jobs: dict[str, Callable[[], object]] = {
            "decode": partial(cut, clip),
            "log-mel": partial(transform, batches),
        }
        for engine, tagger in taggers.items():
            jobs[f"embed {engine}"] = partial(embed, tagger, batches)
            jobs[f"whole {engine}"] = partial(tagger.tag, clip)
        times = median_ms(jobs, rounds)
        for engine, tagger in taggers.items():
            steps = [times[step] for step in ("decode", "log-mel", f"embed {engine}", f"whole {engine}")]
            rows.append([name, f"{engine} ({tagger.precision})", *steps, steps[-1] / steps[0]])
    columns = ["clip", "engine", "decode", "log-mel", "embed", "whole", "whole / decode"]
    show(f"{seconds:g} s clips, median ms of {rounds} rounds", columns, rows)


if __name__ == "__main__":
    main()
