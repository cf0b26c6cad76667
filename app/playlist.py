"""Playlists by expression: `dance > 0.7 and not vocal` decides which files stand in an M3U.

A tag's name means that it is present; compared with a number, it is its score. `and`, `or`, `not` and
parentheses combine; `vocal, dance` means all of these. A name that is no word stands in quotes: 'hip hop'.
Python's parser reads the expression, but only what is listed here is understood, and nothing is run.
"""

import ast
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from app.files import write_whole
from app.output import Heard

Condition = Callable[[Heard], bool]
Number = Callable[[Heard], float]

LONGEST: Final = 1000
"""Characters of an expression: far more than one types, and few enough for the parser's recursion."""

COMPARISONS: Final[dict[type[ast.cmpop], Callable[[float, float], bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
EXAMPLE: Final = "dance > 0.7 and not vocal"


class ExpressionError(ValueError):
    """An expression that is not understood; the message shows where."""


def parse_condition(text: str, tags: Sequence[str]) -> Condition:
    """Read an expression over `tags`.

    Raises:
        ExpressionError: it is not understood, or names a tag that there is not.
    """
    text = " ".join(text.split())
    if len(text) > LONGEST:
        raise ExpressionError(f"the expression is longer than {LONGEST} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # `0.7and` is a warning in Python and a slip here
            tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise _error(text, (error.offset or 1) - 1, f"not understood here; try: {EXAMPLE}") from error
    except (ValueError, RecursionError, MemoryError, Warning) as error:
        raise ExpressionError(f"{text!r} is not understood; try: {EXAMPLE}") from error
    try:
        return _Reader(text, tags).condition(tree.body)
    except RecursionError as error:
        raise ExpressionError(f"the expression is nested too deeply; try: {EXAMPLE}") from error


class _Reader:
    """Turns nodes of Python's syntax into conditions, one kind of node after the other."""

    def __init__(self, text: str, tags: Sequence[str]) -> None:
        self._text, self._tags = text, tags

    def condition(self, node: ast.expr) -> Condition:
        if isinstance(node, ast.BoolOp):
            return _all_or_any([self.condition(value) for value in node.values], isinstance(node.op, ast.And))
        if isinstance(node, ast.Tuple) and node.elts:
            return _all_or_any([self.condition(element) for element in node.elts], every=True)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            negated = self.condition(node.operand)
            return lambda heard: not negated(heard)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if (tag := self._tag(node)) is not None:
            return lambda heard: tag in heard.present
        raise self._error(node, "this is neither a tag nor a comparison")

    def _comparison(self, node: ast.Compare) -> Condition:
        if unknown := [op for op in node.ops if type(op) not in COMPARISONS]:
            names = {ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not"}
            raise self._error(node, f"no comparison {names[type(unknown[0])]!r}; there are < <= > >= == !=")
        numbers = [self._number(operand) for operand in (node.left, *node.comparators)]
        compare = [COMPARISONS[type(op)] for op in node.ops]
        return lambda heard: all(
            op(left(heard), right(heard))
            for op, left, right in zip(compare, numbers[:-1], numbers[1:], strict=True)
        )

    def _number(self, node: ast.expr) -> Number:
        known = node.value if isinstance(node, ast.Constant) else None
        if isinstance(known, int | float) and not isinstance(known, bool):
            value = float(min(known, 2))  # a score is at most 1; an integer may be too large for a float
            return lambda _: value
        if (tag := self._tag(node)) is not None:
            return lambda heard: heard.scores[tag]
        raise self._error(node, "only tags and numbers can be compared")

    def _tag(self, node: ast.expr) -> str | None:
        """The tag that is named here, if this is a name."""
        if isinstance(node, ast.Name):
            name = node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
        else:
            return None
        if name not in self._tags:
            raise self._error(node, f"no tag {name!r}; there are {', '.join(self._tags)}")
        return name

    def _error(self, node: ast.expr, message: str) -> ExpressionError:
        column = len(self._text.encode()[: node.col_offset].decode(errors="ignore"))  # it counts bytes
        return _error(self._text, column, message)


def _error(text: str, column: int, message: str) -> ExpressionError:
    return ExpressionError(f"{message}\n  {text}\n  {' ' * min(column, len(text))}^")


def _all_or_any(conditions: Sequence[Condition], every: bool) -> Condition:
    combine = all if every else any
    return lambda heard: combine(condition(heard) for condition in conditions)


def write_playlist(path: Path, songs: Iterable[Heard]) -> list[str]:
    """Write an extended M3U in UTF-8, paths relative to its folder; returns those that no M3U can hold."""
    lines, left_out = ["#EXTM3U"], []
    folder = (path.resolve() if path.is_symlink() else path.absolute()).parent
    for song in songs:
        if any(mark in song.path for mark in "\r\n"):
            left_out.append(song.path)
            continue
        relative = _relative(song.path, folder)
        title = Path(song.path).stem
        lines += [
            f"#EXTINF:{round(song.duration_s)},{title}",
            f"./{relative}" if relative.startswith(("#", " ")) else relative,
        ]
    write_whole(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    return left_out


def _relative(song: str, folder: Path) -> str:
    """The song as it is named, from a folder; from where the folder really lies, if links lead astray."""
    relative = os.path.relpath(song, folder)
    if not (folder / relative).exists():
        relative = os.path.relpath(os.path.realpath(song), folder.resolve())
    return Path(relative).as_posix()
