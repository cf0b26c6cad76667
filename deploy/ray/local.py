"""The service on Ray Serve on this machine alone: `python -m deploy.ray.local --replicas 2 --port 8000`."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

# By default a proxy that takes 5 s to start is killed and started again, over and over on a busy machine.
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
os.environ.setdefault("TAGGER_CONCURRENT_BATCHES", "8")
os.environ.setdefault("TAGGER_THREADS", "1")

import ray
import typer
from ray import serve
from ray.serve.config import HTTPOptions

from deploy.ray.cluster import connect
from deploy.ray.serve_app import Ingress, Taggers


@contextmanager
def serving(replicas: int, port: int, max_queued_requests: int = 256) -> Iterator[None]:
    """Serve on 127.0.0.1 with so many taggers, each on one core."""
    connect(None, replicas + 1)
    try:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        tagger = Taggers.options(
            num_replicas=replicas, autoscaling_config=None, max_queued_requests=max_queued_requests
        )
        serve.run(Ingress.bind(tagger.bind()))
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def main(
    replicas: Annotated[int, typer.Option(min=1, help="Taggers, each a process with a core.")] = 1,
    port: Annotated[int, typer.Option(envvar="TAGGER_PORT", help="TCP port on 127.0.0.1.")] = 8000,
    max_queued_requests: Annotated[
        int, typer.Option(help="Batches that wait for taggers before 429; -1 for no bound.")
    ] = 256,
) -> None:
    """Serve until Ctrl-C."""
    try:
        with serving(replicas, port, max_queued_requests):
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # now, as Ray sets its own
            typer.echo(f"Serving on http://127.0.0.1:{port}; Ctrl-C ends.", err=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    typer.run(main)
