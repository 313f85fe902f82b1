"""Crops of which a part is filled from elsewhere: another modality of the patient, or the modality's template.

B crops, D H W voxels, L patches, K visible, Q filled, V voxels of a patch, C channels.
"""

from torch import Tensor, arange, cat

from parametrium.model.encoder import Encoded, Encoder
from parametrium.model.patch_embed import gather, patchify
from parametrium.model.position import Spacing, grid_positions
from parametrium.model.windows import Grid, windows_of


def crop_positions(images: Tensor, patch: int, spacing_mm: Spacing) -> Tensor:
    """[L, 3] patch centres of [B, D, H, W] crops, on their device."""
    crop = (images.shape[1], images.shape[2], images.shape[3])
    return grid_positions(crop, patch, spacing_mm).to(images.device)


def template_patches(encoder: Encoder, modality: Tensor, corner: Tensor, box: Tensor, extent: Grid) -> Tensor:
    """[B, L, V] what the crops' own templates show in their place; see ``Templates.crops``.

    Raises:
        ValueError: the encoder has no templates.
    """
    if encoder.templates is None:
        raise ValueError("this encoder was made without templates")
    return patchify(encoder.templates.crops(modality, corner, box, extent), encoder.shape.patch)


def encode_templates(
    encoder: Encoder, modality: Tensor, corner: Tensor, box: Tensor, extent: Grid, spacing_mm: Spacing
) -> Encoded:
    """Encodes what templates show in the place of crops, and nothing of a patient; arguments as ``Templates.crops``.

    Raises:
        ValueError: the encoder has no templates.
    """
    patch = encoder.shape.patch
    patches = template_patches(encoder, modality, corner, box, extent)
    centres = grid_positions(extent, patch, spacing_mm).to(patches.device)
    tokens = encoder.embed_template(patches, modality, centres)
    places = arange(tokens.shape[1]).expand(len(tokens), -1)
    return _encoded(encoder, tokens, places, (extent[0] // patch, extent[1] // patch, extent[2] // patch), centres)


def embed_patches(encoder: Encoder, images: Tensor, modality: Tensor, index: Tensor, spacing_mm: Spacing) -> Tensor:
    """[B, K, C] tokens of some patches [B, K] of crops [B, D, H, W]."""
    patch = encoder.shape.patch
    positions = crop_positions(images, patch, spacing_mm)[index]
    return encoder.embed(gather(patchify(images, patch), index.to(images.device)), modality, positions)


def encode_filled(
    encoder: Encoder, own: Tensor, filled: Tensor, places: Tensor, grid: Grid, centres_mm: Tensor
) -> Encoded:
    """Encodes crops that show some of their own patches and, everywhere else, filled ones.

    Args:
        encoder: the shared encoder.
        own: [B, K, C] tokens of the crops' own patches.
        filled: [B, Q, C] tokens of the filled ones.
        places: [B, K + Q] patch indices of both, on the CPU.
        grid: patches along D, H, W.
        centres_mm: [L, 3] of all patches.

    Returns:
        Encoded patches in the order of ``places``.
    """
    return _encoded(encoder, cat([own, filled], dim=1), places, grid, centres_mm)


def _encoded(encoder: Encoder, tokens: Tensor, places: Tensor, grid: Grid, centres_mm: Tensor) -> Encoded:
    """Encodes [B, K, C] tokens of the patches ``places`` [B, K], which are on the CPU."""
    windows = windows_of(places, grid)
    moved = None if windows is None else windows.to(tokens.device)
    result: Encoded = encoder(tokens, moved, centres_mm[places.to(centres_mm.device)])
    return result
