"""Training: drawing, mixing and distorting windows, calibration, the whole way from manifest to bundle."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.bundle import load_bundle
from model.network import NetworkConfig
from model.tagger import Tagger, cut_segments
from model.training.augmentation import CHAIN, CODECS, Samples, distort, encode, mask_bands_and_frames
from model.training.calibration import best_f1_threshold, calibrate, platt
from model.training.corpus import Clip
from model.training.gather import write_flac
from model.training.material import WINDOW_SAMPLES, Material, Window, fill_window, mix
from model.training.train import TrainingError, TrainSettings, balance, train

RATE = 16_000
SMALL = NetworkConfig(
    timbral=((38, 7, 2),),
    temporal=((32, 2),),
    mid=4,
    texture=((1, 8, 2, 2),),
    texture_stem=4,
    texture_out=8,
    hidden=8,
)


def beat(seconds: float, rng: np.random.Generator) -> Samples:
    """A kick drum four to the floor."""
    time = np.arange(int(seconds * RATE)) / RATE
    since = time % (60 / rng.uniform(120, 130))
    return (0.8 * np.sin(2 * np.pi * 60 * since) * np.exp(-since * 20)).astype(np.float32)


def drone(seconds: float, rng: np.random.Generator) -> Samples:
    """A steady tone with overtones."""
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = rng.uniform(100, 400)
    overtones = np.arange(1, 4)[:, None]
    samples: NDArray[np.float64] = (0.2 / overtones * np.sin(2 * np.pi * overtones * pitch * time)).sum(0)
    return samples.astype(np.float32)


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


def test_soft_labels_of_another_tagger_are_learnt_from(manifest: Path, tmp_path: Path) -> None:
    scores = np.random.default_rng(0).uniform(0.0, 0.1, (12, 3)).astype(np.float16)
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


@pytest.mark.parametrize("step", [step for _, step in CHAIN], ids=lambda step: step.__name__)
def test_every_distortion_keeps_length_and_is_finite_and_changes_something(step: object) -> None:
    samples = np.tile(beat(10.0, np.random.default_rng(3)) + drone(10.0, np.random.default_rng(3)), 1)
    assert callable(step)

    distorted = step(samples, np.random.default_rng(5))

    assert distorted.dtype == np.float32
    assert distorted.shape == samples.shape
    assert np.isfinite(distorted).all()
    assert np.abs(distorted - samples).max() > 1e-3


def test_distortion_is_the_same_for_the_same_seed_and_survives_silence() -> None:
    samples = drone(10.0, np.random.default_rng(3))
    silence = np.zeros(WINDOW_SAMPLES, np.float32)

    first, second = (distort(samples, np.random.default_rng(7)) for _ in range(2))

    np.testing.assert_array_equal(first, second)
    with np.errstate(all="raise"):
        assert all(np.isfinite(distort(silence, np.random.default_rng(seed))).all() for seed in range(40))


@pytest.mark.parametrize(("container", "encoder", "rates"), CODECS)
def test_codecs_encode_at_every_rate(container: str, encoder: str, rates: tuple[int, ...]) -> None:
    sizes = [len(encode(drone(5.0, np.random.default_rng(1)), container, encoder, rate)) for rate in rates]

    assert sizes[0] > 1000
    assert sizes == sorted(sizes)


def test_masks_hide_at_most_a_stripe_of_bands_and_of_frames() -> None:
    mel = torch.ones(16, 96, 313)

    masked = mask_bands_and_frames(mel, np.random.default_rng(0))

    bands_hidden = (masked == 0).all(2).sum(1)
    frames_hidden = (masked == 0).all(1).sum(1)
    assert 0 < bands_hidden.max() <= 16
    assert 0 < frames_hidden.max() <= 40
    assert (masked[:, :, :].amax((1, 2)) == 1).all()


@pytest.mark.parametrize("seconds", [1.0, 4.9, 5.0, 7.3, 9.99, 10.0])
def test_short_parts_are_filled_as_the_tagger_does(seconds: float) -> None:
    part = drone(seconds, np.random.default_rng(2))

    window = fill_window(part)

    segments = list(cut_segments([part]))
    np.testing.assert_array_equal(window, np.concatenate([segments[0], segments[-1]]))


def a_window(vocal: float, pop: float, level: float = 0.3) -> Window:
    samples = np.float32(level) * np.sin(np.arange(WINDOW_SAMPLES, dtype=np.float32))
    return Window(samples, np.array([vocal, pop], np.float32), np.ones(3, np.float32))


def test_a_voice_over_anything_makes_vocal_true_and_leaves_the_rest_unknown_where_they_differ() -> None:
    rng = np.random.default_rng(0)

    labels = np.stack([mix(a_window(1, 0), a_window(0, 1), rng, vocal=0).labels for _ in range(50)])

    assert (labels[:, 0] == 1.0).all()
    assert np.isnan(labels[:, 1]).any()
    assert not (labels[:, 1] == 1.0).any()


def test_no_voice_in_either_is_no_voice_and_an_unknown_one_stays_unknown() -> None:
    rng = np.random.default_rng(0)

    neither = [mix(a_window(0, 1), a_window(0, 1), rng, vocal=0).labels for _ in range(20)]
    unknown = [mix(a_window(0, 1), a_window(np.nan, 1), rng, vocal=0).labels for _ in range(20)]

    assert all(labels[0] == 0.0 and labels[1] == 1.0 for labels in neither)
    assert all(np.isnan(labels[0]) for labels in unknown)


def test_rare_positives_and_small_sources_are_drawn_more_often() -> None:
    labels = np.array([[0.0]] * 8 + [[1.0]] * 2, np.float32)
    clips = [Clip(str(i), Path(), "train", True, s, (None,), ("",)) for i, s in enumerate("aaaaaaaabc")]
    material = Material(
        clips, np.zeros((10, 1), np.int16), np.ones(10, np.int64), labels, np.zeros((10, 29, 1), np.float16)
    )

    weights = balance(material)

    assert weights[8] > weights[0]
    assert weights[8] == weights[9]


def test_platt_scaling_finds_the_line_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 3.0, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * logits - 1.0)))).astype(np.float32)

    scale, bias = platt(logits, labels)

    assert scale == pytest.approx(0.5, abs=0.03)
    assert bias == pytest.approx(-1.0, abs=0.06)


def test_the_threshold_is_that_of_best_f1_between_two_scores() -> None:
    scores = np.array([0.1, 0.3, 0.6, 0.9])
    labels = np.array([0, 0, 1, 1], np.float32)

    assert best_f1_threshold(scores, labels) == pytest.approx(0.45)


def test_pooling_is_sharpened_only_where_that_ranks_better() -> None:
    hook = [np.array([-3.0, -3.0, 4.0])] * 10
    none = [np.array([-1.0, -1.0, -1.0]), np.array([-0.5, -0.4, -0.6])] * 5
    even = [np.full(3, 2.0)] * 10
    labels = np.array([1.0] * 10 + [0.0] * 10, np.float32)

    sharp, _ = calibrate([*hook, *none], labels)
    mean, _ = calibrate([*even, *none], labels)

    assert sharp.pooling > 0.0
    assert mean.pooling == 0.0
