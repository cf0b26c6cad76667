"""What a second tagger adds on Ray Serve, on this machine: `python -m benchmarks.ray_serve`.

Each number of taggers has a cluster of its own, all started before the first measurement; the one that is not
measured idles, as Ray's processes cannot be frozen. Rounds go over all.
"""

import argparse
import statistics
import sys
from contextlib import ExitStack
from typing import Final

from benchmarks.clients import Load, Outcome
from benchmarks.clips import make_clip
from benchmarks.load import ratio
from benchmarks.measuring import show, show_machine
from benchmarks.processes import serving

SERVICE: Final = ("-m", "deploy.ray.local", "--replicas")
AS_CLIENTS: Final = {"RAY_worker_niceness": 0}  # Ray's own 15 would let the clients go first


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip-s", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--taggers", type=int, nargs="+", default=[1, 2], help="the first is the reference")
    arguments = parser.parse_args()
    clip = make_clip(arguments.clip_s, "mp3")

    with ExitStack() as stack:
        loads = {
            taggers: Load(
                stack.enter_context(serving((*SERVICE, str(taggers)), environment=AS_CLIENTS)).url,
                clip,
                arguments.seconds,
                warm_s=min(3.0, arguments.seconds / 2),
                deadline_s=60.0,
            )
            for taggers in arguments.taggers
        }
        rounds = [measure(loads, arguments.clients) for _ in range(arguments.rounds)]

    reference = arguments.taggers[0]
    rows = [
        [
            f"{taggers}",
            statistics.median(found[taggers].goodput for found in rounds),
            statistics.median(ratio(found[taggers].goodput, found[reference].goodput) for found in rounds),
            ", ".join(found[taggers].told() for found in rounds),
        ]
        for taggers in arguments.taggers
    ]
    title = f"{arguments.clip_s:g} s MP3, {arguments.clients} clients: medians of {arguments.rounds} rounds"
    show(title, ["taggers", "clips/s", f"over {reference}", "answers"], rows)
    show_machine("ray")


def measure(loads: dict[int, Load], clients: int) -> dict[int, Outcome]:
    """One round."""
    found = {taggers: load.closed(clients) for taggers, load in loads.items()}
    print({taggers: outcome.goodput for taggers, outcome in found.items()}, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
