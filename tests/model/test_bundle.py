"""Bundles: what is written is what is read, and a bundle that is not whole is refused with a reason."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from model.bundle import CARD_FILE, WEIGHTS_FILE, Bundle, BundleError, Calibration, load_bundle, save_bundle
from model.network import NetworkConfig, TaggerNetwork
from model.tags import TAGS

SMALL = NetworkConfig(timbral=((38, 7, 2),), temporal=((32, 2),), mid=4, texture=(), hidden=8)


def write(folder: Path, tags: tuple[str, ...] = ("house", "ambient")) -> tuple[Bundle, TaggerNetwork]:
    network = TaggerNetwork(tags, SMALL).eval()
    bundle = Bundle(
        name="own",
        version="1.2.3",
        tags=tags,
        thresholds=dict.fromkeys(tags, 0.4),
        network=SMALL,
        calibration={tag: Calibration(1.0, 2.0, -0.5) for tag in tags},
    )
    save_bundle(folder, bundle, network)
    return bundle, network


def test_a_bundle_comes_back_as_it_was_written(tmp_path: Path) -> None:
    bundle, network = write(tmp_path)
    audio = torch.randn(1, 160_000)

    loaded, restored = load_bundle(tmp_path)

    assert loaded.tags == bundle.tags
    assert loaded.calibration == bundle.calibration
    assert loaded.network == SMALL
    assert len(loaded.sha256) == 64
    with torch.no_grad():
        torch.testing.assert_close(restored(audio), network(audio))


def test_the_shipped_bundle_has_the_four_tags_in_order_and_says_what_it_was_trained_on() -> None:
    bundle, network = load_bundle()

    assert bundle.tags == TAGS
    assert network.tags == TAGS
    assert set(bundle.thresholds) == set(TAGS)
    assert all(0.0 < threshold < 1.0 for threshold in bundle.thresholds.values())
    assert bundle.training_data
    assert bundle.metrics


def damage_weights(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate_weights(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:100])


def break_json(folder: Path) -> None:
    (folder / CARD_FILE).write_text("{")


def nest_json(folder: Path) -> None:
    (folder / CARD_FILE).write_text("[" * 100_000)


def strange_numbers(folder: Path) -> None:
    header = json.dumps({"x": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + b"\0"
    (folder / WEIGHTS_FILE).write_bytes(weights)
    change(sha256=hashlib.sha256(weights).hexdigest())(folder)


def diverge(folder: Path) -> None:
    tensors = load_tensors((folder / WEIGHTS_FILE).read_bytes())
    floats = next(tensor for tensor in tensors.values() if tensor.is_floating_point())  # others count batches
    floats.view(-1)[0] = torch.nan
    save_file(tensors, folder / WEIGHTS_FILE)
    change(sha256=hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest())(folder)


def change(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / CARD_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def change_network(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        network = json.loads((folder / CARD_FILE).read_text())["network"]
        change(network=network | values)(folder)

    return apply


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), "cannot be read"),
        (lambda folder: (folder / CARD_FILE).unlink(), "cannot be read"),
        (damage_weights, "SHA-256"),
        (diverge, "not finite"),
        (truncate_weights, "SHA-256"),
        (break_json, "not JSON"),
        (change(format=99), "format"),
        (change(thresholds={}), "thresholds|house"),
        (change_network(mid=6), "does not fit"),
        (change(network={"mid": 6}), "missing: band_stride"),
        (change(surprise=1), "surprise"),
        (change(sha256=None), "SHA-256"),
        (change(network=None), "wrong"),
        (change_network(hidden=-1), "wrong"),
        (change_network(dropout=5), "wrong"),
        (change(tags=["house", "house"]), "tags"),
        (change(thresholds={"house": float("nan"), "ambient": 0.5}), "nan"),
        (change(calibration={tag: {"scale": "steep"} for tag in ("house", "ambient")}), "steep"),
        (change(sample_rate_hz=8000), "sample_rate_hz"),
        (change(hop_s=0), "hop_s"),
        (change(training_data=["an album"]), "wrong"),
        (change(training_data=[{"source": 1, "clips": 1}]), "training_data"),
        (nest_json, "not JSON"),
        (strange_numbers, "does not fit"),
    ],
    ids=[
        "no weights",
        "no card",
        "a bit flipped",
        "not finite",
        "cut",
        "broken json",
        "format",
        "thresholds",
        "network",
        "part of a network",
        "unknown",
        "no sum",
        "no network",
        "size below 0",
        "dropout",
        "a tag twice",
        "threshold",
        "calibration",
        "sample rate",
        "hop",
        "training data",
        "source",
        "deep json",
        "numbers unknown to torch",
    ],
)
def test_a_bundle_that_is_not_whole_is_refused(tmp_path: Path, harm: object, message: str) -> None:
    write(tmp_path)
    assert callable(harm)
    harm(tmp_path)

    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path)
