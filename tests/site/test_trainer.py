"""One site's trainer: a bad cohort is reported and left out, a round can be repeated, a local run is deterministic."""

import csv
import json
import math
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cohort_files import ct, row, save, write_rows
from parametrium.config import JobConfig, OptimiserConfig, PolicyConfig, SiteConfig, TextConfig
from parametrium.data.loader import Batches, CropLoader
from parametrium.errors import PolicyError, TrainingError
from parametrium.objectives.registry import initial_tensors
from parametrium.site import moments
from parametrium.site.local import train_locally
from parametrium.site.trainer import SiteTrainer
from parametrium.training.aggregation import aggregate
from parametrium.training.checkpoint import TENSORS, checkpoint_names
from parametrium.training.run_folder import final_model, judge, read_lines
from parametrium.training.update import Update, check_update

MakeJob = Callable[..., JobConfig]

KINDS = ("masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive")


@pytest.fixture
def small_job(make_job: MakeJob) -> MakeJob:
    """All objectives on CT and T1, small enough for many rounds."""

    def make(**changes: Any) -> JobConfig:
        settings = {
            "modalities": ["CT", "T1"],
            "objectives": [{"kind": kind} for kind in KINDS],
            "precision": "fp32",
            "crop": [8, 8, 8],
            "rounds": 4,
            "evaluation": {"crops": 2, "pictures": False, "holdout_fraction": 0.0},
        }
        return make_job(**(settings | changes))

    return make


def good_rows(folder: Path, patients: int, first: int = 0) -> list[dict[str, str]]:
    """A CT and a registered T1 of each."""
    return [
        row(f"good{p}", save(folder / f"{m}{p}.nii.gz", ct(seed=2 * p + n)), modality=m)
        for p in range(first, first + patients)
        for n, m in enumerate(("CT", "T1"))
    ]


def clinical_rows(patients: list[str]) -> list[dict[str, str]]:
    return [{"patient": name, "age": str(40 + n), "stage": "II", "histology": "a"} for n, name in enumerate(patients)]


def site_at(folder: Path, **settings: Any) -> SiteConfig:
    folders = {key: str(folder / key) for key in ("cohort", "cache", "state")}
    return SiteConfig(site="alpha", threads=torch.get_num_threads(), **(folders | settings))


