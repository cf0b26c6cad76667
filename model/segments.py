"""Cuts audio into the network's unit of work. Apart from `tagger`, so that a decoder needs no PyTorch."""

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Segment = FloatArray
"""Mono samples of one segment."""

TAIL_PARTS: Final = 10
"""What is left behind the last whole segment is looked at if it is longer than a tenth of one (0.5 s)."""


def cut_segments(chunks: Iterable[FloatArray], size: int) -> Iterator[Segment]:
    """Chunks of mono audio of any length -> consecutive segments [size], in constant memory.

    The last segment ends where the audio ends, so that it overlaps the one before; audio shorter than a
    segment is repeated to fill one.
    """
    segment = np.empty(0, np.float32)
    pending: list[FloatArray] = []
    count = 0
    for chunk in chunks:
        pending.append(chunk)
        count += len(chunk)
        if count < size:
            continue
        audio = np.concatenate(pending)
        whole = count - count % size
        for start in range(0, whole, size):
            segment = audio[start : start + size]
            yield segment
        pending, count = [audio[whole:]], count - whole
    tail = np.concatenate([*pending, np.empty(0, np.float32)])
    if not len(segment) and len(tail):
        yield np.resize(tail, size)
    elif len(tail) > size // TAIL_PARTS:
        yield np.concatenate([segment, tail])[-size:]
