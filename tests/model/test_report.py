"""The report's own parts: predictions made elsewhere, and each generator apart."""

from pathlib import Path

import numpy as np
import pytest

from model.bundle import Bundle, load_bundle
from model.evaluation.plots import largest_sources
from model.evaluation.report import Evaluation, labels_met, markdown_table, read_predictions, write_report
from model.training.corpus import Clip, ManifestError

HEADER = "id,fold,vocal,dance,soundtrack,pop"


def clip(name: str, source: str = "s", label: float | None = None) -> Clip:
    return Clip(name, Path("none"), "val", True, source, (label,), ("",))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle()[0]


def write(folder: Path, *lines: str) -> Path:
    path = folder / "predictions.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_predictions_follow_the_clips_whatever_the_order_of_the_rows(tmp_path: Path, bundle: Bundle) -> None:
    path = write(tmp_path, HEADER, "b,1,0.5,0.6,0.7,0.8", "other,0,0,0,0,0", "a,0,0.1,0.2,0.3,1")

    evaluation = read_predictions(path, [clip("a"), clip("b")], bundle)

    assert evaluation.scores.tolist() == [[0.1, 0.2, 0.3, 1.0], [0.5, 0.6, 0.7, 0.8]]
    assert evaluation.tags == bundle.tags
    assert evaluation.thresholds == tuple(bundle.thresholds[tag] for tag in bundle.tags)
    assert evaluation.title == "predictions.csv"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["id,vocal,dance,soundtrack", "a,0,0,0"], "no column pop"),
        (["name,vocal,dance,soundtrack,pop", "a,0,0,0,0"], "no column id"),
        ([HEADER, "b,0,0,0,0,0"], "no row for any of 1 clips"),
        ([HEADER, "a,0,0,0,0,0", "a,1,0,0,0,0"], r"predictions\.csv:3: the id 'a' stands twice"),
        ([HEADER, "a,0,0,0,0,1.5"], r"predictions\.csv:2: pop is '1.5'"),
        ([HEADER, "a,0,0,0,0,"], "pop is ''"),
        ([HEADER, "a,0,0,0"], "soundtrack is None"),
        ([HEADER, "a,0,nan,0,0,0"], "vocal is 'nan'"),
    ],
)
def test_predictions_that_do_not_fit_say_why(
    tmp_path: Path, bundle: Bundle, lines: list[str], told: str
) -> None:
    path = write(tmp_path, *lines)

    with pytest.raises(ManifestError, match=told):
        read_predictions(path, [clip("a")], bundle)


def test_clips_without_a_prediction_are_told_and_the_others_measured(tmp_path: Path, bundle: Bundle) -> None:
    path = write(tmp_path, HEADER, "a,0,0.1,0.2,0.3,1")

    evaluation = read_predictions(path, [clip("b"), clip("a")], bundle)

    assert [each.id for each in evaluation.clips] == ["a"]
    assert [(each.id, why) for each, why in evaluation.failures] == [
        ("b", "predictions.csv has no row for it")
    ]


def test_a_name_breaks_no_table() -> None:
    lines = markdown_table(("clip",), [("a|b\n<b>c",)])

    assert lines[-1] == "| a\\|b &lt;b>c |"


def test_predictions_that_excel_saved_are_read(tmp_path: Path, bundle: Bundle) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(f"{HEADER}\na,0,0.1,0.2,0.3,1\n", encoding="utf-8-sig")

    assert read_predictions(path, [clip("a")], bundle).scores.tolist() == [[0.1, 0.2, 0.3, 1.0]]


def test_missing_predictions_are_named(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(ManifestError, match=r"nowhere\.csv: cannot be read"):
        read_predictions(tmp_path / "nowhere.csv", [], bundle)


def test_each_generator_has_a_row(tmp_path: Path) -> None:
    # Of the first generator both classes are known and ranked right, of the second one class only.
    clips = (clip("a", "one", 1.0), clip("b", "one", 0.0), clip("c", "two", 1.0), clip("d", "human", 0.0))
    scores = np.array([[0.9], [0.2], [0.1], [0.8]])
    evaluation = Evaluation("ours", ("vocal",), (0.5,), clips, scores)

    report = write_report(evaluation, tmp_path, ["two", "one"], ["", "## More"]).read_text()

    assert "| one | 2 | 1.000 / 1.000 (1 / 1) |\n| two | 1 | n/a (1 / 0) |" in report
    assert report.index("### each generator") < report.index("## More") < report.index("## By source")


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path: Path) -> None:
    clips = (clip("a", "Joey Bada$$", 1.0), clip("b", "$x^$", 0.0))
    evaluation = Evaluation("ours", ("$a$$",), (0.5,), clips, np.array([[0.9], [0.2]]))

    report = write_report(evaluation, tmp_path).read_text()

    assert "Joey Bada$$" in report
    assert (tmp_path / "sources.png").exists()


def test_of_many_sources_the_largest_are_drawn_and_the_report_says_so(tmp_path: Path) -> None:
    clips = tuple(clip(str(number), f"s{number:03}", 1.0) for number in range(100))
    large = tuple(clip(f"more-{number}", "s099", 1.0) for number in range(3))
    scores = np.full((103, 1), 0.9)
    evaluation = Evaluation("ours", ("vocal",), (0.5,), clips + large, scores)

    report = write_report(evaluation, tmp_path).read_text()

    assert largest_sources(labels_met(evaluation))[:3] == ["s099", "s000", "s001"]
    assert "Of 100 sources, the 60 largest are drawn." in report
    height = int.from_bytes((tmp_path / "sources.png").read_bytes()[20:24], "big")  # of the PNG's header
    assert height < 1700


def test_a_score_at_its_threshold_is_a_yes_and_generated_clips_are_told_apart(tmp_path: Path) -> None:
    clips = tuple(
        Clip(str(i), Path(), "val", True, source, (label,), ("",))
        for i, (source, label) in enumerate([("band", 1.0), ("band", 0.0), ("robot", 1.0)])
    )
    evaluation = Evaluation("x", ("vocal",), (0.5,), clips, np.array([[0.5], [0.4], [0.9]]))

    report = write_report(evaluation, tmp_path, ["robot"]).read_text()

    assert {name: found.tolist() for name, found in labels_met(evaluation).items()} == {
        "band": [[2, 2]],
        "robot": [[1, 1]],
    }
    human, generated = report.split("### human")[1].split("### generated")
    assert "| vocal | 1 / 1 |" in human
    assert "| vocal | 1 / 0 |" in generated
