"""What a physicist would notice about a new cohort: conventions of storage that no header tells."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from parametrium.cohort.volume_file import VolumeFileError, read_voxels

_CT_PROBED = 3  # a convention of storage is the whole source's, so a few volumes tell it


def advice(rows: Sequence[Mapping[str, str]], *, rescaled: Collection[str]) -> Iterator[str]:
    """Sentences about the rows of a new cohort table, each with its remedy; none names a patient or a file.

    Args:
        rows: of cohort.csv.
        rescaled: modalities that the site rescales.
    """
    present = {row["modality"] for row in rows}
    for modality in sorted(set(rescaled) - present):
        yield f"--rescale {modality}: the source has no such modality"
    frames = Counter(
        (patient, study) for patient, study, _ in {(row["patient"], row["study"], row["frame"]) for row in rows}
    )
    apart = len({patient for (patient, _), count in frames.items() if count > 1})
    if apart:
        yield (
            f"{apart} patients have volumes on different grids, taken as not registered to each other; "
            "where they are, give them the same frame in cohort.csv"
        )
    plain = [row for row in rows if row["modality"] == "CT" and "CT" not in rescaled]
    if any(_never_negative(Path(row["path"])) for row in plain[:_CT_PROBED]):
        yield (
            "CT has no value below 0, so it is not in HU as stored; where it is HU + 1000, import again with "
            "--rescale CT=1,-1000"
        )


def _never_negative(path: Path) -> bool:
    try:
        return float(read_voxels(path)[0].min()) >= 0.0
    except VolumeFileError:  # damaged files are reported when the cohort is read and prepared
        return False