@pytest.fixture(scope="module")
def good_site(tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    """Six good patients with clinical rows."""
    folder = tmp_path_factory.mktemp("site")
    rows = good_rows(folder / "cohort", 6)
    write_rows(folder / "cohort" / "cohort.csv", rows)
    write_rows(folder / "cohort" / "clinical.csv", clinical_rows([f"good{p}" for p in range(6)]))
    return site_at(folder)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def all_finite(tensors: dict[str, Tensor], scalars: dict[str, float]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors.values()) and all(map(math.isfinite, scalars.values()))


# ----------------------------------------------------------------------------------------------------- a bad cohort


def bad_rows(folder: Path) -> Iterator[tuple[dict[str, str], str]]:
    """One patient for every fault, with the reason that is expected."""

    def fault(name: str, image: Any, reason: str, **cells: str) -> tuple[dict[str, str], str]:
        return row(name, save(folder / f"{name}.nii.gz", image), **cells), reason

    garbage = folder / "garbage.nii.gz"
    garbage.write_bytes(b"\x1f\x8b" + bytes(range(256)))
    yield row("garbage", garbage), "unreadable"
    cut = save(folder / "cut.nii.gz", ct(seed=90))
    cut.write_bytes(cut.read_bytes()[:5000])  # the header is whole, the voxels are not
    yield row("cut", cut), "unreadable"
    yield fault("fourth", np.stack([ct(), ct()], axis=-1), "not_3d")
    yield fault("zero", np.zeros((24, 22, 20), dtype=np.float32), "all_zero")
    spoilt = ct(seed=91)
    spoilt[3, 4, 5] = np.nan
    yield fault("nan", spoilt, "not_finite")
    yield fault("slice", ct((24, 22, 1)), "one_slice")
    yield fault("unknown", ct(seed=92), "unknown_modality", modality="US")


@pytest.fixture
def bad_site(tmp_path: Path) -> tuple[SiteConfig, Counter[tuple[str, str, str]]]:
    """Eight good patients, one for every fault, and two who lose only a part: one volume, or the clinical row."""
    folder = tmp_path / "cohort"
    rows = good_rows(folder, 8)
    expected: Counter[tuple[str, str, str]] = Counter()
    for bad, reason in bad_rows(folder):
        rows.insert(0, bad)
        expected[bad["patient"], bad["modality"], reason] += 1
    blank = save(folder / "blank.nii.gz", np.zeros((24, 22, 20), dtype=np.float32))
    rows.append(row("good0", blank, modality="T1", study="s2", frame="f2"))
    expected["good0", "T1", "all_zero"] += 1
    rows += [row("rowless", save(folder / "rowless.nii.gz", ct(seed=93)))]
    expected["rowless", "", "no_clinical_row"] += 1
    held_out = ("good6", "good7")
    rows = [cells | {"split": "test" if cells["patient"] in held_out else "train"} for cells in rows]
    write_rows(folder / "cohort.csv", rows)
    named = dict.fromkeys(cells["patient"] for cells in rows)
    write_rows(folder / "clinical.csv", clinical_rows([name for name in named if name != "rowless"]))
    return site_at(tmp_path), expected


def test_a_bad_cohort_is_reported_by_pseudonym_and_reason_and_the_good_patients_train_on(
    bad_site: tuple[SiteConfig, Counter[tuple[str, str, str]]], small_job: MakeJob
) -> None:
    site, expected = bad_site
    job = small_job()
    trainer = SiteTrainer(job, site, "run", Path(site.state))
    facts = trainer.open()

    report = Path(site.state) / "problems.csv"
    with report.open(newline="") as stream:
        found = Counter((cells["patient"], cells["modality"], cells["reason"]) for cells in csv.DictReader(stream))
    assert found == expected
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert site.cohort not in report.read_text()
    counted = {name.removeprefix("site/problems/"): n for name, n in facts.items() if name.startswith("site/problems/")}
    assert counted == Counter(reason for _, _, reason in expected.elements())

    assert {patient.name for patient in trainer.training} == {*(f"good{p}" for p in range(6)), "rowless"}
    assert {patient.name for patient in trainer.held_out} == {"good6", "good7"}
    assert (facts["site/patients"], facts["site/held_out_patients"]) == (7, 2)

    model = initial_tensors(job)
    measured = trainer.evaluate(0, model, final=False)
    update = trainer.train(0, model)
    check_update(update, model, round_number=0)
    after = aggregate(model, [update])
    measured |= trainer.evaluate(1, after, final=True)
    trainer.close()
    assert {f"train/loss/{kind}" for kind in KINDS} <= update.scalars.keys()
    assert all_finite(update.tensors, update.scalars | measured | facts)
    assert all_finite(after, {})
    assert measured


def test_a_site_with_too_few_patients_still_reports_what_is_wrong_with_the_others(
    bad_site: tuple[SiteConfig, Counter[tuple[str, str, str]]], small_job: MakeJob
) -> None:
    site, expected = bad_site
    strict = site.model_copy(update={"policy": PolicyConfig(minimum_patients=8)})
    with pytest.raises(PolicyError, match="PM601"):
        SiteTrainer(small_job(), strict, "run", Path(site.state)).open()
    assert len((Path(site.state) / "problems.csv").read_text().splitlines()) == 1 + expected.total()


# ----------------------------------------------------------------------------------------------- rounds done again


def opened(job: JobConfig, site: SiteConfig, state: Path, run: str = "run") -> SiteTrainer:
    trainer = SiteTrainer(job, site, run, state)
    trainer.open()
    return trainer


def rounds(trainer: SiteTrainer, model: dict[str, Tensor], numbers: range) -> tuple[dict[str, Tensor], list[Update]]:
    updates = []
    for number in numbers:
        updates.append(trainer.train(number, model))
        model = aggregate(model, updates[-1:])
    return model, updates


@pytest.mark.parametrize("restarted", [True, False])
@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_round_that_is_asked_for_again_gives_the_same_update_to_the_bit(
    good_site: SiteConfig, small_job: MakeJob, tmp_path: Path, restarted: bool, last: int
) -> None:
    job = small_job()
    trainer = opened(job, good_site, tmp_path)
    before, _ = rounds(trainer, initial_tensors(job), range(last))
    first = trainer.train(last, before)
    if restarted:
        trainer.close()
        trainer = opened(job, good_site, tmp_path)
    again = trainer.train(last, before)
    assert same(again.tensors, first.tensors)
    after = aggregate(before, [first])
    through = trainer.train(last + 1, after)
    trainer.close()
    undisturbed = opened(job, good_site, tmp_path / "other")
    _, updates = rounds(undisturbed, initial_tensors(job), range(last + 2))
    undisturbed.close()
    assert same(through.tensors, updates[-1].tensors)


def test_without_the_moments_of_the_round_before_the_replay_would_differ(
    good_site: SiteConfig, small_job: MakeJob, tmp_path: Path
) -> None:
    """The control of the test above."""
    job = small_job()
    trainer = opened(job, good_site, tmp_path)
    before, _ = rounds(trainer, initial_tensors(job), range(1))
    first = trainer.train(1, before)
    trainer.close()
    fresh = opened(job, good_site, tmp_path / "other")
    assert not same(fresh.train(1, before).tensors, first.tensors)
    fresh.close()


def test_consecutive_rounds_of_one_process_read_nothing_and_keep_two_rounds(
    good_site: SiteConfig, small_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(folder: Path) -> None:
        raise AssertionError("nothing is to be read")

    monkeypatch.setattr(moments, "load_checkpoint", never)
    job = small_job()
    trainer = opened(job, good_site, tmp_path)
    rounds(trainer, initial_tensors(job), range(4))
    trainer.close()
    assert checkpoint_names(tmp_path / "optimiser") == {"round_0002", "round_0003"}


def test_a_site_that_missed_rounds_goes_on_with_its_newest_older_moments(
    good_site: SiteConfig, small_job: MakeJob, tmp_path: Path
) -> None:
    job = small_job(rounds=8)
    trainer = opened(job, good_site, tmp_path)
    model, _ = rounds(trainer, initial_tensors(job), range(2))
    stayed = trainer.train(6, model)
    trainer.close()
    assert checkpoint_names(tmp_path / "optimiser") == {"round_0001", "round_0006"}
    restarted = opened(job, good_site, tmp_path)
    assert same(restarted.train(6, model).tensors, stayed.tensors)
    restarted.close()


def test_moments_of_an_abandoned_past_are_dropped(good_site: SiteConfig, small_job: MakeJob, tmp_path: Path) -> None:
    """The server lost rounds 1 to 3 and asks for round 1 again; then the site misses round 2."""
    job = small_job(rounds=8)
    trainer = opened(job, good_site, tmp_path)
    model, _ = rounds(trainer, initial_tensors(job), range(4))
    trainer.train(1, model)
    assert checkpoint_names(tmp_path / "optimiser") == {"round_0001"}
    after = trainer.train(3, model)
    trainer.close()
    restarted = opened(job, good_site, tmp_path)
    assert same(restarted.train(3, model).tensors, after.tensors)
    restarted.close()


def test_another_run_starts_with_fresh_moments(good_site: SiteConfig, small_job: MakeJob, tmp_path: Path) -> None:
    job = small_job()
    trainer = opened(job, good_site, tmp_path)
    model, _ = rounds(trainer, initial_tensors(job), range(1))
    trainer.close()
    other = opened(job, good_site, tmp_path, run="other")
    fresh = opened(job, good_site, tmp_path / "fresh")
    assert same(other.train(1, model).tensors, fresh.train(1, model).tensors)
    other.close()
    fresh.close()


def test_a_round_that_failed_leaves_no_trace_in_the_next(
    good_site: SiteConfig, small_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job()
    trainer = opened(job, good_site, tmp_path)
    model, _ = rounds(trainer, initial_tensors(job), range(1))
    draw = CropLoader.steps

    def spoilt(self: CropLoader, start: int, stop: int) -> Iterator[Batches]:
        for step, batches in enumerate(draw(self, start, stop)):
            for batch in batches.values():
                batch.images[:] = float("nan") if step == 2 else batch.images
            yield batches

    with monkeypatch.context() as patch:
        patch.setattr(CropLoader, "steps", spoilt)
        with pytest.raises(TrainingError, match="PM402"):
            trainer.train(1, model)
    after = trainer.train(1, model)
    trainer.close()
    undisturbed = opened(job, good_site, tmp_path / "other")
    _, updates = rounds(undisturbed, initial_tensors(job), range(2))
    undisturbed.close()
    assert same(after.tensors, updates[1].tensors)


def test_damaged_moments_are_refused(good_site: SiteConfig, small_job: MakeJob, tmp_path: Path) -> None:
    job = small_job()
    trainer = opened(job, good_site, tmp_path)
    model, _ = rounds(trainer, initial_tensors(job), range(1))
    trainer.close()
    saved = tmp_path / "optimiser" / "round_0000" / TENSORS
    saved.write_bytes(saved.read_bytes()[:-1])
    restarted = opened(job, good_site, tmp_path)
    with pytest.raises(TrainingError, match="PM403") as caught:
        restarted.train(1, model)
    restarted.close()
    assert str(tmp_path) not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- local runs


def test_a_local_run_is_deterministic(good_site: SiteConfig, small_job: MakeJob, tmp_path: Path) -> None:
    job = small_job(rounds=2, evaluation={"crops": 2, "pictures": False, "holdout_fraction": 0.3, "every": 1})
    site = good_site.model_copy(update={"policy": PolicyConfig(minimum_patients=2)})
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        fresh = site.model_copy(update={"cache": str(tmp_path / f"cache{noise}")})
        runs.append(train_locally(job, fresh, tmp_path / f"run{noise}"))
    assert judge(runs[0]) == judge(runs[1]) == (True, [])
    assert same(final_model(runs[0]), final_model(runs[1]))
    assert not same(final_model(runs[0]), initial_tensors(job))
    for name in ("rounds.jsonl", "evaluation.jsonl"):
        assert timeless(runs[0] / name) == timeless(runs[1] / name)
    assert (runs[0] / "contributions.csv").read_text() == (runs[1] / "contributions.csv").read_text()


def timeless(path: Path) -> list[Any]:
    """The records of a file without what a clock told."""
    lines = read_lines(path)
    assert lines
    for line in lines:
        line.pop("seconds", None)
    return [json.loads(json.dumps(line), object_hook=without_seconds) for line in lines]


def without_seconds(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "train/seconds"}


def rounds_of(job: JobConfig, folder: Path, name: str, **how: bool) -> dict[str, Tensor]:
    """The tensors that one round changed, as the site's trainer is set."""
    places = {"cohort": str(folder), "cache": str(folder.parent / "cache"), "state": str(folder.parent / name)}
    permitted = tuple(objective.kind for objective in job.objectives)
    policy = PolicyConfig(minimum_patients=1, minimum_local_steps=1, objectives=permitted)
    site = SiteConfig(site="clinic", **places, policy=policy, **how)
    trainer = SiteTrainer(job, site, job.name, Path(site.state))
    trainer.open()
    tensors = trainer.train(0, initial_tensors(job)).tensors
    trainer.close()
    return tensors


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_checkpointing_and_compiling_train_the_same_model(small_job: MakeJob, tmp_path: Path) -> None:
    """In two windows an axis; latent prediction encodes a whole crop, and contexts of changing size."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    write_rows(folder / "cohort.csv", good_rows(folder, 3))
    job = small_job(objectives=[{"kind": "latent_prediction"}], local_steps=1, crop=[20] * 3)
    plain = rounds_of(job, folder, "plain")
    again = rounds_of(job, folder, "again", activation_checkpointing=True)
    assert plain.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in plain.items())
    if shutil.which("g++"):
        # Under AdamW: Muon makes the directions in which a gradient is no more than rounding as long as the others.
        job = job.model_copy(update={"optimiser": OptimiserConfig(matrix_learning_rate=None)})
        plain = rounds_of(job, folder, "plain under AdamW")
        compiled = rounds_of(job, folder, "compiled", compile=True)
        assert torch._dynamo.config.recompile_limit > 8, "what all objectives together need"
        assert all(torch.allclose(compiled[name], tensor, atol=2e-4) for name, tensor in plain.items())


@pytest.mark.filterwarnings("ignore")
def test_a_site_without_a_compiler_is_told_before_the_first_round(
    small_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cohort"
    folder.mkdir()
    write_rows(folder / "cohort.csv", good_rows(folder, 3))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    torch._dynamo.reset()
    with pytest.raises(TrainingError, match=r"PM404.*C\+\+ compiler"):
        rounds_of(small_job(), folder, "none", compile=True)


def test_a_local_run_whose_round_has_nothing_to_train_on_stops_and_says_so(
    good_site: SiteConfig, small_job: MakeJob, tmp_path: Path
) -> None:
    objectives = [{"kind": "masked_reconstruction"}, {"kind": "text_contrastive", "turns": 3}]  # and no text encoder
    job = small_job(objectives=objectives, rounds=2, local_steps=2)
    kinds = ("masked_reconstruction", "text_contrastive")
    policy = PolicyConfig(minimum_patients=1, minimum_local_steps=1, objectives=kinds)
    own = good_site.model_copy(update={"policy": policy})
    with pytest.raises(
        TrainingError, match=r"PM302 round 1: at this site this round's objectives found nothing .*; .* fewer turns"
    ):
        train_locally(job, own, tmp_path / "run")
    assert judge(tmp_path / "run")[0] is False
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["rounds_done"] == 1


def test_a_round_that_trained_in_fewer_steps_than_the_policy_permits_is_not_sent(
    good_site: SiteConfig, small_job: MakeJob, tmp_path: Path
) -> None:
    """The job asks for four steps, of which one alone finds something: its update would be one gradient."""
    objectives = [{"kind": "masked_reconstruction"}, {"kind": "text_contrastive", "turns": 3}]
    job = small_job(objectives=objectives, rounds=1, local_steps=4)
    kinds = ("masked_reconstruction", "text_contrastive")
    for permitted, sent in ((1, True), (2, False)):
        policy = PolicyConfig(minimum_patients=1, minimum_local_steps=permitted, objectives=kinds)
        trainer = SiteTrainer(job, good_site.model_copy(update={"policy": policy}), "r", tmp_path / str(permitted))
        trainer.open()
        update = trainer.train(0, initial_tensors(job))
        trainer.close()
        assert update.idle is not sent
        assert set(update.steps.values()) == ({1} if sent else set())
        assert (update.scalars == {}) is not sent


def test_a_rule_ends_a_local_run_and_its_best_round_is_measured_in_full(
    good_site: SiteConfig, small_job: MakeJob, tmp_path: Path
) -> None:
    """So high a learning rate cannot lower the held-out loss in every round."""
    evaluation = {"every": 1, "crops": 1, "pictures": False, "holdout_fraction": 0.5}
    job = small_job(
        rounds=12, optimiser={"learning_rate": 0.3}, evaluation=evaluation, stopping={"held_out_loss": {"patience": 1}}
    )
    few = good_site.model_copy(update={"policy": PolicyConfig(minimum_patients=1, minimum_local_steps=1)})
    run = train_locally(job, few, tmp_path / "run")
    assert judge(run) == (True, [])
    manifest = json.loads((run / "manifest.json").read_text())
    done, best = manifest["rounds_done"], manifest["best_round"]
    assert best < done < 12
    assert manifest["stopped"]["rule"] == "held_out_loss"
    lines = read_lines(run / "evaluation.jsonl")
    total = {
        line["round"]: sum(v for k, v in line["scalars"].items() if k.startswith("evaluation/loss/"))
        for line in lines
        if line["round"] > 0
    }
    assert min(total, key=lambda number: total[number]) == best
    assert total[done] > total[best]
    assert lines[-1]["round"] == best
    assert any("retrieval" in name for name in lines[-1]["scalars"])
    assert not any("retrieval" in name for line in lines[:-1] for name in line["scalars"])
    fitting = [line["scalars"] for line in lines if line["round"] == best]
    assert all(fitting[1][name] == value for name, value in fitting[0].items())  # the checkpoint is that model


# ------------------------------------------------------------------------------------------------------------ texts


def word_counts(texts: list[str]) -> np.ndarray:
    """A site's text encoder for these tests: which of a few letters a text has how often."""
    return np.array([[text.count(letter) + 0.1 for letter in "12345678"] for text in texts])


def test_a_site_with_texts_trains_on_them_and_one_without_sends_nothing_of_it(
    good_site: SiteConfig, small_job: MakeJob, tmp_path: Path
) -> None:
    text = {"kind": "text_contrastive", "channels": 8, "crops": 1}
    job = small_job(objectives=[{"kind": "masked_reconstruction"}, text], schedule="summed")
    policy = PolicyConfig(objectives=("masked_reconstruction", "text_contrastive"))
    encoder = TextConfig(encoder=f"{__name__}:word_counts")
    counted = {}
    for name, config in (("with", encoder), ("without", None)):
        site = good_site.model_copy(update={"text": config, "policy": policy})
        trainer = opened(job, site, tmp_path / name)
        update = trainer.train(0, initial_tensors(job))
        trainer.close()
        counted[name] = {n: k for n, k in update.contributions.items() if n.startswith("objectives.text")}
        assert ("train/loss/text_contrastive" in update.scalars) is (config is not None)
    assert not any(counted["without"].values())
    assert all(count > 0 for count in counted["with"].values())
    assert any("text_projector" in tensor for tensor in counted["with"])
