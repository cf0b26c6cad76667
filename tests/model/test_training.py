"""Training: drawing, mixing and distorting windows, calibration, the whole way from manifest to bundle."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.audio import read_audio
from model.bundle import SHIPPED, BundleError, Calibration, load_bundle, save_bundle
from model.evaluation.metrics import plain, tag_metrics
from model.frontend import LogMel
from model.network import SEGMENT_SAMPLES, MusicalBranch, NetworkConfig, TaggerNetwork
from model.segments import cut_segments
from model.tagger import DeviceError, Tagger, pool_logits, score, sounding
from model.training import cache
from model.training.augmentation import (
    CHAIN,
    CODECS,
    Samples,
    band_curve,
    blend,
    distort,
    encode,
    mask_bands_and_frames,
    mel_centres_hz,
)
from model.training.cache import CLIP_FRAMES, VARIANTS, build, load, variants
from model.training.calibration import best_f1_threshold, calibrate, platt, pool_clips, read_calibration
from model.training.checks import (
    TrainingError,
    check_clips,
    check_settings,
    differences,
    warn_of_clips,
    warn_of_one_class,
    warn_of_shared_sources,
)
from model.training.corpus import SEPARATOR, Clip, ManifestError, read_manifest
from model.training.cross_validation import cross_validate, deal, shares_file, shares_source
from model.training.curves import plot_curves
from model.training.gather import write_flac
from model.training.material import (
    Material,
    Sampler,
    Window,
    bursts,
    cut_mel,
    labels_of_mix,
    load_material,
    sounding_mel,
)
from model.training.teachers import Lesson, TeacherFolders
from model.training.train import (
    Log,
    TrainSettings,
    balance,
    clip_logits,
    drawn_ahead,
    fit,
    mean_logits,
    prepare,
    train,
    usable,
    with_fast_filters,
    write_bundle,
)
from model.training.words import NO_VOCALS, SINGING, WORDS, opinions
from tests.model.material import beat, drone

RATE = 16_000
CPU = torch.device("cpu")
SMALL = NetworkConfig(
    timbral=((38, 7, 2),),
    temporal=((32, 2),),
    mid=4,
    texture=((1, 8, 2, 2),),
    texture_stem=4,
    texture_out=8,
    hidden=8,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of two tags, the last four for validation."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(1)
    with (folder / "my.csv").open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["id", "file", "source", "split", "beat", "drone"])
        for index in range(12):
            make, is_beat = (beat, 1) if index % 2 else (drone, 0)
            write_flac(folder / f"{index}.flac", make(12.0, rng))
            rows.writerow(
                [index, f"{index}.flac", f"s{index}", "train" if index < 8 else "val", is_beat, 1 - is_beat]
            )
    return folder / "my.csv"


def settings_for(manifest: Path, out: Path, **changes: Any) -> TrainSettings:  # noqa: ANN401 - any setting
    values: dict[str, Any] = {
        "tags": ("beat", "drone"),
        "steps": 12,
        "batch": 8,
        "evaluate_every": 6,
        "network": SMALL,
        "device": "cpu",
        "learning_rate": 1e-2,
        "cache": manifest.parent / "cache",  # so that a manifest's clips are decoded and distorted once
    }
    return TrainSettings((manifest,), out, **(values | changes))


def rows_of(log: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(log.read_text().splitlines()))


def test_from_a_manifest_of_other_tags_to_a_bundle_that_tags(manifest: Path, tmp_path: Path) -> None:
    steps: list[int] = []

    folder = train(settings_for(manifest, tmp_path), lambda step, *_: steps.append(step))

    bundle, _ = load_bundle(folder)
    assert bundle.tags == ("beat", "drone")
    assert {entry["source"] for entry in bundle.training_data} == {f"s{i}" for i in range(8)}
    assert steps == list(range(1, 13))
    assert (tmp_path / "curves.png").stat().st_size > 1000
    log = rows_of(tmp_path / "log.csv")
    assert [row["step"] for row in log] == ["6", "12"]
    scores = Tagger.load(folder, "cpu").tag(manifest.parent / "9.flac").scores
    assert tuple(scores) == ("beat", "drone")
    assert scores["beat"] > scores["drone"]


def test_training_goes_on_from_a_bundle_of_other_tags_whose_filters_stay_as_they_are(
    manifest: Path, tmp_path: Path
) -> None:
    first = train(settings_for(manifest, tmp_path / "first", tags=("beat",), steps=2))

    second = train(settings_for(manifest, tmp_path / "second", init=first, steps=4, learning_rate=1e-3))

    (_, before), (bundle, after) = load_bundle(first), load_bundle(second)
    assert bundle.tags == ("beat", "drone")
    changed = {
        name: not torch.equal(value, after.state_dict()[name])
        for name, value in before.state_dict().items()
        if not name.startswith(("head.out", "head.straight", "log_mel"))
    }
    assert not any(changed[name] for name in changed if ".filters." in name)
    assert changed["head.hidden.weight"]
    drift = (before.head.hidden.weight - after.head.hidden.weight).abs().max()
    assert drift < 0.1  # it went on from there, and did not start anew


def test_what_is_kept_of_a_bundle_stays_as_it_was(manifest: Path, tmp_path: Path) -> None:
    first = train(settings_for(manifest, tmp_path / "first", steps=2))

    kept = train(settings_for(manifest, tmp_path / "kept", init=first, steps=2, keep=1.0, consistency=False))

    before, after = load_bundle(first)[1].state_dict(), load_bundle(kept)[1].state_dict()
    for name in ("head.hidden.weight", "head.out.weight", "head.straight.weight"):
        torch.testing.assert_close(after[name], before[name], msg=name)


@pytest.fixture(scope="module")
def finished(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """Of a run of one step that came to its end."""
    settings = settings_for(manifest, tmp_path_factory.mktemp("finished") / "run", steps=1, batch=2)
    train(settings)
    return settings


@pytest.fixture
def run(finished: TrainSettings, tmp_path: Path) -> TrainSettings:
    """The same in a folder of its own."""
    shutil.copytree(finished.out, tmp_path / "run")
    return replace(finished, out=tmp_path / "run")


@pytest.fixture(scope="module")
def fitted(finished: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose head has radial basis functions."""
    network = TaggerNetwork(("beat", "drone"), replace(SMALL, centres=4)).eval()
    torch.nn.init.normal_(network.head.get_parameter("radial.out.weight"))
    bundle, _ = load_bundle(finished.out / "bundle")
    folder = tmp_path_factory.mktemp("fitted")
    save_bundle(folder, replace(bundle, network=network.config), network)
    return folder


def test_radial_basis_functions_stay_with_the_convolutions_that_they_were_fitted_to(
    manifest: Path, tmp_path: Path, fitted: Path
) -> None:
    before = load_bundle(fitted)[1].state_dict()

    after = load_bundle(train(settings_for(manifest, tmp_path / "second", init=fitted, steps=2)))[1]

    stays = ("mel_norm.", "branches.0.filters.", "branches.0.frozen.", "head.radial.")
    for name, value in after.state_dict().items():
        if name.startswith(stays) and not name.startswith("head.radial.out."):  # consistency changes that
            torch.testing.assert_close(value, before[name], msg=name)
    learnt = ("branches.0.mid.0.conv.weight", "head.hidden.weight")
    assert not any(torch.equal(after.get_parameter(name), before[name]) for name in learnt)


def test_radial_basis_functions_are_fitted_anew_where_teachers_say_what_to_learn(
    manifest: Path, tmp_path: Path, fitted: Path
) -> None:
    settings = settings_for(manifest, tmp_path / "second", init=fitted, steps=2)
    labels = np.tile(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32), (4, 1))
    material = a_material(labels, "abcdefgh")

    network = fit(
        replace(settings, teachers=tmp_path), material, material, torch.device("cpu"), lambda *_: None
    )

    before = load_bundle(fitted)[1].get_buffer("head.radial.centres")
    assert not torch.equal(network.get_buffer("head.radial.centres"), before)


def test_other_tags_go_on_without_radial_basis_functions(
    manifest: Path, tmp_path: Path, fitted: Path
) -> None:
    settings = settings_for(manifest, tmp_path / "second", tags=("beat",), init=fitted, steps=2)

    assert load_bundle(train(settings))[1].head.radial is None


