"""Importing DICOM with de-identification, beside dcm2niix's plain conversion of the same folder, in one run.

    python benchmarks/dicom_import.py                    # a phantom export, drawn for this
    python benchmarks/dicom_import.py --source FOLDER    # a folder of DICOM

The import reads every header, decides what is an image volume and of which modality, rescales to HU, SUV or
mm2/s, writes scrubbed NIfTI files, masks, sidecars and tables, and keeps a private index. dcm2niix converts all series
and names them by number; it de-identifies nothing here (``-b n`` leaves its sidecars out). Both write gzip, both use
one process, and they take turns. The second column is the import run again over an unchanged folder.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dcm2niix

from parametrium.cohort.importers.dicom import import_dicom
from parametrium.cohort.phantom.dicom import write_phantom_dicom


def megabytes(folder: Path) -> float:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def seconds(run: Callable[[], object]) -> float:
    """Wall time."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=None)
    parser.add_argument("--patients", type=int, default=4, help="of the phantom export")
    parser.add_argument("--jobs", type=int, default=1, help="processes of the import; dcm2niix has one")
    parser.add_argument("--rounds", type=int, default=5, help="paired repetitions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        source = arguments.source
        if source is None:
            source = place / "export"
            write_phantom_dicom(source, patients=arguments.patients, modalities=["CT", "T2", "PET"], seed=0)
        size = megabytes(source)
        command = [dcm2niix.bin, "-z", "y", "-b", "n", "-f", "%s", "-o", str(place / "peer"), str(source)]
        rows: list[tuple[float, float, float]] = []
        for _ in range(arguments.rounds):
            for name in ("peer", "cohort"):
                shutil.rmtree(place / name, ignore_errors=True)
            for leftover in place.glob("secret*"):
                leftover.unlink()
            (place / "peer").mkdir()

            def imported() -> None:
                import_dicom(source, place / "cohort", secret=place / "secret", jobs=arguments.jobs)

            first, again = seconds(imported), seconds(imported)
            other = seconds(lambda: subprocess.run(command, check=False, capture_output=True))
            rows.append((first, again, other))
    own, again, other = (statistics.median(column) for column in zip(*rows, strict=True))
    low, middle, high = statistics.quantiles((theirs / mine for mine, _, theirs in rows), n=4)
    print(f"{size:.0f} MB of DICOM, {arguments.jobs} process(es)")
    print("| import, MB/s | again, unchanged, s | dcm2niix, MB/s | ratio, median (quartiles) |")
    print("|---|---|---|---|")
    print(f"| {size / own:.1f} | {again:.1f} | {size / other:.1f} | {middle:.2f} ({low:.2f}-{high:.2f}) |")


if __name__ == "__main__":
    main()
