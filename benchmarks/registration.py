"""How far registration brings volumes onto each other, and what it refuses, where the truth is known.

    python benchmarks/registration.py --out registration --jobs 2

A phantom cohort of two visits (CT, CBCT, T1, T2, ADC, PET); every volume but the CTs is displaced by about 12 mm and 2
degrees, and the couch of the second visit lies anywhere. The first table has the distance of the organs' centroids to
their place, before and after, by pair of modalities. The second has pairs that must be refused: the next patient, left
and right exchanged, the lower half of the pelvis against the upper one. A run that was stopped goes on from there.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from parametrium.cohort.manifest import Volume
from parametrium.cohort.phantom import write_phantom
from parametrium.cohort.phantom.visit import displacement, setup_pose
from parametrium.cohort.registration import Decision, read_decisions, register_cohort
from parametrium.cohort.registration.scan import GRID_MM, Scan, load_scan
from parametrium.cohort.registration.verdict import judge
from parametrium.cohort.rigid import matrix_of

MODALITIES = ("CT", "CBCT", "T1", "T2", "ADC", "PET")
SEED, SITE, DISPLACED_MM, VISITS = 5, "reg", 12.0, ("s0", "s1")


def pose(patient: str, study: str, modality: str) -> NDArray[np.float64]:
    """[4, 4] body to world of a volume as it was written."""
    key = (SEED, SITE, int(patient[1:]), VISITS.index(study))
    setup = setup_pose(*key)
    moved = displacement(DISPLACED_MM, modality, SEED, SITE, key[2], key[3])
    return setup if modality == MODALITIES[0] else setup @ moved


def organs(cohort: Path, patient: str, study: str) -> NDArray[np.float64]:
    """Centroids of the organs in the body, [4, N]."""
    points = []
    for path in sorted((cohort / patient / study / "masks").glob("*.nii.gz")):
        image = nibabel.load(path)
        points.append(image.affine @ (*ndimage.center_of_mass(np.asarray(image.dataobj)), 1.0))
    return np.linalg.inv(pose(patient, study, MODALITIES[0])) @ np.array(points).T


def errors(cohort: Path, decision: Decision) -> tuple[float, float]:
    """Mean distance of the organs to their place in the target, mm, before and after."""
    names = decision.names
    points = organs(cohort, names["patient"], names["study"])
    there = pose(names["patient"], names["target_study"], names["target_modality"]) @ points
    here = pose(names["patient"], names["study"], names["modality"]) @ points
    moved = matrix_of(decision.moved) @ here
    before, after = (np.linalg.norm((there - place)[:3], axis=0).mean() for place in (here, moved))
    return float(before), float(after)


def true_pairs(cohort: Path) -> None:
    """Prints what became of pairs that belong together."""
    groups: dict[str, list[Decision]] = {}
    for decision in read_decisions(cohort):
        names = decision.names
        days = "one visit" if names["study"] == names["target_study"] else "two visits"
        groups.setdefault(f"{names['modality']} to {names['target_modality']}, {days}", []).append(decision)
    print("| pair | pairs | accepted | before, mm | after, mm: mean | worst | halves, mm: worst | mirrored: worst |")
    print("|---|---|---|---|---|---|---|---|")
    for pair, decisions in groups.items():
        taken = [decision for decision in decisions if decision.verdict.value == "accepted"]
        told = np.array([errors(cohort, decision) for decision in taken]).reshape(-1, 2)
        if not taken:
            print(f"| {pair} | {len(decisions)} | 0 | | | | | |")
            continue
        halves = max(float(decision.numbers["halves_mm"]) for decision in taken)
        ratio = max(mirrored_share(decision) for decision in taken)
        print(
            f"| {pair} | {len(decisions)} | {len(taken)} | {told[:, 0].mean():.1f} | {told[:, 1].mean():.2f} "
            f"| {told[:, 1].max():.2f} | {halves:.1f} | {ratio:.2f} |"
        )
        refused = Counter(decision.verdict.value for decision in decisions if decision not in taken)
        if refused:
            print(f"  refused: {dict(refused)}")


def mirrored_share(decision: Decision) -> float:
    """Information of the mirrored pair as a share of the pair's own."""
    return (float(decision.numbers["metric_mirrored"]) - 1) / (float(decision.numbers["metric_after"]) - 1)


def scan(cohort: Path, patient: int, modality: str) -> Scan:
    """A volume of the first visit."""
    name = f"p{patient:03d}"
    path = cohort / name / "s0" / f"{modality}.nii.gz"
    loaded = load_scan(Volume(name, "s0", 0, modality, path, "f"))
    assert isinstance(loaded, Scan)  # noqa: S101
    return loaded


def half(whole: Scan, *, upper: bool) -> Scan:
    """The planes of the body above or below its middle."""
    middle = whole.image.shape[2] // 2
    planes = (..., slice(middle + 2, None) if upper else slice(0, middle - 2))
    origin = whole.origin + np.array([0.0, 0.0, GRID_MM * (middle + 2) if upper else 0.0])
    return Scan(whole.modality, whole.image[planes], whole.body[planes], whole.seen[planes], origin)


def wrong_pairs(cohort: Path, patients: int) -> Iterator[tuple[str, Scan, Scan]]:
    """Pairs that no rigid transform brings onto each other."""
    for index in range(patients):
        ct = scan(cohort, index, "CT")
        for modality in ("CT", "CBCT", "T2", "ADC", "PET"):
            yield f"{modality} of the next patient to CT", ct, scan(cohort, (index + 1) % patients, modality)
        for modality in ("CBCT", "T2", "ADC", "PET"):
            yield f"{modality} mirrored to CT", ct, scan(cohort, index, modality).mirrored()
        for modality in ("T2", "PET"):
            yield (
                f"upper half of {modality} to lower of CT",
                half(ct, upper=False),
                half(scan(cohort, index, modality), upper=True),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the phantom cohort")
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    cohort: Path = arguments.out
    if not (cohort / "cohort.csv").exists():
        write_phantom(
            cohort,
            patients=arguments.patients,
            modalities=MODALITIES,
            seed=SEED,
            site=SITE,
            studies=len(VISITS),
            misregistration_mm=DISPLACED_MM,
            jobs=arguments.jobs,
        )
    started = time.perf_counter()
    report = register_cohort(
        cohort, jobs=arguments.jobs, progress=lambda done, all_: print(f"{done} of {all_}", flush=True)
    )
    print(f"{report.summary()} in {time.perf_counter() - started:.0f} s\n")
    true_pairs(cohort)
    verdicts: dict[str, Counter[str]] = {}
    spent = []
    for kind, target, moving in wrong_pairs(cohort, arguments.patients):
        before = time.process_time()
        verdicts.setdefault(kind, Counter())[judge(target, moving, 0).verdict.value] += 1
        spent.append(time.process_time() - before)
    print("\n| wrong pair | verdicts |\n|---|---|")
    for kind, counts in verdicts.items():
        print(f"| {kind} | {', '.join(f'{count} {word}' for word, count in counts.most_common())} |")
    print(f"\n{np.mean(spent):.1f} s of one core a pair")


if __name__ == "__main__":
    main()
