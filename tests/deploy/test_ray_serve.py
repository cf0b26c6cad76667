"""The service on Ray Serve: real processes on this machine, under load, one of them killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from model.tagger import Tagger
from tests.app.service import check_problem, free_port, scores, tune
from tests.deploy.processes import below, kill_tree

pytest.importorskip("ray", reason="needs the extra `ray`")

pytestmark = [pytest.mark.ray, pytest.mark.anyio]

PATIENCE_S = 600.0
CLIENTS = 64
SERVE_YAML = Path("deploy/ray/serve.yaml")


@contextmanager
def ray_serve(*options: str, **settings: str) -> Iterator[tuple[str, int]]:
    """The service with its taggers; yields its URL and the process's id."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        log = Path(scratch, "log")
        # Ray's own niceness, 15, would let whatever else runs here go first.
        environment = os.environ | {"RAY_TMPDIR": scratch, "RAY_worker_niceness": "0", "TAGGER_DEVICE": "cpu"}
        environment |= settings
        command = [sys.executable, "-m", "deploy.ray.local", "--port", str(port), *options]
        with (
            log.open("wb") as output,
            subprocess.Popen(command, env=environment, stderr=output, stdout=output) as process,
        ):
            try:
                url = f"http://127.0.0.1:{port}"
                _wait_until_ready(url, process, log)
                yield url, process.pid
            finally:
                kill_tree(process.pid)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the service did not get ready:\n{log.read_text()}")


def check_refusal(response: httpx.Response, status: int, slug: str) -> None:
    """See check_problem; Serve's proxy gives the request its id, and adds it to the answer once more."""
    [response.headers["x-request-id"]] = set(response.headers.get_list("x-request-id"))
    check_problem(response, status, slug)


@pytest.fixture(scope="module")
def two_taggers() -> Iterator[tuple[str, int]]:
    with ray_serve("--replicas", "2") as running:
        yield running


async def test_the_same_application_with_the_same_scores(
    two_taggers: tuple[str, int], clips: dict[str, Path]
) -> None:
    url, _ = two_taggers
    expected = Tagger.load(device="cpu").tag(clips["sung_pop"]).scores
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        answer = await client.post("/v1/tags", content=clips["sung_pop"].read_bytes())
        model = (await client.get("/v1/model")).json()
        refused = await client.post("/v1/tags", content=b"no music")

    assert scores(answer) == pytest.approx(expected, abs=1e-6)
    assert (model["engine"], model["precision"]) in [
        ("openvino", "bf16"),
        ("openvino", "fp32"),
        ("torch", "fp32"),
    ]
    check_refusal(refused, 415, "not-audio")


async def test_no_admitted_request_is_lost_when_a_tagger_is_killed(
    two_taggers: tuple[str, int], clips: dict[str, Path]
) -> None:
    url, pid = two_taggers
    clip = clips["sung_pop"].read_bytes()
    before = taggers(pid)
    answers: list[httpx.Response] = []
    until_s = time.monotonic() + 15
    limits = httpx.Limits(max_connections=CLIENTS)

    async def client_of(client: httpx.AsyncClient) -> None:
        while time.monotonic() < until_s or len(answers) < 4 * CLIENTS:
            answers.append(await client.post("/v1/tags", content=clip))

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits) as client:
        load = [asyncio.create_task(client_of(client)) for _ in range(CLIENTS)]
        while len(answers) < CLIENTS:
            await asyncio.sleep(0.01)
        os.kill(before[0], signal.SIGKILL)
        answered_before = len(answers)
        await asyncio.gather(*load)

    assert len(before) == 2
    assert len(answers) > answered_before
    assert {answer.status_code for answer in answers} == {200}
    assert len({json.dumps(scores(answer)) for answer in answers}) == 1
    await wait_for_taggers(pid, 2, but_not=before[0])


def taggers(pid: int) -> list[int]:
    """Process ids of the taggers below the service's own."""
    return [found for found, title in below(pid).items() if "ServeReplica:default:tagger" in title]


async def wait_for_taggers(pid: int, count: int, but_not: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(set(taggers(pid)) - {but_not}) < count:
            await asyncio.sleep(0.5)


async def test_back_pressure_of_the_taggers_is_429_with_a_time_to_come_back() -> None:
    many = {"TAGGER_CONCURRENT_BATCHES": "64", "TAGGER_BATCH_SEGMENTS": "1"}
    with ray_serve("--max-queued-requests", "1", **many) as (url, _):
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
            answers = await asyncio.gather(*(client.post("/v1/tags", content=tune(60)) for _ in range(8)))

    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        check_refusal(answer, 429, "queue-full")
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # in Ray's own schema
def test_the_cluster_configuration_is_what_serve_takes_and_names_what_is_there() -> None:
    from ray.serve.schema import ServeDeploySchema

    configured = yaml.safe_load(SERVE_YAML.read_text())
    ServeDeploySchema.model_validate(configured)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "built.yaml")
        command = [
            sys.executable,
            "-m",
            "ray.serve.scripts",
            "build",
            "deploy.ray.serve_app:app",
            "-o",
            str(out),
        ]
        subprocess.run(command, check=True, capture_output=True)
        built = yaml.safe_load(out.read_text())

    def names(config: dict[str, list[dict[str, list[dict[str, str]]]]]) -> set[str]:
        return {deployment["name"] for deployment in config["applications"][0]["deployments"]}

    assert names(configured) == names(built) == {"ingress", "tagger"}
    assert configured["applications"][0]["import_path"] == built["applications"][0]["import_path"]
