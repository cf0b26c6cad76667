"""The service under load, beside what one might write instead: `python -m benchmarks.load`.

The same clip goes to the service, to a plain FastAPI endpoint and to LitServe around the same tagger, and
through the tagger in one process with a thread a core and no HTTP. The clients run on the same cores, and
their CPU time is told. All are started once and frozen while another is measured; rounds go over all.

--tune tries settings of the two references; the best of each is then taken by --plain and --litserve.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Final

from loky import cpu_count

from benchmarks.clients import Load, Outcome
from benchmarks.clips import make_clip
from benchmarks.measuring import show, show_machine
from benchmarks.processes import SERVICE, Server, serving

PLAIN: Final = ("-m", "benchmarks.plain")
LITSERVE: Final = ("-m", "benchmarks.litserve_server")
OVERLOADS: Final = (0.5, 1.0, 2.0, 5.0)
COLUMNS: Final = ["clips/s", "p50 ms", "p95 ms", "p99 ms", "answers", "without Retry-After", "clients' cores"]

# tokens of the thread pool, processes, threads of the network in each
PLAIN_GRID: Final = ("2,1,1", "2,1,2", "4,1,2", "40,1,2", "2,2,1", "40,2,1")
# max_batch_size, batch_timeout in seconds, workers_per_device, threads of the network in each
LITSERVE_GRID: Final = ("1,0,1,2", "1,0,2,1", "1,0,3,1", "4,0.01,2,1", "8,0.05,2,1", "8,0.05,1,2")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip-s", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 48, 128, 256])
    parser.add_argument("--compared-at", type=int, default=48, help="clients of the comparison")
    parser.add_argument("--deadline-s", type=float, default=10.0, help="X-Request-Timeout")
    parser.add_argument("--plain", default="2,1,1", help="tokens,workers,threads")
    parser.add_argument("--litserve", default="1,0,2,1", help="batch,timeout,workers,threads")
    parser.add_argument("--tune", action="store_true", help="only try the settings of the references")
    arguments = parser.parse_args()
    clip = make_clip(arguments.clip_s, "mp3")
    warm_s = min(3.0, arguments.seconds / 2)
    if arguments.tune:
        tune(clip, arguments.seconds, warm_s, arguments.compared_at)
    else:
        with ExitStack() as stack:
            measure(clip, warm_s, arguments, stack)
    show_machine("litserve", "aiohttp")


def measure(clip: bytes, warm_s: float, arguments: argparse.Namespace, stack: ExitStack) -> None:
    """All tables."""
    servers = {
        "this service": stack.enter_context(serving(SERVICE)),
        "plain FastAPI": stack.enter_context(plain(arguments.plain)),
        "LitServe": stack.enter_context(litserve(arguments.litserve)),
    }
    for server in servers.values():
        server.freeze()
    loads = {
        name: Load(server.url, clip, arguments.seconds, warm_s, arguments.deadline_s)
        for name, server in servers.items()
    }
    ours, load = servers["this service"], loads["this service"]

    def compare() -> dict[str, float]:
        found = {name: run(servers[name], loads[name], arguments.compared_at)[0] for name in servers}
        goodputs = {name: outcome.goodput for name, outcome in found.items()}
        goodputs["the tagger alone"] = in_process(clip, arguments.seconds)
        print(goodputs, file=sys.stderr, flush=True)
        return goodputs

    rounds = [compare() for _ in range(arguments.rounds)]
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    ratios = {
        name: statistics.median(ratio(found["this service"], found[name]) for found in rounds)
        for name in rounds[0]
    }
    title = (
        f"{arguments.clip_s:g} s MP3, {arguments.compared_at} clients: medians of {arguments.rounds} rounds"
    )
    show(title, ["", "clips/s", "service / it"], [[name, medians[name], ratios[name]] for name in medians])

    rows, peak = [], 0.0
    for clients in arguments.clients:
        outcome, server_cores = run(ours, load, clients)
        peak = max(peak, outcome.goodput)
        rows.append([f"{clients}", *row(outcome), server_cores])
    show("Closed loop, by clients", ["clients", *COLUMNS, "server's cores"], rows)

    rows = []
    for factor in OVERLOADS:
        outcome, server_cores = run(ours, load, factor * peak, arrivals=True)
        # The peak just then: the machine may have become slower or faster meanwhile.
        beside, _ = run(ours, load, arguments.compared_at)
        rows.append(
            [
                f"{factor:g} x {peak:.3g}/s",
                *row(outcome),
                server_cores,
                ratio(outcome.goodput, beside.goodput),
            ]
        )
    columns = ["arrivals", *COLUMNS, "server's cores", f"goodput / at {arguments.compared_at} clients"]
    show(f"Open loop, deadline {arguments.deadline_s:g} s", columns, rows)


def ratio(one: float, other: float) -> float:
    """One over the other; infinite over nothing."""
    return one / other if other else math.inf


def run(server: Server, load: Load, amount: float, *, arrivals: bool = False) -> tuple[Outcome, float]:
    """One measurement of one server, and how many cores that took on average."""
    server.thaw()
    cpu_s = server.cpu_s()
    outcome = load.open(amount) if arrivals else load.closed(int(amount))
    spent_s = server.cpu_s() - cpu_s
    server.freeze()
    return outcome, spent_s / outcome.wall_s


def row(outcome: Outcome) -> list[object]:
    """An outcome in `COLUMNS`."""
    latencies = [outcome.latency_ms(percent) for percent in (50, 95, 99)]
    return [
        outcome.goodput,
        *latencies,
        outcome.told(),
        outcome.without_retry_after,
        outcome.client_share,
    ]


def tune(clip: bytes, seconds: float, warm_s: float, clients: int) -> None:
    """Print what each setting of the references gives."""
    rows = []
    for name, grid, start in (("plain FastAPI", PLAIN_GRID, plain), ("LitServe", LITSERVE_GRID, litserve)):
        for options in grid:
            with start(options) as server:
                outcome = Load(server.url, clip, seconds, warm_s, 60.0).closed(clients)
            rows.append([name, options, *row(outcome)])
    show(f"Settings, at {clients} clients", ["server", "settings", *COLUMNS], rows)


def plain(options: str) -> AbstractContextManager[Server]:
    """The plain FastAPI endpoint with those settings."""
    return _reference(PLAIN, ("BENCHMARK_TOKENS", "BENCHMARK_WORKERS", "TAGGER_THREADS"), options)


def litserve(options: str) -> AbstractContextManager[Server]:
    """LitServe with those settings."""
    names = ("BENCHMARK_BATCH", "BENCHMARK_BATCH_TIMEOUT", "BENCHMARK_WORKERS", "TAGGER_THREADS")
    return _reference(LITSERVE, names, options)


def _reference(
    program: tuple[str, ...], names: tuple[str, ...], options: str
) -> AbstractContextManager[Server]:
    return serving(program, environment=dict(zip(names, options.split(","), strict=True)))


def in_process(clip: bytes, seconds: float) -> float:
    """Clips a second of the tagger in one process, a thread a core, without HTTP."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(clip)
        command = [sys.executable, "-m", "benchmarks.alone", file.name, str(seconds), str(cpu_count())]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return float(json.loads(output))


if __name__ == "__main__":
    main()
