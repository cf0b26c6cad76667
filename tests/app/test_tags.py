"""POST /v1/tags: what a good clip gets, and what each bad one is told."""

import asyncio
import io
import os
import zipfile
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.audio import read_audio
from model.tagger import Tagger
from tests.app.service import RATE, Service, check_problem, scores, serving, tune, until, wav
from tests.encoding import encode

pytestmark = pytest.mark.anyio


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("song.txt", "la la la" * 1000)
    return buffer.getvalue()


async def test_the_answer_is_complete(service: Service, tagger: Tagger) -> None:
    response = await service.tag(tune(12))

    body = response.json()
    assert response.status_code == 200
    assert [tag["tag"] for tag in body["tags"]] == list(tagger.bundle.tags)
    assert all(tag["present"] == (tag["score"] >= tag["threshold"]) for tag in body["tags"])
    assert body["audio"] == {
        "format": "wav",
        "codec": "pcm_s16le",
        "sample_rate_hz": RATE,
        "channels": 1,
        "duration_s": pytest.approx(12, abs=0.01),
        "analysed_s": pytest.approx(12, abs=0.01),
    }
    assert body["model"]["sha256"] == tagger.bundle.sha256
    assert set(body["timing_ms"]) == {"decode", "queue", "inference", "total"}
    assert 0 < body["timing_ms"]["inference"] <= body["timing_ms"]["total"]
    assert "windows" not in body


async def test_scores_are_those_of_the_library(service: Service, tagger: Tagger) -> None:
    response = await service.tag(tune(33))

    assert scores(response) == pytest.approx(tagger.tag(tune(33)).scores, abs=1e-4)


async def test_form_and_raw_body_give_the_same_scores(service: Service) -> None:
    clip = tune(7)

    form = await service.client.post("/v1/tags", files={"file": ("a song.wav", clip, "audio/wav")})
    raw = [
        await service.tag(clip, headers=headers)
        for headers in (
            {"Content-Type": "application/octet-stream"},
            {"Content-Type": "audio/wav"},
            {},
        )
    ]

    assert all(scores(response) == scores(form) for response in raw)


async def test_scores_in_company_are_those_alone(tagger: Tagger) -> None:
    clips = [tune(seconds, pitch) for seconds in (3, 9, 21) for pitch in (110.0, 330.0)]
    async with serving(tagger, batch_segments=8) as service:
        before = service.passes
        alone = [scores(await service.tag(clip)) for clip in clips]
        passes_alone = service.passes - before

        service.tagger.hold()
        answering = [asyncio.create_task(service.tag(clip)) for clip in clips]
        await service.tagger.wait_until_entered()
        await until(lambda: service.state.pipeline.batcher.depth >= 8)
        service.tagger.free.set()
        company = await asyncio.gather(*answering)

        assert service.passes - before - passes_alone < passes_alone, "no batch was shared"
        for together, by_itself in zip(company, alone, strict=True):
            assert scores(together) == pytest.approx(by_itself, abs=1e-4)


async def test_windows_are_the_timeline(service: Service) -> None:
    response = await service.client.post("/v1/tags?windows=true", content=tune(32))

    windows = response.json()["windows"]
    assert [window["start_s"] for window in windows[:3]] == [0, 5, 10]
    assert all(window["end_s"] <= 32.01 for window in windows)
    assert all(set(window["scores"]) == set(scores(response)) for window in windows)


async def test_a_part_can_be_chosen(service: Service) -> None:
    part = await service.client.post("/v1/tags?start_s=5&duration_s=10&windows=true", content=tune(30))

    assert part.json()["audio"]["analysed_s"] == pytest.approx(10, abs=0.1)
    assert part.json()["windows"][0]["start_s"] == 5


async def test_a_part_far_into_a_song_is_tagged_as_if_it_were_cut_out(
    service: Service, song: NDArray[np.float32]
) -> None:
    clip = encode(np.tile(song, 8), 48_000, "ogg-opus")
    part, _ = read_audio(clip, start_s=95, duration_s=10)

    found = await service.client.post("/v1/tags?start_s=95&duration_s=10", content=clip)

    assert scores(found) == pytest.approx(scores(await service.tag(wav(part.astype(np.float64)))), abs=0.01)


