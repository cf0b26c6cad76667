"""The reference of load.py: `Tagger.tag` in a thread a core and nothing else. Prints clips a second.

python -m benchmarks.alone CLIP SECONDS THREADS
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.tagger import Tagger


def main(path: str, seconds: float, threads: int) -> None:
    """Measure and print."""
    clip = Path(path).read_bytes()
    tagger = Tagger.load(device="cpu", threads=threads)
    tagger.tag(clip)
    started = time.perf_counter()

    def work(_: int) -> int:
        count = 0
        while time.perf_counter() < started + seconds:
            tagger.tag(clip)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(work, range(threads)))
    print(count / (time.perf_counter() - started))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
