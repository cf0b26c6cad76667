"""Build the container image, run it as production should, and tell what was seen (`make image-check`).

It takes Docker where its engine answers, else podman and buildah. CI does not run it: it is a build of
minutes and GB. With podman on a machine that nests containers, run it as root. Only Python itself is needed.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from app import __version__
from scripts.lock import LOCKS, pins

ROOT: Final = Path(__file__).parents[1]
CLIP: Final = ROOT / "tests" / "clips" / "sung_pop.opus"
BASE: Final = "localhost/music-tagger-python:3.11"
DEBIAN: Final = "bookworm"
LABELS: Final = ("title", "description", "licenses", "version", "revision", "base.name")
HARDENED: Final = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
READY_S: Final = 180.0
ANSWER_S: Final = 120.0
CUDA_GB: Final = 7.0
CPU_GB: Final = 1.6


class CheckError(AssertionError):
    """The image is not as it should be. The message says in what."""


@dataclass(frozen=True)
class Engine:
    """What builds and runs: Docker, or podman with buildah."""

    name: str

    @property
    def nested(self) -> bool:
        """Whether there is no daemon, so that this may itself run in a container."""
        return self.name == "podman"

    @property
    def build(self) -> list[str]:
        """The start of the command that builds. Without Docker's format, HEALTHCHECK would be lost."""
        if not self.nested:
            return [self.name, "build"]
        return ["buildah", "bud", "--isolation", "chroot", "--network", "host", "--format", "docker"]

    def network(self, port: int) -> list[str]:
        """Options that bring the service to a port of this machine's loopback interface."""
        if not self.nested:
            return ["--publish", f"127.0.0.1:{port}:8000"]
        listen = ["--env", "TAGGER_HOST=127.0.0.1", "--env", f"TAGGER_PORT={port}"]
        return ["--network", "host", "--cgroups=disabled", "--read-only-tmpfs=false", *limits(), *listen]

    def __call__(self, *arguments: str) -> str:
        """Carry out a command; returns what it prints."""
        return run([self.name, *arguments])


def main() -> None:
    """Build, look inside, run, stop."""
    options = _options()
    engine = choose_engine()
    if engine.nested and not options.in_namespace:
        _enter_namespace()
    with tempfile.TemporaryDirectory() as folder:
        secrets = secrets_of_pip(Path(folder))
        if not options.no_build:
            _build(engine, options, secrets)
        image = json.loads(engine("image", "inspect", options.tag))[0]
        check_labels(image, options.cuda)
        check_inside(engine, options, secrets)
    check_running(engine, options.tag)
    print("the image is as it should be")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.image_check", description=__doc__)
    parser.add_argument("--tag", default="music-tagger", help="name of the image")
    parser.add_argument("--cuda", action="store_true", help="the CUDA build of PyTorch, from PyPI")
    parser.add_argument("--no-build", action="store_true", help="check an image that is there")
    parser.add_argument("--base", help="base image; without it, the Dockerfile's, or a stand-in of Debian's")
    parser.add_argument("--in-namespace", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def choose_engine() -> Engine:
    """Docker where its daemon answers, else podman.

    Raises:
        CheckError: there is neither.
    """
    if shutil.which("docker") and subprocess.run(["docker", "version"], capture_output=True).returncode == 0:
        return Engine("docker")
    if missing := [tool for tool in ("podman", "buildah", "unshare") if not shutil.which(tool)]:
        raise CheckError(f"no Docker engine answers, and {', '.join(missing)} is missing: install either")
    return Engine("podman")


def _enter_namespace() -> None:
    """Go on in a mount namespace without the unified cgroup folder, which crun cannot use where it nests."""
    inner = f'umount /sys/fs/cgroup/unified 2>/dev/null; exec {sys.executable} -m scripts.image_check "$@"'
    arguments = ["sh", "-c", inner, "sh", *sys.argv[1:], "--in-namespace"]
    os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *arguments])  # noqa: S606


def limits() -> list[str]:
    """Podman's own defaults may be above what a nested machine may set."""
    return ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1024"]


