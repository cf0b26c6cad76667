"""A bundle: `tagger.safetensors` and `tagger.json`, all that is needed to tag and to say who tagged.

Nothing but `tags.py` and the bundle knows which tags there are, so a bundle trained on others is served just
the same.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from model.frontend import SAMPLE_RATE_HZ
from model.network import SEGMENT_S, SEGMENTS_PER_WINDOW, NetworkConfig, TaggerNetwork

SHIPPED: Final = Path(__file__).parent / "weights"
WEIGHTS_FILE: Final = "tagger.safetensors"
CARD_FILE: Final = "tagger.json"
FORMAT: Final = 2


class BundleError(RuntimeError):
    """A bundle that cannot be used: missing, damaged or of another format. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """From window logits of one tag to the score of the clip.

    `pooling` is the sharpness a of log-mean-exp, ln(mean(exp(a z))) / a, over the windows' logits z: 0 is
    their mean, far above it is their maximum, and far below it their minimum. The score is
    sigmoid(scale * pooled + bias) (Platt 1999).
    """

    pooling: float = 0.0
    scale: float = 1.0
    bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Bundle:
    """What `tagger.json` says."""

    name: str
    version: str
    tags: tuple[str, ...]
    thresholds: dict[str, float]
    network: NetworkConfig
    calibration: dict[str, Calibration]
    meanings: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    training_data: list[dict[str, Any]] = field(default_factory=list)
    sample_rate_hz: int = SAMPLE_RATE_HZ
    window_s: float = SEGMENT_S * SEGMENTS_PER_WINDOW
    hop_s: float = SEGMENT_S
    sha256: str = ""
    """Of the weights file, in hex."""


def save_bundle(folder: Path, bundle: Bundle, network: TaggerNetwork) -> None:
    """Write both files; the SHA-256 in the JSON is that of the weights written."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith("log_mel.")
    }
    weights = save_tensors(state)
    (folder / WEIGHTS_FILE).write_bytes(weights)
    card = asdict(bundle) | {"format": FORMAT, "sha256": hashlib.sha256(weights).hexdigest()}
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_bundle(folder: Path = SHIPPED) -> tuple[Bundle, TaggerNetwork]:
    """Read and check a bundle; the network comes in evaluation mode on the CPU.

    Raises:
        BundleError: a file is missing, is not what `tagger.json` promises (SHA-256), or does not fit the
            network.
    """
    card = _read_card(folder / CARD_FILE)
    weights = _read(folder / WEIGHTS_FILE)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != card.get("sha256"):
        raise BundleError(
            f"{folder / WEIGHTS_FILE}: SHA-256 is {digest}, but {CARD_FILE} says {card.get('sha256')}; "
            "the file is damaged or of another bundle: copy both files again"
        )
    bundle, network = _parse(folder, card)
    try:
        missing, unexpected = network.load_state_dict(load_tensors(weights), strict=False)
    except (SafetensorError, RuntimeError, KeyError) as error:  # KeyError: of numbers that torch has not
        raise BundleError(
            f"{folder / WEIGHTS_FILE}: does not fit the network of {CARD_FILE}: {error}"
        ) from error
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise BundleError(
            f"{folder / WEIGHTS_FILE}: holds numbers that are not finite; the training diverged: train again"
        )
    wrong = [name for name in (*missing, *unexpected) if not name.startswith("log_mel.")]
    if wrong:
        raise BundleError(
            f"{folder / WEIGHTS_FILE}: does not fit the network of {CARD_FILE}: {', '.join(wrong[:3])}"
        )
    return bundle, network.eval()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror}); "
            f"a bundle is a folder with {WEIGHTS_FILE} and {CARD_FILE}, as `music-tagger train` writes it"
        ) from error


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: is not JSON ({error}); copy the bundle again") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise BundleError(f"{path}: is not a bundle of format {FORMAT}; train it again with this version")
    return card


def _parse(folder: Path, card: dict[str, Any]) -> tuple[Bundle, TaggerNetwork]:
    values = {key: value for key, value in card.items() if key != "format"}
    try:
        values["tags"] = tags = _tags(card["tags"])
        values["network"] = NetworkConfig.from_json(card["network"])
        values["calibration"] = {tag: Calibration(**_numbers(card["calibration"][tag])) for tag in tags}
        values["thresholds"] = _numbers({tag: card["thresholds"][tag] for tag in tags})
        bundle = Bundle(**values)
        _check_sources(bundle)
        _check_time(bundle)
        return bundle, TaggerNetwork(tags, bundle.network)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BundleError(
            f"{folder / CARD_FILE}: {error!r} is missing or wrong; train the bundle again"
        ) from error


def _tags(names: list[str]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("tags")
    return tuple(names)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in values.items()}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError(str(values))
    return numbers


def _check_sources(bundle: Bundle) -> None:
    for row in bundle.training_data:
        if not (isinstance(row["source"], str) and isinstance(row["clips"], int)):
            raise TypeError(f"training_data: {row}")


def _check_time(bundle: Bundle) -> None:
    """What the card says of time must be what the network does: at another rate it would hear nonsense."""
    told = bundle.sample_rate_hz, bundle.window_s, bundle.hop_s
    if told != (SAMPLE_RATE_HZ, SEGMENT_S * SEGMENTS_PER_WINDOW, SEGMENT_S):
        raise ValueError(f"sample_rate_hz, window_s, hop_s: {told}")
