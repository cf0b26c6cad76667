"""Files of a music library: which there are, whether one changed, which are new, and how one is replaced."""

import errno
import fcntl
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Final, NamedTuple

COMPANIONS: Final = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".png",
        ".gif",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".svg",
        ".pdf",
        ".txt",
        ".md",
        ".nfo",
        ".log",
        ".cue",
        ".m3u",
        ".m3u8",
        ".pls",
        ".xspf",
        ".lrc",
        ".xml",
        ".json",
        ".jsonl",
        ".csv",
        ".parquet",
        ".html",
        ".url",
        ".ini",
        ".db",
        ".sfv",
        ".md5",
        ".ffp",
        ".accurip",
        ".zip",
        ".rar",
        ".7z",
        ".part",
        ".tmp",
        ".crdownload",
    ]
)
"""Endings that lie beside music and are none; in a folder they are passed over. Every other file is music or
not by its content."""

FOLDER_ICON: Final = "Icon\r"
"""What macOS puts into a folder that was given an icon of its own."""

SETTLED_S: Final = 2.0
"""A new file is whole when it has stayed as it is for so long: a copy or a download takes its time."""
TICK_MS: Final = 500


class Stamp(NamedTuple):
    """By what a file is known to be unchanged."""

    size_bytes: int
    mtime_s: float


def stamp_of(path: Path) -> Stamp:
    """Raises OSError if there is no such file."""
    found = path.stat()
    return Stamp(found.st_size, found.st_mtime)


def unreadable_stamp_of(path: Path) -> Stamp:
    """Of a file that cannot be read: another one when somebody changes who may. Raises OSError."""
    return Stamp(-1, path.stat().st_ctime)


def key_of(path: str | Path) -> str:
    """The same for one file, however its path is typed."""
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links, which are files of their own


