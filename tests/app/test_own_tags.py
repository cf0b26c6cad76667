"""Tags of one's own, from a folder of sound to a service that knows them and no others."""

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from model.bundle import load_bundle
from model.tags import MEANINGS
from model.tags import TAGS as SHIPPED_TAGS
from tests.app.browser import Tab, new_tab
from tests.app.service import Process, run, server_process
from tests.styles import TAGS, write_collection

MEANING = "four on the floor; about 124 = typical"
WEB = Path(__file__).parents[2] / "app" / "web"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("mine"), ("train", "train", "val", "test"), seconds=3)


@pytest.fixture(scope="module")
def folder(manifest: Path) -> Path:
    """A bundle as the command line makes it."""
    out = manifest.parent / "run"
    result = run(
        *("train", "--manifest", manifest, "--tags", ", ".join(TAGS), "--meaning", f"house={MEANING}"),
        *("--steps", "2", "--batch", "4", "--evaluate-every", "1", "--device", "cpu", "--out", out),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Bundle: {out / 'bundle'}\n"
    return out / "bundle"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    with server_process(("-m", "app.cli", "serve", "--weights", str(folder))) as process:
        yield process


@pytest.fixture(scope="module")
def clip(manifest: Path) -> Path:
    return manifest.parent / "album-03" / "5-house-ambient.wav"


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    with new_tab(browser) as opened:
        yield opened


def test_the_bundle_knows_the_tags_and_what_they_mean_and_who_taught_it(folder: Path) -> None:
    bundle, _ = load_bundle(folder)

    assert bundle.tags == TAGS
    assert bundle.meanings == {"house": MEANING, "breakbeat": "", "ambient": ""}
    assert [entry["source"] for entry in bundle.training_data] == ["album-00", "album-01"]


def test_it_is_evaluated_on_the_split_that_nothing_was_learnt_from(manifest: Path, folder: Path) -> None:
    result = run(
        *("evaluate", "--manifest", manifest, "--split", "test"),
        *("--weights", folder, "--device", "cpu", "--format", "json"),
    )

    assert result.exit_code == 0, result.output
    told = {found["tag"]: (found["positives"], found["negatives"]) for found in json.loads(result.stdout)}
    assert told == {"house": (3, 3), "breakbeat": (2, 4), "ambient": (2, 4)}


def test_the_model_describes_the_own_tags(server: Process, folder: Path) -> None:
    bundle, _ = load_bundle(folder)

    assert server.get("/v1/model").json()["tags"] == [
        {"tag": tag, "meaning": bundle.meanings[tag], "threshold": bundle.thresholds[tag]} for tag in TAGS
    ]


def test_a_clip_is_scored_for_the_own_tags(server: Process, folder: Path, clip: Path) -> None:
    bundle, _ = load_bundle(folder)

    answer = server.post(clip.read_bytes(), params={"windows": "true", "threshold": "ambient:1"}).json()

    assert [(tag["tag"], tag["threshold"]) for tag in answer["tags"]] == [
        ("house", bundle.thresholds["house"]),
        ("breakbeat", bundle.thresholds["breakbeat"]),
        ("ambient", 1.0),
    ]
    assert [set(window["scores"]) for window in answer["windows"]] == [set(TAGS)]
    wrong = server.post(clip.read_bytes(), params={"threshold": "vocal:0.5"}).json()
    assert wrong["hint"].endswith("the tags are house, breakbeat, ambient.")


def test_hugging_face_s_clients_get_the_own_tags(server: Process, clip: Path) -> None:
    labels = httpx.post(f"{server.url}/hf/audio-classification", content=clip.read_bytes()).json()

    assert {label["label"] for label in labels} == set(TAGS)


def test_the_documentation_speaks_of_the_own_tags_only(server: Process) -> None:
    openapi: dict[str, Any] = server.get("/openapi.json").json()

    examples = openapi["components"]["schemas"]["TagResponse"]["examples"]
    assert [tag["tag"] for tag in examples[0]["tags"]] == list(TAGS)
    [threshold] = [p for p in openapi["paths"]["/v1/tags"]["post"]["parameters"] if p["name"] == "threshold"]
    assert threshold["schema"]["examples"] == ["0.5", "house:0.6,breakbeat:0.4"]
    problems = server.get("/problems").text
    assert re.findall(rf"\b(?:{'|'.join(MEANINGS)})\b", json.dumps(openapi) + problems) == []


def test_the_docs_show_the_own_tags(server: Process, tab: Tab) -> None:
    page = tab.page
    page.goto(f"{server.url}/docs")
    operation = page.locator(".opblock", has=page.locator('[data-path="/v1/tags"]'))
    operation.locator(".opblock-summary-control").click()

    answer = operation.locator(".response", has_text="The scores.")
    expect(answer).to_contain_text('"breakbeat"')
    expect(answer).not_to_contain_text('"vocal"')
    tab.screenshot("own-tags-docs")


def test_the_page_shows_the_own_tags_everywhere(server: Process, clip: Path, tab: Tab) -> None:
    page = tab.page
    page.goto(f"{server.url}/")
    expect(page.locator("#model")).not_to_be_empty()
    page.locator("#files").set_input_files([clip, clip.with_name("4-ambient.wav")])
    expect(page.locator("#rows tr:has(td:nth-child(3))")).to_have_count(2)

    expect(page.locator("#scores .tag-name")).to_have_text(list(TAGS))
    expect(page.locator("#scores .tag-name").first).to_have_attribute("title", MEANING)
    expect(page.locator("#scores .tag-name").last).to_have_attribute("title", "")
    expect(page.locator("#lanes span")).to_have_text(list(TAGS))
    expect(page.locator("#columns th")).to_have_text(["Clip", "Length", *TAGS])
    expect(page.locator("#carries option")).to_have_text(["any", *TAGS])
    expect(page.locator("#stage")).to_have_attribute(
        "aria-valuetext", re.compile("house .*breakbeat .*ambient")
    )
    with page.expect_download() as table:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(table.value.path().read_bytes().decode("utf-8-sig"))))
    assert list(rows[0]) == ["clip", "duration_s", *TAGS, "present", "problem"]
    tab.screenshot("own-tags-page")

    page.get_by_role("button", name="中文").click()
    expect(page.locator("#scores .tag-name")).to_have_text(list(TAGS))
    expect(page.locator("#scores .tag-name").first).to_have_attribute("title", MEANING)
    assert tab.errors == []


