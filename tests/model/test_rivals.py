"""The tagger beside public taggers: who is compared, on which words, and that a probe never cheats."""

import re
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.metrics import roc_auc
from model.evaluation.report import Evaluation
from model.evaluation.rivals import (
    Rivals,
    best_words,
    macro_average_precision,
    probe_scores,
    read_rivals,
    rivals_section,
    standings,
)
from model.training.corpus import Clip, ManifestError

WORDS = ("mtt/pop", "mtt/loud", "jamendo/genre---pop", "jamendo/genre---poprock")


def clip(number: int, label: float | None, evidence: str = "metadata", source: str = "") -> Clip:
    return Clip(str(number), Path("none"), "val", True, source or f"s{number % 6}", (label,), (evidence,))


@pytest.fixture
def evaluation() -> Evaluation:
    """Sixty clips of six sources: half are pop, and scored so but for noise."""
    labels = [float(number % 7 < 3) for number in range(60)]
    scores = np.clip(0.3 + 0.4 * np.array(labels) + np.random.default_rng(0).normal(0, 0.2, 60), 0, 1)
    clips = tuple(clip(number, label) for number, label in enumerate(labels))
    return Evaluation("ours 1.0", ("pop",), (0.5,), clips, scores[:, None])


@pytest.fixture
def rivals(evaluation: Evaluation) -> Rivals:
    """`mtt/pop` is pop, `mtt/loud` is nothing; either of Jamendo's two words is half of it."""
    labels, rng = evaluation.labels[:, 0], np.random.default_rng(1)
    halves = [labels * (np.arange(60) % 2 == parity) for parity in (0, 1)]
    columns = [0.1 + 0.8 * labels, rng.random(60), *(0.1 + 0.8 * half for half in halves)]
    return Rivals(WORDS, {item.id: row for row, item in enumerate(evaluation.clips)}, np.stack(columns, 1))


def write(path: Path, **changes: object) -> Path:
    arrays = {"ids": np.array(["0", "1"]), "tags": np.array(["a/x"]), "scores": np.array([[0.1], [0.9]])}
    kept = {name: value for name, value in (arrays | changes).items() if value is not None}
    np.savez(path, allow_pickle=False, **kept)  # type: ignore[arg-type]
    return path


def test_best_word_of_each_tagger_by_either_metric() -> None:
    labels = np.array([1.0, 1, 0, 0, 0, 0, np.nan])
    # Ranked first and last: average precision (1/1 + 2/6) / 2 = .67, area 4/8.
    # Ranked second and third: average precision (1/2 + 2/3) / 2 = .58, area 6/8.
    ends, middle, wrong = [6.0, 1, 5, 4, 3, 2, 0], [5.0, 4, 6, 3, 2, 1, 9], [1.0, 2, 3, 4, 5, 6, 9]

    chosen = best_words(["a/x", "a/y", "a/z", "b/x"], np.array([wrong, ends, middle, wrong]).T / 10, labels)

    assert chosen == [2, 1, 3]


def test_probe_finds_what_holds_across_sources() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200).astype(float)
    scores = np.stack([0.3 + 0.4 * labels + rng.uniform(-0.2, 0.2, 200), rng.random(200)], axis=1)

    found = probe_scores(scores, labels, np.array([f"s{number % 8}" for number in range(200)]))

    assert roc_auc(labels, found) > 0.95


def test_probe_never_met_the_source_that_it_scores() -> None:
    # Every source has a word of its own and one label: whoever met the source knows the label.
    source = np.repeat(np.arange(10), 8)
    scores, labels = np.where(source[:, None] == np.arange(10), 0.99, 0.01), (source % 2).astype(float)

    found = probe_scores(scores, labels, source.astype(str))

    assert roc_auc(labels, found) <= 0.5


def test_probe_learns_from_known_labels_and_scores_every_clip() -> None:
    labels = np.array([1.0, 0, np.nan, np.nan] * 5)
    scores = np.array([[0.9], [0.1], [0.9], [0.1]] * 5)

    found = probe_scores(scores, labels, np.array([f"s{number // 4}" for number in range(20)]))

    assert (found[2::4] > found[3::4]).all()


def test_probe_has_no_opinion_where_the_other_sources_know_one_class() -> None:
    found = probe_scores(np.array([[0.9], [0.1]]), np.array([1.0, 0.0]), np.array(["x", "y"]))

    assert found.tolist() == [0.5, 0.5]


