"""POST /hf/audio-classification: with Hugging Face's own client, and what it cannot send."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from app.routes.huggingface import PIECE
from model.tagger import Tagger
from tests.app.service import Process, Service, check_problem, server_process, serving, tune, until

CLIP = Path(__file__).parents[1] / "clips" / "sung_pop.opus"
URL = "/hf/audio-classification"


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with server_process(api_keys="the-key") as process:
        yield process


@pytest.fixture
def client(server: Process) -> InferenceClient:
    return InferenceClient(model=f"{server.url}{URL}", token="the-key")


@pytest.mark.parametrize("clip", [CLIP, CLIP.read_bytes()], ids=["path", "bytes"])
def test_the_client_gets_all_tags_by_falling_score(
    client: InferenceClient, tagger: Tagger, clip: Path | bytes
) -> None:
    found = client.audio_classification(clip)

    expected = sorted(tagger.tag(CLIP).scores.items(), key=lambda item: -item[1])
    assert [label.label for label in found] == [tag for tag, _ in expected]
    assert [label.score for label in found] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_the_client_s_top_k_is_honoured(client: InferenceClient) -> None:
    both = client.audio_classification(CLIP, top_k=2, function_to_apply="sigmoid")

    assert both == client.audio_classification(CLIP)[:2]


def test_the_client_is_told_what_a_bad_clip_is(client: InferenceClient) -> None:
    with pytest.raises(HfHubHTTPError) as failure:
        client.audio_classification(b"no music at all " * 99)

    assert failure.value.response.json()["type"] == "/problems/not-audio"


def test_the_client_s_wrong_key_is_refused(server: Process) -> None:
    stranger = InferenceClient(model=f"{server.url}{URL}", token="another")

    with pytest.raises(HfHubHTTPError) as failure:
        stranger.audio_classification(CLIP)

    assert failure.value.response.json()["type"] == "/problems/key-wrong"


@pytest.mark.anyio
async def test_top_k_may_stand_in_the_query(service: Service) -> None:
    whole = (await service.client.post(URL, content=tune(3))).json()
    some = (await service.client.post(f"{URL}?top_k=3", content=tune(3))).json()
    many = (await service.client.post(f"{URL}?top_k=999", content=tune(3))).json()

    assert (some, many) == (whole[:3], whole)


@pytest.mark.anyio
async def test_a_long_clip_in_base64_is_the_clip(service: Service) -> None:
    clip = tune(40)
    assert len(base64.b64encode(clip)) > PIECE

    raw, encoded = await asyncio.gather(
        service.client.post(URL, content=clip),
        service.client.post(URL, json={"inputs": base64.b64encode(clip).decode()}),
    )

    assert encoded.json() == raw.json()
    assert "inference;dur=" in raw.headers["Server-Timing"]


@pytest.mark.anyio
async def test_the_wait_for_another_body_ends_with_the_deadline(service: Service) -> None:
    async with service.state.one_json_body:
        late = await service.client.post(URL, json={"inputs": GOOD}, headers={"X-Request-Timeout": "0.1"})

    check_problem(late, 503, "late-in-queue")
    assert int(late.headers["Retry-After"]) >= 1
    assert (await service.client.post(URL, json={"inputs": GOOD})).is_success


@pytest.mark.anyio
async def test_the_wait_for_another_body_ends_with_the_grace_time(tagger: Tagger) -> None:
    async with serving(tagger) as service, service.state.one_json_body:
        waiting = asyncio.ensure_future(service.client.post(URL, json={"inputs": GOOD}))
        await until(lambda: service.state.admitted == 1)
        await asyncio.sleep(0.1)  # its body has come

        service.state.end_grace()

        check_problem(await waiting, 503, "draining")


GOOD = base64.b64encode(tune(2)).decode()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "options", "status", "slug", "named"),
    [
        ("?top_k=0", {"content": tune(2)}, 422, "bad-parameter", "top_k"),
        ("?topk=1", {"content": tune(2)}, 422, "bad-parameter", "topk"),
        ("?top_k=1", {"json": {"inputs": GOOD, "parameters": {"top_k": 1}}}, 400, "bad-combination", "top_k"),
        ("", {"json": {"inputs": GOOD, "parameters": {"top_k": 0}}}, 422, "bad-parameter", "top_k"),
        (
            "",
            {"json": {"inputs": GOOD, "parameters": {"function_to_apply": "softmax"}}},
            422,
            "bad-parameter",
            "sigmoid",
        ),
        ("", {"json": {"inputs": "%%%"}}, 422, "bad-parameter", "base64"),
        ("", {"json": {"inputs": GOOD[:76] + "\n" + GOOD[76:]}}, 422, "bad-parameter", "base64"),
        ("", {"json": {"inputs": "ä"}}, 422, "bad-parameter", "base64"),
        ("", {"json": {"parameters": {}}}, 422, "bad-parameter", "inputs"),
        ("", {"json": {"inputs": ""}}, 400, "empty-clip", "empty"),
        (
            "",
            {"content": b"{", "headers": {"Content-Type": "application/json"}},
            400,
            "bad-json",
            "JSON",
        ),
        (
            "",
            {
                "content": b'{"inputs": "", '
                + b", ".join(b'"%d": 0' % number for number in range(1000))
                + b"}",
                "headers": {"Content-Type": "application/json"},
            },
            400,
            "bad-json",
            "many more values",
        ),
        ("", {"content": b""}, 400, "empty-clip", "empty"),
        (
            "",
            {
                "content": b"zipped",
                "headers": {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            },
            415,
            "media-type",
            "Content-Encoding is gzip",
        ),
    ],
)
async def test_what_cannot_be_done_is_named(
    service: Service, query: str, options: dict[str, Any], status: int, slug: str, named: str
) -> None:
    problem = check_problem(await service.client.post(f"{URL}{query}", **options), status, slug)

    assert named in problem["detail"] + problem["title"]
