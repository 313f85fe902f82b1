"""Batches are a pure function of seed, site and step: with workers, after a resume, for ragged patients."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_volumes import memory_patient, memory_patients, memory_volume
from parametrium.config import JobConfig, parse_job
from parametrium.data.batch import Batch, CropRequest
from parametrium.data.cache import PreparedPatient, PreparedVolume
from parametrium.data.loader import Batches, CropLoader, read_batch, stable_number
from parametrium.errors import DataError

MakeJob = Callable[..., JobConfig]

RAGGED = [["CT", "T1"], ["CT"], ["PET", "T1"], ["CT", "T1", "PET"], ["T1"]]
BOTH = (CropRequest("aligned", 3, 2), CropRequest("contrast", 3, 2))


@dataclass(frozen=True)
class Turns:
    """A plan that gives one group of requests a step, in turn; a loader process can be sent it."""

    groups: Sequence[Sequence[CropRequest]]

    def __call__(self, step: int) -> Sequence[CropRequest]:
        return self.groups[step % len(self.groups)]


def loader(
    patients: list[PreparedPatient],
    job: JobConfig,
    *requests: CropRequest,
    site: str = "alpha",
    workers: int = 0,
) -> CropLoader:
    return CropLoader(patients, job, site, Turns([requests]), workers)


def same(first: Batches, second: Batches) -> bool:
    return first.keys() == second.keys() and all(
        equal(getattr(first[layout], field.name), getattr(second[layout], field.name))
        for layout in first
        for field in fields(Batch)
    )


def equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def test_every_patient_comes_with_her_own_text_and_who_has_none_with_zeros(make_job: MakeJob) -> None:
    known = [0, 1, 3]  # of five patients
    told = [
        replace(patient, text=np.eye(5, dtype=np.float32)[p] if p in known else None)
        for p, patient in enumerate(memory_patients(RAGGED))
    ]
    seen: Counter[int] = Counter()
    for batches in loader(told, make_job(), *BOTH).steps(0, 8):
        for batch in batches.values():
            assert batch.text is not None
            for age, text, has in zip(batch.clinical[:, 0].tolist(), batch.text, batch.has_text.tolist(), strict=True):
                patient = round(age) - 20
                seen[patient] += 1
                assert has is (patient in known)
                assert torch.equal(text, torch.eye(5)[patient] * has)
    assert set(seen) == set(range(5))


def test_a_batch_is_a_function_of_seed_site_and_step(make_job: MakeJob) -> None:
    patients, job = memory_patients(RAGGED), make_job()
    first = loader(patients, job, *BOTH)
    again = loader(patients, job, *BOTH)
    assert same(first[7], again[7])
    assert same(first[7], again[7]), "asking twice must not matter"
    assert not same(first[7], first[8])
    assert not same(first[7], loader(patients, job, *BOTH, site="beta")[7])
    assert not same(first[7], loader(patients, make_job(seed=1), *BOTH)[7])


def test_a_batch_does_not_depend_on_the_other_layouts_of_its_step(make_job: MakeJob) -> None:
    patients, job = memory_patients(RAGGED), make_job()
    both = loader(patients, job, *BOTH)[3]
    for request in BOTH:
        alone = loader(patients, job, request)[3]
        assert same(alone, {request.layout: both[request.layout]})


def test_neither_torch_nor_numpy_state_enters(make_job: MakeJob) -> None:
    patients, job = memory_patients(RAGGED), make_job()
    torch.manual_seed(1)
    first = list(loader(patients, job, *BOTH).steps(0, 3))
    torch.manual_seed(2)
    second = list(loader(patients, job, *BOTH).steps(0, 3))
    assert all(map(same, first, second))


def test_workers_give_the_same_batches_in_the_same_order(make_job: MakeJob) -> None:
    patients, job = memory_patients(RAGGED), make_job()
    here = list(loader(patients, job, *BOTH).steps(2, 8))
    with_workers = list(loader(patients, job, *BOTH, workers=2).steps(2, 8))
    assert len(here) == len(with_workers) == 6
    assert all(map(same, here, with_workers))


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_loader_processes_live_over_rounds_and_end_with_the_loader(make_job: MakeJob) -> None:
    """Also after a round that was given up in the middle, whose batches nobody fetched."""
    patients, job = memory_patients(RAGGED), make_job()
    before = children()
    with_workers = loader(patients, job, *BOTH, workers=2)
    rounds = with_workers.steps(0, 8)
    next(rounds)
    started = children() - before
    rounds.close()
    for start in (8, 2):
        expected = loader(patients, job, *BOTH).steps(start, start + 3)
        found = list(with_workers.steps(start, start + 3))
        assert len(found) == 3
        assert all(map(same, found, expected))
    assert children() - before == started
    with_workers.close()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in started if psutil.pid_exists(pid)], timeout=30)
    names = [" ".join(process.cmdline()) for process in alive]
    assert all("resource_tracker" in name for name in names), names


def test_a_loader_process_that_is_killed_is_named(make_job: MakeJob) -> None:
    before = children()
    with_workers = loader(memory_patients(RAGGED), make_job(), *BOTH, workers=1)
    rounds = with_workers.steps(0, 10_000)
    next(rounds)
    for pid in children() - before:
        process = psutil.Process(pid)
        if "resource_tracker" not in " ".join(process.cmdline()):
            process.kill()
    with pytest.raises(DataError, match="PM303 a loader process was killed"):
        list(rounds)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_entry_keeps_its_code_on_the_way_from_a_loader_process(
    make_job: MakeJob, tmp_path: Path, workers: int
) -> None:
    gone = PreparedVolume(0, "s1", 0, "CT", "grid", tmp_path / "secret", (0, 0, 0), (24, 24, 24))
    patient = PreparedPatient("p", None, (gone,), {}, ())
    with pytest.raises(DataError, match="PM301 a prepared volume is damaged or was removed") as caught:
        list(loader([patient], make_job(), BOTH[0], workers=workers).steps(0, 1))
    assert "secret" not in str(caught.value)
    assert "secret" in caught.value.site_detail


def test_a_resumed_loader_continues_where_it_would_have_been(make_job: MakeJob) -> None:
    patients, job = memory_patients(RAGGED), make_job()
    through = list(loader(patients, job, *BOTH).steps(0, 9))
    resumed = list(loader(patients, job, *BOTH).steps(5, 9))
    assert all(map(same, through[5:], resumed))


@settings(deadline=None, max_examples=25)
@given(total=st.integers(1, 7), count=st.integers(1, 9), seed=st.integers(0, 1000))
def test_every_patient_comes_once_before_any_comes_again(total: int, count: int, seed: int) -> None:
    job = parse_job(
        {
            "name": "j",
            "seed": seed,
            "modalities": ["CT"],
            "crop": [8, 8, 8],
            "model": {"patch": 4},
            "objectives": [{"kind": "masked_reconstruction"}],
            "clinical": [
                {"kind": "continuous", "name": "age", "unit": "years", "lower": 18.0, "upper": 100.0, "sigma": 10.0}
            ],
        }
    )
    patients = memory_patients([["CT"]] * total, shape=(8, 8, 8))
    batches = list(loader(patients, job, CropRequest("aligned", count, 1)).steps(0, 2 * total))
    ages = torch.cat([batch["aligned"].clinical[:, 0] for batch in batches]).tolist()
    assert len(ages) == 2 * total * count
    identity = torch.cat([batch["aligned"].identity for batch in batches])
    assert [20 + number for number in identity.tolist()] == ages
    for start in range(0, len(ages), total):
        assert sorted(ages[start : start + total]) == [20 + p for p in range(total)]


@pytest.mark.parametrize("total", [1, 3, 5, 6, 12])
@pytest.mark.parametrize(
    "plan",
    [
        ["aligned", "contrast"],
        ["contrast", "aligned", "aligned"],
        ["aligned", "contrast", "contrast", "contrast"],
        ["aligned", "wide"],
    ],
)
def test_the_steps_of_other_layouts_use_up_no_patients(make_job: MakeJob, total: int, plan: list[str]) -> None:
    requests = {
        "aligned": CropRequest("aligned", 3, 1),
        "wide": CropRequest("aligned", 5, 1),
        "contrast": CropRequest("contrast", 3, 2),
    }
    patients, job = memory_patients([["CT"]] * total, shape=(8, 8, 8)), make_job(crop=[8, 8, 8])
    drawn = CropLoader(patients, job, "alpha", Turns([(requests[name],) for name in plan]))
    batches = list(drawn.steps(0, 12 * len(plan)))
    ages = torch.cat([batch["aligned"].clinical[:, 0] for batch in batches if "aligned" in batch]).tolist()
    assert len(ages) >= 36
    for start in range(0, len(ages) - total + 1, total):
        assert sorted(ages[start : start + total]) == [20 + p for p in range(total)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_is_the_same_whatever_was_asked_before(make_job: MakeJob, workers: int) -> None:
    patients, job = memory_patients(RAGGED), make_job()

    def cyclic() -> CropLoader:
        return CropLoader(patients, job, "alpha", Turns([BOTH[:1], BOTH[1:]]), workers)

    asked = cyclic()
    for step in (9, 2, 30, 4):
        assert same(asked[step], cyclic()[step])
    assert all(map(same, cyclic().steps(5, 8), [asked[step] for step in range(5, 8)]))


def test_epochs_are_shuffled(make_job: MakeJob) -> None:
    patients = memory_patients([["CT"]] * 6)
    ages = [
        b["aligned"].clinical[:, 0].tolist()
        for b in loader(patients, make_job(), CropRequest("aligned", 6, 1)).steps(0, 4)
    ]
    assert len({tuple(row) for row in ages}) == 4


def test_aligned_crops_show_the_same_place(make_job: MakeJob) -> None:
    job = make_job(crop=[8, 8, 8], batch={"intensity_jitter": 0.0})
    patients = [
        memory_patient(
            f"p{p}",
            [
                memory_volume("CT", coordinates=True, offset=(-3, 2, 5)),
                memory_volume("T1", coordinates=True, offset=(0, -4, 6), shape=(12, 30, 14)),
            ],
        )
        for p in range(4)
    ]
    overlapping = 0
    for batches in loader(patients, job, CropRequest("aligned", 4, 2)).steps(0, 10):
        batch = batches["aligned"]
        assert batch.patient.tolist() == batch.frame.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        for n in range(0, 8, 2):
            assert set(batch.modality[n : n + 2].tolist()) == {0, 1}
            assert torch.equal(batch.corner[n], batch.corner[n + 1])
            both = batch.body[n] & batch.body[n + 1]
            overlapping += int(both.sum())
            assert torch.equal(batch.images[n][both], batch.images[n + 1][both])
            i, j, k = batch.corner[n].tolist()
            here = torch.stack(torch.meshgrid(*[torch.arange(8) + c for c in (i, j, k)], indexing="ij"))
            named = (1 + here[0] + 100 * here[1] + 10000 * here[2]).float()
            for crop in (n, n + 1):
                seen = batch.body[crop]
                assert torch.equal(batch.images[crop][seen], named[seen])
    assert overlapping > 0


def test_a_volume_smaller_than_the_crop_is_padded_with_nothing(make_job: MakeJob) -> None:
    job = make_job(batch={"intensity_jitter": 0.0})
    shape = (5, 30, 7)
    patients = [memory_patient("p", [memory_volume("CT", shape=shape, body=np.ones(shape, dtype=bool))])]
    for batches in loader(patients, job, CropRequest("aligned", 2, 1)).steps(0, 5):
        batch = batches["aligned"]
        assert batch.images.shape == (2, 16, 16, 16)
        for image, body in zip(batch.images, batch.body, strict=True):
            assert int(body.sum()) == 5 * 16 * 7
            assert (image[~body] == 0).all()
            assert (image[body] != 0).all()


def test_ragged_patients_lie_in_one_flat_list(make_job: MakeJob) -> None:
    patients, job = memory_patients(RAGGED), make_job()
    batch = loader(patients, job, CropRequest("aligned", 5, 3))[0]["aligned"]
    sets = {age - 20: set() for age in batch.clinical[:, 0].int().tolist()}
    order = list(sets)
    for slot, modality in zip(batch.patient.tolist(), batch.modality.tolist(), strict=True):
        sets[order[slot]].add(job.modalities[modality])
    assert sets == {p: set(names) for p, names in enumerate(RAGGED)}
    assert batch.patients == 5
    assert batch.volumes_of(job.modalities) == Counter(m for names in RAGGED for m in names)
    assert batch.observed.tolist() == [[True, False, False]] * 5


def test_contrast_rows_belong_to_the_patients_taken(make_job: MakeJob) -> None:
    patients, job = memory_patients(RAGGED), make_job()
    for batches in loader(patients, job, CropRequest("contrast", 4, 2)).steps(0, 12):
        batch = batches["contrast"]
        pair = [job.modalities[m] for m in batch.modality[:2].tolist()]
        assert batch.patient.tolist() == [p for p in range(batch.patients) for _ in range(2)]
        assert torch.equal(batch.modality.reshape(-1, 2), batch.modality[:2].expand(batch.patients, 2))
        ages = batch.clinical[:, 0].int().tolist()
        assert len(set(ages)) == len(ages) >= 2
        assert all(set(pair) <= set(RAGGED[age - 20]) for age in ages)


def test_one_patient_is_enough_for_reconstruction_and_left_out_of_contrast(make_job: MakeJob) -> None:
    batches = loader(memory_patients([["CT", "T1"]]), make_job(), *BOTH)[0]
    assert batches.keys() == {"aligned"}
    # A batch wants three patients: the one comes three times, at places of its own.
    assert batches["aligned"].patient.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(batches["aligned"].corner.unique(dim=0)) == 3


def test_a_site_of_one_modality_has_both_layouts(make_job: MakeJob) -> None:
    batches = loader(memory_patients([["T1"]] * 3), make_job(), *BOTH)[0]
    assert batches["aligned"].modality.tolist() == [1, 1, 1]
    assert batches["contrast"].modality.tolist() == [1] * 6


def test_the_jitter_scales_and_shifts_each_crop_by_itself(make_job: MakeJob) -> None:
    patients = memory_patients([["CT"]] * 4)
    still = loader(patients, make_job(batch={"intensity_jitter": 0.0}), CropRequest("aligned", 4, 1))[2]["aligned"]
    moved = loader(patients, make_job(batch={"intensity_jitter": 0.2}), CropRequest("aligned", 4, 1))[2]["aligned"]
    assert torch.equal(still.body, moved.body)
    assert torch.equal(still.corner, moved.corner)
    found = []
    for before, after, body in zip(still.images, moved.images, still.body, strict=True):
        x, y = before[body].double().numpy(), after[body].double().numpy()
        slope, shift = np.polyfit(x, y, 1)
        assert np.allclose(slope * x + shift, y, atol=1e-5)
        assert abs(slope - 1) <= 0.2
        assert abs(shift) <= 0.2
        found.append((slope, shift))
    assert len({round(slope, 6) for slope, _ in found}) == 4


def test_reading_without_jitter_gives_the_cache_as_it_is(make_job: MakeJob) -> None:
    from parametrium.data.crops import Crop

    volume = memory_volume("PET")
    nothing = np.zeros((1, 3), dtype=np.float32)
    batch = read_batch([Crop(volume, 0, 0, (2, 1, 3))], make_job(), (nothing, nothing > 0))
    image, body = volume.read((2, 1, 3), (16, 16, 16))
    assert torch.equal(batch.images[0], torch.from_numpy(image))
    assert torch.equal(batch.body[0], torch.from_numpy(body))
    assert batch.modality.tolist() == [2]


@pytest.mark.parametrize(("text", "number"), [("alpha", 0x8ED3F6AD), ("", 0xE3B0C442)])
def test_the_number_of_a_name_is_the_same_everywhere(text: str, number: int) -> None:
    assert stable_number(text) == number
