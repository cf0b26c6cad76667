"""From which score a tag is present, as a request or the command line asks for it."""

from collections.abc import Mapping

from app.problems import ProblemError
from model.bundle import Bundle


def parse_thresholds(text: str | None, bundle: Bundle) -> Mapping[str, float]:
    """Read `0.5` or `TAG:0.6,TAG:0.4` into one threshold a tag, the bundle's own where none is named.

    Raises ProblemError.
    """
    if text is None:
        return bundle.thresholds
    parts = [part.strip() for part in text.split(",")]
    by_tag = [part for part in parts if ":" in part]
    if not by_tag and len(parts) == 1:
        return dict.fromkeys(bundle.tags, _threshold(text, bundle))
    if len(by_tag) < len(parts):
        raise ProblemError("bad-combination", "threshold mixes numbers for all tags with numbers by tag.")
    asked: dict[str, float] = {}
    for part in by_tag:
        tag, _, number = part.rpartition(":")
        if tag not in bundle.tags:
            raise _bad_threshold(f"there is no tag `{tag}`", bundle)
        if tag in asked:
            raise ProblemError("bad-combination", f"threshold names `{tag}` twice.")
        asked[tag] = _threshold(number, bundle)
    return {**bundle.thresholds, **asked}


def _threshold(text: str, bundle: Bundle) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise _bad_threshold(f"`{text}` is not a number from 0 to 1", bundle)
    return value


def _bad_threshold(what: str, bundle: Bundle) -> ProblemError:
    tags = ", ".join(bundle.tags)
    hint = f"Give a number from 0 to 1 for all tags, or TAG:NUMBER pairs; the tags are {tags}."
    return ProblemError("bad-parameter", f"threshold: {what}.", hint=hint)
