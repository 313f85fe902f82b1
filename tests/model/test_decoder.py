"""The decoder's queries: from the mask token, or from encoded tokens, and no token that is never used."""

import pytest
import torch

from parametrium.config import ModelConfig
from parametrium.model.decoder import Decoder
from parametrium.model.presets import architecture

SHAPE = architecture(ModelConfig(patch=4, width=24, depth=1, heads=2, decoder_width=24, decoder_depth=1))
SPACING = (3.0, 3.0, 3.0)


def arguments() -> tuple[torch.Tensor, ...]:
    """Context [2, 5, C], modality [2], context_mm [2, 5, 3], positions_mm [2, 3, 3]."""
    generator = torch.Generator().manual_seed(0)
    context, seen, wanted = (torch.rand(2, n, c, generator=generator) for n, c in ((5, 24), (5, 3), (3, 3)))
    return context, torch.tensor([0, 1]), 40 * seen, 40 * wanted


@pytest.mark.parametrize("given", [True, False])
def test_every_tensor_of_a_decoder_is_trained(given: bool) -> None:
    decoder = Decoder(("CT", "PET"), SHAPE, SPACING, mask_token=not given)
    starts = torch.rand(2, 3, 24) if given else None
    predicted = decoder(*arguments(), starts)
    assert predicted.shape == (2, 3, 4**3)
    predicted.square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []
    assert ("mask_token" in dict(decoder.named_parameters())) is not given


def test_a_decoder_without_mask_token_needs_starts() -> None:
    decoder = Decoder(("CT", "PET"), SHAPE, SPACING, mask_token=False)
    with pytest.raises(ValueError, match="needs starts"):
        decoder(*arguments())
