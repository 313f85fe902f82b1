"""From a series' planes to stacks: planes that make one volume, in order, with their grid.

Planes belong together when they share size, spacing, orientation and image type. Where several lie at one place they
are told apart by b-value, echo, inversion time, flip angle and then time, whichever explains the repetition; a value
that merely drifts from slice to slice explains nothing and splits nothing.

The grid is built from the first and the last plane, and every plane between must lie within ``TOLERANCE_MM`` of where
that puts it. A gantry tilt or a slant makes the slice axis lean; an affine holds that exactly, so such a stack is
written as it is and not resampled.

Axes are columns, rows, slices; slices ascend along row x column, so the axes are right-handed in the patient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.dicom.facts import Facts, Grid, Slice
from parametrium.cohort.dicom.header import Instance
from parametrium.cohort.dicom.planes import Traits
from parametrium.cohort.header import geometry_problem
from parametrium.cohort.problem import Reason

TOLERANCE_MM = 0.1
"""How far a plane may lie from its place in the grid. Positions written to a tenth of a millimetre stay within it, and
it is a tenth of the finest voxel that a job would ask for."""

_COSINES = 1e-4  # of one stack's directions: 0.05 mm at the far end of a field of view of 500 mm
_SPACING_MM = 1e-3
_GAP = 1.5  # steps; a wider one lacks a slice
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


class Plane(NamedTuple):
    """A slice with what it came from."""

    slice: Slice
    traits: Traits
    instance: Instance


@dataclass(frozen=True)
class Stack:
    """Planes of one volume at one time, ordered along the slice axis, or why they make none.

    Attributes:
        planes: at least one.
        facts: of this stack: the series' with this stack's own echo, b-value, image type and number of time points.
        grid: None where ``reason`` says why.
        reason: why no volume comes of it.
    """

    planes: tuple[Plane, ...]
    facts: Facts
    grid: Grid | None
    reason: Reason | None = None


def split_stacks(instances: Sequence[Instance]) -> list[Stack]:
    """Splits one series.

    Args:
        instances: with slices, each SOP instance once.

    Returns:
        A stack for each volume that the series holds, and one with ``Reason.TIME_SERIES`` for the time points that
        are not taken.
    """
    planes = [
        Plane(plane, traits, instance)
        for instance in instances
        for plane, traits in zip(instance.slices, instance.traits, strict=True)
    ]
    stacks: list[Stack] = []
    for group in _alike(planes):
        for parts in _at_one_time(group):
            stacks.extend(_time_points(parts))
    return stacks


def _alike(planes: Sequence[Plane]) -> Iterator[list[Plane]]:
    """Groups of planes of one image type, size, spacing and orientation."""
    by_kind: dict[object, list[Plane]] = {}
    for plane in planes:
        by_kind.setdefault((plane.slice.shape, plane.traits.image_type), []).append(plane)
    tolerance = np.array([_COSINES] * 6 + [_SPACING_MM] * 2)
    for kind in by_kind.values():
        keys = np.array([(*plane.slice.row, *plane.slice.column, *plane.slice.spacing) for plane in kind])
        left = np.arange(len(kind))
        while len(left):
            near = (np.abs(keys[left] - keys[left[0]]) <= tolerance).all(axis=1)
            yield [kind[index] for index in left[near]]
            left = left[~near]


# What may set planes at one place apart, in the order in which it is tried.
_TRAITS: tuple[Callable[[Traits], object], ...] = (
    lambda traits: traits.b_value,
    lambda traits: traits.isotropic,
    lambda traits: traits.echo_time_ms,
    lambda traits: traits.inversion_time_ms,
    lambda traits: traits.flip_angle_deg,
)
_TIMES: tuple[Callable[[Traits], object], ...] = (
    lambda traits: traits.temporal,
    lambda traits: traits.trigger_ms,
    lambda traits: traits.acquisition,
    lambda traits: traits.time_s,
)


def _at_one_time(group: Sequence[Plane]) -> Iterator[list[Plane]]:
    """The group told apart by everything but time."""
    parts = [list(group)]
    for trait in _TRAITS:
        parts = [piece for part in parts for piece in _told_apart(part, trait)]
    yield from parts


def _told_apart(group: list[Plane], trait: Callable[[Traits], object]) -> list[list[Plane]]:
    """By one trait, where it explains why planes lie at one place: with few values, each with fewer planes there."""
    by_value: dict[object, list[Plane]] = {}
    for plane in group:
        by_value.setdefault(trait(plane.traits), []).append(plane)
    repetition = _repetition(group)
    pieces = list(by_value.values())
    explains = 1 < len(pieces) <= repetition and max(map(_repetition, pieces)) < repetition
    return pieces if explains else [group]


def _repetition(group: Sequence[Plane]) -> int:
    """How many planes lie at one place, at most."""
    return max(map(len, _places(group)))


def _time_points(group: list[Plane]) -> Iterator[Stack]:
    """The stack of one time point of a group, and another with the rest."""
    points = [group]
    for time in _TIMES:
        points = [piece for point in points for piece in _told_apart(point, time)]
    points = [piece for point in points for piece in _by_occurrence(point)]
    points.sort(key=lambda point: min(_moment(plane) for plane in point))
    most = max(map(len, points))
    whole = [point for point in points if len(point) == most]
    facts = _facts(group[0], len(whole))
    if facts.modality == "PT" and len(whole) > 1:
        yield Stack(tuple(group), facts, None, Reason.TIME_SERIES)  # SUV is defined for a static scan
        return
    taken = whole[_taken(facts, len(whole))]
    yield _stack(taken, facts)
    rest = [plane for point in points if point is not taken for plane in point]
    if rest:
        yield Stack(tuple(rest), facts, None, Reason.TIME_SERIES)


def _taken(facts: Facts, points: int) -> int:
    """Which time point stands for a series.

    The first, which every series has and nothing has moved since; but of a series with contrast agent the middle one,
    because the first was taken before the agent came. A training volume shows one moment, so the others are left out.
    """
    return points // 2 if facts.modality == "MR" and facts.contrast_agent else 0


def _moment(plane: Plane) -> tuple[float, float, float, int, int]:
    traits = plane.traits
    return (
        traits.temporal or 0,
        traits.trigger_ms or 0.0,
        traits.acquisition or 0,
        traits.number,
        plane.slice.frame,
    )


def _by_occurrence(group: list[Plane]) -> list[list[Plane]]:
    """Where nothing tells the planes of one place apart: the first of each place, the second, and so on."""
    places = [sorted(place, key=_moment) for place in _places(group)]
    most = max(len(place) for place in places)
    return [[place[turn] for place in places if turn < len(place)] for turn in range(most)]


def _places(group: Sequence[Plane]) -> list[list[Plane]]:
    """Planes by their place along the normal, ascending."""
    depth = _depths(group)
    order = np.argsort(depth, kind="stable")
    starts = np.flatnonzero(np.diff(depth[order]) > TOLERANCE_MM / 10) + 1
    return [[group[index] for index in part] for part in np.split(order, starts)]


def _depths(group: Sequence[Plane]) -> NDArray[np.float64]:
    first = group[0].slice
    normal = np.cross(first.row, first.column)
    positions = np.array([plane.slice.position for plane in group])
    depths: NDArray[np.float64] = positions @ (normal / np.linalg.norm(normal))
    return depths


def _facts(plane: Plane, time_points: int) -> Facts:
    """The facts of the plane's file, with what is this plane's own."""
    facts, traits = plane.instance.facts, plane.traits
    return replace(
        facts,
        image_type=traits.image_type or facts.image_type,
        b_value=_first(traits.b_value, facts.b_value),
        echo_time_ms=_first(traits.echo_time_ms, facts.echo_time_ms),
        inversion_time_ms=_first(traits.inversion_time_ms, facts.inversion_time_ms),
        flip_angle_deg=_first(traits.flip_angle_deg, facts.flip_angle_deg),
        repetition_time_ms=_first(traits.repetition_time_ms, facts.repetition_time_ms),
        contrast_phase=facts.contrast_phase or (facts.contrast_agent and time_points > 1),
        time_points=time_points,
    )


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _stack(group: list[Plane], facts: Facts) -> Stack:
    """The stack of planes that each have a place of their own."""
    order = np.argsort(_depths(group), kind="stable")
    planes = tuple(group[index] for index in order)
    grid = grid_of([plane.slice for plane in planes])
    return Stack(planes, facts, None, grid) if isinstance(grid, Reason) else Stack(planes, facts, grid)


def grid_of(slices: Sequence[Slice]) -> Grid | Reason:
    """The grid of ordered slices of one orientation, or why they have none.

    Args:
        slices: ascending along their normal, one at each place.
    """
    if len(slices) < 2:
        return Reason.ONE_SLICE
    positions = np.array([plane.position for plane in slices])
    first = slices[0]
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    normal = np.cross(first.row, first.column)
    depth = np.diff(positions @ normal)
    if depth.max() > _GAP * np.sort(depth)[(len(depth) - 1) // 2]:
        return Reason.MISSING_SLICES
    places = positions[0] + np.arange(len(slices))[:, None] * step
    if np.linalg.norm(positions - places, axis=1).max() > TOLERANCE_MM:
        return Reason.IRREGULAR_SLICES
    affine = np.eye(4)
    affine[:3, 0] = np.asarray(first.row) * first.spacing[1]
    affine[:3, 1] = np.asarray(first.column) * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    affine[:3] = _LPS_TO_RAS @ affine[:3]
    shape = (first.shape[1], first.shape[0], len(slices))
    return geometry_problem(shape, affine) or Grid(shape, affine)
