"""One intensity rule a modality, and where the patient is in a volume (METHODS 8.1).

Axes of every array here: D along right, H along anterior, W along superior.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from parametrium.config import ForegroundRule, LogRule, WindowRule
from parametrium.errors import Code, ConfigError

Rule: TypeAlias = WindowRule | LogRule | ForegroundRule
Image: TypeAlias = NDArray[np.float32]
BodyMask: TypeAlias = NDArray[np.bool_]

_PELVIC_WINDOW = WindowRule(lower=-280.0, upper=400.0, centre=0.0, scale=150.0)
_MR = ForegroundRule()
_BUILT_IN: Mapping[str, Rule] = {
    "CT": _PELVIC_WINDOW,
    # Cone-beam numbers are not calibrated, so they are standardised in the patient as MR is.
    "CBCT": ForegroundRule(percentiles=(1.0, 99.0)),
    "PET": LogRule(),
    **dict.fromkeys(("T1", "T1c", "T2", "FLAIR", "DWI", "ADC", "DCE"), _MR),
}

_BODY_HU = -300.0  # between lung or fat-air edges and fat (-100)
_BODY_SUV = 0.2  # the value whose outline agrees best with the CT's of the same patient (Dice 0.96)
_TISSUE_SHARE = 0.25  # of the bright tissue's mean: MR muscle beside fat is tissue, not air (found likewise, 0.96)
_SMOOTHING = 0.7  # voxels
_PART = 0.1  # a second leg or an arm is body too: parts of at least this share of the largest are kept
_PAD = 2
_IN_PLANE = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])  # neighbours of one axial slice


def rule_for(modality: str, overrides: Mapping[str, Rule]) -> Rule:
    """The job's own rule for a modality, or the built-in one.

    Raises:
        ConfigError: PM103 the modality has no built-in rule and the job gives none.
    """
    rule = overrides.get(modality) or _BUILT_IN.get(modality)
    if rule is None:
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE,
            f"modality {modality} has no built-in intensity rule; give it one in preparation.intensity.{modality}",
        )
    return rule


def normalise(image: Image, body: BodyMask, rule: Rule) -> Image:
    """Prepared intensities, of the order of one.

    Args:
        image: [D, H, W] in HU, SUV or a scanner's own unit.
        body: [D, H, W], True in the patient; a foreground rule takes its statistics there.
        rule: what to do.
    """
    if isinstance(rule, WindowRule):
        return _linear(np.clip(image, rule.lower, rule.upper), rule.centre, rule.scale)
    if isinstance(rule, LogRule):
        return _linear(np.log1p(np.clip(image, 0.0, rule.upper)), rule.centre, rule.scale)
    inside = image[body]
    if inside.size == 0:
        return np.zeros_like(image)
    lower, upper = np.percentile(inside, rule.percentiles)
    inside = np.clip(inside, lower, upper)
    # In double precision: a mean over 10^7 scanner units loses its last digits otherwise.
    mean, deviation = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
    scored = _linear(np.clip(image, lower, upper), mean, max(deviation, 1e-6))
    return np.clip(scored, -rule.limit, rule.limit)


def _linear(image: Image, centre: float, scale: float) -> Image:
    return ((image - np.float32(centre)) / np.float32(scale)).astype(np.float32, copy=False)


def body_mask(image: Image, modality: str, seen: BodyMask | None = None) -> BodyMask:
    """Where the patient is.

    Args:
        image: [D, H, W] in HU, SUV or a scanner's own unit.
        modality: CT and CBCT are cut at a fixed HU, PET at a small SUV, all others between air and tissue.
        seen: [D, H, W] the field of view; None means everywhere.

    Returns:
        [D, H, W] body and field of view: the large parts, closed, without holes; empty for an empty image.
    """
    seen = np.ones(image.shape, dtype=bool) if seen is None else seen
    if modality in ("CT", "CBCT"):
        rough = image > _BODY_HU
        rough &= np.ptp(image) > 0
    else:
        smooth = ndimage.gaussian_filter(image, _SMOOTHING, mode="nearest")
        rough = smooth > (_BODY_SUV if modality == "PET" else _air_threshold(smooth[seen]))
    return _solid(rough & seen) & seen


def _air_threshold(values: Image) -> float:
    """Between air and tissue: Otsu's threshold of the square roots, or lower where bright tissue drew it up.

    A field of view inside the patient has no air; there Otsu parts muscle from fat, and the share keeps both.
    """
    if values.size == 0:
        return np.inf
    lowest, highest = np.percentile(values, (0.1, 99.0))
    if highest <= max(lowest, 0.0):
        return np.inf
    roots = np.sqrt(np.clip(values, max(lowest, 0.0), highest))
    counts, edges = np.histogram(roots, bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(np.cumsum(counts[::-1]), 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    cut = int(np.argmax(between))
    return float(min(edges[cut + 1] ** 2, _TISSUE_SHARE * mean_above[cut + 1] ** 2))


def _solid(rough: BodyMask) -> BodyMask:
    """The large connected parts, closed, holes filled in each axial slice (bowel gas, airways) and in 3D."""
    if not rough.any():
        return rough
    # Padded by the edge value, so that nothing bites into a patient whom the field of view cuts.
    padded = np.pad(rough, _PAD, mode="edge")
    # Opening parts the couch from the patient. A patient thinner than that keeps the rough outline.
    opened = _dilated(_eroded(padded, cube=False), cube=False)
    labels, count = ndimage.label(opened if opened.any() else padded)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    body = np.isin(labels, np.flatnonzero(sizes >= _PART * sizes.max()) + 1)
    inner = (slice(_PAD, -_PAD),) * 3
    return _filled(_eroded(_dilated(body, cube=True), cube=True)[inner])


def _eroded(mask: BodyMask, *, cube: bool) -> BodyMask:
    """Erosion by the six face neighbours, or by the cube of 27; beyond the array is air.

    By shifted views: the same bits as ndimage's, several times faster.
    """
    result = mask.copy()
    for axis in range(mask.ndim):
        source = np.moveaxis(result.copy() if cube else mask, axis, 0)  # a cube is three lines after each other
        target = np.moveaxis(result, axis, 0)
        target[1:] &= source[:-1]
        target[:-1] &= source[1:]
        target[0] = target[-1] = False
    return result


def _dilated(mask: BodyMask, *, cube: bool) -> BodyMask:
    """Dilation, as ``_eroded``."""
    result = mask.copy()
    for axis in range(mask.ndim):
        source = np.moveaxis(result.copy() if cube else mask, axis, 0)
        target = np.moveaxis(result, axis, 0)
        target[1:] |= source[:-1]
        target[:-1] |= source[1:]
    return result


def _filled(body: BodyMask) -> BodyMask:
    """Holes filled in each axial slice, which fills all that are closed in 3D too (bowel gas, airways, sinuses)."""
    labels, count = ndimage.label(~body, _IN_PLANE)
    outside = np.zeros(count + 1, dtype=bool)
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[border] = True
    outside[0] = False
    return ~outside[labels]
