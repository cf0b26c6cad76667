"""What the documentation shows as examples: answers as the served bundle gives them, with its own tags."""

from itertools import cycle
from typing import Any, Final

from app.schemas import AUDIO, PROBLEM, TIMING
from model.bundle import Bundle

_SCORES: Final = (0.973, 0.881, 0.024, 0.79)
_WINDOW_SCORES: Final = (0.41, 0.9, 0.03, 0.71)


def threshold_example(bundle: Bundle) -> str:
    """Write thresholds for the first tags, as the query takes them: `vocal:0.6,dance:0.4`."""
    return ",".join(f"{tag}:{number}" for tag, number in zip(bundle.tags, (0.6, 0.4), strict=False))


def examples_of(bundle: Bundle) -> dict[str, Any]:
    """Give an example for every schema that names tags, by the schema's name."""
    thresholds = bundle.thresholds
    tags = [
        {"tag": tag, "score": score, "present": score >= thresholds[tag], "threshold": thresholds[tag]}
        for tag, score in zip(bundle.tags, cycle(_SCORES), strict=False)
    ]
    window = {
        "start_s": 0.0,
        "end_s": bundle.window_s,
        "scores": dict(zip(bundle.tags, cycle(_WINDOW_SCORES), strict=False)),
    }
    meanings = [
        {"tag": tag, "meaning": bundle.meanings.get(tag, ""), "threshold": thresholds[tag]}
        for tag in bundle.tags
    ]
    model = {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}
    result = {"tags": tags, "windows": [window], "audio": AUDIO, "model": model, "timing_ms": TIMING}
    return {
        "TagScore": tags[0],
        "Window": window,
        "ModelName": model,
        "TagResponse": result,
        "BatchResponse": {
            "items": [
                {"index": 0, "status": 200, "result": result},
                {"index": 1, "status": 422, "problem": PROBLEM},
            ]
        },
        "Label": {"label": bundle.tags[0], "score": _SCORES[0]},
        "TagMeaning": meanings[0],
        "ModelResponse": {
            **model,
            "device": "cpu",
            "engine": "openvino",
            "precision": "bf16",
            "sample_rate_hz": bundle.sample_rate_hz,
            "window_s": bundle.window_s,
            "hop_s": bundle.hop_s,
            "tags": meanings,
            "metrics": bundle.metrics,
        },
    }