def test_the_shipped_meanings_are_translated_word_for_word_of_the_bundle() -> None:
    translations = (WEB / "i18n.js").read_text(encoding="utf-8")

    assert [
        meaning for meaning in load_bundle()[0].meanings.values() if f'"{meaning}":' not in translations
    ] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tags", " , "], "at least one tag"),
        (["--tags", "house,house"], "each once"),
        (["--tags", "house,split"], "split: a column of every manifest"),
        (["--tags", "house", "--meaning", "techno=fast"], "the tags are house"),
        (["--tags", "house", "--meaning", "four on the floor"], "takes TAG=TEXT"),
    ],
)
def test_train_refuses_tags_that_cannot_be(manifest: Path, arguments: list[str], told: str) -> None:
    result = run("train", "--manifest", manifest, *arguments)

    assert result.exit_code == 2
    assert told in result.stderr


@pytest.fixture(scope="module")
def jamendo(tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Path:
    """A small copy of MTG-Jamendo's layout, with sound; one track of it is missing."""
    clone = tmp_path_factory.mktemp("mtg-jamendo-dataset")
    splits = clone / "data" / "splits" / "split-0"
    splits.mkdir(parents=True)
    sounds = sorted(manifest.parent.glob("album-00/*.wav"))
    kinds = (
        "genre---pop\tgenre---dance\tinstrument---voice",
        "genre---soundtrack\tinstrument---piano",
        "genre---rock",
    )
    for number, split in enumerate(("train", "validation", "test")):
        rows = ["TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"]
        for index, tags in enumerate(kinds):
            track = 10 * number + index + 100
            path = f"{track % 100:02}/{track}.mp3"
            rows.append(f"track_{track:07}\tartist_{number:06}\talbum_{number:06}\t{path}\t3.0\t{tags}")
            if track != 102:
                (clone / "audio" / path).parent.mkdir(parents=True)
                shutil.copy(sounds[index], clone / "audio" / path)
        (splits / f"autotagging-{split}.tsv").write_text("\n".join(rows) + "\n")
    return clone


def test_train_takes_mtg_jamendo_as_it_lies(jamendo: Path, tmp_path: Path) -> None:
    result = run(
        *("train", "--mtg-jamendo", jamendo, "--out", tmp_path / "run"),
        *("--steps", "1", "--batch", "2", "--device", "cpu"),
    )

    assert result.exit_code == 0, result.output
    assert "MTG-Jamendo: 8 clips; 1 left out" in result.stderr
    bundle, _ = load_bundle(tmp_path / "run" / "bundle")
    assert bundle.tags == SHIPPED_TAGS
    assert bundle.training_data == [{"source": "artist_000000", "clips": 2}]


def test_evaluate_takes_mtg_jamendo_s_test_split(jamendo: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "clips.csv"

    written = run("mtg-jamendo", jamendo, "--out", manifest)
    result = run("evaluate", "--manifest", manifest, "--split", "test", "--device", "cpu", "--format", "json")

    assert written.stdout == f"Manifest: {manifest}\n"
    assert result.exit_code == 0, result.output
    told = {found["tag"]: (found["positives"], found["negatives"]) for found in json.loads(result.stdout)}
    assert told == {"vocal": (1, 1), "dance": (1, 2), "soundtrack": (1, 2), "pop": (1, 2)}


def test_train_refuses_a_folder_that_is_not_mtg_jamendo(tmp_path: Path) -> None:
    result = run("train", "--mtg-jamendo", tmp_path, "--out", tmp_path / "run")

    assert result.exit_code == 2
    assert "give a clone of MTG/mtg-jamendo-dataset" in result.stderr


def test_train_asks_for_something_to_learn_from() -> None:
    result = run("train")

    assert result.exit_code == 2
    assert "--manifest CSV, or --mtg-jamendo DIR" in result.stderr


def test_folds_give_predictions_that_evaluate_measures(manifest: Path, folder: Path, tmp_path: Path) -> None:
    trained = run(
        *("train", "--manifest", manifest, "--tags", ", ".join(TAGS), "--folds", "2", "--steps", "2"),
        *("--batch", "4", "--device", "cpu", "--cache", folder.parent / "cache", "--out", tmp_path / "cv"),
    )

    assert trained.stdout == f"Predictions: {tmp_path / 'cv' / 'predictions.csv'}\n", trained.output
    measured = run(
        *("evaluate", "--manifest", manifest, "--split", "all", "--format", "json", "--weights", folder),
        *("--predictions", tmp_path / "cv" / "predictions.csv"),
    )
    assert {item["tag"]: item["positives"] + item["negatives"] for item in json.loads(measured.stdout)} == (
        dict.fromkeys(TAGS, len(manifest.read_text().splitlines()) - 1)
    )


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_a_place_that_cannot_be_is_told(manifest: Path, tmp_path: Path, option: str) -> None:
    result = run(
        *("train", "--manifest", manifest, "--tags", ", ".join(TAGS), "--out", tmp_path / "run"),
        *(option, "/dev/null/place"),
    )

    assert result.exit_code == 2
    assert "music-tagger: /dev/null/place" in result.stderr
    assert "Not a directory" in result.stderr


def test_a_calibration_that_is_none_is_refused_before_anything_is_trained(
    manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "calibration.json").write_text('{"house": {"scale": 1.0}}')

    result = run(
        *("train", "--manifest", manifest, "--tags", ", ".join(TAGS), "--out", tmp_path / "run"),
        *("--calibration", tmp_path / "calibration.json"),
    )

    assert result.exit_code == 2
    assert "calibration.json" in result.stderr
    assert not (tmp_path / "run").exists()
