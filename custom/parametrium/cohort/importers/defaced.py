"""What earlier imports into a cohort mean for defacing in this one."""

from pathlib import Path

from parametrium.cohort.importers.conversion import read_sidecar
from parametrium.cohort.importers.ledger import Ledger
from parametrium.config import DefacingConfig
from parametrium.errors import Code, CohortError

_DEFACED = """
SELECT 1 FROM masks m JOIN volumes v ON m.volume = v.id AND m.series = v.series
JOIN studies t ON v.study = t.id JOIN patients p ON t.patient = p.id WHERE p.cohort = ? LIMIT 1
"""
_VOLUMES = """
SELECT v.path FROM volumes v JOIN studies t ON v.study = t.id JOIN patients p ON t.patient = p.id WHERE p.cohort = ?
"""


def require_defacing(ledger: Ledger, defacing: DefacingConfig | None) -> None:
    """A site config that was left out of a command must not bring the faces back.

    Raises:
        CohortError: PM204 a volume of the cohort is defaced, and this import would not deface.
    """
    if defacing is None and ledger.store.execute(_DEFACED, (ledger.cohort,)).fetchone():
        raise CohortError(
            Code.COHORT_IMPORT,
            "this cohort's head scans are defaced and this import sets no defacing; name the site config that does "
            "(--site-config), or import into a new folder",
        )


def not_defaced(ledger: Ledger, folder: Path, defacing: DefacingConfig) -> int:
    """How many volumes an earlier import did not ask for a face, as this one does, and this one did not convert."""
    enough = (True,) if defacing.when == "always" else (True, False)
    paths = ledger.store.execute(_VOLUMES, (ledger.cohort,))
    return sum(read_sidecar(folder / path).get("defaced") not in enough for (path,) in paths)
