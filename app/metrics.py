"""What the service tells Prometheus; each application has its own registry."""

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

PREFIX: Final = "music_tagger"
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
_SEGMENTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_AUDIO_SECONDS: Final = (1, 5, 10, 30, 60, 120, 240, 480, 900, 1800, 3600, 7200)


class Metrics:
    """All metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            f"{PREFIX}_requests",
            "Requests that ended; outcome is ok, the problem's slug, disconnected, or cancelled.",
            ("operation", "outcome"),
            registry=self.registry,
        )
        self.batch_clips = Counter(
            f"{PREFIX}_batch_clips",
            "Clips of batches that were answered; outcome is ok or the problem's slug.",
            ("outcome",),
            registry=self.registry,
        )
        self.present = Counter(
            f"{PREFIX}_tags_present", "Clips in which a tag was present.", ("tag",), registry=self.registry
        )
        self.upload = self._seconds("upload", "From a request's headers to the end of its body.")
        self.decode = self._seconds("decode", "A decoder's time on one clip.")
        self.queue = self._seconds(
            "queue", "A clip's wait for a decoder, and its longest wait for the device."
        )
        self.inference = self._seconds("inference", "One forward pass.")
        self.total = self._seconds(
            "total", "From a request's headers to the end of its answer.", ("operation",)
        )
        self.batch = self._histogram("batch_segments", "Segments in one forward pass.", _SEGMENTS)
        self.audio = self._histogram(
            "audio_seconds", "Seconds of audio listened to in one clip.", _AUDIO_SECONDS
        )
        self.queue_depth = self._gauge("queue_segments", "Segments that wait for the device.")
        self.admitted = self._gauge(
            "admitted_segments", "Room that admitted clips take, of TAGGER_QUEUE_SEGMENTS."
        )
        self.queue_age = self._gauge("queue_oldest_seconds", "Age of the oldest work that is not done.")
        self.inflight_bytes = self._gauge("inflight_bytes", "Bytes of bodies that are held.")
        self.decoder_deaths = Counter(
            f"{PREFIX}_decoder_deaths", "Decoders that died and were replaced.", registry=self.registry
        )
        self.decoder_memory = self._gauge(
            "decoder_memory_bytes", "Memory of the decoders' processes, beside process_resident_memory_bytes."
        )
        self.workers = self._gauge("workers_alive", "Workers that live; 0 means that nothing is served.")
        self.listeners = self._gauge("streams_open", "Streams that are listened to.")
        self.windows = Counter(
            f"{PREFIX}_stream_windows", "Windows told to streams as they went.", registry=self.registry
        )
        self.stream_latency = self._seconds(
            "stream_latency", "From the arrival of a window's last sample to its scores."
        )
        self.ready = self._gauge("ready", "Whether /health/ready answers 200.")

    def seen_batch(self, segments: int, seconds: float) -> None:
        """Count one forward pass."""
        self.batch.observe(segments)
        self.inference.observe(seconds)

    def exposition(self) -> bytes:
        """Write everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _seconds(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(
            f"{PREFIX}_{name}_seconds", meaning, labels, buckets=_SECONDS, registry=self.registry
        )

    def _histogram(self, name: str, meaning: str, buckets: tuple[int, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", meaning, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", meaning, registry=self.registry)
