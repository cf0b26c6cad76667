"""Tags a whole collection on Ray Data: a manifest or a folder in, Parquet out, as often as it takes.

    python -m deploy.ray.bulk manifest.csv tags --workers 2
    python -m deploy.ray.bulk s3://bucket/music s3://bucket/tags --address auto --workers 64

Every part is one Parquet file, named after the files in it and written whole or not at all; so a part that is
computed twice, as its worker died, is there once, and the same command goes on where it was stopped.
"""

import csv
import hashlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import fsspec
import typer
from fsspec.core import url_to_fs
from loky import cpu_count

from app import files
from app.files import Stamp, key_of, write_whole
from app.output import Failed, Origin, ParquetWriter, as_utf8, origin_of
from app.prefetch import Listening, listen, open_local
from deploy.ray.cluster import connect
from model.bundle import SHIPPED, load_bundle
from model.tagger import Tagger, choose_device

PART: Final = "part-{}.parquet"
TRIES: Final = 3
"""Workers that a part may cost before it is left out: one clip that kills them must not stop all others."""
MOST_LEFT_OUT: Final = 10
"""Parts left out after which the run ends: then it is not a clip that is bad."""
TELL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker is to know."""

    out: str
    weights: Path | None
    device: str
    engine: str
    threads: int


class Worker:
    """Tags a block of files at a time and writes them as one part; an actor of Ray Data."""

    def __init__(self, job: Job) -> None:
        self._out = job.out
        self._tagger = Tagger.load(job.weights, job.device, job.engine, job.threads)
        self._how = Listening(self._tagger.bundle.thresholds)
        self._origin = origin_of(self._tagger.bundle.sha256, self._how.start_s, self._how.duration_s)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[int]]:
        """Paths -> how many files were tagged and how many could not be."""
        paths = [os.fsdecode(path) for path in block["path"]]
        write = partial(write_object, f"{self._out}/{part_name(paths)}")
        writer = ParquetWriter(self._tagger.bundle.tags, write, self._origin, windows=False)
        failed = 0
        for outcome in listen(self._tagger, paths, self._how, open_file):
            failed += isinstance(outcome, Failed)
            writer.add(outcome)
        writer.close()
        return {"files": [len(paths)], "failed": [failed]}


def is_local(url: str) -> bool:
    """Whether this is a path of this machine (or of a file system that all machines share)."""
    return "://" not in url


@contextmanager
def open_file(url: str) -> Iterator[tuple[Stamp, Path | BinaryIO]]:
    """Open a path or whatever fsspec knows: s3://, gs://, https:// (see app.prefetch.Opener)."""
    if is_local(url):
        with open_local(url) as opened:
            yield opened
    else:
        fs, path = url_to_fs(url)
        with fs.open(path, "rb") as file:
            yield _stamp_of(fs, path), file


def _stamp_of(fs: fsspec.AbstractFileSystem, path: str) -> Stamp:
    """Size and time; 0 for what a server does not tell."""
    size_bytes = int(fs.info(path)["size"] or 0)
    try:
        return Stamp(size_bytes, fs.modified(path).timestamp())
    except NotImplementedError:  # fsspec asks no web server for times
        return Stamp(size_bytes, 0.0)


def write_object(url: str, data: bytes) -> None:
    """Write a file so that it is there whole or not at all; object stores do so by themselves."""
    if is_local(url):
        write_whole(Path(url), data)
    else:
        fs, path = url_to_fs(url)
        fs.pipe_file(path, data)


def part_name(paths: Sequence[str]) -> str:
    """The same for the same files, so that a part that is written twice is there once."""
    return PART.format(hashlib.sha256("\0".join(map(as_utf8, paths)).encode()).hexdigest()[:16])


