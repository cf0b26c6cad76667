"""The reference of load.py: what one writes in ten lines, the same tagger behind a plain FastAPI endpoint.

BENCHMARK_TOKENS bounds the threads that requests run in, BENCHMARK_WORKERS is the number of processes, and
TAGGER_THREADS the network's threads in each.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, UploadFile

from model.tagger import Tagger

tagger = Tagger.load(device="cpu", threads=int(os.environ.get("TAGGER_THREADS", "1")))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Bound the thread pool."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = int(
        os.environ.get("BENCHMARK_TOKENS", "40")
    )
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/tags")
def tag(file: UploadFile) -> dict[str, float]:
    """Scores of one clip."""
    return tagger.tag(file.file).scores


@app.get("/health/ready")
def ready() -> None:
    """Answer once the tagger is loaded."""


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.plain:app",
        port=int(os.environ["TAGGER_PORT"]),
        workers=int(os.environ.get("BENCHMARK_WORKERS", "1")),
        log_level="error",
    )
