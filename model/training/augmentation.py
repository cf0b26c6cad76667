"""Augmentation towards what people upload: on mono audio [T] at 16 kHz, from a seeded generator."""

import io
import math
from collections.abc import Callable
from functools import cache
from typing import Final, cast

import av
import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio import AudioError, read_audio
from model.frontend import N_MELS, SAMPLE_RATE_HZ, LogMel

Samples = NDArray[np.float32]
Generator = np.random.Generator

CODECS: Final = (
    ("mp3", "libmp3lame", (32, 48, 64, 96, 128)),
    ("ogg", "libopus", (16, 24, 48, 96)),
    ("adts", "aac", (32, 64, 96)),
)
"""(container, encoder, bit rates in kbit/s for mono)."""


def gain(samples: Samples, rng: Generator) -> Samples:
    """-24 to +6 dB; what then leaves [-1, 1] is clipped, as a careless recording is."""
    louder: Samples = np.clip(samples * np.float32(10 ** (rng.uniform(-24.0, 6.0) / 20)), -1.0, 1.0)
    return louder


def equaliser(hertz: NDArray[np.float64], rng: Generator) -> NDArray[np.float64]:
    """Decibels at [N] frequencies: a smooth curve, at times with the edges of a small speaker."""
    octaves = np.log2(np.maximum(hertz, 31.25) / 31.25)
    decibels = np.interp(octaves, np.arange(9), rng.normal(0.0, 4.0, 9).clip(-12.0, 12.0))
    if rng.random() < 0.3:
        low, high = rng.uniform(40.0, 400.0), rng.uniform(2500.0, 7500.0)
        decibels -= 24.0 * np.maximum(0.0, np.log2(low / np.maximum(hertz, 1.0)))
        decibels -= 48.0 * np.maximum(0.0, np.log2(np.maximum(hertz, 1.0) / high))
    return decibels


def equalise(samples: Samples, rng: Generator) -> Samples:
    """A random `equaliser`."""
    spectrum = scipy.fft.rfft(samples)
    decibels = equaliser(np.linspace(0.0, SAMPLE_RATE_HZ / 2, len(spectrum)), rng)
    return scipy.fft.irfft(spectrum * 10 ** (decibels / 20), len(samples)).astype(np.float32)


def room(samples: Samples, rng: Generator) -> Samples:
    """Noise that decays within 0.1 to 0.8 s as an impulse response, mixed to the dry signal."""
    length = int(rng.uniform(0.1, 0.8) * SAMPLE_RATE_HZ)
    response = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    response *= rng.uniform(0.1, 0.7) / np.sqrt(np.sum(response**2))
    response[0] += 1.0
    size = scipy.fft.next_fast_len(len(samples) + length, real=True)
    spectrum = scipy.fft.rfft(samples, size) * scipy.fft.rfft(response.astype(np.float32), size)
    return scipy.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32)


def speed(samples: Samples, rng: Generator) -> Samples:
    """Pitch and tempo together by up to 5%, as a turntable does; the end is repeated or cut."""
    factor = rng.uniform(0.95, 1.05)
    positions = np.arange(0.0, len(samples) - 1, factor)
    return np.resize(np.interp(positions, np.arange(len(samples)), samples).astype(np.float32), len(samples))


def noise(samples: Samples, rng: Generator) -> Samples:
    """White to brown noise, 5 to 40 dB under the signal."""
    spectrum = scipy.fft.rfft(rng.standard_normal(len(samples), np.float32))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** rng.uniform(0.0, 1.0)
    hiss = scipy.fft.irfft(spectrum, len(samples))
    level = np.sqrt(np.mean(samples**2)) * 10 ** (-rng.uniform(5.0, 40.0) / 20)
    noisy: Samples = (samples + hiss * level / np.sqrt(np.mean(hiss**2))).astype(np.float32)
    return noisy


def saturate(samples: Samples, rng: Generator) -> Samples:
    """Loudness by force: driven into a soft limiter."""
    drive = rng.uniform(1.0, 6.0) / max(0.05, float(np.abs(samples).max()))
    driven: Samples = np.tanh(samples * np.float32(drive)) * np.float32(rng.uniform(0.3, 1.0))
    return driven