def files_below(path: Path, leave_out: Container[str] = ()) -> list[Path]:
    """List what may be music below a folder in a stable order, without hidden files and those to leave out.

    What cannot be read or looked at stands for itself, to be told of.

    Args:
        path: the folder.
        leave_out: files by `key_of`.
    """
    found: list[Path] = []

    def note(error: OSError) -> None:
        found.append(Path(error.filename))

    for folder, folders, names in os.walk(path, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        found += [file for file in files if _may_be_music(file) and key_of(file) not in leave_out]
    return found


def _may_be_music(path: Path) -> bool:
    return not is_companion(path) and _may_be_file(path)


def is_companion(path: Path) -> bool:
    """Whether a file lies beside music, by its name: a picture, a text, a playlist."""
    return path.suffix.lower() in COMPANIONS or path.name == FOLDER_ICON


def _may_be_file(path: Path) -> bool:
    """Also a path that nobody may look at: a folder may let us read its names and no more."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:  # gone, or a link that leads nowhere
        return False
    except OSError:
        return True


def is_folder(path: Path) -> bool:
    """Path.is_dir raises where we may not look."""
    return os.path.isdir(path)  # noqa: PTH112


def walk(paths: Iterable[Path], leave_out: Container[str] = (), *, may_be_empty: bool = False) -> list[Path]:
    """The files of all folders; a file stands for itself.

    A folder without any does so, too, to be told of, unless it `may_be_empty`.
    """
    found: dict[str, Path] = {}
    for path in paths:
        below = files_below(path, leave_out) if is_folder(path) else [path]
        for file in below or ([] if may_be_empty else [path]):
            found.setdefault(key_of(file), file)
    return list(found.values())


def arrivals(
    folders: Sequence[Path], seen: Mapping[str, Stamp], leave_out: Container[str] = ()
) -> Iterator[list[Path]]:
    """Wait for files that are not in `seen` as they are now; yields them as soon as they are whole.

    It yields no files where a folder has gone or is back: what lies in it may be had no more, or again.
    Whoever takes them notes them in `seen`. An event only tells that something changed; what it was, the
    folders tell: systems differ in how they name it.
    """
    waiting: dict[Path, tuple[Stamp, float]] = {}
    identities = [_identity(folder) for folder in folders]
    for has_changed in _ticks(folders):
        if not (has_changed or waiting):
            continue
        new: dict[Path, tuple[Stamp, float]] = {}
        for path in walk(folders, leave_out, may_be_empty=True):
            with suppress(OSError):  # gone again
                stamp = stamp_of(path)
                if seen.get(key_of(path)) not in (stamp, unreadable_stamp_of(path)):
                    known, since_s = waiting.get(path, (stamp, time.monotonic()))
                    new[path] = (stamp, since_s if known == stamp else time.monotonic())
        settled = time.monotonic() - SETTLED_S
        whole = [path for path, (_, since_s) in new.items() if since_s <= settled]
        waiting = {path: state for path, state in new.items() if state[1] > settled}
        former, identities = identities, [_identity(folder) for folder in folders]
        if whole or identities != former:
            yield whole


def _ticks(folders: Sequence[Path]) -> Iterator[bool]:
    """Tell every `TICK_MS` whether something may have changed in the folders.

    A folder that is taken away takes its watch along, so one that comes back is watched anew. Where the
    system watches no more folders, they are looked at instead.
    """
    from watchfiles import watch

    looks = False
    while True:
        watched = {folder: identity for folder in folders if (identity := _identity(folder))}
        if not watched:
            yield True
            time.sleep(TICK_MS / 1000)
            continue
        has_begun = False
        try:
            for changes in watch(
                *watched,
                watch_filter=None,
                rust_timeout=TICK_MS,
                yield_on_timeout=True,
                force_polling=looks or None,  # else what the system or its user says
                ignore_permission_denied=True,
            ):
                if any(_identity(folder) != watched.get(folder) for folder in folders):
                    break
                yield bool(changes) or not has_begun  # what came before the watch began has no event
                has_begun = True
        except FileNotFoundError:
            pass  # gone since
        except OSError:
            if looks:
                raise
            looks = True


def _identity(folder: Path) -> tuple[int, int] | None:
    """Of the folder that is there now under this name; None if there is none."""
    with suppress(OSError):
        found = folder.stat()
        return found.st_dev, found.st_ino
    return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path`, which takes its place at the end, if all went well.

    It takes over mode, owner and extended attributes, as far as the system lets us; its time is new.
    """
    target = path.resolve()  # a link stays a link
    # Its name is known before it is there: a signal in between would leave it behind.
    scratch = target.with_name(f".{token_hex(8)}{target.suffix}")
    try:
        scratch.touch(0o600, exist_ok=False)
        with suppress(FileNotFoundError):
            shutil.copystat(target, scratch)  # before it is written to, which sets its time anew
        yield scratch
        with scratch.open("ab") as file:
            sync(file.fileno())  # else, after a power cut, the name may stand for an empty file
        with suppress(FileNotFoundError):
            _copy_owner(target, scratch)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that at every moment either the former one is there or the new one."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # a device or a pipe is written to, not replaced
        return
    with replacing(path) as scratch:
        if not path.exists():
            scratch.chmod(0o666 & ~_umask())  # a temporary file is its owner's alone
        scratch.write_bytes(data)


def unwritable(path: Path, *, is_replaced: bool) -> str:
    """Why a file could not be written now, in the system's words; empty if it could.

    `is_replaced`: another file takes its place, for which its folder must be writable.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        places = {target.parent: os.W_OK | os.X_OK}
    except OSError as error:
        return error.strerror or str(error)
    else:
        if stat.S_ISDIR(mode):
            return os.strerror(errno.EISDIR)
        places = {target: os.W_OK}  # of one that is replaced, too: somebody may have locked it
        if is_replaced and stat.S_ISREG(mode):
            places[target.parent] = os.W_OK | os.X_OK
    is_open = all(os.access(place, access) for place, access in places.items())
    return "" if is_open else os.strerror(errno.EACCES)


def is_open_for_writing(path: Path) -> bool:
    """Whether a program is writing a file, as far as the system tells: Linux does, of files of ours.

    Raises OSError if it cannot be opened.
    """
    if sys.platform != "linux":
        return False
    with path.open("rb") as file:
        # Whoever opens the file for writing in this moment has us told so, by a signal that nobody minds.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False


def append(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Add to a file, all or nothing: in one system call, unless the system takes less at once.

    `durable`: wait until it is on the disk.

    Raises:
        OSError: there is no room for all of it, or the file cannot be written.
    """
    with path.open("ab", buffering=0) as file:
        before, rest = os.fstat(file.fileno()).st_size, memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            if durable:
                sync(file.fileno())
        except OSError:
            with suppress(OSError):  # a device cannot be cut
                file.truncate(before)
            raise


def sync(file: int) -> None:
    """Wait until what was written is on the disk; devices and pipes have none.

    Raises:
        OSError: it did not get there.
    """
    if stat.S_ISREG(os.fstat(file).st_mode):
        os.fsync(file)


def _copy_owner(path: Path, other: Path) -> None:
    """As far as we may: to give a file away takes root, to give it to a group of ours does not."""
    found = path.stat()
    for owner, group in ((-1, found.st_gid), (found.st_uid, -1)):
        with suppress(OSError):
            os.chown(other, owner, group)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