def test_contestants_stand_on_the_same_labels(evaluation: Evaluation, rivals: Rivals) -> None:
    rows = standings(evaluation, rivals, None, np.ones((60, 1), bool))

    assert [(row.who, row.what) for row in rows] == [
        ("ours", "ours 1.0"),
        ("best of mtt", "pop"),
        ("best of jamendo", "genre---pop"),
        ("jamendo", "pop + poprock"),
        ("mtt", "pop"),
    ]
    areas = {(row.who, row.what): row.roc_auc.value for row in rows}
    assert areas["mtt", "pop"] == areas["jamendo", "pop + poprock"] == 1
    assert areas["best of jamendo", "genre---pop"] < 1
    assert all(row.roc_auc.low <= row.roc_auc.value <= row.roc_auc.high for row in rows)


def test_a_tag_of_one_class_has_no_standing(evaluation: Evaluation, rivals: Rivals) -> None:
    assert standings(evaluation, rivals, None, evaluation.labels == 1) == []


def test_mean_precision_begins_with_the_clips_as_they_are() -> None:
    labels = np.array([[1.0, np.nan], [0, 1], [1, 0], [0, np.nan]])
    scores = np.array([[0.9, 0.5], [0.8, 0.9], [0.7, 0.1], [0.3, 0.5]])

    draws = macro_average_precision(labels, scores, np.array(["a", "a", "b", "b"]), resamples=50)

    # Of the first tag (1/1 + 2/3) / 2, of the second 1.
    assert draws[0] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert draws.shape == (51,)


def test_section_tells_the_mean_beside_the_probe(evaluation: Evaluation, rivals: Rivals) -> None:
    text = "\n".join(rivals_section(evaluation, rivals, evaluation.clips, resamples=100))

    found = re.search(r"ours (\S+), the linear probe (\S+), difference (\S+) \[(\S+), (\S+)\]", text)
    assert found
    ours, probe, difference, low, high = map(float, found.groups())
    assert difference == pytest.approx(ours - probe, abs=2e-3)
    assert low <= difference <= high
    assert text.count("| linear probe | all 4 words |") == 2


def test_where_all_labels_are_of_one_source_the_mean_has_no_interval(
    evaluation: Evaluation, rivals: Rivals
) -> None:
    alike = tuple(clip(number, item.labels[0], source="x") for number, item in enumerate(evaluation.clips))
    alone = Evaluation("ours", ("pop",), (0.5,), alike[:30], evaluation.scores[:30])

    text = "\n".join(rivals_section(alone, rivals, (*alike[:30], *evaluation.clips[30:]), resamples=100))

    assert re.search(r"difference -?\d\.\d{3}\.", text)


def test_labels_of_the_public_taggers_count_among_all_labels_only(
    evaluation: Evaluation, rivals: Rivals
) -> None:
    given = tuple(clip(number, item.labels[0], "taggers") for number, item in enumerate(evaluation.clips))
    circular = Evaluation("ours", ("pop",), (0.5,), given, evaluation.scores)

    headings = [line for line in rivals_section(circular, rivals, given, resamples=0) if line[:3] == "###"]

    assert headings == ["### All labels"]


def test_clips_of_one_source_get_no_probe(evaluation: Evaluation, rivals: Rivals) -> None:
    alike = tuple(clip(number, item.labels[0], source="x") for number, item in enumerate(evaluation.clips))

    text = "\n".join(
        rivals_section(
            Evaluation("ours", ("pop",), (0.5,), alike, evaluation.scores), rivals, alike, resamples=0
        )
    )

    assert "No linear probe" in text
    assert "| linear probe |" not in text


def test_a_rival_file_is_read_in_any_order(tmp_path: Path) -> None:
    rivals = read_rivals(write(tmp_path / "soft.npz"), [clip(1, 1.0), clip(0, 0.0)])

    assert rivals.of([clip(1, 1.0), clip(0, 0.0)]).tolist() == [[0.9], [0.1]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ids": np.array(["0", "7"])}, r"no scores of 1 clips \(1\)"),
        ({"scores": None}, "not an npz with the arrays"),
        ({"scores": np.array([[0.1], [1.5]])}, r"in \[0, 1\]"),
        ({"scores": np.array([0.1, 0.5])}, r"must be \[2 ids, 1 tags\]"),
        ({"scores": np.array([["a"], ["b"]])}, "not an npz with the arrays"),
        ({"ids": np.array("0")}, "not an npz with the arrays"),
    ],
)
def test_a_rival_file_that_does_not_fit_says_why(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    path = write(tmp_path / "soft.npz", **changes)

    with pytest.raises(ManifestError, match=told):
        read_rivals(path, [clip(0, 1.0), clip(1, 0.0)])


@pytest.mark.parametrize("content", [b"", b"id,vocal\n", b"\x93NUMPY", b"PK\x03\x04 cut off"])
def test_what_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "soft.npz").write_bytes(content)

    with pytest.raises(ManifestError, match="not an npz"):
        read_rivals(tmp_path / "soft.npz", [])


def test_a_missing_rival_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nowhere\.npz: cannot be read"):
        read_rivals(tmp_path / "nowhere.npz", [])
