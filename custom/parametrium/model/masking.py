"""Which patches the encoder sees: the same share of every window, so that windows stay dense (METHODS 8.2)."""

import torch
from torch import Tensor

from parametrium.model.windows import Grid, window_numbers


def visible_count(patches: int, mask_ratio: float) -> int:
    """Patches of a window that stay visible: at least one, and one is masked where the ratio is above zero."""
    if mask_ratio == 0 or patches == 1:
        return patches
    return min(max(round(patches * (1 - mask_ratio)), 1), patches - 1)


def draw_mask(
    batch: int, grid: Grid, mask_ratio: float, generator: torch.Generator, unit: int = 1
) -> tuple[Tensor, Tensor]:
    """Draws visible and masked patches: the same number in every row, and in each window its share.

    Args:
        batch: rows B.
        grid: patches along D, H, W; L in all.
        mask_ratio: share that is masked.
        generator: CPU generator; masks are equal on every device.
        unit: edge, in patches, of the cubes that are masked together. Where a window's share is no multiple of a cube,
            one cube of it is split. Where its edge is none, the cubes at its end are cut, and patches are not seen
            equally often: in windows of 3 with cubes of 2 and ratio .75, from .20 to .31 by their place.

    Returns:
        visible [B, K] and masked [B, L - K] patch indices, each ascending; together they are 0 .. L - 1.
    """
    windows = window_numbers(grid)
    scores = torch.rand(batch, len(windows), generator=generator)
    if unit > 1:
        cubes = _cubes(grid, unit)
        rank = torch.rand(batch, int(cubes.max()) + 1, generator=generator).argsort(dim=1)
        scores = rank[:, cubes] + scores  # a cube's patches lie beside each other in the order
    order = scores.argsort(dim=1)
    order = order.gather(1, windows[order].argsort(dim=1, stable=True))  # by window, within it by chance
    visible = torch.cat(_shares(windows, mask_ratio))
    return order[:, visible].sort(dim=1).values, order[:, ~visible].sort(dim=1).values


def _shares(windows: Tensor, mask_ratio: float) -> list[Tensor]:
    """For each window, True for as many places as it shows."""
    sizes: list[int] = torch.bincount(windows).tolist()
    return [torch.arange(size) < visible_count(size, mask_ratio) for size in sizes]


def _cubes(grid: Grid, unit: int) -> Tensor:
    """[L] the cube of each patch. Cubes are counted from their window's first patch, so that none lies in two."""
    along = []
    for extent in grid:
        window = window_numbers((extent, 1, 1))
        inside = torch.arange(extent) - torch.searchsorted(window, window)
        along.append((inside % unit == 0).cumsum(0) - 1)
    d, h, w = torch.meshgrid(*along, indexing="ij")
    _, rows, columns = (int(numbers[-1]) + 1 for numbers in along)
    return ((d * rows + h) * columns + w).flatten()
