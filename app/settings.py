"""Every knob of the service, read from the environment (`TAGGER_<NAME>`), with the consequence of turning it.

One megabyte (MB) is 1,000,000 bytes. A *segment* is the unit of work on the device: one hop (5 s) of audio.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from loky import cpu_count
from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

BYTES_PER_MB = 1_000_000
PREFIX = "TAGGER_"
MAX_DECODERS = 8


def hash_key(key: str) -> str:
    """Return the SHA-256 of an API key as hex: only this form of a key is held in memory."""
    return hashlib.sha256(key.encode()).hexdigest()


def unknown_names(environment: Iterable[str]) -> list[str]:
    """Names like a setting's of which there is none: misspelt ones, most likely."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    return sorted(
        name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known
    )


def _split(value: str | Iterable[str]) -> tuple[str, ...]:
    """`"a, b"` or `["a", "b"]` -> `("a", "b")`."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def _origins(value: str | Iterable[str]) -> tuple[str, ...]:
    origins = _split(value)
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
            raise ValueError(
                f"TAGGER_CORS_ORIGINS: {origin!r} is not what browsers send: https://HOST or https://HOST:PORT,"
                " without a / behind it"
            )
    return origins


def _hash_keys(value: str | Iterable[str]) -> tuple[str, ...]:
    keys = _split(value)
    if value and not keys:  # whoever set it meant to close the service
        raise ValueError("TAGGER_API_KEYS is set but holds no key: give one, or unset it to leave all open")
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise ValueError("TAGGER_API_KEYS holds a key that clients encode differently: use printable ASCII")
    return tuple(hash_key(key) for key in keys)


class Settings(BaseSettings):
    """All settings; an unknown value or a bad combination stops the start with a message that names it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on. 127.0.0.1: this machine only. 0.0.0.0: everyone who can reach it, so set keys."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port. 0 takes any free one (the log names it); below 1024 needs privileges."""
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    """Least level that is logged. debug: probes and scrapes, too. warning: no line a request, so only the
    metrics count them."""

    weights: Path | None = None
    """Folder of the bundle (tagger.json, tagger.safetensors). Empty: the one that is shipped."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Where the network runs. auto takes CUDA, then MPS, then CPU; a named one that is missing stops the
    start."""

    engine: str = Field(default="auto", pattern="^(auto|torch|openvino|openvino-fp32)$")
    """What computes the network. auto takes OpenVINO on a CPU, in bf16 where the CPU has instructions for it
    (scores of 5 s within 0.05 of fp32's), and PyTorch on a GPU. openvino-fp32: within 0.001, slower. torch:
    the reference, slowest on a CPU."""
    threads: int | None = Field(default=None, ge=1, le=256)
    """Threads of the network on a CPU. Empty: one per core (of those that a container may use), at most 8.
    Low: cores idle once decoding is done. High: more memory; decoders and the network share the cores by
    turns either way."""

    max_upload_mb: float = Field(default=128.0, gt=0, le=4096)
    """MB of one request's body. Low: long lossless clips get 413. High: one request may hold that much memory
    (an hour of MP3 at 128 kbit/s is 58 MB, of CD-quality WAV 635 MB)."""
    max_inflight_mb: float = Field(default=512.0, gt=0, le=1_048_576)
    """MB of all bodies held at once; at least `max_upload_mb`. Low: parallel uploads get 429. High: that much
    memory may be taken beside the model."""
    upload_timeout_s: float = Field(default=120.0, gt=0, le=3600)
    """Seconds for a whole body to arrive. Low: honest clients on slow lines get 408. High: slow bodies hold
    memory longer."""
    upload_idle_s: float = Field(default=10.0, gt=0, le=600)
    """Seconds without any byte before a body is given up with 408. Low: a hiccup of the network loses the
    upload. High: stalled clients hold memory longer."""

    min_audio_s: float = Field(default=1.0, ge=0.1, le=10)
    """Shortest clip in seconds. Low: scores from too little sound to judge by. High: jingles get 422."""
    max_audio_s: float = Field(default=7200.0, gt=0, le=86_400)
    """Longest clip in seconds, counted while decoding. Low: DJ sets get 413. High: one small file of silence
    can keep the service busy for that long a song."""

    request_timeout_s: float = Field(default=120.0, gt=0, le=3600)
    """Seconds from a request's headers to its answer when it names none. Low: long songs get 503 or 504 under
    load. High: clients wait long for a late no."""
    max_request_timeout_s: float = Field(default=600.0, gt=0, le=3600)
    """Most seconds that `X-Request-Timeout` may ask for; more is cut to this. At least
    `request_timeout_s`."""

    keep_alive_s: int = Field(default=130, ge=1, le=3600)
    """Seconds for which a connection is kept open between requests. Low: a proxy that keeps its connections
    longer (Caddy: 120 s, others 60) sends requests into ones that close, which its clients see as 502. High:
    idle clients hold connections, of which there are as many as files may be open."""

    decoders: int = Field(default_factory=lambda: min(cpu_count(), MAX_DECODERS), ge=1, le=256)
    """Processes that decode, a clip each at a time; if not set, one per core (of those that a container may
    use), at most 8. Low: the device waits for audio. High: memory, 20 MB each and about 4 MB for each clip
    that one has in hand, and latency spreads as they share the cores with the network."""
    batch_segments: int = Field(default=8, ge=1, le=1024)
    """Most segments of one forward pass. Low: a GPU idles. High: each pass takes longer, more memory is used,
    and short clips wait behind it."""
    batch_wait_ms: float = Field(default=5.0, ge=0, le=1000)
    """Most milliseconds that the first segment waits for company. Low: small batches. High: that much latency
    for a lone clip; it buys nothing on a CPU."""
    concurrent_batches: int = Field(default=1, ge=1, le=256)
    """Forward passes at once. 1 keeps one device busy. More are for a tagger that is several machines (see
    deploy/ray): too few leave machines idle; too many make small batches."""
    clip_segments: int = Field(default=16, ge=1, le=4096)
    """Most segments of one clip decoded ahead of the device (0.3 MB each). Low: the device waits for this
    clip's decoder. High: more memory a clip, and fewer clips fit the queue."""
    batch_clips: int = Field(default=32, ge=1, le=1024)
    """Most clips of one `POST /v1/tags/batch`; each counts as one clip for the queue. Low: clients send more
    requests. High: one request may take the whole queue. More than the queue can hold is cut to that."""
    queue_segments: int = Field(default=1024, ge=1, le=1_000_000)
    """Most segments admitted at once; a new clip counts `clip_segments` until it proves shorter. Low: 429
    though the deadline could be kept. High: admitted clips wait longer, up to their deadline."""

    max_listeners: int = Field(default=64, ge=0, le=10_000)
    """Streams (`/v1/stream`) that are open at once; 0 turns them off. Low: listeners are told to come back
    later. High: each takes a thread and some MB, and in real time a segment's work every 5 s, before which
    uploads wait."""
    stream_idle_s: float = Field(default=15.0, gt=0, le=3600)
    """Seconds without any message, or without the client taking an answer, before a stream is closed. Low:
    a hiccup of the network, or a pause of the player, ends it. High: stalled clients keep a place longer."""

    max_wait_s: float = Field(default=60.0, gt=0, le=3600)
    """Age in seconds of the oldest waiting work from which `/health/ready` is 503. Low: a burst takes the
    instance out of rotation. High: a stuck one stays in it."""
    max_worker_deaths: int = Field(default=3, ge=1, le=100)
    """Deaths of the worker within five minutes after which the process exits, to be replaced. Low: one bad
    moment costs a restart. High: a broken device goes on failing requests."""
    grace_s: float = Field(default=30.0, ge=0, le=3600)
    """Seconds after SIGTERM in which admitted work may finish. Low: clips are cut off with 503. High: a stop
    takes longer; keep it under the orchestrator's own limit."""
    drain_delay_s: float = Field(default=0.5, ge=0, le=300)
    """Least seconds after SIGTERM in which `/health/ready` still answers (503). Low: a load balancer may go
    on sending to a closed port. High: each stop takes at least that long."""

    api_keys: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_hash_keys)] = Field(
        default=(), repr=False
    )
    """Keys, separated by commas, of which a request must bear one (`Authorization: Bearer KEY`); hashed at
    once. Empty: the service is open to whoever reaches it, and the log warns of that unless it listens on
    this machine only. Set, but without a key in it: no start. Health, documentation and the page are always
    open."""
    api_keys_file: Path | None = None
    """A file with such keys, one a line or separated by commas, beside those of `TAGGER_API_KEYS`; read at
    the start. Whoever can read this process's environment does not see them."""
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)] = ()
    """Origins, separated by commas, whose web pages may call the service. Empty: none (CORS is off). `*`:
    any."""

    @model_validator(mode="before")
    @classmethod
    def _read_keys(cls, given: dict[str, Any]) -> dict[str, Any]:
        if not (path := given.get("api_keys_file")):
            return given
        try:
            keys = _split(Path(path).read_text(encoding="utf-8").replace("\n", ","))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"TAGGER_API_KEYS_FILE: cannot be read: {error}") from error
        if not keys:  # whoever named it meant to close the service
            raise ValueError(f"TAGGER_API_KEYS_FILE: {path} holds no key: write one a line")
        return {**given, "api_keys": (*_split(given.get("api_keys") or ()), *keys)}

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        for small, large in (
            ("max_upload_mb", "max_inflight_mb"),
            ("min_audio_s", "max_audio_s"),
            ("request_timeout_s", "max_request_timeout_s"),
            ("clip_segments", "queue_segments"),
            ("batch_segments", "queue_segments"),
        ):
            if getattr(self, small) > getattr(self, large):
                raise ValueError(
                    f"{small} must not exceed {large}: lower TAGGER_{small.upper()} or raise the other"
                )
        return self

    @property
    def max_upload_bytes(self) -> int:
        """Bytes of one request's body."""
        return int(self.max_upload_mb * BYTES_PER_MB)

    @property
    def max_inflight_bytes(self) -> int:
        """Bytes of all bodies held at once."""
        return int(self.max_inflight_mb * BYTES_PER_MB)

    @property
    def max_batch_clips(self) -> int:
        """Clips of one batch: as set, but never more than an empty queue admits."""
        return min(self.batch_clips, self.queue_segments // self.clip_segments)
