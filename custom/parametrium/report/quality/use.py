"""What each objective could use of a cohort: volumes, registered pairs, patients with two modalities."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from parametrium.report.quality.measure import Measured
from parametrium.report.quality.survey import Surveyed
from parametrium.report.tables import Table

ONE_SCAN = "masked reconstruction, templates, latent prediction"
REGISTERED = "cross-modal reconstruction, boxes in another modality"
TWO_MODALITIES = "contrasts between modalities"


def objectives_table(surveyed: Sequence[Surveyed]) -> Table:
    """One row a modality for the objectives of one scan, one row a pair of modalities for those of two.

    As ``data.crops`` draws: volumes of a patient in one frame are registered; contrast pairs a patient's modalities
    whatever their frame.
    """
    usable = [item.volume for item in surveyed if isinstance(item.found, Measured)]
    volumes = Counter(volume.modality for volume in usable)
    holders: dict[str, dict[str, set[str]]] = {}
    frames: dict[tuple[str, str], Counter[str]] = {}
    for volume in usable:
        holders.setdefault(volume.patient, {}).setdefault(volume.modality, set()).add(volume.frame)
        frames.setdefault((volume.patient, volume.frame), Counter())[volume.modality] += 1
    registered: Counter[tuple[str, str]] = Counter()
    aligned: dict[tuple[str, str], set[str]] = {}
    for (patient, _), present in frames.items():
        for a, b in combinations(sorted(present), 2):
            registered[a, b] += present[a] * present[b]
            aligned.setdefault((a, b), set()).add(patient)
    both = Counter(pair for own in holders.values() for pair in combinations(sorted(own), 2))
    patients = Counter(modality for own in holders.values() for modality in own)
    rows = [[ONE_SCAN, name, str(patients[name]), f"{count} volumes"] for name, count in sorted(volumes.items())]
    rows += [
        [REGISTERED, f"{a} and {b}", str(len(aligned[a, b])), f"{count} registered pairs"]
        for (a, b), count in sorted(registered.items())
    ]
    rows += [
        [TWO_MODALITIES, f"{a} and {b}", str(count), f"{count} patients with both"]
        for (a, b), count in sorted(both.items())
        if count > 1
    ]
    note = (
        "Of the volumes that could be read. Registered: of one patient, in one frame. The contrast needs two patients "
        "with the same two modalities, registered or not."
    )
    return Table("By objective", ["objective", "of", "patients", "has"], rows, note, numeric=(2,))
