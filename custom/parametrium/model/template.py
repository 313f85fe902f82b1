"""Modality templates: for each modality a learned volume that stands for a typical patient.

After BrainMVP (METHODS 1.1). A template is of low resolution and lies in the box of the body: its first voxel touches
the box's lowest faces, its last one the highest, whatever the patient's size. A crop of a template shows the same place
of the body as the crop of the patient that it is made for.

B crops, D H W voxels of a crop, I J K voxels of a template, L tokens, C channels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from parametrium.model.modality import ByModality, Token
from parametrium.model.windows import Grid

LIMIT = 5.0
"""Largest magnitude of a template's voxel where nothing else is said; the built-in intensity rules stay within it."""


class Template(nn.Module):
    """One modality's learned volume, and the token that patches filled from it carry.

    Args:
        grid: voxels I, J, K along right, anterior, superior.
        limit: largest magnitude of a voxel: prepared intensities have a range, and so has the template.
        width: channels C of the token.
    """

    def __init__(self, grid: Grid, limit: float, width: int) -> None:
        super().__init__()
        self.limit = limit
        self.values = nn.Parameter(torch.zeros(grid))
        self.token = Token(width)

    def volume(self) -> Tensor:
        """[I, J, K] prepared intensities in [-limit, limit]; zero at first, where their slope is 1."""
        return self.limit * torch.tanh(self.values / self.limit)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., L, C] tokens of patches filled from this template -> the same, marked."""
        return self.token(tokens)  # type: ignore[no-any-return]


class Templates(ByModality):
    """The templates of all modalities. Called on tokens it marks them as filled, each row by its own modality.

    Args:
        modalities: the job's modalities, in order.
        grid: voxels of each template.
        width: channels of the tokens.
        limits: largest magnitude by modality, where it is not ``LIMIT``.
    """

    def __init__(
        self, modalities: Sequence[str], grid: Grid, width: int, limits: Mapping[str, float] | None = None
    ) -> None:
        limits = limits or {}
        super().__init__("fill", modalities, [Template(grid, limits.get(m, LIMIT), width) for m in modalities])

    def template(self, modality: str) -> Template:
        """One modality's."""
        found = self.of[modality]
        assert isinstance(found, Template)  # noqa: S101 - for mypy; a ModuleDict does not say what it holds
        return found

    def crops(self, modality: Tensor, corner: Tensor, box: Tensor, extent: Grid) -> Tensor:
        """What the templates show where crops lie, by trilinear interpolation; beyond the box its nearest voxel.

        The gradient reaches the templates of the modalities in ``modality`` alone. Interpolation goes axis by axis as
        products of matrices, which give the same bits every time; a gather would not, on a GPU.

        Args:
            modality: [B] index of each crop's modality.
            corner: [B, 3] lattice index of each crop's first voxel.
            box: [B, 2, 3] the body's first voxel and the one after its last, in lattice indices.
            extent: voxels of the crops.

        Returns:
            [B, D, H, W] prepared intensities, float32 under autocast, too.
        """
        present, row = torch.unique(modality, return_inverse=True)
        volumes = torch.stack([self.template(self.modalities[index]).volume() for index in present.tolist()])
        along = []
        for axis, voxels in enumerate(extent):
            low, high = box[:, 0, axis, None], box[:, 1, axis, None]
            centres = corner[:, axis, None] + torch.arange(voxels, device=box.device) + 0.5
            along.append(axis_weights((centres - low) / (high - low), volumes.shape[axis + 1]).to(volumes.dtype))
        with torch.autocast(volumes.device.type, enabled=False):
            return torch.einsum("bijk,bdi,bhj,bwk->bdhw", volumes[row], *along)


def axis_weights(places: Tensor, voxels: int) -> Tensor:
    """Weights of linear interpolation along one axis.

    Args:
        places: [B, E] along the box, 0 at its first face and 1 at its last; those outside take the last voxel.
        voxels: N voxels, which divide the box evenly; each has its value at its centre.

    Returns:
        [B, E, N] in [0, 1], rows sum to 1.
    """
    at = (places * voxels - 0.5).clamp(0, voxels - 1)
    return (1 - (at[..., None] - torch.arange(voxels, device=places.device)).abs()).clamp(min=0)