@pytest.mark.parametrize(
    ("threshold", "expected"), [("0", {"first": 0.0, "last": 0.0}), ("1", {"first": 1.0, "last": 1.0})]
)
async def test_one_threshold_for_all(
    service: Service, tagger: Tagger, threshold: str, expected: dict[str, float]
) -> None:
    response = await service.client.post(f"/v1/tags?threshold={threshold}", content=tune(3))

    tags = response.json()["tags"]
    assert tags[0]["threshold"] == expected["first"]
    assert tags[-1]["threshold"] == expected["last"]
    assert [tag["present"] for tag in tags] == [threshold == "0"] * len(tagger.bundle.tags)


async def test_a_threshold_by_tag_leaves_the_others(service: Service, tagger: Tagger) -> None:
    first, *others = tagger.bundle.tags

    response = await service.client.post(f"/v1/tags?threshold={first}:0.123", content=tune(3))

    found = {tag["tag"]: tag["threshold"] for tag in response.json()["tags"]}
    assert found[first] == 0.123
    assert [found[tag] for tag in others] == [tagger.bundle.thresholds[tag] for tag in others]


@pytest.mark.parametrize(
    ("query", "status", "slug", "named"),
    [
        ("threshold=rock:0.5", 422, "bad-parameter", "rock"),
        ("threshold=1.5", 422, "bad-parameter", "1.5"),
        ("threshold=nan", 422, "bad-parameter", "nan"),
        ("threshold=loud", 422, "bad-parameter", "loud"),
        ("threshold=0.5,vocal:0.6", 400, "bad-combination", "mixes"),
        ("threshold=vocal:0.5,vocal:0.6", 400, "bad-combination", "vocal"),
        ("threshold=0.5&threshold=0.6", 400, "bad-combination", "threshold"),
        ("treshold=0.5", 422, "bad-parameter", "treshold"),
        ("windows=perhaps", 422, "bad-parameter", "windows"),
        ("start_s=-1", 422, "bad-parameter", "start_s"),
        ("start_s=inf", 422, "bad-parameter", "start_s"),
        ("start_s=1e305", 422, "bad-parameter", "start_s"),
        ("duration_s=1e305", 422, "bad-parameter", "duration_s"),
        ("duration_s=0", 422, "bad-parameter", "duration_s"),
    ],
)
async def test_bad_parameters_are_named(
    service: Service, query: str, status: int, slug: str, named: str
) -> None:
    response = await service.client.post(f"/v1/tags?{query}", content=tune(3))

    assert named in check_problem(response, status, slug)["detail"]


@pytest.mark.parametrize("path", ["/v1/tags?threshold=&duration_s=", "/hf/audio-classification?top_k="])
async def test_an_empty_parameter_is_none(service: Service, path: str) -> None:
    response = await service.client.post(path, content=tune(3))

    assert response.status_code == 200


async def test_what_is_told_of_an_unknown_parameter_is_short(service: Service) -> None:
    response = await service.client.post(f"/v1/tags?{'x' * 7000}=1", content=tune(3))

    assert len(check_problem(response, 422, "bad-parameter")["detail"]) < 200


async def test_an_unknown_tag_is_answered_with_the_known_ones(service: Service, tagger: Tagger) -> None:
    response = await service.client.post("/v1/tags?threshold=rock:0.5", content=tune(3))

    hint = check_problem(response, 422, "bad-parameter")["hint"]
    assert all(tag in hint for tag in tagger.bundle.tags)


BAD_CLIPS: dict[str, tuple[bytes, int, set[str]]] = {
    "empty": (b"", 400, {"empty-clip"}),
    "random": (np.random.default_rng(5).bytes(50_000), 415, {"not-audio"}),
    "text": (b"These are the words of a song, but nobody sings them.\n" * 200, 415, {"not-audio"}),
    "zip": (zip_file(), 415, {"not-audio"}),
    "header only": (tune(3)[:44], 422, {"undecodable", "too-short"}),
    "silent": (wav(np.zeros(RATE * 5)), 422, {"silent"}),
    "0.05 s": (tune(0.05), 422, {"too-short"}),
}


