"""The `musicnn` package in its own interpreter: paths in by standard input, seconds out; see rivals.py."""

import sys
import time

from musicnn.extractor import extractor

for line in sys.stdin:
    started = time.perf_counter()
    extractor(line.rstrip("\n"), model="MSD_musicnn", extract_features=False)
    sys.stdout.write(f"seconds {time.perf_counter() - started}\n")
    sys.stdout.flush()
