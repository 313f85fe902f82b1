"""Where crops lie: one place for registered volumes, independent places for contrast."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_volumes import memory_patient, memory_patients, memory_volume
from parametrium.data.cache import PreparedPatient
from parametrium.data.crops import draw_aligned, draw_contrast, draw_corner, draw_inner_corner, draw_views

EXTENT = (8, 10, 12)

triples = st.tuples(*[st.integers(-30, 30)] * 3)
shapes = st.tuples(*[st.integers(1, 24)] * 3)
seeds = st.integers(0, 2**20)
modality_sets = st.lists(
    st.lists(st.sampled_from(["CT", "T1", "PET", "T2"]), min_size=1, max_size=4), min_size=1, max_size=5
)


@settings(deadline=None)
@given(triples, shapes, seeds, st.sampled_from([0.0, 0.5, 1.0]))
def test_a_crop_lies_in_the_volume_or_holds_all_of_it(
    offset: tuple[int, int, int], shape: tuple[int, int, int], seed: int, fraction: float
) -> None:
    volume = memory_volume("CT", offset=offset, shape=shape, body=np.ones(shape, dtype=bool))
    corner = draw_corner(np.random.default_rng(seed), volume, EXTENT, fraction)
    for low, extent, first, size in zip(corner, EXTENT, offset, shape, strict=True):
        if size >= extent:
            assert first <= low <= first + size - extent
        else:
            assert low <= first
            assert first + size <= low + extent


@settings(deadline=None)
@given(seeds, triples)
def test_a_crop_on_the_foreground_holds_a_body_voxel(seed: int, offset: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    body = np.zeros((30, 9, 30), dtype=bool)
    body[tuple(rng.integers(body.shape))] = True
    volume = memory_volume("CT", offset=offset, shape=body.shape, body=body)
    _, seen = volume.read(draw_corner(rng, volume, EXTENT), EXTENT)
    assert seen.sum() == 1


def test_a_small_volume_does_not_always_lie_at_the_same_edge() -> None:
    volume = memory_volume("CT", shape=(4, 4, 4), offset=(3, 3, 3))
    corners = {draw_corner(np.random.default_rng(seed), volume, EXTENT) for seed in range(60)}
    for axis, extent in enumerate(EXTENT):
        assert {corner[axis] for corner in corners} == set(range(3 + 4 - extent, 4))


def test_crops_anywhere_reach_every_corner_of_the_volume() -> None:
    body = np.zeros((16, 16, 16), dtype=bool)
    body[8, 8, 8] = True
    volume = memory_volume("CT", shape=body.shape, body=body)
    anywhere = [draw_corner(np.random.default_rng(seed), volume, (8, 8, 8), 0.0) for seed in range(200)]
    assert {0, 8} <= {corner[0] for corner in anywhere}
    on_body = {draw_corner(np.random.default_rng(seed), volume, (8, 8, 8), 1.0) for seed in range(20)}
    assert on_body == {(4, 4, 4)}


@settings(deadline=None)
@given(modality_sets, seeds, st.integers(1, 4))
def test_aligned_crops_of_a_patient_share_frame_and_place_and_differ_in_modality(
    sets: list[list[str]], seed: int, volumes: int
) -> None:
    patients = [
        memory_patient(
            f"p{p}", [memory_volume(m, frame="ab"[n % 2], offset=(n, 0, 0), seed=n) for n, m in enumerate(names)]
        )
        for p, names in enumerate(sets)
    ]
    crops = draw_aligned(np.random.default_rng(seed), patients, EXTENT, volumes, 0.8)
    assert [crop.slot for crop in crops] == sorted(crop.slot for crop in crops)
    for slot, patient in enumerate(patients):
        own = [crop for crop in crops if crop.slot == slot]
        assert all(crop.volume in patient.volumes for crop in own)
        assert len({crop.volume.frame for crop in own}) == 1
        assert len({crop.corner for crop in own}) == 1
        assert {crop.frame for crop in own} == {slot}
        modalities = [crop.volume.modality for crop in own]
        assert len(set(modalities)) == len(modalities)
        available = {v.modality for v in patient.volumes if v.frame == own[0].volume.frame}
        assert len(own) == min(volumes, len(available))


def test_every_volume_of_a_patient_gets_its_turn() -> None:
    (patient,) = memory_patients([["CT", "T1", "PET"]])
    draws = [draw_aligned(np.random.default_rng(seed), [patient], EXTENT, 2, 0.8) for seed in range(60)]
    pairs = {tuple(crop.volume.modality for crop in crops) for crops in draws}
    assert pairs == set(itertools.permutations(["CT", "T1", "PET"], 2))


def pairs_of(patient: PreparedPatient) -> set[tuple[str, str]]:
    names = sorted({volume.modality for volume in patient.volumes})
    return {(a, b) for a in names for b in names if a < b} if len(names) > 1 else {(names[0], names[0])}


@settings(deadline=None)
@given(modality_sets, seeds, st.integers(2, 6))
def test_contrast_takes_one_pair_of_modalities_and_each_patient_once(
    sets: list[list[str]], seed: int, count: int
) -> None:
    patients = memory_patients(sets)
    taken, crops = draw_contrast(np.random.default_rng(seed), patients, EXTENT, count)
    every = Counter(pair for patient in patients for pair in pairs_of(patient))
    if max(every.values()) < 2:
        assert (taken, crops) == ([], [])
        return
    assert len(set(taken)) == len(taken)
    pair = crops[0].volume.modality, crops[1].volume.modality
    assert all(pair in pairs_of(patients[index]) for index in taken)
    assert len(taken) == min(count, every[pair]) >= 2
    assert [crop.volume.modality for crop in crops] == list(pair) * len(taken)
    assert [crop.slot for crop in crops] == [slot for slot in range(len(taken)) for _ in range(2)]
    assert all(crop.volume in patients[taken[crop.slot]].volumes for crop in crops)
    assert len({crop.frame for crop in crops}) == len(crops)


def test_the_two_views_lie_at_independent_places() -> None:
    patients = memory_patients([["CT", "T1"]] * 4, shape=(40, 40, 40))
    offsets = []
    for seed in range(50):
        _, crops = draw_contrast(np.random.default_rng(seed), patients, EXTENT, 4)
        offsets += [(crops[2 * n].corner, crops[2 * n + 1].corner) for n in range(4)]
    first, second = (np.array(corners, dtype=float) for corners in zip(*offsets, strict=True))
    for axis in range(3):
        # 200 independent pairs: the correlation has deviation 0.07.
        assert abs(np.corrcoef(first[:, axis], second[:, axis])[0, 1]) < 0.3


def test_a_pair_comes_as_often_as_patients_have_it() -> None:
    patients = memory_patients([["CT", "T1"]] * 6 + [["CT", "PET"]] * 2 + [["T2"]])
    drawn = Counter(
        draw_contrast(np.random.default_rng(seed), patients, EXTENT, 3)[1][1].volume.modality for seed in range(150)
    )
    assert set(drawn) == {"T1", "PET"}
    assert 0.6 < drawn["T1"] / 150 < 0.9


def test_patients_of_one_modality_are_compared_with_themselves() -> None:
    patients = memory_patients([["CT"]] * 3)
    taken, crops = draw_contrast(np.random.default_rng(0), patients, EXTENT, 8)
    assert taken == [0, 1, 2]
    assert {crop.volume.modality for crop in crops} == {"CT"}


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_an_inner_crop_shows_as_much_of_the_body_as_the_best_of_many(seed: int) -> None:
    volume = memory_volume("CT", shape=(30, 30, 30), offset=(-5, 0, 7))

    def share(corner: tuple[int, int, int]) -> float:
        return float(volume.read(corner, EXTENT)[1].mean())

    inner = draw_inner_corner(np.random.default_rng(seed), volume, EXTENT)
    ordinary = [share(draw_corner(np.random.default_rng([seed, n]), volume, EXTENT)) for n in range(20)]
    assert share(inner) >= np.quantile(ordinary, 0.8)
    for low, extent, start, size in zip(inner, EXTENT, volume.offset, volume.shape, strict=True):
        assert start <= low <= start + size - extent


def test_inner_crops_still_lie_at_many_places() -> None:
    volume = memory_volume("CT", shape=(40, 40, 40))
    assert len({draw_inner_corner(np.random.default_rng(seed), volume, EXTENT) for seed in range(50)}) > 30


def test_one_view_may_be_several_crops_of_one_volume() -> None:
    patients = memory_patients([["CT", "T1"]] * 3)
    taken, crops = draw_contrast(np.random.default_rng(0), patients, EXTENT, 2, crops_per_view=3)
    assert len(taken) == 2
    assert [crop.slot for crop in crops] == [0] * 6 + [1] * 6
    assert [crop.volume.modality for crop in crops] == (["CT"] * 3 + ["T1"] * 3) * 2
    assert len({crop.corner for crop in crops}) > 6


def test_two_views_of_a_patient_overlap_where_they_share_a_frame() -> None:
    patient = memory_patient("p", [memory_volume(m, seed=n, shape=(40, 40, 40)) for n, m in enumerate(["CT", "T1"])])
    apart = []
    for seed in range(60):
        first, second = draw_views(np.random.default_rng(seed), [patient], EXTENT, 1.0)
        assert {first.volume.modality, second.volume.modality} == {"CT", "T1"}
        assert first.frame != second.frame  # they do not show the same place
        apart.append(np.subtract(second.corner, first.corner))
    assert (np.abs(apart) <= np.asarray(EXTENT) // 4).all()
    assert {-2, -1, 0, 1, 2} == {int(shift[0]) for shift in apart}


def test_views_of_two_frames_or_of_one_volume_are_still_two() -> None:
    other = memory_volume("T1", frame="elsewhere", offset=(300, 0, 0))
    for volumes in ([memory_volume("CT"), other], [memory_volume("CT")]):
        first, second = draw_views(np.random.default_rng(0), [memory_patient("p", volumes)], EXTENT, 1.0)
        for crop in (first, second):
            _, seen = crop.volume.read(crop.corner, EXTENT)
            assert seen.any()
