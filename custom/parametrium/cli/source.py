"""What a source holds, where no importer recognised it: as a rule a small mistake with a plain remedy."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from parametrium.cohort.importers.recognise import recognise
from parametrium.cohort.volume_file import SUFFIXES
from parametrium.errors import Code, CohortError

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".7z", ".rar")
_NAMES = 20_000  # looked at


def form_of(source: Path) -> str:
    """The form of a source, as the importers recognise it.

    Raises:
        CohortError: PM204 there is no such source, or no form fits; with what the source holds instead, and what helps.
    """
    if not source.exists():
        raise CohortError(
            Code.COHORT_IMPORT, "there is no such source; see whether its path is right", site_detail=str(source)
        )
    try:
        return recognise(source)
    except CohortError as error:
        told = _what_helps(source)
        if not told:
            raise
        raise CohortError(error.code, told, site_detail=str(source)) from error


def _what_helps(source: Path) -> str:
    names = list(islice(_file_names(source), _NAMES))
    archives = sum(name.endswith(_ARCHIVES) for name in names)
    volumes = sum(name.endswith(tuple(SUFFIXES)) for name in names)
    if not names:
        return "the source holds no file" if source.is_dir() else ""
    if archives == len(names):
        return f"the source holds nothing but archives ({archives}); unpack them and import the folder"
    if volumes and source.is_dir() and not (source / "dataset.json").exists():
        return (
            f"the source holds {volumes} volume files and nothing that says whose they are; give each patient a folder "
            "with one file a modality, named like CT.nii.gz, and list the folders in subjects.csv (column subject)"
        )
    return ""


def _file_names(source: Path) -> Iterator[str]:
    for _, _, names in os.walk(source):
        yield from (name.lower() for name in names)
