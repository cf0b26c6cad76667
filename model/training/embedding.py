"""Embeddings of segments from cached log-mels, for all that hears a trunk that does not change any more."""

from collections.abc import Callable
from typing import Final

import torch

from model.engine import TorchEngine, choose_engine
from model.frontend import level
from model.network import TaggerNetwork
from model.segments import FloatArray
from model.training.material import Mel

Embed = Callable[[Mel], FloatArray]
WORTH_COMPILING: Final = 60
"""Clips from which on the service's engine is made ready, which takes some 0.4 s and spares 7 ms a clip."""


def embedder(network: TaggerNetwork, device: torch.device, clips: int, *, again: bool = False) -> Embed:
    """What computes the trunk as the service does, with the fastest engine of the device, or PyTorch for few.

    On two cores of a CPU, six segments took 12 ms so, and 19 in PyTorch's autocast, in which it learned.

    Args:
        network: on `device`, in evaluation mode, and its trunk stays as it is meanwhile.
        device: where it is.
        clips: how many will be heard.
        again: whether this is done for one network after the other: an engine stays for the life of the
            process, so then PyTorch does it.

    Returns:
        A function from log-mels of segments as they are cached [B, 96, T] to embeddings [B, E].
    """
    many = clips >= WORTH_COMPILING and not again
    engine = choose_engine(network, device) if many else TorchEngine(network, device)

    def embed(mels: Mel) -> FloatArray:
        return engine.embed_mels(level(torch.from_numpy(mels).float()).numpy())

    return embed
