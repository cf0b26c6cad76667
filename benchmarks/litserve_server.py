"""The other reference of load.py: LitServe around the same tagger.

BENCHMARK_BATCH is its max_batch_size, BENCHMARK_BATCH_TIMEOUT its batch_timeout in seconds, BENCHMARK_WORKERS
its workers_per_device, and TAGGER_THREADS the network's threads in each.
"""

import os
from typing import Any

import litserve
import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from model.audio import AudioInfo, AudioReader
from model.tagger import BATCH, Tagger

Clip = tuple[list[NDArray[np.float32]], AudioInfo]


class TaggerAPI(litserve.LitAPI):  # type: ignore[misc] # LitServe has no types
    """Decode each clip, embed the segments of all clips of a batch together, and score each clip."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the tagger in each worker."""
        self.tagger = Tagger.load(device="cpu", threads=int(os.environ.get("TAGGER_THREADS", "1")))

    def decode_request(self, request: Request) -> Clip:
        """The form, as LitServe hands it over -> segments."""
        form: Any = request
        with AudioReader(form["file"].file) as reader:
            return list(self.tagger.segments(reader)), reader.info

    def batch(self, inputs: list[Clip]) -> list[Clip]:
        """Clips differ in length, so they stay apart until `predict`."""
        return inputs

    def predict(self, inputs: list[Clip] | Clip) -> list[dict[str, float]] | dict[str, float]:
        """Scores of a batch of clips, or of a lone one where LitServe does not batch."""
        if isinstance(inputs, tuple):
            return self._score([inputs])[0]
        return self._score(inputs)

    def _score(self, clips: list[Clip]) -> list[dict[str, float]]:
        segments = [segment for found, _ in clips for segment in found]
        embeddings = np.concatenate(
            [
                self.tagger.embed(np.stack(segments[start : start + BATCH]))
                for start in range(0, len(segments), BATCH)
            ]
        )
        ends = np.cumsum([len(found) for found, _ in clips])
        parts = np.split(embeddings, ends[:-1])
        return [self.tagger.finish(part, info).scores for part, (_, info) in zip(parts, clips, strict=True)]

    def unbatch(self, output: list[dict[str, float]]) -> list[dict[str, float]]:
        """See `batch`."""
        return output


if __name__ == "__main__":
    api = TaggerAPI(
        max_batch_size=int(os.environ.get("BENCHMARK_BATCH", "1")),
        batch_timeout=float(os.environ.get("BENCHMARK_BATCH_TIMEOUT", "0")),
        api_path="/v1/tags",
    )
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=int(os.environ.get("BENCHMARK_WORKERS", "1")),
        timeout=False,
        healthcheck_path="/health/ready",
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["TAGGER_PORT"]),
        log_level="error",
        generate_client_file=False,
    )