def find_files(source: str, column: str) -> list[str]:
    """All files of a manifest's column, relative to the manifest, or of a folder or bucket.

    Raises:
        ValueError: the manifest has no such column.
        OSError: there is no such source.
    """
    if not source.lower().endswith(".csv"):
        return files_below(source)
    with fsspec.open(source, "r", encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(io.StringIO(file.read(), newline=""))
    if column not in (rows.fieldnames or ()):
        raise ValueError(f"{source} has no column {column!r}: name it with --column")
    folder = absolute(source).rpartition("/")[0]
    named = (row[column] for row in rows if row[column])
    joined = (name if "://" in name or name.startswith("/") else f"{folder}/{name}" for name in named)
    return list(dict.fromkeys(map(absolute, joined)))


def absolute(url: str) -> str:
    """The same for all processes, whichever folder they work in."""
    return key_of(url) if is_local(url) else url.rstrip("/")


def files_below(folder: str) -> list[str]:
    """What may be music below a folder or bucket, as app.files judges by the ending; sorted."""
    fs, root = url_to_fs(folder)
    if not fs.isdir(root):
        raise FileNotFoundError(f"{folder} is no folder, and no manifest that ends with .csv")
    if is_local(folder):
        return sorted(absolute(str(path)) for path in files.files_below(Path(folder)))
    names = (str(name) for name in fs.find(root))
    music = (name for name in names if not files.is_companion(Path(name)))
    seen = (name for name in music if "/." not in name.removeprefix(root))
    return sorted(map(fs.unstrip_protocol, seen))


def read_done(out: str, origin: Origin) -> set[str]:
    """Paths, as UTF-8, that the parts hold, bad clips too.

    Rows of files that could not be read (no stamp: a network that failed, say) are taken out of their parts,
    so that those files are tried again and every file still has one row.

    Raises:
        ValueError: a part is of other weights, or none of ours.
    """
    from pyarrow import BufferOutputStream, BufferReader, compute, parquet

    fs, root = url_to_fs(out)
    done: set[str] = set()
    for part in fs.find(root, maxdepth=1):
        if not fnmatch(part.rpartition("/")[2], PART.format("*")):
            continue
        table = parquet.read_table(BufferReader(fs.cat_file(part)))
        if not _origins_of(table) <= {origin}:
            raise ValueError(f"{out} holds scores of other weights: name another folder")
        heard = table.filter(compute.is_valid(table["size_bytes"]))
        if len(heard) < len(table):
            data = BufferOutputStream()
            parquet.write_table(heard, data)
            write_object(f"{out}/{part.rpartition('/')[2]}", data.getvalue().to_pybytes())
        done.update(heard["path"].to_pylist())
    return done


def _origins_of(table: Any) -> set[Origin | None]:  # noqa: ANN401 - of a package that may be missing
    names = [field.name for field in fields(Origin)]
    if not set(names) <= set(table.column_names):
        return {None}
    return {Origin(**row) for row in table.select(names).group_by(names).aggregate([]).to_pylist()}


def tag_all(files: Sequence[str], job: Job, workers: int, part_files: int) -> tuple[int, int]:
    """Tag all files on the cluster that Ray is connected to; how many were done, and failed, of them."""
    import pyarrow
    import ray

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = MOST_LEFT_OUT
    context.enable_progress_bars = False
    column = pyarrow.array([os.fsencode(file) for file in files], pyarrow.binary())
    table = pyarrow.table({"path": column})
    blocks = [table.slice(start, part_files) for start in range(0, len(files), part_files)]
    counts = ray.data.from_arrow(blocks).map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=None,  # a block is a part
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
        num_cpus=job.threads,
        max_restarts=-1,
        max_task_retries=TRIES,
    )
    done = failed = 0
    started = told = time.monotonic()
    for row in counts.iter_rows():
        done, failed = done + row["files"], failed + row["failed"]
        now = time.monotonic()
        if now - told > TELL_S or done == len(files):
            rate = done / (now - started)
            typer.echo(f"{done} of {len(files)} files, {failed} bad, {rate:.1f} files/s", err=True)
            told = now
    return done, failed


def main(
    source: Annotated[str, typer.Argument(help="A manifest (CSV), or a folder or bucket: path or URL.")],
    out: Annotated[str, typer.Argument(help="Folder or bucket for the parts: path or URL.")],
    column: Annotated[str, typer.Option(help="The manifest's column that names the files.")] = "file",
    workers: Annotated[int, typer.Option(min=1, help="Processes that tag.")] = cpu_count(),
    threads: Annotated[int, typer.Option(min=1, help="Threads of the network in each, as many cores.")] = 1,
    part_files: Annotated[int, typer.Option(min=1, help="Files of a part: what a kill may cost.")] = 256,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster; auto finds it.", show_default="this machine alone")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of a bundle, on every node.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    engine: Annotated[str, typer.Option(help="auto, torch, openvino, openvino-fp32.")] = "auto",
) -> None:
    """Tag all files that OUT does not hold yet. A bad clip is a row with its problem in `error`.

    Exit codes: 0 every file has its row, 1 some parts were left out: the same command tries them again,
    2 it cannot be carried out as typed.
    """
    out = absolute(out)
    try:
        if address is None:
            choose_device(device)
        origin = origin_of(load_bundle(weights or SHIPPED)[0].sha256, 0.0, None)
        wanted = find_files(source, column)
        if is_local(out):
            Path(out).mkdir(parents=True, exist_ok=True)
        done = read_done(out, origin)
    except (ValueError, OSError, RuntimeError) as error:
        typer.echo(f"bulk: {error}", err=True)
        raise typer.Exit(2) from error
    left = [file for file in wanted if as_utf8(file) not in done]
    typer.echo(f"{len(wanted)} files, {len(wanted) - len(left)} of them done before", err=True)
    if not left:
        return
    connect(address, workers * threads)
    tagged, _ = tag_all(left, Job(out, weights, device, engine, threads), workers, part_files)
    if tagged < len(left):
        typer.echo(f"{len(left) - tagged} files were left out; the same command tries them again", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    from deploy.ray.bulk import main as run  # workers import it by this name; `__main__` is another there

    typer.run(run)