def run(command: Sequence[str]) -> str:
    """Standard output of a command that must succeed; its errors go where ours go."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def secrets_of_pip(folder: Path) -> dict[str, Path]:
    """What pip needs on this machine to reach an index, for the build only: `pip.conf` and a CA bundle."""
    bundle = next((os.environ[name] for name in ("PIP_CERT", "SSL_CERT_FILE") if os.environ.get(name)), None)
    index = os.environ.get("PIP_INDEX_URL")
    if bundle is None and index is None:
        return {}
    lines = ["[global]", "default-timeout = 180"]
    lines += ["cert = /run/secrets/pip_ca"] * (bundle is not None) + [f"index-url = {index}"] * (
        index is not None
    )
    config = folder / "pip.conf"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"pip_config": config, **({"pip_ca": Path(bundle)} if bundle else {})}


def _build(engine: Engine, options: argparse.Namespace, secrets: dict[str, Path]) -> None:
    base = options.base or (_stand_in() if engine.nested and not _can_pull(engine) else None)
    revision = run(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    arguments = [f"VERSION={__version__}", f"REVISION={revision}"]
    arguments += ["TORCH_INDEX_URL="] * options.cuda + [f"PYTHON_IMAGE={base}"] * bool(base)
    command = [*engine.build, "--tag", options.tag]
    for argument in arguments:
        command += ["--build-arg", argument]
    for name, path in secrets.items():
        command += ["--secret", f"id={name},src={path}"]
    start = time.monotonic()
    subprocess.run([*command, str(ROOT)], check=True)
    print(f"built in {time.monotonic() - start:.0f} s" + (f" on {base}" if base else ""))


def _can_pull(engine: Engine) -> bool:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    base = next(line.partition("=")[2] for line in text.splitlines() if line.startswith("ARG PYTHON_IMAGE="))
    return subprocess.run([engine.name, "pull", "--quiet", base], capture_output=True).returncode == 0


def _stand_in() -> str:
    """A base image made of Debian's packages, where the official one cannot be pulled."""
    if subprocess.run(["podman", "image", "exists", BASE]).returncode == 0:
        return BASE
    with tempfile.TemporaryDirectory() as folder:
        rootfs = Path(folder, "rootfs")
        packages = "ca-certificates,python3,python3-venv,python3-pip"
        debootstrap = ["debootstrap", "--variant=minbase", f"--include={packages}", DEBIAN, str(rootfs)]
        subprocess.run(debootstrap, check=True, stdout=sys.stderr)
        (rootfs / "usr/bin/python").symlink_to("python3")
        for pattern in ("usr/lib/python3*/EXTERNALLY-MANAGED", "var/cache/apt/archives/*.deb"):
            for path in rootfs.glob(pattern):
                path.unlink()
        shutil.rmtree(rootfs / "var/lib/apt/lists")
        packed = subprocess.Popen(["tar", "-C", str(rootfs), "-cf", "-", "."], stdout=subprocess.PIPE)
        subprocess.run(["podman", "import", "-", BASE], stdin=packed.stdout, check=True)
        require(packed.wait() == 0, "the stand-in base image could not be packed")
    return BASE


def require(holds: bool, failure: str) -> None:
    """Raise CheckError, which says what failed, unless it holds."""
    if not holds:
        raise CheckError(failure)


def check_labels(image: dict[str, Any], cuda: bool) -> None:
    """OCI labels, user, signal, health check and size are told by the image's own description."""
    config = image["Config"]
    labels = {name: config["Labels"].get(f"org.opencontainers.image.{name}") for name in LABELS}
    require(all(labels.values()), f"labels are missing: {labels}")
    require(labels["version"] == __version__, f"the label says version {labels['version']}")
    require(len(labels["revision"]) == 40, f"the label says revision {labels['revision']}")
    require(config["User"] == "10001", f"the user is {config['User']!r}")
    require(config["StopSignal"] in ("SIGTERM", "15"), f"the stop signal is {config['StopSignal']!r}")
    require("Healthcheck" in {*config, *image}, "there is no HEALTHCHECK")
    size_gb = image["Size"] / 1e9
    most_gb = CUDA_GB if cuda else CPU_GB
    require(size_gb <= most_gb, f"the image has {size_gb:.2f} GB, more than {most_gb} GB")
    print("labels: " + ", ".join(f"{name}={value}" for name, value in labels.items()))
    print(f"size: {size_gb:.2f} GB, unpacked")


def check_inside(engine: Engine, options: argparse.Namespace, secrets: dict[str, Path]) -> None:
    """No compiler, cache or secret is inside, and just the packages that are locked."""
    handed_over = {sha256(path.read_bytes()).hexdigest(): path.stat().st_size for path in secrets.values()}
    program = (ROOT / "scripts" / "image_inside.py").read_text(encoding="utf-8")
    nested = ["--cgroups=disabled", *limits()] if engine.nested else []
    found = json.loads(engine(
        "run", "--rm", "--network", "none", *nested, "--user", "0", "--entrypoint", "/opt/venv/bin/python",
        options.tag, "-c", program, json.dumps(handed_over),
    ))  # fmt: skip
    for what in ("compilers", "caches", "secrets", "writable"):
        require(not found[what], f"{what} are in the image: {found[what]}")
    history = engine("history", "--no-trunc", options.tag)
    addresses = {
        name: value for name, value in os.environ.items() if name.startswith("PIP_") and "//" in value
    }
    leaked = [name for name, value in addresses.items() if value in history]
    require(not leaked, f"the image's history tells {leaked}")
    check_packages(found["packages"], options.cuda)
    print(f"no compiler, cache or secret; {len(found['packages'])} packages, just as locked")
    for part, size in sorted(found["bytes"].items(), key=lambda item: -item[1])[:14]:
        print(f"  {size / 1e6:7.0f} MB  {part}")


def check_packages(installed: dict[str, str], cuda: bool) -> None:
    """The image's packages are those of the locks, so that builds repeat."""
    names = ("requirements.lock", "torch-cuda.lock" if cuda else "torch-cpu.lock")
    locked = pins((LOCKS / name).read_text(encoding="utf-8") for name in names)
    expected = {**locked, "music-tagger": __version__}
    require(installed == expected, f"not as locked: {sorted(installed.items() ^ expected.items())}")


