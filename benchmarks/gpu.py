"""Throughput of the network on a CUDA device, by batch size and precision: `python -m benchmarks.gpu`.

From segments in the host's memory to embeddings there, copies included. For a GPU's whole song, decoding must
keep up: `benchmarks.pipeline` tells what a core decodes.
"""

import argparse

import numpy as np
import torch

from benchmarks.measuring import medians_ms, show, show_machine, timed
from model.bundle import load_bundle
from model.engine import TorchEngine, probe
from model.network import SEGMENT_S


def main() -> None:
    """Measure and print; without a CUDA device say so and exit with 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "There is no CUDA device here, so there is nothing to measure.\n")
    device = torch.device(arguments.device)
    precisions = ["bf16", "fp32"] if device.type == "cuda" else ["fp32"]
    network = load_bundle()[1].to(device).eval()
    engines = {precision: TorchEngine(network, device, precision=precision) for precision in precisions}
    rows = []
    for batch in arguments.batches:
        segments = np.resize(probe(), (batch, probe().shape[1]))
        jobs = {precision: timed(engine, segments) for precision, engine in engines.items()}
        for precision, milliseconds in medians_ms(jobs, arguments.rounds).items():
            rate = 1000 * batch / milliseconds
            rows.append([str(batch), precision, milliseconds, rate, rate * SEGMENT_S / 3600])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    columns = ["segments (5 s)", "precision", "ms", "segments/s", "hours of audio a second"]
    show(f"{name}: medians of {arguments.rounds} rounds", columns, rows)
    show_machine()


if __name__ == "__main__":
    main()