def never(*_: object) -> None:
    raise AssertionError("a step of training")


def with_rows(manifest: Path, path: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> Path:
    """A copy of a manifest anywhere, its rows changed."""
    rows = [change(row | {"file": str(manifest.parent / row["file"])}) for row in rows_of(manifest)]
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tags": ("drone", "beat")}, "different: tags"),
        ({"seed": 2}, "different: seed"),
        ({"steps": 3, "batch": 4}, "different: steps, batch"),
        ({"network": replace(SMALL, hidden=16)}, "different: network"),
        ({"distillation": 3.0, "augment": False}, "different: distillation, augment"),
        ({"init": SHIPPED}, "different: init"),
        ({"consistency": False}, "different: consistency"),
    ],
)
def test_a_run_does_not_go_on_from_the_checkpoint_of_another(
    run: TrainSettings, change: dict[str, Any], told: str
) -> None:
    before = (run.out / "bundle" / "tagger.json").read_bytes()

    with pytest.raises(TrainingError, match=told):
        train(replace(run, **change))

    assert (run.out / "bundle" / "tagger.json").read_bytes() == before


def test_a_finished_run_goes_no_step_further_on_another_device_or_with_other_evaluations(
    run: TrainSettings,
) -> None:
    other_device = "auto" if not torch.cuda.is_available() else "cpu"

    assert train(replace(run, device=other_device, evaluate_every=7), never) == run.out / "bundle"


