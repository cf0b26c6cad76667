"""Band filters in other shapes: the same answers, whatever the filters and the length."""

import pytest
import torch

from model.bundle import load_bundle
from model.frontend import LogMel
from model.network import BandFilters, NetworkConfig, TaggerNetwork
from model.unfolding import LongFilters, TallFilters, unfold_filters, unfold_mel_scale


def random_filters(bands: int, frames: int, channels: int, stride: int) -> BandFilters:
    """With a batch norm that has learned something, and turns some channels upside down."""
    torch.manual_seed(bands + frames)
    filters = BandFilters(bands, frames, channels, stride).eval().requires_grad_(False)
    filters.norm.weight.copy_(torch.randn(channels))
    filters.norm.bias.copy_(torch.randn(channels))
    assert filters.norm.running_mean is not None
    assert filters.norm.running_var is not None
    filters.norm.running_mean.copy_(torch.randn(channels))
    filters.norm.running_var.copy_(torch.rand(channels) + 0.5)
    return filters


@pytest.mark.parametrize("frames", [313, 97, 32, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("bands", "width", "kind"),
    [
        (38, 7, TallFilters),
        (67, 7, TallFilters),
        (96, 4, TallFilters),
        (1, 128, LongFilters),
        (1, 32, LongFilters),
        (1, 5, LongFilters),
    ],
)
def test_filters_answer_the_same_in_their_other_shape(
    bands: int, width: int, kind: type[TallFilters] | type[LongFilters], stride: int, frames: int
) -> None:
    filters = random_filters(bands, width, 5, stride)
    mel = torch.randn(2, 1, 96, frames)

    torch.testing.assert_close(kind(filters)(mel), filters(mel), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("samples", [80_000, 400, 16_001])
def test_a_log_mel_is_the_same_with_its_mel_scale_in_parts(samples: int) -> None:
    log_mel = LogMel(levelled=True)
    loud_and_quiet = torch.tensor([[0.5], [1e-4]]) * torch.randn(2, samples)

    torch.testing.assert_close(unfold_mel_scale(log_mel)(loud_and_quiet), log_mel(loud_and_quiet))


@pytest.mark.parametrize(
    "network",
    [load_bundle()[1], TaggerNetwork(("a",), NetworkConfig(musical=False)).eval()],
    ids=["shipped", "texture only"],
)
def test_a_network_answers_the_same_and_is_left_as_it_was(network: TaggerNetwork) -> None:
    mel = network.log_mel(0.1 * torch.randn(2, 80_000, generator=torch.Generator().manual_seed(0)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learnt = [name for name, parameter in network.named_parameters() if parameter.requires_grad]

    with torch.no_grad():
        expected = network.embed_mel(mel)
        found = unfold_filters(network).embed_mel(mel)

    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [name for name, p in network.named_parameters() if p.requires_grad] == learnt != []
