"""Manifests: what a row means, and what is said of one that cannot be used."""

from pathlib import Path

import pytest

from model.training.corpus import ManifestError, read_manifest

HEADER = "id,file,source,split,train_ok,house,ambient,house_evidence\n"


def manifest(folder: Path, text: str) -> Path:
    path = folder / "my.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_follow_the_tags_asked_for_and_nothing_is_unknown(tmp_path: Path) -> None:
    path = manifest(tmp_path, HEADER + "a,clips/a.mp3,album one,val,0,1,,metadata\n")

    (clip,) = read_manifest(path, ("ambient", "house"))

    assert clip.labels == (None, 1.0)
    assert clip.evidence == ("", "metadata")
    assert clip.path == tmp_path / "clips/a.mp3"
    assert (clip.source, clip.split, clip.train_ok) == ("album one", "val", False)


def test_optional_columns_have_defaults(tmp_path: Path) -> None:
    path = manifest(tmp_path, "id,file,house\na,a.wav,0.5\n")

    (clip,) = read_manifest(path, ("house",))

    assert (clip.source, clip.split, clip.train_ok, clip.labels) == ("a", "train", True, (0.5,))


@pytest.mark.parametrize(
    ("text", "allowed"), [("1", True), ("1.0", True), ("", True), ("0", False), ("0.0", False)]
)
def test_train_ok_is_read_as_tables_write_it(tmp_path: Path, text: str, allowed: bool) -> None:
    path = manifest(tmp_path, f"id,file,house,train_ok\na,a.wav,1,{text}\n")

    (clip,) = read_manifest(path, ("house",))

    assert clip.train_ok is allowed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column id, file"),
        ("id,file\na,b\n", "no column house"),
        (HEADER, "no rows"),
        (HEADER + "a,a.mp3,s,train,1,yes,,\n", r":2: house is 'yes'"),
        (HEADER + "a,a.mp3,s,train,1,2,,\n", r":2: house is '2'"),
        (HEADER + "a,a.mp3,s,train,1,1,,\n,b.mp3,s,train,1,1,,\n", r":3: id is empty"),
        (HEADER + "a,a.mp3,s,train,1,1,,\na,b.mp3,s,train,1,1,,\n", r":3: the id 'a' stands twice"),
        (HEADER + '"a\nb",a.mp3,s,train,1,1,,\nc,b.mp3,s,train,1,2,,\n', r":4: house is '2'"),
        (HEADER + '"a\nb",a.mp3,s,train,1,1,,\n"a\nb",b.mp3,s,train,1,1,,\n', r":5: the id"),
        (HEADER + "a,a.mp3,s,train,1,1,,\n\n\nb,b.mp3,s,train,1,2,,\n", r":5: house is '2'"),
        (HEADER + "a,a.mp3,s,train,true,1,,\n", r":2: train_ok is 'true'"),
        (HEADER + "a,a.mp3,s,Train,1,1,,\n", r":2: split is 'Train'; write train"),
        (HEADER + "a,a.mp3,one, two,train,1,1,,metadata\n", r":2: has more fields than the header"),
        (HEADER + "a,a\0.mp3,s,train,1,1,,\n", r":2: .*NUL"),
        ("id,file,house,house\na,a.mp3,1,0\n", "column house stands twice"),
        (HEADER + "a,a.mp3,s,train,1,1,," + "x" * 200_000 + "\n", r":2: is no CSV"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_where_and_why(tmp_path: Path, text: str, message: str) -> None:
    path = manifest(tmp_path, text)

    with pytest.raises(ManifestError, match=message):
        read_manifest(path, ("house", "ambient") if "ambient" in text else ("house",))


def test_empty_fields_behind_the_last_column_are_passed_over(tmp_path: Path) -> None:
    path = manifest(tmp_path, "id,file,house\na,a.wav,1,,\n")

    assert [clip.id for clip in read_manifest(path, ("house",))] == ["a"]


def test_a_source_is_the_same_with_a_blank_behind_it_and_in_either_form_of_unicode(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        "id,file,source,split,house\na,a.wav,Beyonc\u00e9 ,train ,1\nb,b.wav,Beyonce\u0301,train,1\n",
    )

    one, other = read_manifest(path, ("house",))

    assert one.source == other.source
    assert one.split == other.split == "train"


def test_a_manifest_that_excel_saved_is_read_and_one_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("id,file,house\nä,a.wav,1\n", encoding="utf-8-sig")

    assert [clip.id for clip in read_manifest(path, ("house",))] == ["ä"]

    path.write_text("id,file,house\nä,a.wav,1\n", encoding="latin-1")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(path, ("house",))


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv: cannot be read"):
        read_manifest(tmp_path / "none.csv", ("house",))
