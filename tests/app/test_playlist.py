"""Expressions that choose files, and the playlist that is written of them."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.output import Heard
from app.playlist import ExpressionError, parse_condition, write_playlist
from model.tags import TAGS


def song(path: str = "a.mp3", **scores: float) -> Heard:
    whole = dict.fromkeys(TAGS, 0.0) | scores
    return Heard(path, whole, tuple(tag for tag, score in whole.items() if score >= 0.5), 2.6)


SONG = song(vocal=0.9, dance=0.7, pop=0.3)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("vocal", True),
        ("pop", False),
        ("vocal, dance", True),
        ("vocal,dance,pop", False),
        ("not pop and (soundtrack or dance)", True),
        ("dance > 0.7", False),
        ("dance>=.7 and not soundtrack", True),
        ("0.2 < pop <= 0.3", True),
        ("vocal > dance", True),
        ("vocal == 1 or pop != 0", True),
        ("'vocal' > 0.5", True),
        ("  not\n  vocal ", False),
        (f"vocal < {10**400}", True),
    ],
)
def test_what_an_expression_means(text: str, chosen: bool) -> None:
    assert parse_condition(text, TAGS)(SONG) is chosen


def test_a_tag_that_is_no_word_stands_in_quotes() -> None:
    heard = Heard("a", {"hip hop": 0.8}, ("hip hop",), 1.0)

    assert parse_condition("'hip hop' and 'hip hop' > 0.7", ["hip hop"])(heard)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dance and rock", "no tag 'rock'; there are vocal, dance, soundtrack, pop\n"),
        ("dance and rock", "\n  dance and rock\n            ^"),
        ("dance = 0.7", "not understood here; try: dance > 0.7 and not vocal\n  dance = 0.7\n  "),
        ("dance >", "not understood here"),
        ("", "not understood here"),
        ("()", "neither a tag nor a comparison"),
        ("0.7", "neither a tag nor a comparison"),
        ("dance in vocal", "no comparison 'in'; there are < <= > >= == !="),
        ("dance > True", "only tags and numbers can be compared"),
        ("'唱' and dance.real", "no tag '唱'"),
        ("dance > 0.7and pop", "not understood here"),
        ("__import__('os').system('true')", "neither a tag nor a comparison"),
        ("(lambda: vocal)()", "neither a tag nor a comparison"),
        ("vocal if pop else dance", "neither a tag nor a comparison"),
        ("(" * 400 + "vocal" + ")" * 400, "not understood here"),
        ("vocal or " * 200 + "pop", "longer than 1000 characters"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_shown(text: str, told: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(told)):
        parse_condition(text, TAGS)


def test_many_words_are_no_accident_of_the_parser() -> None:
    assert parse_condition("not " * 240 + "vocal", TAGS)(SONG)


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=60) | st.text("vocaldnep ()<>=!.,0129'", max_size=40))
def test_any_text_is_a_condition_or_an_error_that_says_so(text: str) -> None:
    try:
        condition = parse_condition(text, TAGS)
    except ExpressionError:
        return
    assert condition(SONG) in (True, False)


COMPARISONS = st.tuples(st.sampled_from(TAGS), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
                        st.floats(0, 1).map(lambda number: round(number, 3)))  # fmt: skip
EXPRESSIONS = st.recursive(
    st.sampled_from(TAGS) | COMPARISONS.map(lambda parts: " ".join(map(str, parts))),
    lambda inner: (
        inner.map(lambda text: f"not ({text})")
        | st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda p: f"({p[0]}) {p[1]} ({p[2]})")
    ),
    max_leaves=6,
)
SONGS = st.fixed_dictionaries(dict.fromkeys(TAGS, st.floats(0, 1))).map(
    lambda scores: song("a.mp3", **scores)
)


@settings(deadline=None)  # a busy machine is no failure
@given(EXPRESSIONS, SONGS)
def test_expressions_mean_what_python_means_by_them(text: str, heard: Heard) -> None:
    class Score(float):
        """A score that is true where its tag is present."""

        def __bool__(self) -> bool:
            return self >= 0.5

    meant = bool(eval(text, {}, {tag: Score(score) for tag, score in heard.scores.items()}))  # noqa: S307

    assert parse_condition(text, TAGS)(heard) is meant


@settings(deadline=None)  # a busy machine is no failure
@given(EXPRESSIONS, EXPRESSIONS, SONGS)
def test_a_comma_is_an_and_and_not_turns_it_round(one: str, other: str, heard: Heard) -> None:
    both = parse_condition(f"({one}), ({other})", TAGS)(heard)

    assert both is parse_condition(f"({one}) and ({other})", TAGS)(heard)
    assert both is not parse_condition(f"not (({one}) and ({other}))", TAGS)(heard)


def test_a_playlist_in_a_linked_folder_names_its_neighbours_without_the_way_round(tmp_path: Path) -> None:
    real, linked, elsewhere = tmp_path / "disk" / "real", tmp_path / "home" / "Music", tmp_path / "other"
    for folder in (real, linked.parent, elsewhere):
        folder.mkdir(parents=True)
    linked.symlink_to(real)
    for song_path in (real / "a.mp3", elsewhere / "b.mp3"):
        song_path.write_bytes(b"")

    write_playlist(linked / "fav.m3u8", [song(str(linked / "a.mp3")), song(str(elsewhere / "b.mp3"))])

    names = (real / "fav.m3u8").read_text(encoding="utf-8").splitlines()[2::2]
    assert names == ["a.mp3", "../../other/b.mp3"]
    assert all((linked / name).exists() for name in names)


def test_a_playlist_names_files_from_where_it_lies(tmp_path: Path) -> None:
    names = ["music/a.mp3", "#b.flac", "lists/歌.opus", "lists/ c.mp3", "two\nlines.mp3"]

    (tmp_path / "lists").mkdir()
    left_out = write_playlist(tmp_path / "lists" / "fav.m3u8", [song(str(tmp_path / name)) for name in names])

    assert left_out == [str(tmp_path / "two\nlines.mp3")]
    assert (tmp_path / "lists" / "fav.m3u8").read_text(encoding="utf-8").splitlines() == [
        "#EXTM3U",
        "#EXTINF:3,a",
        "../music/a.mp3",
        "#EXTINF:3,#b",
        "../#b.flac",
        "#EXTINF:3,歌",
        "歌.opus",
        "#EXTINF:3, c",
        "./ c.mp3",
    ]