def test_a_run_does_not_go_on_with_other_clips_or_from_a_damaged_checkpoint(
    manifest: Path, tmp_path: Path, run: TrainSettings
) -> None:
    other = with_rows(manifest, tmp_path / "own.csv", lambda row: row | {"source": f"x{row['source']}"})

    with pytest.raises(TrainingError, match="different: clips"):
        train(replace(run, manifests=(other,)))

    last = [row["id"] for row in rows_of(manifest) if row["split"] == "train"][-1]
    moved = with_rows(
        manifest, tmp_path / "moved.csv", lambda row: row | ({"split": "val"} if row["id"] == last else {})
    )
    with pytest.raises(TrainingError, match="different: clips"):
        train(replace(run, manifests=(moved,)))

    (run.out / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(TrainingError, match="damaged"):
        train(run)


def test_a_run_that_starts_anew_has_a_log_of_its_own(run: TrainSettings) -> None:
    (run.out / "checkpoint.pt").unlink()

    train(replace(run, tags=("beat",)))

    (row,) = rows_of(run.out / "log.csv")
    assert [name for name in row if name.startswith("auc_")] == ["auc_beat"]


def test_a_training_that_diverges_says_what_to_lower(manifest: Path, tmp_path: Path) -> None:
    settings = settings_for(manifest, tmp_path / "run", batch=2, learning_rate=1e30, init=None)

    with pytest.raises(TrainingError, match=r"diverged .* --learning-rate"):
        train(settings)

    assert not (tmp_path / "run" / "bundle").exists()


def no_decoding(*_: object) -> None:
    raise AssertionError("clips are decoded")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": -1}, "--seed -1"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"keep": 0.5}, "--keep is a share"),
        ({"keep": float("nan")}, "--keep nan"),
        ({"distillation": float("nan")}, "--distillation nan"),
        (
            {"soft_labels": Path("nowhere"), "teachers": Path("nowhere"), "musicnn": Path()},
            "give one of them",
        ),
        ({"keep": 0.5, "init": SHIPPED}, "--keep needs the tags"),
        ({"teachers": Path("nowhere")}, "give both, or neither"),
        ({"musicnn": Path("nowhere")}, "give both, or neither"),
        ({"teachers": Path("nowhere"), "musicnn": Path("nowhere")}, r"--teachers nowhere.*teach\.py"),
        ({"spleeter": Path("nowhere")}, "--spleeter teaches beside --teachers"),
        ({"device": "abacus"}, "abacus"),
        ({"init": Path("nowhere")}, "nowhere"),
        ({"soft_labels": Path(__file__)}, "soft labels are an npz"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_clip_is_decoded(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr("model.training.cache.build", no_decoding)
    settings = settings_for(manifest, tmp_path / "run", **changes)

    with pytest.raises((TrainingError, ManifestError, DeviceError, BundleError), match=told):
        train(settings)
    with pytest.raises((TrainingError, ManifestError, DeviceError, BundleError), match=told):
        cross_validate(settings, 2)


def test_a_manifest_that_is_given_twice_is_refused(manifest: Path, tmp_path: Path) -> None:
    again = manifest.parent / ".." / manifest.parent.name / manifest.name

    with pytest.raises(TrainingError, match="twice"):
        train(replace(settings_for(manifest, tmp_path / "run"), manifests=(manifest, again)))


@pytest.fixture
def teachers(tmp_path: Path) -> TeacherFolders:
    """Folders that look like those of the teachers."""
    for name in ("yamnet.tflite", "jamendo_fcn.pth"):
        (tmp_path / name).touch()
    (tmp_path / "musicnn").mkdir()
    (tmp_path / "teach.py").write_text("JAMENDO = MSD = MTT = ['a', 'b']")
    (tmp_path / "yamnet_class_map.csv").write_text("display_name\na\nb\n")
    return TeacherFolders(tmp_path, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        (None, r"--spleeter .* holds no spleeter/pretrained_models/2stems"),
        ("yamnet.tflite", r"--teachers .* holds no yamnet.tflite"),
        ("jamendo_fcn.pth", r"--teachers .* holds no jamendo_fcn.pth"),
    ],
)
def test_a_folder_without_a_teacher_is_refused_before_a_clip_is_decoded(
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teachers: TeacherFolders,
    lacking: str | None,
    told: str,
) -> None:
    monkeypatch.setattr("model.training.cache.build", no_decoding)
    if lacking is not None:
        (teachers.teachers / lacking).unlink()
    settings = settings_for(manifest, tmp_path / "run", **teachers._asdict())

    with pytest.raises(TrainingError, match=told):
        train(settings)


def taught_by(shard: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch, *, spleeter: bool) -> None:
    """Write a shard of clips to which all teachers said the same."""
    scores = np.full((29, 2), 0.5, np.float16)
    lesson = Lesson(scores[0], *(scores,) * 4, spleeter=scores[:, :1] if spleeter else None)
    monkeypatch.setattr(cache, "_teachers", lambda _: lesson)
    shard.parent.mkdir(exist_ok=True)
    cache._shard(clips, shard)


def test_only_those_teachers_are_learned_from_that_were_asked_for(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teachers: TeacherFolders
) -> None:
    clips = read_manifest(manifest, ("beat",))[:2]
    taught_by(tmp_path / "cache" / "shard-0000.npz", clips, monkeypatch, spleeter=True)

    widths = [
        load_material([(clips, tmp_path / "cache")], ("beat",), folders).soft.shape[2]
        for folders in (None, teachers._replace(spleeter=None), teachers)
    ]

    assert widths == [1, 10, 11]


def test_a_manifest_of_which_no_clip_can_be_read_silences_no_teacher(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teachers: TeacherFolders
) -> None:
    clips = read_manifest(manifest, ("beat",))[:2]
    gone = [replace(clip, path=tmp_path / "gone.flac") for clip in clips]
    taught_by(tmp_path / "cache" / "shard-0000.npz", clips, monkeypatch, spleeter=True)
    taught_by(tmp_path / "other" / "shard-0000.npz", gone, monkeypatch, spleeter=True)

    material = load_material([(clips, tmp_path / "cache"), (gone, tmp_path / "other")], ("beat",), teachers)

    assert material.soft.shape == (2, 29, 11)


def test_a_process_of_the_cache_that_is_killed_is_told_of(
    manifest: Path, tmp_path: Path, teachers: TeacherFolders
) -> None:
    own = with_rows(manifest, tmp_path / "own.csv", lambda row: row)

    with pytest.raises(ChildProcessError, match="the same command goes on"):
        build(own, tmp_path / "cache", ("beat", "drone"), teachers)  # of which no file can be read


@pytest.mark.parametrize(
    "scores",
    [np.full((12, 3), 55.0), np.full((12, 3), np.nan), np.zeros((12, 0))],
    ids=["percent", "nan", "none"],
)
def test_soft_labels_that_are_no_scores_are_refused(
    manifest: Path, tmp_path: Path, scores: NDArray[np.float64]
) -> None:
    np.savez(tmp_path / "soft.npz", ids=np.array([str(index) for index in range(12)]), scores=scores)

    with pytest.raises(ManifestError, match=r"soft labels are an npz .* in \[0, 1\]"):
        train(settings_for(manifest, tmp_path / "run", soft_labels=tmp_path / "soft.npz"))


def test_a_cache_holds_nothing_of_rows_that_are_gone(manifest: Path, tmp_path: Path) -> None:
    own = with_rows(manifest, tmp_path / "own.csv", lambda row: row)
    build(own, tmp_path / "cache", ("beat", "drone"), None)
    for file in (tmp_path / "cache").iterdir():
        file.rename(file.with_name(file.name.replace("0000", "0007")))

    build(own, tmp_path / "cache", ("beat", "drone"), None)

    assert {file.name.partition(".")[0] for file in (tmp_path / "cache").iterdir()} == {"shard-0000", "lock"}


@pytest.mark.parametrize("name", ["shard-0000.npz", "shard-0000.mels.npy"])
@pytest.mark.parametrize("left", [None, 0, 100])
def test_a_damaged_cache_is_made_anew(manifest: Path, tmp_path: Path, name: str, left: int | None) -> None:
    build(manifest, tmp_path, ("beat", "drone"), None)
    expected = np.concatenate(load(tmp_path).mels)
    damaged = tmp_path / name
    content = damaged.read_bytes()
    damaged.unlink()
    if left is not None:
        damaged.write_bytes(content[:left])

    build(manifest, tmp_path, ("beat", "drone"), None)

    np.testing.assert_array_equal(np.concatenate(load(tmp_path).mels), expected)


@pytest.mark.parametrize(("heard", "enough"), [(False, False), (True, True)], ids=["others", "spleeter"])
def test_a_shard_that_a_new_teacher_has_not_heard_is_made_anew(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: bool, enough: bool
) -> None:
    clips = read_manifest(manifest, ("beat", "drone"))[:2]
    rows = np.full((5, 3), 0.5, np.float16)
    lesson = Lesson(rows[0], rows, rows, rows, rows, rows if heard else None)
    monkeypatch.setattr(cache, "_teachers", lambda _: lesson)
    cache._shard(clips, tmp_path / "shard-0000.npz")
    former = TeacherFolders(tmp_path, tmp_path)

    is_kept = [
        cache._is_of(tmp_path / "shard-0000.npz", clips, folders)
        for folders in (None, former, former._replace(spleeter=tmp_path))
    ]

    assert is_kept == [True, True, enough]
    assert ("spleeter" in load(tmp_path).lessons) == heard


def test_a_clip_under_two_sources_does_not_judge_what_heard_it() -> None:
    one, same, other = (
        Clip(name, Path(file), "train", True, name, (1.0,), ("",))
        for name, file in (("a", "x.wav"), ("b", "./x.wav"), ("c", "y.wav"))
    )

    assert shares_file([one, same, other], [one]).tolist() == [True, True, False]


@pytest.mark.parametrize(
    "changed", [{"scale": "nan"}, {"scale": -1}, {"bias": "inf"}, {"threshold": 7}, {"pooling": None}]
)
def test_a_calibration_that_cannot_be_is_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    fitted = {"pooling": 0, "scale": 1, "bias": 0, "threshold": 0.5}
    (tmp_path / "good.json").write_text(json.dumps({"a": fitted}))
    (tmp_path / "bad.json").write_text(json.dumps({"a": {**fitted, **changed}}))

    assert read_calibration(tmp_path / "good.json", ("a",))[1] == {"a": 0.5}
    with pytest.raises((ValueError, TypeError)):
        read_calibration(tmp_path / "bad.json", ("a",))


def test_a_cache_of_many_shards_is_made_by_processes_and_is_the_same(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(manifest, tmp_path / "one", ("beat", "drone"), None)
    monkeypatch.setattr("model.training.cache.SHARD", 6)

    build(manifest, tmp_path / "two", ("beat", "drone"), None)

    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert (len(one.mels), len(two.mels)) == (1, 2)
    np.testing.assert_array_equal(np.concatenate(one.mels), np.concatenate(two.mels))


def test_soft_labels_of_other_clips_are_refused(manifest: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "soft.npz", ids=np.array(["other"]), scores=np.zeros((1, 3)))

    with pytest.raises(TrainingError, match="none of its ids"):
        train(settings_for(manifest, tmp_path / "run", soft_labels=tmp_path / "soft.npz"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split": "train"}, "no clip to validate"),
        ({"split": "val"}, "no clip to train"),
        ({"train_ok": "0"}, "no clip to train"),
    ],
)
def test_manifests_that_cannot_train_are_refused_before_a_clip_is_decoded(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], told: str
) -> None:
    monkeypatch.setattr("model.training.cache.build", no_decoding)
    own = with_rows(manifest, tmp_path / "own.csv", lambda row: row | change)

    with pytest.raises(TrainingError, match=told):
        train(settings_for(own, tmp_path / "run"))
    if "train_ok" in change:
        with pytest.raises(TrainingError, match=told):
            cross_validate(settings_for(own, tmp_path / "run"), 2)


def clip_of(source: str, *labels: float | None, split: str = "train") -> Clip:
    return Clip(source, Path(), split, True, source, labels, ("",) * len(labels))


VAL = [clip_of("v", 1.0, 1.0, split="val"), clip_of("w", 0.0, 0.0, split="val")]


def test_a_tag_that_nothing_teaches_is_refused_and_one_of_a_single_class_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path, tmp_path)

    with pytest.raises(TrainingError, match="no clip that trains has a label of 'drone'"):
        check_clips(settings, [clip_of("a", 1.0, None), clip_of("b", 0.0, None), *VAL])
    warn_of_one_class(settings, [clip_of("a", 1.0, 1.0), clip_of("b", 0.0, 1.0)])

    assert "all clips that train have drone" in caplog.text
    assert "beat" not in caplog.text


def test_a_soft_label_of_one_half_is_a_yes(tmp_path: Path) -> None:
    val = [clip_of("v", 0.5, 0.9, split="val"), clip_of("w", 0.1, 0.2, split="val")]

    check_clips(settings_for(tmp_path, tmp_path), [clip_of("a", 1.0, 0.5), *val])


def test_a_part_of_a_mix_on_the_other_side_is_told(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_shared_sources([clip_of("voice + band")], [clip_of("band"), clip_of("other")], "val")

    assert "files are in `train` and in `val`" in caplog.text
    assert caplog.text.rstrip().endswith("source band")


def test_a_file_on_the_other_side_is_told_also_of_the_split_test(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = manifest.parent / "0.flac"
    moved = {"1": {"split": "test", "file": str(first)}}
    own = with_rows(manifest, tmp_path / "own.csv", lambda row: row | moved.get(row["id"], {}))
    settings = settings_for(own, tmp_path)

    warn_of_clips(settings, check_settings(settings))

    assert "in `train` and in `test`" in caplog.text
    assert f"file {first.resolve()}" in caplog.text


def test_sources_that_taught_the_bundle_to_go_on_from_are_told_and_remembered(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(settings_for(manifest, tmp_path / "first", steps=1))
    turned = {"train": "val", "val": "train"}
    own = with_rows(manifest, tmp_path / "own.csv", lambda row: row | {"split": turned[row["split"]]})

    second = train(settings_for(own, tmp_path / "second", steps=1, init=first))

    assert "8 sources of the split `val` trained the bundle of --init" in caplog.text
    taught = {row["source"]: row["clips"] for row in load_bundle(second)[0].training_data}
    assert taught == {f"s{number}": 1 for number in range(12)}


def test_a_fold_is_trained_anew_where_a_label_was_corrected(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = with_rows(manifest, tmp_path / "own.csv", lambda row: row)
    settings = settings_for(own, tmp_path / "cv", steps=1, batch=2, consistency=False)
    cross_validate(settings, 2)
    folds = [tmp_path / "cv" / f"fold-{number}" / "logits.npz" for number in range(2)]
    before = [fold.read_bytes() for fold in folds]
    tag = settings.tags[0]
    with_rows(own, own, lambda row: row | {tag: str(1 - int(row[tag]))} if row[tag] else row)

    cross_validate(settings, 2)

    assert "trained anew" in caplog.text
    assert all(fold.read_bytes() != former for fold, former in zip(folds, before, strict=True))


def test_a_run_does_not_go_on_with_other_sound(manifest: Path, tmp_path: Path) -> None:
    other = {"0": "1.flac", "1": "0.flac"}
    own = with_rows(
        manifest,
        tmp_path / "own.csv",
        lambda row: row | {"file": str(manifest.parent / other.get(row["id"], f"{row['id']}.flac"))},
    )
    train(settings_for(own, tmp_path / "run", steps=1))
    with_rows(own, own, lambda row: row | {"file": str(manifest.parent / f"{row['id']}.flac")})

    with pytest.raises(TrainingError, match="different: sound"):
        train(settings_for(own, tmp_path / "run", steps=1))


def test_a_version_that_did_not_tell_the_sound_goes_on() -> None:
    run = {"steps": 1, "clips": "a", "sound": "b"}

    assert differences({"steps": 1, "clips": "a"}, run) == set()
    assert differences({"steps": 2, "clips": "a", "sound": "c"}, run) == {"steps", "sound"}


def test_clips_of_which_nothing_is_known_do_not_train(tmp_path: Path) -> None:
    material = a_material(np.array([[np.nan], [1.0], [np.nan]], np.float32), "abc")
    material.words[:2], material.soft[:2] = np.nan, np.nan

    assert usable(material, settings_for(tmp_path, tmp_path)).tolist() == [False, True, True]


@pytest.mark.parametrize("frames", [62, 313, 314, 469, 626, 1250, 1251, 1813])
def test_a_clip_of_any_length_is_cut_into_whole_segments(frames: int) -> None:
    mel = np.arange(frames, dtype=np.float16)[None].repeat(96, 0)

    segments = cut_mel(mel)

    assert segments.shape[1:] == (96, 313)
    assert segments[-1, 0, -1] >= frames - 1 - 0.5 * 16_000 / 256 or frames < 313


def test_silence_counts_in_validation_as_it_does_in_the_tagger() -> None:
    rng = np.random.default_rng(3)
    audio = np.concatenate([beat(7.3, rng), np.zeros(11 * RATE, np.float32), drone(4.4, rng)])
    noise = 10 ** (-90 / 20) * rng.standard_normal(len(audio)).astype(np.float32)  # of a 16-bit file's dither
    mel = LogMel()(torch.from_numpy(audio + noise)[None])[0].numpy().astype(np.float16)
    segments = np.stack(list(cut_segments([audio + noise], SEGMENT_SAMPLES)))

    told = sounding_mel(cut_mel(mel))

    np.testing.assert_allclose(told, sounding(segments), atol=0.05)
    assert told.min() < 0.01


def test_silence_behind_the_music_hardly_changes_what_validation_hears() -> None:
    torch.manual_seed(0)
    network = TaggerNetwork(("beat", "drone"), SMALL).eval()
    rng = np.random.default_rng(4)
    sounds = [make(10.0, rng) for make in (beat, drone)]

    def means(silence_s: float) -> NDArray[np.float64]:
        material = a_material(np.zeros((2, 1), np.float32), "ab")
        for index, sound in enumerate(sounds):
            mel = LogMel()(torch.from_numpy(np.pad(sound, (0, int(silence_s * RATE))))[None])[0].numpy()
            material.mels[0][index, 0, :, : mel.shape[1]] = mel
            material.frames[index] = mel.shape[1]
        return mean_logits(*clip_logits(network, material, CPU))

    cut, padded = means(0.0), means(15.0)

    assert np.abs(cut - padded).max() < 0.25 * np.abs(cut[0] - cut[1]).max()


def test_a_log_goes_on_behind_the_last_checkpoint(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.csv", ["step", "loss"])
    for step in (2, 4, 6):
        log.add([step, 0.5])

    Log(log.path, ["step", "loss"], done=4).add([6, 0.25])

    assert log.path.read_text().splitlines() == ["step,loss", "2,0.50000", "4,0.50000", "6,0.25000"]


def test_a_log_that_was_edited_loses_only_what_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n2,0.5\n\n# better!\n4,0.5\n")

    Log(tmp_path / "log.csv", ["step", "loss"], done=4)

    assert (tmp_path / "log.csv").read_text().splitlines() == ["step,loss", "2,0.5", "4,0.5"]


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(1), {"run": "[]"}])
def test_a_checkpoint_that_is_none_is_refused(manifest: Path, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")

    with pytest.raises(TrainingError, match=r"checkpoint\.pt is of another run"):
        train(settings_for(manifest, tmp_path))


def test_a_tag_may_look_like_a_formula(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.csv", ["step", "loss", "distillation", "auc_$1_$"])
    log.add([1, 0.5, 0.0, 0.9])

    plot_curves(log.path, tmp_path / "curves.png")

    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_fold_follows_its_rows_its_file_and_the_names_of_clips(manifest: Path, tmp_path: Path) -> None:
    names = {"3": "file", "4": "allow_pickle", "5": "run"}
    own = with_rows(manifest, tmp_path / "own.csv", lambda row: row | {"id": names.get(row["id"], row["id"])})
    settings = settings_for(own, tmp_path / "cv", steps=1, batch=2, consistency=False)
    told = cross_validate(settings, 2).read_text()
    kept = tmp_path / "cv" / "fold-1" / "logits.npz"

    kept.write_bytes(kept.read_bytes()[:100])
    assert cross_validate(settings, 2).read_text() == told

    lines = own.read_text().splitlines()
    own.write_text("\n".join(lines[:-1]))
    fewer = rows_of(cross_validate(settings, 2))
    assert {row["id"] for row in fewer} == {line.split(",")[0] for line in lines[1:-1]}

    with pytest.raises(TrainingError, match="different: tags"):
        cross_validate(replace(settings, tags=("drone", "beat")), 2)


def test_folds_whose_clips_cannot_be_read_are_told(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "none.flac").write_bytes(b"no music")
    own = with_rows(
        manifest,
        tmp_path / "own.csv",
        lambda row: row if row["id"] in ("0", "1") else row | {"file": str(tmp_path / "none.flac")},
    )

    with pytest.raises(TrainingError, match="--folds 3: choose 2 to 2"):
        cross_validate(settings_for(own, tmp_path / "cv"), 3)


def test_a_run_that_was_stopped_resumes_to_the_same_weights(manifest: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(step: int, *_: object) -> None:
        if step == 9:
            raise StopError

    with pytest.raises(StopError):
        train(settings_for(manifest, tmp_path / "stopped"), stop)
    resumed = load_bundle(train(settings_for(manifest, tmp_path / "stopped")))[1].state_dict()
    straight = load_bundle(train(settings_for(manifest, tmp_path / "straight")))[1].state_dict()

    for name, value in straight.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("words", [1, 3])
def test_soft_labels_of_another_tagger_are_learnt_from(manifest: Path, tmp_path: Path, words: int) -> None:
    scores = np.random.default_rng(0).uniform(0.0, 0.1, (12, words)).astype(np.float16)
    np.savez(tmp_path / "soft.npz", ids=np.array([str(i) for i in range(12)]), scores=scores)

    train(settings_for(manifest, tmp_path / "run", soft_labels=tmp_path / "soft.npz", steps=2))

    row = rows_of(tmp_path / "run" / "log.csv")[0]
    assert float(row["distillation"]) > 0.1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("val", "train", "no clip to validate"),
        ("train", "val", "no clip to train"),
        (",1,0\n", ",,\n", "with and without"),
    ],
)
def test_training_that_cannot_start_says_what_is_missing(
    manifest: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = manifest.read_text().replace("\r\n", "\n").replace(old, new)
    for clip in manifest.parent.glob("*.flac"):
        (tmp_path / clip.name).symlink_to(clip)
    (tmp_path / "my.csv").write_text(text)

    with pytest.raises(TrainingError, match=message):
        train(settings_for(tmp_path / "my.csv", tmp_path / "run"))


@pytest.mark.parametrize("seconds", [1.0, 3.05, 10.0])
@pytest.mark.parametrize("step", [step for _, step in CHAIN], ids=lambda step: step.__name__)
def test_every_distortion_keeps_length_and_is_finite_and_changes_something(
    step: object, seconds: float
) -> None:
    samples = beat(seconds, np.random.default_rng(3)) + drone(seconds, np.random.default_rng(3))
    assert callable(step)

    distorted = step(samples, np.random.default_rng(5))

    assert distorted.dtype == np.float32
    assert distorted.shape == samples.shape
    assert np.isfinite(distorted).all()
    assert np.abs(distorted - samples).max() > 1e-3


def test_distortion_is_the_same_for_the_same_seed_and_survives_silence() -> None:
    samples = drone(10.0, np.random.default_rng(3))
    silence = np.zeros(10 * RATE, np.float32)

    first, second = (distort(samples, np.random.default_rng(7)) for _ in range(2))

    np.testing.assert_array_equal(first, second)
    with np.errstate(all="raise"):
        assert all(np.isfinite(distort(silence, np.random.default_rng(seed))).all() for seed in range(40))


@pytest.mark.parametrize(("container", "encoder", "rates"), CODECS)
def test_codecs_encode_at_every_rate(container: str, encoder: str, rates: tuple[int, ...]) -> None:
    sizes = [len(encode(drone(5.0, np.random.default_rng(1)), container, encoder, rate)) for rate in rates]

    assert sizes[0] > 1000
    assert sizes == sorted(sizes)


def test_aac_is_encoded_whatever_is_left_for_the_last_frame() -> None:
    samples = drone(383_780 / RATE, np.random.default_rng(1))  # leaves two samples at 44.1 kHz

    heard, _ = read_audio(encode(samples, "ipod", "aac", 64, 44_100))

    assert len(heard) == pytest.approx(len(samples), abs=1024)


def test_filters_that_do_not_learn_are_computed_fast_and_the_rest_of_their_branch_learns() -> None:
    torch.manual_seed(0)
    branch = MusicalBranch(NetworkConfig(mid=4, features=6))
    branch.filters.requires_grad_(requires_grad=False)
    mel = torch.rand(2, 1, 96, 313)

    fast = with_fast_filters(branch.eval())
    embedding = fast(mel)
    embedding.sum().backward()

    torch.testing.assert_close(embedding, branch(mel), atol=1e-3, rtol=1e-3)
    assert type(fast.filters[0]) is not type(branch.filters[0])
    assert all(parameter.grad is not None for parameter in branch.mid.parameters())
    assert all(parameter.grad is None for parameter in branch.filters.parameters())


def test_frozen_convolutions_are_left_out_of_training_even_where_filters_learn() -> None:
    branch = MusicalBranch(NetworkConfig(mid=4, frozen=2, centres=8)).eval()
    mel = torch.rand(2, 1, 96, 313)

    learnt = with_fast_filters(branch)(mel)

    torch.testing.assert_close(learnt, branch(mel)[:, branch.frozen_size :])


def test_masks_hide_at_most_a_stripe_of_bands_and_of_frames() -> None:
    mel = torch.ones(16, 96, 313)

    masked = mask_bands_and_frames(mel, np.random.default_rng(0))

    bands_hidden = (masked == 0).all(2).sum(1)
    frames_hidden = (masked == 0).all(1).sum(1)
    assert 0 < bands_hidden.max() <= 16
    assert 0 < frames_hidden.max() <= 40
    assert (masked[:, :, :].amax((1, 2)) == 1).all()


@pytest.mark.parametrize("seconds", [1.0, 4.9, 5.0, 5.3, 7.3, 10.0, 29.0])
def test_a_log_mel_is_cut_as_the_tagger_cuts_the_audio(seconds: float) -> None:
    audio = beat(seconds, np.random.default_rng(2))
    log_mel = LogMel()
    whole = log_mel(torch.from_numpy(audio)[None])[0].numpy().astype(np.float16)

    cut = cut_mel(whole)

    segments = log_mel(torch.from_numpy(np.stack(list(cut_segments([audio], SEGMENT_SAMPLES))))).numpy()
    assert cut.shape == segments.shape
    inner = np.abs(cut.astype(np.float32) - segments)[:, :, 4:-4]
    assert np.median(inner) < 0.01


def test_a_clip_is_cached_as_it_is_and_distorted_the_same_way_every_time() -> None:
    audio = drone(12.0, np.random.default_rng(3))

    mels = variants("some-id", audio)

    frames = 1 + len(audio) // 256
    assert mels.shape == (VARIANTS, 96, CLIP_FRAMES)
    assert (mels[:, :, frames:] == 0).all()
    np.testing.assert_allclose(
        mels[0, :, :frames].astype(np.float32), LogMel()(torch.from_numpy(audio)[None])[0].numpy(), atol=5e-3
    )
    assert np.abs(mels[1] - mels[0]).max() > 0.05
    np.testing.assert_array_equal(variants("some-id", audio), mels)


def own_manifest(folder: Path, clips: dict[str, Path]) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [f"{name},{path},{index % 2}" for index, (name, path) in enumerate(clips.items())]
    (folder / "my.csv").write_text("\n".join(["id,file,beat", *rows]))
    return folder / "my.csv"


def test_a_cache_follows_its_manifest_and_is_not_taken_for_that_of_another(
    manifest: Path, tmp_path: Path
) -> None:
    one, other = (manifest.parent / f"{number}.flac" for number in (0, 1))
    first = own_manifest(tmp_path / "x", {"a": one})
    settings = replace(settings_for(first, tmp_path / "run", tags=("beat",)), cache=tmp_path / "cache")
    before = prepare(settings).mel(0)

    own_manifest(tmp_path / "x", {"new": other, "a": one})
    grown = prepare(settings)
    (tmp_path / "y").mkdir()
    same_name = own_manifest(tmp_path / "y" / "x", {"a": other})
    apart = prepare(replace(settings, manifests=(same_name,)))

    assert [clip.id for clip in grown.clips] == ["new", "a"]
    np.testing.assert_array_equal(grown.mel(1), before)
    np.testing.assert_array_equal(apart.mel(0), grown.mel(0))


def test_a_clip_that_is_missing_is_left_out_and_nothing_but_those_is_nothing_to_learn_from(
    manifest: Path, tmp_path: Path
) -> None:
    there, missing = manifest.parent / "0.flac", tmp_path / "none.flac"
    some = settings_for(
        own_manifest(tmp_path / "x", {"a": missing, "b": there}), tmp_path / "x", tags=("beat",)
    )
    own = tmp_path / "own.csv"
    val = [f"{number},{manifest.parent}/{number}.flac,val,{number}" for number in (0, 1)]
    own.write_text("\n".join(["id,file,split,beat", f"a,{missing},train,1", *val]))
    none = settings_for(own, tmp_path / "y", tags=("beat",))

    assert [clip.id for clip in prepare(some).clips] == ["b"]
    missing.symlink_to(there)
    assert [clip.id for clip in prepare(some).clips] == ["a", "b"]
    missing.unlink()
    with pytest.raises(TrainingError, match="no clip to train on"):
        train(none)


def test_a_clip_that_was_repaired_is_decoded_again_and_what_is_left_out_is_told_each_time(
    manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.flac"
    clip.write_bytes(b"no music")
    own = own_manifest(tmp_path / "x", {"a": clip, "b": manifest.parent / "0.flac"})
    settings = settings_for(own, tmp_path / "x", tags=("beat",))

    told = []
    for _ in range(2):
        assert [found.id for found in prepare(settings).clips] == ["b"]
        told.append(capfd.readouterr().err)
    clip.write_bytes((manifest.parent / "1.flac").read_bytes())

    assert all(f"{clip}: left out" in text for text in told)
    assert [found.id for found in prepare(settings).clips] == ["a", "b"]


def test_workers_end_with_a_parent_that_is_killed() -> None:
    script = (
        "import multiprocessing, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from model.training import cache\n"
        "context = multiprocessing.get_context('spawn')\n"
        "pool = ProcessPoolExecutor(1, context, initializer=cache._hire, initargs=(None,))\n"
        "pool.submit(print, 'hired', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "hired\n"

        parent.kill()

        parent.communicate(timeout=60)  # ends when nobody holds the other end of its output any more


def test_sources_on_both_sides_are_told(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "own.csv"
    own.write_text(
        manifest.read_text().replace(",s8,", ",s0,").replace(",0.flac", f",{manifest.parent}/0.flac")
    )
    for clip in manifest.parent.glob("*.flac"):
        (tmp_path / clip.name).symlink_to(clip)

    train(settings_for(own, tmp_path / "run", steps=1))

    assert "1 sources or files are in `train` and in `val`" in caplog.text
    assert "s0" in caplog.text


def test_blending_log_mels_is_like_mixing_audio_that_is_not_correlated() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.normal(0.0, level, 80_000).astype(np.float32) for level in (0.1, 0.02))
    log_mel = LogMel()

    def mel_of(audio: Samples) -> torch.Tensor:
        mel: torch.Tensor = log_mel(torch.from_numpy(audio)[None])[None]
        return mel

    below_db = 20 * np.log10(0.1 / 0.02)
    blended = blend(mel_of(one), mel_of(other), torch.tensor([below_db]), torch.full((1, 96), -6.0))

    expected = mel_of((one + other) * np.float32(10 ** (-6.0 / 20)))
    assert (blended - expected).abs().mean() < 0.1
    assert (blended - expected).mean().abs() < 0.02


def test_silence_under_a_window_changes_nothing() -> None:
    mel = torch.rand(3, 2, 96, 313) * 4

    blended = blend(mel, torch.zeros_like(mel), torch.zeros(3), torch.zeros(3, 96))

    torch.testing.assert_close(blended, mel, atol=1e-4, rtol=1e-4)


def test_mel_bands_lie_where_slaney_put_them_and_their_curve_stays_within_bounds() -> None:
    centres = mel_centres_hz()

    curves = np.stack([band_curve(np.random.default_rng(seed)) for seed in range(50)])

    assert (np.diff(centres) > 0).all()
    assert 0 < centres[0] < 100 < 7500 < centres[-1] < 8000
    assert curves.shape == (50, 96)
    assert curves.max() <= 6.0 + 12.0
    assert np.ptp(curves, axis=1).min() == 0.0  # at times a gain alone


def a_window(vocal: float, pop: float) -> Window:
    mel = np.ones((2, 96, 313), np.float16)
    return Window(mel, np.array([vocal, pop], np.float32), np.zeros(2, np.float32), np.ones(3, np.float32))


@pytest.mark.parametrize("below_db", [0.0, 6.0, 11.0, 15.0])
def test_a_voice_over_anything_makes_vocal_true(below_db: float) -> None:
    labels, words, soft = labels_of_mix(a_window(1, 0), a_window(0, 1), below_db, vocal=0)

    drowned = below_db > 12.0
    assert labels[0] == 1.0
    assert labels[1] == 0.0 if drowned else np.isnan(labels[1])
    assert np.isnan(soft).all() == np.isnan(words).all() == (not drowned)


def test_a_soft_voice_below_is_unknown_and_a_loud_one_is_vocal() -> None:
    loud, soft = (labels_of_mix(a_window(0, 0), a_window(1, 0), db, vocal=0)[0] for db in (6.0, 11.0))

    assert loud[0] == 1.0
    assert np.isnan(soft[0])


def test_no_voice_in_either_is_no_voice_and_an_unknown_one_stays_unknown() -> None:
    neither, _, _ = labels_of_mix(a_window(0, 1), a_window(0, 1), 3.0, vocal=0)
    unknown, _, _ = labels_of_mix(a_window(0, 1), a_window(np.nan, 1), 3.0, vocal=0)

    assert neither.tolist() == [0.0, 1.0]
    assert np.isnan(unknown[0])


def test_words_say_nothing_of_a_voice_where_one_may_be_heard_below() -> None:
    _, words, _ = labels_of_mix(a_window(0, 0), a_window(1, 0), 15.0, vocal=0)

    assert np.isnan(words).tolist() == [True, False]


def test_bursts_come_at_a_steady_pace_with_silence_between_them() -> None:
    heard = [bursts(np.random.default_rng(seed)).reshape(-1) for seed in range(50)]

    assert {row.shape for row in heard} == {(2 * 313,)}
    assert set(np.concatenate(heard).tolist()) == {0.0, 1.0}
    assert all(0.1 < row.mean() < 0.9 for row in heard)
    for row in heard:
        paces = np.diff(np.flatnonzero(np.diff(row) > 0))
        assert len(paces) >= 2
        assert np.ptp(paces) <= 1


def a_material(labels: NDArray[np.float32], sources: str) -> Material:
    """Clips of 12 s; the first frame of a clip's log-mel holds its number."""
    number = len(labels)
    mels = np.zeros((number, VARIANTS, 96, CLIP_FRAMES), np.float16)
    mels += np.arange(number)[:, None, None, None]
    clips = [Clip(str(i), Path(), "train", True, s, (None,), ("",)) for i, s in enumerate(sources)]
    return Material(
        clips,
        [mels],
        np.array([(0, i) for i in range(number)]),
        np.full(number, 750),
        labels,
        np.zeros((number, 29, labels.shape[1]), np.float16),
        np.zeros((number, 29, 5), np.float16),
    )


def test_rare_positives_and_small_sources_are_drawn_more_often() -> None:
    labels = np.array([[0.0]] * 8 + [[1.0]] * 2, np.float32)

    weights = balance(a_material(labels, "aaaaaaaabc"))

    assert weights[8] > weights[0]
    assert weights[8] == weights[9]


@pytest.mark.parametrize(
    ("source", "times"), [("sung", 4.0), (SEPARATOR.join(("sung", "band")), 4.0), ("speech", 4.0)]
)
def test_song_and_speech_that_were_made_for_it_are_drawn_more_often(source: str, times: float) -> None:
    material = a_material(np.zeros((4, 1), np.float32), "abcd")
    named = replace(material, clips=[*material.clips[:3], replace(material.clips[3], source=source)])

    weights = balance(named)

    assert weights[3] == pytest.approx(times * weights[0])


def test_a_batch_is_the_same_whenever_it_is_drawn_and_holds_what_its_clips_do() -> None:
    material = a_material((np.arange(4)[:, None] / 4).astype(np.float32), "abcd")
    sampler = Sampler(material, np.ones(4), 16, seed=3, vocal=None, augment=False)

    batch, again, other = sampler(5), sampler(5), sampler(6)

    assert batch.mel.shape == (16, 2, 96, 313)
    np.testing.assert_array_equal(batch.mel, again.mel)
    assert not np.array_equal(batch.mel, other.mel)
    np.testing.assert_array_equal(batch.mel[:, 0, 0, 0] / 4, batch.labels[:, 0])
    assert not batch.under.any()


def test_batches_that_other_processes_draw_for_a_gpu_are_the_same_in_the_same_order() -> None:
    sampler = Sampler(a_material(np.zeros((4, 1), np.float32), "abcd"), np.ones(4), 4, seed=3, vocal=None)

    batches = list(drawn_ahead(sampler, range(5, 12), torch.device("cuda")))

    for step, batch in enumerate(batches, start=5):
        np.testing.assert_array_equal(batch.mel, sampler(step).mel)
    assert len(batches) == 7


def test_of_some_windows_that_are_laid_under_others_only_bursts_are_heard() -> None:
    material = a_material(np.zeros((4, 1), np.float32), "abcd")
    loud = material.select(np.array([False, True, True, True]))
    sampler = Sampler(loud, np.ones(3), 100, seed=3, vocal=None)

    under = sampler(0).under

    silent = (under == 0.0).mean((1, 2, 3))
    assert ((silent > 0.1) & (silent < 0.9)).any()  # in bursts
    assert (silent == 0.0).any()  # whole
    assert (silent == 1.0).any()  # nothing under it


def test_teachers_words_rank_clips_by_the_second_and_a_tag_without_words_is_unknown() -> None:
    names: dict[str, list[str]] = {}
    for group in WORDS["dance"]:
        names.setdefault(group.teacher, []).extend(group.words)
    lessons = {"jamendo": np.full((2, 4), 0.01, np.float16), "msd": np.full((2, 9, 3), 0.02, np.float16)}
    lessons["jamendo"][1] = 0.3
    lessons["msd"][1, 5:] = 0.6

    said = opinions(("dance", "house"), lessons, names)

    assert said.shape == (2, 29, 2)
    assert np.isnan(said[:, :, 1]).all()
    assert said[1, :, 0].min() > said[0, :, 0].max()
    assert said[1, 20, 0] > said[1, 3, 0]


def test_words_can_speak_against_a_tag() -> None:
    names = {
        "audioset": SINGING,
        "mtt": [word for group in WORDS["vocal"] if group.teacher == "mtt" for word in group.words],
    }
    lessons = {
        "audioset": np.full((2, 29, len(SINGING)), 0.1),
        "mtt": np.full((2, 9, len(names["mtt"])), 0.1),
    }
    lessons["mtt"][1, :, [names["mtt"].index(word) for word in NO_VOCALS]] = 0.5

    said = opinions(("vocal",), lessons, names)

    assert said[1].max() < said[0].min()


def test_how_much_is_voice_counts_as_much_as_two_other_words_where_it_was_heard() -> None:
    mtt = [word for group in WORDS["vocal"] for word in group.words if group.teacher == "mtt"]
    names: dict[str, Sequence[str]] = {"audioset": SINGING, "mtt": mtt, "spleeter": ["voice"]}
    rng = np.random.default_rng(3)
    lessons = {
        "audioset": rng.uniform(0.0, 1.0, (4, 29, len(SINGING))).astype(np.float16),
        "mtt": rng.uniform(0.0, 1.0, (4, 9, len(mtt))).astype(np.float16),
    }
    voice = np.where(np.arange(29) < 14, 0.9, 0.001).astype(np.float16)
    silent = opinions(("vocal",), lessons, names)

    said = opinions(("vocal",), {**lessons, "spleeter": np.tile(voice[:, None], (4, 1, 1))}, names)

    expected = (4 * silent[..., 0] + 2 * np.where(voice > 0.5, 1.0356, -0.9664)) / 6
    np.testing.assert_allclose(said[..., 0], expected, atol=0.01)


def test_sources_are_dealt_whole_and_the_largest_ones_apart() -> None:
    clips = [Clip(str(i), Path(), "train", True, s, (), ()) for i, s in enumerate("aaaaaabbbbbcccdde")]

    folds = deal(clips, 3)

    assert len({folds[source] for source in "abc"}) == 3
    assert folds["d"] == folds["c"]


def test_cross_validation_scores_every_clip_by_a_network_that_never_met_its_source(
    manifest: Path, tmp_path: Path
) -> None:
    settings = settings_for(manifest, tmp_path / "cv", steps=6)

    predictions = cross_validate(settings, 3)

    rows = list(csv.DictReader(predictions.read_text().splitlines()))
    assert {row["id"] for row in rows} == {str(index) for index in range(12)}
    assert {row["fold"] for row in rows} == {"0", "1", "2"}
    assert all(0.0 < float(row[tag]) < 1.0 for row in rows for tag in ("beat", "drone"))
    calibration, thresholds = read_calibration(predictions.with_name("calibration.json"), ("beat", "drone"))
    assert calibration.keys() == thresholds.keys() == {"beat", "drone"}
    for row in rows:  # one calibration for all folds: another a fold would shift them against each other
        with np.load(predictions.parent / f"fold-{row['fold']}" / "logits.npz") as kept:
            place = kept["ids"].tolist().index(row["id"])
            windows, counts = (
                np.split(kept[name], kept["offsets"][1:])[place] for name in ("logits", "weights")
            )
        pooled = pool_logits(windows[:, 0], calibration["beat"].pooling, counts)
        assert float(row["beat"]) == pytest.approx(
            float(score(np.array(pooled), calibration["beat"])), abs=1e-5
        )
    told = predictions.read_text()
    again = cross_validate(settings, 3, never)  # nothing is trained twice
    assert again.read_text() == told


def test_a_fold_goes_on_from_its_own_former_network(manifest: Path, tmp_path: Path) -> None:
    former = settings_for(manifest, tmp_path / "former", steps=6, consistency=False)
    told = cross_validate(former, 3).read_text()
    going_on = replace(former, out=tmp_path / "cv", init=former.out, keep=1.0)  # all of what it was

    predictions = cross_validate(going_on, 3)

    assert predictions.read_text() == told
    assert load_bundle(tmp_path / "cv" / "fold-0" / "bundle")[0].training_data


def test_no_fold_goes_on_from_a_network_that_met_what_it_judges(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = {"0": "s9", "1": "s9"}  # the largest source is dealt first, and all others otherwise than before
    dealt_anew = with_rows(
        manifest, tmp_path / "own.csv", lambda row: row | {"source": joined.get(row["id"], row["source"])}
    )
    former = settings_for(manifest, tmp_path / "former", steps=1, consistency=False)
    cross_validate(former, 3)
    going_on = replace(former, out=tmp_path / "cv", init=former.out)

    with pytest.raises(TrainingError, match=r"/bundle met .*, which this fold is to judge"):
        cross_validate(replace(going_on, manifests=(dealt_anew,)), 3)
    monkeypatch.setattr("model.training.cross_validation.prepare", never)  # told before hours are spent
    with pytest.raises(TrainingError, match=r"--folds 2: .* has 3"):
        cross_validate(going_on, 2)


def test_a_cross_validation_goes_on_where_clips_cannot_be_read(manifest: Path, tmp_path: Path) -> None:
    own = with_rows(
        manifest,
        tmp_path / "own.csv",
        lambda row: (
            row
            | {"source": f"s{int(row['id']) // 4}"}
            | ({"file": str(tmp_path / "none.flac")} if row["id"] in "012" else {})
        ),
    )
    former = settings_for(own, tmp_path / "former", steps=1, batch=2, consistency=False)
    cross_validate(former, 3)

    assert cross_validate(replace(former, out=tmp_path / "cv", init=former.out), 3).exists()


def test_a_fold_that_was_stopped_is_trained_anew_where_a_label_was_corrected(
    manifest: Path, tmp_path: Path
) -> None:
    own = with_rows(manifest, tmp_path / "own.csv", lambda row: row)
    settings = settings_for(own, tmp_path / "cv", steps=2, batch=2, evaluate_every=1, consistency=False)
    steps: list[int] = []

    def stop(step: int, *_: object) -> None:
        if step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        cross_validate(settings, 2, stop)
    with_rows(own, own, lambda row: row | {"beat": str(1 - int(row["beat"]))})
    cross_validate(settings, 2, lambda step, *_: steps.append(step))

    assert steps == [1, 2, 1, 2]


def test_a_fold_that_was_stopped_goes_on_from_its_checkpoint(manifest: Path, tmp_path: Path) -> None:
    settings = settings_for(manifest, tmp_path / "cv", steps=6, evaluate_every=2, consistency=False)
    steps: list[int] = []

    def stop(step: int, *_: object) -> None:
        if step == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        cross_validate(settings, 2, stop)
    cross_validate(settings, 2, lambda step, *_: steps.append(step))

    assert steps == [5, 6, 1, 2, 3, 4, 5, 6]


def test_only_clips_of_the_first_manifest_are_judged_though_others_have_the_same_ids(
    manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    lines = manifest.read_text().splitlines()
    unlabelled = [
        f"{number},{manifest.parent / f'{11 - number}.flac'},x{number},train,," for number in range(12)
    ]
    other = tmp_path / "more" / "my.csv"
    other.write_text("\n".join([lines[0], *unlabelled]))
    alone = settings_for(manifest, tmp_path / "alone", steps=1, batch=2, consistency=False)

    judged = [
        cross_validate(settings, 2)
        for settings in (replace(alone, out=tmp_path / "cv", manifests=(manifest, other)), alone)
    ]

    dealt = [dict(line.split(",")[:2] for line in path.read_text().splitlines()) for path in judged]
    assert dealt[0] == dealt[1]


@pytest.mark.parametrize(("folds", "tags", "message"), [(13, ("beat",), "2 to 12"), (2, ("never",), "never")])
def test_a_cross_validation_that_cannot_end_does_not_begin(
    manifest: Path, tmp_path: Path, folds: int, tags: tuple[str, ...], message: str
) -> None:
    own = tmp_path / "own.csv"
    lines = manifest.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    own.write_text(
        "\n".join(
            [
                "id,file,source,beat,never",
                *(f"{i},{manifest.parent / f},{s},{b},0" for i, f, s, _, b, _ in rows),
            ]
        )
    )

    with pytest.raises(TrainingError, match=message):
        cross_validate(settings_for(own, tmp_path / "cv", tags=tags), folds)


def test_a_clip_shares_a_source_with_all_that_is_mixed_into_it() -> None:
    clips = [Clip("", Path(), "train", True, source, (), ()) for source in ("a + b", "a", "b + c", "c")]

    assert shares_source(clips, {"a"}).tolist() == [True, True, False, False]
    assert shares_source(clips, {"a + b"}).tolist() == [True, True, True, False]


def test_a_fold_that_lacks_a_tags_yes_or_no_still_gives_its_scores(manifest: Path, tmp_path: Path) -> None:
    settings = settings_for(manifest, tmp_path / "cv", steps=1, batch=2, consistency=False)

    predictions = cross_validate(settings, 12)  # one clip a fold

    assert len(predictions.read_text().splitlines()) == 1 + 12


def test_platt_scaling_finds_the_line_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 3.0, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * logits - 1.0)))).astype(np.float32)

    scale, bias = platt(logits, labels)

    assert scale == pytest.approx(0.5, abs=0.03)
    assert bias == pytest.approx(-1.0, abs=0.06)


def test_a_tagger_worse_than_chance_is_not_turned_round_and_a_warning_names_the_tag(
    caplog: pytest.LogCaptureFixture,
) -> None:
    windows = [np.array([z]) for z in (-2.0, -1.0, -1.5, 1.0, 2.0, 1.5)]
    labels = np.array([1, 1, 1, 0, 0, 0], np.float32)

    calibration, _ = calibrate(windows, labels, "house")

    scores = score(np.concatenate(windows), calibration)
    assert calibration.scale > 0.0
    assert scores[1] < scores[4]
    assert scores.mean() == pytest.approx(0.5, abs=0.01)
    assert "do not rank house" in caplog.text


def test_a_soft_label_of_one_half_is_a_yes_for_the_threshold_too() -> None:
    scores = np.array([0.1, 0.3, 0.6, 0.9])
    labels = np.array([0.0, 0.0, 0.5, 0.5], np.float32)

    assert best_f1_threshold(scores, labels) == pytest.approx(0.45)


def test_the_threshold_is_that_of_best_f1_between_two_scores() -> None:
    scores = np.array([0.1, 0.3, 0.6, 0.9])
    labels = np.array([0, 0, 1, 1], np.float32)

    assert best_f1_threshold(scores, labels) == pytest.approx(0.45)


def test_pooling_leaves_the_mean_only_where_that_ranks_better() -> None:
    hook = [np.array([-3.0, -3.0, 4.0])] * 10
    none = [np.array([-1.0, -1.0, -1.0]), np.array([-0.5, -0.4, -0.6])] * 5
    even = [np.full(3, 2.0)] * 10
    labels = np.array([1.0] * 10 + [0.0] * 10, np.float32)

    anywhere, _ = calibrate([*hook, *none], labels)
    throughout, _ = calibrate([*none, *hook], labels)
    mean, _ = calibrate([*even, *none], labels)

    assert anywhere.pooling > 0.0
    assert throughout.pooling < 0.0
    assert mean.pooling == 0.0


@pytest.fixture
def partly_silent(tmp_path: Path) -> Path:
    """Eight clips of four sources, the last of which may not train, and a fifth with the first one's file."""
    rng = np.random.default_rng(5)
    rows = ["id,file,source,split,beat,drone,train_ok"]
    for index in range(8):
        make, is_beat = (beat, 1) if index % 2 else (drone, 0)
        sound = np.pad(make(6.0, rng), (0, RATE * (9 if index % 3 else 1)))
        write_flac(tmp_path / f"{index}.flac", sound)
        rows.append(f"{index},{index}.flac,s{index // 2},val,{is_beat},{1 - is_beat},{int(index != 7)}")
    rows.append("again,0.flac,other,val,0,1,1")
    (tmp_path / "own.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "own.csv"


def untrained(settings: TrainSettings) -> TaggerNetwork:
    torch.manual_seed(1)
    return TaggerNetwork(settings.tags, settings.network).eval()


def test_nothing_of_a_fold_teaches_or_chooses_and_silence_does_not_count(
    partly_silent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[tuple[TrainSettings, Material, Material]] = []

    def learn_nothing(
        settings: TrainSettings, learn: Material, held_out: Material, *_: object
    ) -> TaggerNetwork:
        settings.out.mkdir(parents=True)
        met.append((settings, learn, held_out))
        return untrained(settings)

    monkeypatch.setattr("model.training.cross_validation.fit", learn_nothing)

    path = cross_validate(settings_for(partly_silent, tmp_path / "cv", train_ok_only=True), 3)

    said = {row["id"]: row for row in csv.DictReader(path.read_text().splitlines())}
    for settings, learn, held_out in met:
        assert settings.keep_last
        assert all(clip.train_ok for clip in learn.clips)
        assert {clip.source for clip in learn.clips}.isdisjoint(clip.source for clip in held_out.clips)
        assert {clip.path for clip in learn.clips}.isdisjoint(clip.path for clip in held_out.clips)
    ids = [clip.id for _, _, held_out in met for clip in held_out.clips]
    found = [clip_logits(untrained(met[0][0]), held_out, CPU) for _, _, held_out in met]
    windows = [z[:, 0] for logits, _ in found for z in logits]
    weights = [w for _, fold in found for w in fold]
    truth = np.concatenate([held_out.labels[:, 0] for _, _, held_out in met])
    fitted, _ = calibrate(windows, truth, "beat", weights)
    expected = score(pool_clips(windows, fitted.pooling, weights), fitted)
    assert [float(said[clip]["beat"]) for clip in ids] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_bundle_is_calibrated_and_measured_without_silence(partly_silent: Path, tmp_path: Path) -> None:
    settings = settings_for(partly_silent, tmp_path / "run")
    material, network = prepare(settings), untrained(settings)
    logits, weights = clip_logits(network, material, CPU)
    column, sources = [z[:, 0] for z in logits], [clip.source for clip in material.clips]

    bundle, _ = load_bundle(write_bundle(network, material, material, settings, CPU))

    fitted, threshold = calibrate(column, material.labels[:, 0], "beat", weights)
    scores = score(pool_clips(column, fitted.pooling, weights), fitted)
    assert bundle.calibration["beat"] == fitted
    assert bundle.metrics["beat"] == plain(
        tag_metrics("beat", material.labels[:, 0], scores, sources, threshold)
    )


@pytest.mark.parametrize(("keep_last", "kept"), [(False, 0), (True, -1)])
def test_the_best_evaluation_is_kept_or_the_last(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_last: bool, kept: int
) -> None:
    settings = settings_for(
        manifest, tmp_path / "run", steps=2, evaluate_every=1, consistency=False, keep_last=keep_last
    )
    judged: list[dict[str, torch.Tensor]] = []

    def worse_and_worse(network: TaggerNetwork, *_: object) -> list[float]:
        judged.append({name: value.clone() for name, value in network.state_dict().items()})
        return [0.9 / len(judged)] * 2

    monkeypatch.setattr("model.training.train.clip_aucs", worse_and_worse)
    material = prepare(settings)

    network = fit(settings, material, material, CPU, lambda *_: None)

    assert len(judged) == 2
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, judged[kept][name], msg=name)


def test_a_few_clips_that_are_told_apart_well_do_not_make_scores_extreme() -> None:
    logits, labels = np.array([3.0] * 5 + [-3.0] * 8), np.array([1.0] * 5 + [0.0] * 8, np.float32)

    scale, bias = platt(logits, labels)

    yes, no = score(np.array([3.0, -3.0]), Calibration(0.0, scale, bias))
    assert yes == pytest.approx(6 / 7, abs=0.01)  # (P + 1) / (P + 2)
    assert no == pytest.approx(1 / 10, abs=0.01)  # 1 / (N + 2)


def test_a_pooling_that_ranks_one_pair_of_many_better_is_luck() -> None:
    windows = [np.full(3, 2.0)] * 39 + [np.array([-1.0, -1.0, 1.4])]
    windows += [np.full(3, -0.1)] + [
        np.full(3, -2.0)
    ] * 39  # the mean of the last yes lies below the first no
    labels = np.array([1.0] * 40 + [0.0] * 40, np.float32)

    assert calibrate(windows, labels)[0].pooling == 0.0