@pytest.mark.parametrize("name", BAD_CLIPS)
async def test_a_bad_clip_is_told_why_and_the_next_good_one_works(service: Service, name: str) -> None:
    clip, status, slugs = BAD_CLIPS[name]

    response = await service.tag(clip)

    check_problem(response, status, response.json()["type"].removeprefix("/problems/"))
    assert response.json()["type"].removeprefix("/problems/") in slugs
    assert scores(await service.tag(tune(3)))


async def test_a_truncated_clip_is_tagged_on_what_is_there(service: Service) -> None:
    clip = tune(20)

    response = await service.tag(clip[: len(clip) // 2])

    assert scores(response)
    assert response.json()["audio"]["analysed_s"] == pytest.approx(10, abs=0.1)


async def test_too_many_seconds_are_refused_while_decoding(tagger: Tagger) -> None:
    async with serving(tagger, max_audio_s=5) as service:
        problem = check_problem(await service.tag(tune(20)), 413, "too-many-seconds")
        assert "start_s" in problem["hint"] or "duration_s" in problem["hint"]
        assert scores(await service.tag(tune(4)))


async def test_the_shortest_clip_is_a_setting(tagger: Tagger) -> None:
    async with serving(tagger, min_audio_s=3) as service:
        check_problem(await service.tag(tune(2)), 422, "too-short")
        assert scores(await service.tag(tune(3.5)))


async def test_a_query_of_many_parameters_is_refused_before_each_is_judged(service: Service) -> None:
    allowed = "&".join(f"x{number}=1" for number in range(32))

    findings = check_problem(
        await service.client.post(f"/v1/tags?{allowed}", content=b"x"), 422, "bad-parameter"
    )
    refused = check_problem(
        await service.client.post(f"/v1/tags?{allowed}&windows=1", content=b"x"), 422, "bad-parameter"
    )

    assert findings["detail"].count(";") == 9
    assert "32" in refused["detail"]


FORMS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no file": ({"files": {"song": ("a.wav", b"x")}}, 400, "no-clip"),
    "empty file": ({"files": {"file": ("a.wav", b"")}}, 400, "empty-clip"),
    "two files": ({"files": [("file", ("a.wav", b"x")), ("file", ("b.wav", b"y"))]}, 400, "bad-combination"),
    "no boundary": (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "malformed-multipart",
    ),
    "not a form": (
        {"content": b"RIFF" * 100, "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        400,
        "malformed-multipart",
    ),
    "cut off": (
        {
            "content": b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nRIFF',
            "headers": {"Content-Type": "multipart/form-data; boundary=b"},
        },
        400,
        "malformed-multipart",
    ),
    "countless parts": (
        {
            "content": b"--b\r\na: b\r\n\r\n\r\n" * 200 + b"--b--",
            "headers": {"Content-Type": "multipart/form-data; boundary=b"},
        },
        400,
        "malformed-multipart",
    ),
    "a name in place of a file": ({"files": {"file": (None, b"song.mp3")}}, 400, "no-clip"),
    "compressed": ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 415, "media-type"),
    "json": ({"json": {"file": "song.mp3"}}, 415, "media-type"),
    "urlencoded": ({"data": {"file": "song.mp3"}}, 415, "media-type"),
}


@pytest.mark.parametrize("name", FORMS)
async def test_a_bad_form_is_told_why(service: Service, name: str) -> None:
    options, status, slug = FORMS[name]

    check_problem(await service.client.post("/v1/tags", **options), status, slug)

    assert scores(await service.tag(tune(3)))


async def test_a_form_may_have_other_fields_and_any_file_name(service: Service) -> None:
    name = "../../etc/passwd\x07" + "\N{MUSICAL NOTE}" * 40 + ".exe"

    response = await service.client.post(
        "/v1/tags", data={"artist": "nobody" * 1000}, files={"file": (name, tune(3), "text/html")}
    )

    assert scores(response) == scores(await service.tag(tune(3)))


async def test_nothing_of_a_clip_touches_the_disk(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    import builtins
    import tempfile

    def refuse(*args: object, **_: object) -> None:
        opened.append(args)
        raise AssertionError("a clip must stay in memory")

    for name in ("SpooledTemporaryFile", "NamedTemporaryFile", "TemporaryFile", "mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(os, "open", refuse)

    form = await service.client.post("/v1/tags", files={"file": ("song.wav", tune(40), "audio/wav")})

    monkeypatch.undo()
    assert scores(form)
    assert opened == []
