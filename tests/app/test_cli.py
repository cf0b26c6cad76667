"""The command line, with the real tagger: called in this process, or as a process where that tells more."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import Result

from app import __version__
from app.settings import Settings
from model.tags import TAGS
from model.training.corpus import read_manifest
from model.training.train import TrainSettings
from tests.app.service import PATIENCE_S, free_port, run, run_tag, tune

CLIP = Path(__file__).parents[1] / "clips" / "sung_pop.opus"


def lines(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good clips and a bad one between them, one in a folder of its own, and what is hidden."""
    music = tmp_path / "music"
    (music / "later").mkdir(parents=True)
    (music / ".trash").mkdir()
    (music / "a.wav").write_bytes(tune(3))
    (music / "b.mp3").write_bytes(b"no music, but words " * 99)
    (music / "later" / "c.wav").write_bytes(tune(2, pitch_hz=330))
    (music / ".hidden.wav").write_bytes(tune(2))
    (music / ".trash" / "d.wav").write_bytes(tune(2))
    return music


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four clips of three sources; `vocal` is known of three of them, the other tags of none."""
    for number in range(4):
        (tmp_path / f"{number}.wav").write_bytes(tune(2, pitch_hz=200 + 40 * number))
    path = tmp_path / "clips.csv"
    rows = [("0", "x", "1"), ("1", "x", "0"), ("2", "y", "1"), ("3", "z", "")]
    header = f"id,file,split,source,{','.join(TAGS)},vocal_evidence\n"
    path.write_text(
        header
        + "".join(f"{name},{name}.wav,val,{source},{vocal},,,,metadata\n" for name, source, vocal in rows)
    )
    return path


def test_version() -> None:
    assert run("--version").stdout == f"music-tagger {__version__}\n"


def test_help_names_every_command_and_answers_before_torch_could_be_loaded() -> None:
    loaded = "import sys, app.cli; print(sorted({'torch', 'fastapi', 'av', 'sklearn'} & set(sys.modules)))"

    assert subprocess.check_output([sys.executable, "-c", loaded], text=True) == "[]\n"
    assert {"serve", "tag", "train", "evaluate"} <= set(run("--help").stdout.split())


def test_defaults_that_the_help_tells_are_those_of_the_settings() -> None:
    told = run("serve", "--help").stdout

    assert re.findall(r"\[default: \((\S+)\)\]", told) == [Settings().host, str(Settings().port)]


def test_jsonl_is_an_object_a_file() -> None:
    result = run_tag(CLIP, "--format", "jsonl")

    assert result.exit_code == 0
    [found] = lines(result)
    assert set(found) == {"path", "scores", "present", "audio", "size_bytes", "mtime_s", "model", "part"}
    assert found["path"] == str(CLIP)
    assert isinstance(found["scores"], dict)
    assert tuple(found["scores"]) == TAGS
    assert all(0 <= score <= 1 for score in found["scores"].values())
    assert isinstance(found["audio"], dict)
    assert (found["audio"]["format"], found["audio"]["codec"]) == ("ogg", "opus")


def test_a_folder_is_walked_in_order_without_what_is_hidden(folder: Path) -> None:
    result = run_tag(folder, "--format", "jsonl")

    names = [Path(str(found["path"])).relative_to(folder).as_posix() for found in lines(result)]
    assert names == ["a.wav", "b.mp3", "later/c.wav"]


def test_a_bad_file_is_told_and_does_not_stop_the_rest(folder: Path) -> None:
    result = run_tag(folder, folder / "nowhere.wav", "--format", "jsonl")

    assert result.exit_code == 1
    found = lines(result)
    assert ["scores" in item for item in found] == [True, False, True, False]
    for item, problem in ((found[1], "not-audio"), (found[3], "unreadable")):
        assert isinstance(item["error"], dict)
        assert set(item["error"]) == {"type", "detail", "hint"}
        assert item["error"]["type"] == problem
        assert f"{item['path']}: {item['error']['detail']}" in result.stderr


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
def test_exit_code_is_1_in_every_format_if_every_file_fails(folder: Path, form: str) -> None:
    result = run_tag(folder / "b.mp3", "--format", form)

    assert result.exit_code == 1
    assert "b.mp3" in result.stderr


def test_an_empty_folder_is_a_failure_that_says_so(tmp_path: Path) -> None:
    result = run_tag(tmp_path)

    assert result.exit_code == 1
    assert "holds no file" in result.stderr


def test_json_is_one_array(folder: Path) -> None:
    found = json.loads(run_tag(folder, "--format", "json").stdout)

    assert [len(found), [set(item) for item in found if "error" in item]] == [
        3,
        [{"path", "error", "size_bytes", "mtime_s", "model", "part"}],
    ]


def test_csv_has_a_row_a_file(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run_tag(folder, "--format", "csv").stdout)))

    about = ["present", "duration_s", "size_bytes", "mtime_s", "error", "model", "part"]
    assert list(rows[0]) == ["path", *TAGS, *about]
    assert [row["error"] for row in rows] == ["", "not-audio", ""]
    assert [row["duration_s"] for row in rows] == ["3.000", "", "2.000"]


def test_table_shows_every_tag_of_every_good_file(folder: Path) -> None:
    shown = run_tag(folder).stdout

    assert [name for name in ("a.wav", "c.wav", *TAGS) if name not in shown] == []
    assert "b.mp3" not in shown


@pytest.mark.parametrize("form", ["jsonl", "csv", "table"])
def test_windows_add_the_timeline(tmp_path: Path, form: str) -> None:
    clip = tmp_path / "long.wav"
    clip.write_bytes(tune(17))

    shown = run_tag(clip, "--windows", "--format", form).stdout

    if form == "jsonl":
        windows = json.loads(shown)["windows"]
        assert [(window["start_s"], window["end_s"]) for window in windows] == [(0, 10), (5, 15), (10, 17)]
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(shown)))
        assert [(row["start_s"], row["end_s"]) for row in rows][-1] == ("10.000", "17.000")
    else:
        assert "10 s to 17 s" in shown


def test_threshold_decides_what_is_present() -> None:
    [none] = lines(run_tag(CLIP, "--format", "jsonl", "--threshold", "1"))
    [every] = lines(run_tag(CLIP, "--format", "jsonl", "--threshold", "0"))
    [some] = lines(run_tag(CLIP, "--format", "jsonl", "--threshold", "vocal:0,dance:1,soundtrack:1,pop:0"))

    assert [none["present"], every["present"], some["present"]] == [[], list(TAGS), ["vocal", "pop"]]


def test_a_part_can_be_chosen(tmp_path: Path) -> None:
    clip = tmp_path / "long.wav"
    clip.write_bytes(tune(12))

    [found] = lines(run_tag(clip, "--format", "jsonl", "--start-s", "4", "--duration-s", "3"))

    assert isinstance(found["audio"], dict)
    assert found["audio"]["analysed_s"] == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--threshold", "rock:0.5"], "no tag `rock`"),
        (["--threshold", "high"], "not a number from 0 to 1"),
        (["--weights", "nowhere"], "tagger.json"),
        (["--device", "abacus"], "abacus"),
        (["--format", "xml"], "xml"),
        (["--start-s", "-1"], "start-s"),
        (["--duration-s", "0"], "duration-s"),
    ],
)
def test_what_cannot_be_carried_out_as_typed_ends_with_2(arguments: list[str], told: str) -> None:
    result = run("tag", CLIP, *arguments)

    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""


def test_a_name_that_is_no_utf8_survives_the_pipe(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    (tmp_path / name).write_bytes(tune(2))

    command = [sys.executable, "-m", "app.cli", "tag", "--device", "cpu", "--format", "jsonl", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=2 * PATIENCE_S, check=False)

    assert [done.returncode, done.stderr] == [0, b""]
    assert b"caf\xe9.wav" in done.stdout


def test_evaluate_prints_a_row_a_tag(manifest: Path) -> None:
    result = run("evaluate", "--manifest", manifest, "--device", "cpu")

    assert result.exit_code == 0
    assert re.search(r"vocal\W+2 / 1\W+2\b", result.stdout)
    assert re.search(r"dance\W+0 / 0\W+0\W+n/a \(no label is known\)", result.stdout)


def test_evaluate_as_json_has_null_where_nothing_is_defined(manifest: Path) -> None:
    vocal, *others = json.loads(
        run("evaluate", "--manifest", manifest, "--device", "cpu", "--format", "json").stdout
    )

    assert [vocal["tag"], vocal["positives"], vocal["negatives"]] == ["vocal", 2, 1]
    assert vocal["roc_auc"]["value"] in (0.0, 0.5, 1.0)
    assert {item["roc_auc"]["value"] for item in others} == {None}


def test_evaluate_writes_the_report(manifest: Path, tmp_path: Path) -> None:
    result = run(
        "evaluate",
        "--manifest",
        manifest,
        "--report",
        tmp_path / "out",
        "--generated",
        "y",
        "--device",
        "cpu",
    )

    assert result.exit_code == 0
    report = (tmp_path / "out" / "report.md").read_text()
    sections = re.findall(r"^##+ (.*)$", report, re.MULTILINE)
    assert sections[:2] == ["By the labels' evidence", "metadata"]
    assert {"Human and generated", "human", "generated", "By source"} <= set(sections)
    for plot in re.findall(r"!\[.*\]\((.*)\)", report):
        assert (tmp_path / "out" / plot).read_bytes().startswith(b"\x89PNG")
    assert report.count("![") == 4
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 5


def test_evaluate_adds_the_sections_that_were_asked_for(manifest: Path, tmp_path: Path) -> None:
    ids = np.array(["0", "1", "2", "3"])
    words = np.array(["mtt/vocal", "mtt/dance"])
    np.savez(tmp_path / "soft.npz", ids=ids, tags=words, scores=np.full((4, 2), 0.5))
    (tmp_path / "not_music.csv").write_text("id,file,source\nspeech-0,0.wav,speech\n")
    asked: list[str | Path] = [
        "--rivals",
        tmp_path / "soft.npz",
        "--robustness",
        "1",
        "--not-music",
        tmp_path / "not_music.csv",
    ]

    result = run("evaluate", "--manifest", manifest, "--device", "cpu", "--report", tmp_path / "out", *asked)

    assert result.exit_code == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert {"Beside public taggers", "Robustness", "No music"} <= set(re.findall(r"^## (.*)$", report, re.M))
    assert "| best of mtt | vocal | 0.500" in report
    assert "\n1 clips, drawn at random." in report
    assert "| speech | 1 | vocal |" in report


def test_a_report_that_cannot_be_written_is_refused_before_a_clip_is_scored(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.evaluation.report.score_clips", None)
    (tmp_path / "file").touch()

    result = run("evaluate", "--manifest", manifest, "--device", "cpu", "--report", tmp_path / "file")

    assert result.exit_code == 2
    assert "file: cannot be made (File exists); name another folder" in result.stderr


def test_evaluate_takes_predictions_made_elsewhere(manifest: Path, tmp_path: Path) -> None:
    for clip in tmp_path.glob("*.wav"):
        clip.unlink()
    rows = "".join(
        f"{name},0,{vocal},0,0,0\n" for name, vocal in (("0", 0.9), ("1", 0.1), ("2", 0.7), ("3", 0))
    )
    (tmp_path / "predictions.csv").write_text(f"id,fold,{','.join(TAGS)}\n{rows}")

    result = run(
        "evaluate", "--manifest", manifest, "--predictions", tmp_path / "predictions.csv", "--format", "json"
    )

    vocal, *_ = json.loads(result.stdout)
    assert [result.exit_code, vocal["positives"], vocal["roc_auc"]["value"]] == [0, 2, 1.0]


def test_evaluate_tells_which_clip_it_could_not_read(manifest: Path) -> None:
    manifest.with_name("1.wav").write_bytes(b"")

    result = run("evaluate", "--manifest", manifest, "--device", "cpu")

    assert result.exit_code == 1
    assert "1.wav: " in result.stderr
    assert re.search(r"vocal\W+2 / 0\W+2\W+n/a \(every clip has the tag\)", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--manifest", "nowhere.csv"], "nowhere.csv"),
        (["--split", "test"], "choose one of: val, all"),
        (["--generated", "w"], "no clip has the source w"),
        (["--predictions", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (["--rivals", "nowhere.npz", "--report", "out"], "nowhere.npz: cannot be read"),
        (["--not-music", "nowhere.csv", "--report", "out"], "nowhere.csv: cannot be read"),
        (["--robustness", "3"], "name its folder with --report"),
    ],
)
def test_evaluate_refuses_what_it_cannot_do(manifest: Path, arguments: list[str], told: str) -> None:
    result = run("evaluate", "--manifest", manifest, *arguments)

    assert result.exit_code == 2
    assert told in result.stderr


def test_train_says_what_a_manifest_lacks(manifest: Path, tmp_path: Path) -> None:
    result = run("train", "--manifest", manifest, "--tags", "house, techno", "--out", tmp_path / "run")

    assert result.exit_code == 2
    assert "no column house, techno" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seed", "-1"], "--seed"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--tags", "house,fold", "--folds", "2"], "fold: a column of predictions.csv"),
        (["--tags", "house,model"], "model: a column of every manifest, or of every CSV"),
        (["--audio", "audio"], "--audio is where"),
    ],
)
def test_train_refuses_what_cannot_be(
    manifest: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    result = run("train", "--manifest", manifest, "--out", tmp_path / "run", *arguments)

    assert result.exit_code == 2
    assert told in result.stderr


@pytest.mark.parametrize(("flags", "allowed"), [([], True), (["--train-ok-only"], False)])
def test_train_exempts_mtg_jamendo_alone_from_train_ok(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], allowed: bool
) -> None:
    splits = tmp_path / "clone" / "data" / "splits" / "split-0"
    splits.mkdir(parents=True)
    for name in ("train", "validation", "test"):
        (splits / f"autotagging-{name}.tsv").write_text(f"HEADER\n{name}\ta\tb\t{name}.mp3\t9\tgenre---pop\n")
        (tmp_path / f"{name}.mp3").touch()
    seen: list[TrainSettings] = []
    monkeypatch.setattr("model.training.train.train", lambda settings, _: seen.append(settings))

    result = run(
        "train", "--mtg-jamendo", tmp_path / "clone", "--audio", tmp_path, "--manifest", manifest,
        "--out", tmp_path / "run", *flags,
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    clips = read_manifest(seen[0].manifests[1], TAGS)
    assert seen[0].train_ok_only
    assert {clip.train_ok for clip in clips} == {allowed}


def test_a_manifest_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    splits = tmp_path / "data" / "splits" / "split-0"
    splits.mkdir(parents=True)
    for name in ("train", "validation", "test"):
        (splits / f"autotagging-{name}.tsv").write_text(f"HEADER\n{name}\ta\tb\t{name}.mp3\t9\tgenre---pop\n")
        (tmp_path / f"{name}.mp3").touch()
    (tmp_path / "file").touch()

    result = run("mtg-jamendo", tmp_path, "--audio", tmp_path, "--out", tmp_path / "file" / "my.csv")

    assert result.exit_code == 2
    assert "my.csv: cannot be written" in result.stderr


def test_a_stop_before_anything_is_served_is_in_order() -> None:
    """Whether the process minds it: the first one of a container would not, but for a handler."""
    caught = re.compile(r"^SigCgt:\s+(\w+)$", re.MULTILINE)
    with subprocess.Popen([sys.executable, "-m", "app.cli", "serve", "--port", str(free_port())]) as process:
        status = Path(f"/proc/{process.pid}/status")
        while not int(caught.findall(status.read_text())[0], 16) >> (signal.SIGTERM - 1) & 1:
            assert process.poll() is None
            time.sleep(0.001)

        process.terminate()

        assert process.wait(PATIENCE_S) == 0


def test_serve_answers_on_the_port_that_was_named() -> None:
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            answer = answer_of(f"http://127.0.0.1:{port}/health/ready", process)
        finally:
            process.terminate()
        code = process.wait(PATIENCE_S)

    assert answer.json() == {"status": "ready"}
    assert code == 0


def answer_of(url: str, process: subprocess.Popen[bytes]) -> httpx.Response:
    """The first good answer."""
    give_up_s = time.monotonic() + 2 * PATIENCE_S
    while time.monotonic() < give_up_s and process.poll() is None:
        try:
            response = httpx.get(url)
        except httpx.TransportError:
            pass
        else:
            if response.status_code == 200:
                return response
        time.sleep(0.1)
    raise AssertionError(f"no good answer from {url}")


@pytest.mark.parametrize(("option", "value"), [("--port", "70000"), ("--device", "abacus")])
def test_serve_refuses_a_setting_that_is_not_valid(option: str, value: str) -> None:
    result = run("serve", option, value)

    assert result.exit_code == 2
    assert option.removeprefix("--") in result.stderr


def test_every_option_of_train_reaches_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soft.npz").touch()
    typed: dict[str, list[object]] = {
        "soft_labels": ["--soft-labels", tmp_path / "soft.npz"],
        "teachers": ["--teachers", Path("t")],
        "musicnn": ["--musicnn", Path("m")],
        "warm_start": ["--no-warm-start"],
        "init": ["--init", Path("b")],
        "keep": ["--keep", 0.25],
        "cache": ["--cache", Path("c")],
        "calibration": ["--calibration", Path("cal.json")],
        "steps": ["--steps", 7],
        "batch": ["--batch", 5],
        "learning_rate": ["--learning-rate", 0.5],
        "distillation": ["--distillation", 0.125],
        "evaluate_every": ["--evaluate-every", 3],
        "seed": ["--seed", 9],
        "train_ok_only": ["--all-rows"],
        "version": ["--bundle-version", "x"],
        "tags": ["--tags", "house,techno"],
    }
    meant = {name: words[-1] for name, words in typed.items()}
    meant |= {"warm_start": False, "train_ok_only": False, "tags": ("house", "techno")}
    seen: list[TrainSettings] = []
    monkeypatch.setattr("model.training.train.train", lambda settings, _: seen.append(settings))

    result = run("train", "--manifest", "a.csv", "--out", tmp_path, *chain(*typed.values()))

    assert result.exit_code == 0, result.stderr
    assert {name: getattr(seen[0], name) for name in typed} == meant
    defaults = TrainSettings((Path("a.csv"),), tmp_path)
    assert all(getattr(defaults, name) != value for name, value in meant.items())
