"""What form a source has, by looking at it: a few names, a JSON file or two, and the first bytes of some files."""

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from parametrium.cohort.dicom.facts import Source
from parametrium.cohort.dicom.keys import Keys, read_keys
from parametrium.cohort.dicom.walk import walk
from parametrium.cohort.importers.document import read_document
from parametrium.errors import Code, CohortError

FORMS: Mapping[Source, str] = {
    "bids": "BIDS (dataset_description.json, or folders sub-* with anat, pet, ct or ses-*)",
    "nnunet": "nnU-Net v2 (dataset.json with channel_names beside imagesTr)",
    "datalist": "a MONAI datalist (one JSON file with a list training, validation or test of objects with image)",
    "folders": "a folder per patient (subjects.csv)",
    "dicom": "DICOM (any of the first files)",
}
"""What is looked for, in public words."""

LISTS = {"test": "test", "testing": "test", "validation": "test", "validating": "test", "training": "train"}
"""Lists of a datalist and the split of their entries: what somebody held out is not trained on, nor is what stands in
two lists, since the first counts."""

_ENTRIES_LOOKED_AT = 20_000  # names in the top folder
_FOLDERS_LOOKED_INTO = 50
_DOCUMENTS_LOOKED_AT = 20
_FILES_OPENED = 1000  # a viewer on a patient's disc comes with some hundreds of files before the first image
_DATATYPES = ("anat", "pet", "ct", "dwi", "perf", "func")


def recognise(source: Path) -> Source:
    """The form of a source: a folder, or the JSON file of a datalist or of an nnU-Net data set.

    DICOM is looked for only where nothing else is found: other forms often keep their DICOM below them.

    Raises:
        CohortError: PM204 there is no such folder, no form fits, or more than one does.
    """
    if source.is_file():
        found = _forms_of_document(source)
    elif source.is_dir():
        found = _forms_of_folder(source)
    else:
        raise CohortError(Code.COHORT_IMPORT, "the source is neither a folder nor a JSON file", site_detail=str(source))
    if len(found) > 1:
        raise CohortError(
            Code.COHORT_IMPORT,
            f"the source looks like more than one form: {'; and '.join(FORMS[form] for form in found)}. "
            f"Say which it is, e.g. with --as {found[0]}",
            site_detail=str(source),
        )
    if not found and len(datalists_in(source)) > 1:
        raise CohortError(
            Code.COHORT_IMPORT, "the source holds several datalists; give the JSON file itself", site_detail=str(source)
        )
    if not found and not (source.is_dir() and _holds_dicom(source)):
        raise CohortError(
            Code.COHORT_IMPORT,
            f"the source is none of: {'; '.join(FORMS.values())}. Up to {_FILES_OPENED} files were opened; "
            "where it is one of these all the same, say so with --as FORM",
            site_detail=str(source),
        )
    return found[0] if found else "dicom"


def datalists_in(folder: Path) -> list[Path]:
    """JSON files of a folder that are MONAI datalists, by name; only the first few are opened."""
    names = sorted(name for name in _names(folder) if name.lower().endswith(".json") and not name.startswith("."))
    paths = (folder / name for name in names[:_DOCUMENTS_LOOKED_AT])
    return [path for path in paths if path.is_file() and "datalist" in _forms_of_document(path)]


def _forms_of_folder(folder: Path) -> list[Source]:
    looks: dict[Source, bool] = {
        "bids": _looks_like_bids(folder),
        "nnunet": _looks_like_nnunet(folder),
        "datalist": len(datalists_in(folder)) == 1,
        "folders": (folder / "subjects.csv").is_file(),
    }
    return [form for form, fits in looks.items() if fits]


def _forms_of_document(path: Path) -> list[Source]:
    """An nnU-Net data set that keeps MONAI's lists too is nnU-Net's: its folders hold all channels."""
    try:
        document = read_document(path, what="the file")
    except CohortError:
        return []
    if path.name == "dataset.json" and _looks_like_nnunet(path.parent):
        return ["nnunet"]
    entries = [entry for name in LISTS for entry in _entries(document.get(name))]
    return ["datalist"] if any(isinstance(entry, dict) and "image" in entry for entry in entries) else []


def _entries(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _looks_like_bids(folder: Path) -> bool:
    if (folder / "dataset_description.json").is_file():
        return True
    subjects = (folder / name for name in _names(folder) if name.startswith("sub-"))
    return any(
        name in _DATATYPES or name.startswith("ses-")
        for subject in islice((path for path in subjects if path.is_dir()), _FOLDERS_LOOKED_INTO)
        for name in _names(subject)
    )


def _looks_like_nnunet(folder: Path) -> bool:
    if not (folder / "dataset.json").is_file() or not (folder / "imagesTr").is_dir():
        return False
    try:
        return isinstance(read_document(folder / "dataset.json", what="the file").get("channel_names"), dict)
    except CohortError:
        return False


def _holds_dicom(folder: Path) -> bool:
    files = (found for found in walk(folder) if found.reason is None)
    paths = (Path(os.fsdecode(os.path.join(os.fsencode(folder), found.path))) for found in files)  # noqa: PTH118 - bytes
    return any(isinstance(read_keys(path), Keys) for path in islice(paths, _FILES_OPENED))


def _names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in islice(entries, _ENTRIES_LOOKED_AT))
    except OSError:
        return
