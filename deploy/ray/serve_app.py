"""The service on Ray Serve: the application as ingress, the network's trunk as a deployment that grows.

    python -m deploy.ray.local               # on this machine
    serve deploy deploy/ray/serve.yaml       # on a cluster that runs

The ingress is the very application of `app.main`: it decodes, admits, refuses and answers. Only its engine is
another: `RayEngine` hands segments to whichever tagger is free, and to another one if that one dies. Settings
are those of the service (`TAGGER_*`), on every node.
"""

import asyncio
import os
import time
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from app.batcher import QueueFullError
from app.main import create_app, load_tagger
from app.settings import Settings
from model.bundle import SHIPPED, load_bundle
from model.segments import FloatArray
from model.tagger import Tagger

ATTEMPTS: Final = 5
"""How often a batch is given to a tagger before its clips fail: so many may die under it."""
RETRY_S: Final = 0.2
"""Pause after a tagger's death, in which Serve learns of it."""
INGRESS_REQUESTS: Final = 1024
"""Requests in an ingress at once: far more than it admits, so that the application answers 429, and not Serve
with waiting. Serve's own default, 5, would keep the taggers idle."""
TAGGER_CALLS: Final = 4
"""Batches in a tagger at once: one that is computed, others that arrive meanwhile."""


def count_segments(calls: list[FloatArray]) -> int:
    """Segments of several calls, by which Serve bounds a batch."""
    return sum(len(segments) for segments in calls)


class TaggerReplica:
    """The network's trunk in a process of its own, on the device that Ray gives it."""

    def __init__(self) -> None:
        self._tagger = load_tagger(Settings())

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take most segments of a forward pass, and how long the first one waits for company, in seconds.

        No call may have more segments than that: TAGGER_BATCH_SEGMENTS must not be above `batch_segments`.
        """
        self.embed.set_max_batch_size(user_config["batch_segments"])
        self.embed.set_batch_wait_timeout_s(user_config["batch_wait_s"])

    def describe(self) -> dict[str, str]:
        """Tell what computes, and in which numbers."""
        return {"name": self._tagger.engine, "precision": self._tagger.precision}

    @serve.batch(batch_size_fn=count_segments)  # type: ignore[untyped-decorator] # see pyproject.toml
    async def embed(self, calls: list[FloatArray]) -> list[FloatArray]:
        """Segments [B, samples] of each call -> embeddings [B, E] of each, in one forward pass."""
        embeddings = await asyncio.to_thread(self._tagger.trunk, np.concatenate(calls))
        return np.split(embeddings, np.cumsum([len(segments) for segments in calls])[:-1])


class RayEngine:
    """See model.engine.Engine: the taggers of this application, whichever are there."""

    name = "ray"
    precision = "unknown"

    def __init__(self, taggers: DeploymentHandle) -> None:
        self._taggers = taggers
        self._is_described = False

    def __call__(self, segments: FloatArray) -> FloatArray:
        """Segments [B, samples] -> embeddings [B, E]. The same segments may be computed twice.

        Raises:
            QueueFullError: more batches wait for taggers than `max_queued_requests`.
            RayActorError: `ATTEMPTS` taggers died of it.
        """
        if not self._is_described:  # the warm-up comes first
            self.__dict__.update(self._taggers.describe.remote().result())
            self._is_described = True
        for attempt in range(1, ATTEMPTS + 1):
            try:
                embeddings: FloatArray = self._taggers.embed.remote(segments).result()
            except BackPressureError as error:
                raise QueueFullError(str(error)) from error
            except RayActorError:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(RETRY_S * attempt)
            else:
                return embeddings
        raise AssertionError("unreachable")


def build_ingress() -> FastAPI:
    """Make the application around the taggers of the Serve application that this process belongs to."""
    settings = Settings()
    bundle, network = load_bundle(settings.weights or SHIPPED)
    engine = RayEngine(serve.get_deployment_handle("tagger", _check_exists=False))
    tagger = Tagger(bundle, network, torch.device("cpu"), engine)
    # A replica lets SIGTERM by, which would be the orderly end.
    return create_app(settings, tagger=tagger, on_failure=partial(os._exit, 1))


Taggers = serve.deployment(
    name="tagger",
    max_ongoing_requests=TAGGER_CALLS,
    max_queued_requests=256,
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": TAGGER_CALLS / 2},
    ray_actor_options={"num_cpus": 1},
    user_config={"batch_segments": 8, "batch_wait_s": 0.0},
    health_check_period_s=5,
    graceful_shutdown_timeout_s=30,
)(TaggerReplica)

Ingress = serve.deployment(
    name="ingress",
    max_ongoing_requests=INGRESS_REQUESTS,
    ray_actor_options={"num_cpus": 1},
    health_check_period_s=5,
    graceful_shutdown_timeout_s=60,
)(serve.ingress(build_ingress)())

app = Ingress.bind(Taggers.bind())