def check_running(engine: Engine, tag: str) -> None:
    """It runs without rights, answers, says that it is healthy, and ends what it began when it is stopped."""
    with container(engine, tag) as (name, url):
        check_rights(engine, name)
        check_healthy(engine, name)
        status, answer = post(url, CLIP.read_bytes())
        require(status == 200, f"a clip was answered with {status}: {answer}")
        print("scores: " + ", ".join(f"{item['tag']} {item['score']:.3f}" for item in answer["tags"]))
        check_stop(engine, name, url)


@contextmanager
def container(engine: Engine, tag: str) -> Iterator[tuple[str, str]]:
    """A container that is ready, and where its service listens."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    start = time.monotonic()
    name = engine("run", "--detach", *HARDENED, *engine.network(port), tag)
    try:
        wait_until(lambda: get_status(f"{url}/health/ready") == 200, READY_S, "the service did not get ready")
        print(f"ready after {time.monotonic() - start:.1f} s")
        yield name, url
    except BaseException:
        print(subprocess.run([engine.name, "logs", name], capture_output=True, text=True), file=sys.stderr)
        raise
    finally:
        engine("rm", "--force", name)


def check_rights(engine: Engine, name: str) -> None:
    """Its process is not root, has no capability, and can write nowhere."""
    status = engine("exec", name, "cat", "/proc/1/status")
    told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    require(told["Uid"].split() == ["10001"] * 4, f"its user is {told['Uid']}")
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        require(int(told[kind], 16) == 0, f"it has capabilities: {kind} {told[kind]}")
    require(told["NoNewPrivs"] == "1", "it may gain rights")
    for folder in ("/", "/tmp", "/opt/venv", "/var/tmp"):  # noqa: S108 - whether they can be written is the question
        tried = [engine.name, "exec", "--user", "0", name, "touch", f"{folder}/written"]
        require(subprocess.run(tried, capture_output=True).returncode != 0, f"{folder} can be written")
    print("user 10001, no capability, no new privileges, nothing writable, not even by root")


def check_healthy(engine: Engine, name: str) -> None:
    """HEALTHCHECK says that it is healthy. Podman's timer needs systemd, so it is asked by hand."""
    if engine.nested:
        engine("healthcheck", "run", name)
    else:
        state = "{{.State.Health.Status}}"
        wait_until(
            lambda: engine("inspect", "--format", state, name) == "healthy", 90, "HEALTHCHECK does not pass"
        )
    print("HEALTHCHECK: healthy")


def check_stop(engine: Engine, name: str, url: str) -> None:
    """After SIGTERM what was admitted is answered in full, what is new is not, and the exit code is 0."""
    answers: list[tuple[int, Any]] = []
    clip = long_clip(minutes=10)
    asking = threading.Thread(target=lambda: answers.append(post(url, clip)))
    asking.start()
    wait_until(
        lambda: metric(url, "music_tagger_inflight_bytes") >= len(clip), 30, "the request was not admitted"
    )
    engine("kill", "--signal", "TERM", name)
    start = time.monotonic()
    wait_until(lambda: get_status(f"{url}/health/ready") == 503, 5, "it does not say that it drains")
    require(not answers, "the request was over before the stop: its clip is too short")
    refused, _ = post(url, CLIP.read_bytes())
    require(refused == 503, f"a new request was answered with {refused} while it drains")
    code = engine("wait", name)
    asking.join(ANSWER_S)
    require(answers != [] and answers[0][0] == 200, f"the admitted request was answered with {answers}")
    require(code == "0", f"the exit code is {code}")
    heard_s, took_s = answers[0][1]["audio"]["analysed_s"], time.monotonic() - start
    print(f"SIGTERM: {heard_s:.0f} s of admitted audio tagged, new work 503, exit 0 after {took_s:.1f} s")


def long_clip(minutes: int) -> bytes:
    """A WAV that takes a while: a square wave that swells every second, mono, 16 kHz."""
    second = b"".join(
        (sample // 20 % 2 * sample).to_bytes(2, "little", signed=True) for sample in range(16_000)
    )
    buffer = BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(second * 60 * minutes)
    return buffer.getvalue()


def post(url: str, clip: bytes) -> tuple[int, Any]:
    """Status and JSON of the answer to a clip."""
    request = urllib.request.Request(f"{url}/v1/tags", clip, {"Content-Type": "application/octet-stream"})
    try:
        with _opener().open(request, timeout=ANSWER_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def get_status(url: str) -> int:
    """Status of a GET; 0 if nobody answers."""
    try:
        with _opener().open(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def metric(url: str, name: str) -> float:
    """The value of a metric without labels."""
    with _opener().open(f"{url}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], most_s: float, failure: str) -> None:
    """Ask ten times a second until it holds; CheckError after `most_s` seconds."""
    until_s = time.monotonic() + most_s
    while not condition():
        require(time.monotonic() < until_s, failure)
        time.sleep(0.1)


if __name__ == "__main__":
    try:
        main()
    except (CheckError, subprocess.CalledProcessError) as error:
        sys.exit(f"image-check: {error}")