def silence_at_ends(samples: Samples, rng: Generator) -> Samples:
    """Up to 3 s of silence before or after, with a short fade."""
    quiet, fade = int(rng.uniform(0.2, 3.0) * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ // 10
    envelope = np.ones(len(samples), np.float32)
    envelope[:quiet] = 0.0
    envelope[quiet : quiet + fade] = np.linspace(0.0, 1.0, fade)
    return samples * (envelope if rng.random() < 0.5 else envelope[::-1])


def codec(samples: Samples, rng: Generator) -> Samples:
    """A round trip through MP3, Opus or AAC at a low to middle bit rate."""
    container, encoder, rates = CODECS[rng.integers(len(CODECS))]
    try:
        decoded, _ = read_audio(encode(samples, container, encoder, int(rng.choice(rates))), min_s=0.1)
    except AudioError:  # silent
        return samples
    return np.resize(decoded, len(samples))


def encode(samples: Samples, container: str, encoder: str, kbit_s: int) -> bytes:
    """[T] mono float32 at 16 kHz -> the bytes of a file."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=container) as output:
        stream = cast("av.AudioStream", output.add_stream(encoder, rate=SAMPLE_RATE_HZ, layout="mono"))
        stream.bit_rate = kbit_s * 1000
        resampler = av.AudioResampler(stream.format, "mono", SAMPLE_RATE_HZ, stream.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return sink.getvalue()


CHAIN: Final[tuple[tuple[float, Callable[[Samples, Generator], Samples]], ...]] = (
    (0.5, speed),
    (0.25, room),
    (0.4, equalise),
    (0.2, saturate),
    (0.35, noise),
    (0.1, silence_at_ends),
    (0.5, gain),
    (0.4, codec),
)
"""(probability, distortion), in the order of a recording's way."""


def distort(samples: Samples, rng: Generator) -> Samples:
    """A random chain of distortions; [T] -> [T]."""
    for probability, step in CHAIN:
        if rng.random() < probability:
            samples = step(samples, rng)
    return samples


@cache
def mel_centres_hz() -> NDArray[np.float64]:
    """Where the mel bands lie, [96]: the centroids of their filters."""
    filters = LogMel().mel.mel_scale.fb.numpy().astype(np.float64)
    centres: NDArray[np.float64] = (
        np.linspace(0.0, SAMPLE_RATE_HZ / 2, len(filters)) @ filters / filters.sum(0)
    )
    return centres


def band_curve(rng: Generator) -> NDArray[np.float32]:
    """Decibels by mel band [96]: a gain of -24 to +6 dB, and every other time an equaliser."""
    curve = np.full(N_MELS, rng.uniform(-24.0, 6.0) if rng.random() < 0.7 else 0.0)
    if rng.random() < 0.5:
        curve += equaliser(mel_centres_hz(), rng)
    return curve.astype(np.float32)


def blend(mel: Tensor, under: Tensor, below_db: Tensor, curve_db: Tensor) -> Tensor:
    """Lay windows under others, so far below them in power, and equalise: on log-mels, as if on audio.

    Powers add up where two sounds are not correlated. The log-mel is that of `LogMel`.

    Args:
        mel: [B, S, 96, T].
        under: [B, S, 96, T]; silence changes nothing.
        below_db: mean power of `under` below that of `mel`, [B].
        curve_db: gain by band, [B, 96].
    """
    power, other = (torch.expm1(math.log(10) * part) for part in (mel, under))
    ratio = power.mean((1, 2, 3)) / other.mean((1, 2, 3)).clamp_min(1e-6) * 10 ** (-below_db / 10)
    mixed = power + other * ratio[:, None, None, None]
    return torch.log1p(mixed * (10 ** (curve_db / 10))[:, None, :, None]) / math.log(10)


def mask_bands_and_frames(mel: Tensor, rng: Generator) -> Tensor:
    """SpecAugment (Park et al. 2019) on [B, 96, T]: a stripe of up to 16 bands, one of up to 40 frames."""
    bands, frames = torch.arange(mel.shape[1])[None], torch.arange(mel.shape[2])[None]
    first, last = _stripe(rng, len(mel), mel.shape[1], 16)
    start, stop = _stripe(rng, len(mel), mel.shape[2], 40)
    band_mask = (bands >= first) & (bands < last)
    frame_mask = (frames >= start) & (frames < stop)
    mask = band_mask[:, :, None] | frame_mask[:, None, :]
    return mel.masked_fill(mask.to(mel.device), 0.0)


def _stripe(rng: Generator, batch: int, size: int, longest: int) -> tuple[Tensor, Tensor]:
    width = rng.integers(0, longest + 1, (batch, 1))
    start = rng.integers(0, size - longest, (batch, 1))
    return torch.from_numpy(start), torch.from_numpy(start + width)
