"""Numbers of a rollout against loops over patches and voxels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parametrium.monitor.attention import attention_numbers
from parametrium.monitor.rollout import Rollout

PATCH = 2


def found_of(weights: torch.Tensor, extra: float = 0.2) -> Rollout:
    """A rollout whose patches get these weights, and the extra tokens the given share."""
    patches = weights.double() / weights.double().sum(1, keepdim=True) * (1 - extra)
    return Rollout(patches, torch.full((len(weights),), 0.75 * extra), torch.full((len(weights),), 0.25 * extra))


def random_crops(seed: int, extent: tuple[int, int, int] = (6, 4, 8)) -> tuple[Rollout, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, *extent, generator=generator)
    body = torch.rand(3, *extent, generator=generator) < 0.6
    grid = [math.ceil(n / PATCH) for n in extent]
    return found_of(torch.rand(3, math.prod(grid), generator=generator)), images, body


@given(st.integers(0, 999), st.sampled_from([(6, 4, 8), (5, 4, 7)]))
def test_every_number_equals_a_loop(seed: int, extent: tuple[int, int, int]) -> None:
    found, images, body = random_crops(seed, extent)
    numbers = attention_numbers(found, images, body, PATCH)
    grid = [math.ceil(n / PATCH) for n in extent]
    for row in range(3):
        shares = (found.patches[row] / found.patches[row].sum()).tolist()
        background = share = entropy = 0.0
        inner: list[tuple[float, float]] = []
        for n, (i, j, k) in enumerate(np.ndindex(*grid)):
            box = (row, *(slice(PATCH * a, PATCH * a + PATCH) for a in (i, j, k)))
            inside = float(body[box].sum()) / PATCH**3  # what lies behind the crop's end is no body
            background += shares[n] * (1 - inside)
            share += (1 - inside) / len(shares)
            entropy -= shares[n] * math.log(shares[n])
            if inside >= 0.5:
                inner.append((shares[n], float(images[box].double().sum()) / PATCH**3))
        assert numbers["background"][row] == pytest.approx(background, abs=1e-9)
        assert numbers["background_share"][row] == pytest.approx(share, abs=1e-9)
        assert numbers["entropy"][row] == pytest.approx(entropy / math.log(len(shares)), abs=1e-9)
        wanted = np.corrcoef(*np.array(inner).T)[0, 1] if len(inner) >= 8 else math.nan  # few points are noise
        assert numbers["brightness"][row] == pytest.approx(wanted, abs=1e-7, nan_ok=True)
        assert numbers["class_token"][row] == pytest.approx(0.15)
        assert numbers["registers"][row] == pytest.approx(0.05)


def test_even_attention_gives_the_backgrounds_share_and_full_entropy() -> None:
    _, images, body = random_crops(1)
    numbers = attention_numbers(found_of(torch.ones(3, 24)), images, body, PATCH)
    assert torch.allclose(numbers["background"], numbers["background_share"])
    assert torch.allclose(numbers["entropy"], torch.ones(3, dtype=torch.float64))
    assert bool(numbers["brightness"].isnan().all())  # an even map goes with nothing


def test_attention_in_the_air_is_all_background() -> None:
    body = torch.zeros(1, 4, 4, 8, dtype=torch.bool)
    body[..., :4] = True
    weights = torch.zeros(1, 2, 2, 4)
    weights[..., 2:] = 1
    images = torch.randn(1, 4, 4, 8)
    numbers = attention_numbers(found_of(weights.flatten(1)), images, body, PATCH)
    assert numbers["background"].item() == pytest.approx(1)
    assert numbers["background_share"].item() == pytest.approx(0.5)
    numbers = attention_numbers(found_of(1 - weights.flatten(1)), images, body, PATCH)
    assert numbers["background"].item() == pytest.approx(0, abs=1e-12)


def test_attention_that_follows_the_bright_patches_has_correlation_one() -> None:
    images = torch.rand(1, 6, 4, 8)
    means = images.reshape(1, 3, 2, 2, 2, 4, 2).mean((2, 4, 6)).flatten(1)
    body = torch.ones(1, 6, 4, 8, dtype=torch.bool)
    assert attention_numbers(found_of(means), images, body, PATCH)["brightness"].item() == pytest.approx(1)
    assert attention_numbers(found_of(2 - means), images, body, PATCH)["brightness"].item() == pytest.approx(-1)
