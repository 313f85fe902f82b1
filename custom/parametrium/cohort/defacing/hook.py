"""The site's own defacing program, run on one scrubbed volume at a time, and what is believed of its answer.

The program gets a copy of the volume in a private folder, under a name that tells nothing, and a bare environment:
there is no identity that it could pass on. Of what it writes only the voxels are taken, into the volume's own type,
grid and header.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from parametrium.cohort.defacing import keeper
from parametrium.cohort.dicom.body_part import region_of
from parametrium.cohort.dicom.facts import Facts
from parametrium.cohort.intensity import body_mask
from parametrium.cohort.nifti import write_nifti
from parametrium.cohort.volume_file import Stored, VolumeFileError, open_geometry, read_stored, read_voxels
from parametrium.config import DefacingConfig
from parametrium.errors import Code, ConfigError

_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
_SAME_AFFINE = 1e-3  # mm
_SAME_VALUE = 1e-4  # of the volume's range: less, or half a step of its type, is rounding on the way
_TAIL = 4096  # bytes of what the program says that are kept
_LOG_LIMIT = 2**20


class DefacingError(Exception):
    """A volume that was not defaced; the text says why in words of this package only."""


@dataclass(frozen=True)
class Hook:
    """The site's program and where its complaints go; made by ``hook_of``.

    Attributes:
        config: the site's own.
        program: absolute path of what is run.
        log: of runs that failed; for the site's eyes, beside its secret.
    """

    config: DefacingConfig
    program: str
    log: Path

    def concerns(self, facts: Facts) -> bool:
        """Whether a volume with these facts enters the cohort defaced or not at all."""
        if self.config.when == "always":
            return True
        region = region_of(facts, self.config.words)
        return region == "head" or (region == "unknown" and self.config.when == "head_or_unknown")

    def deface(self, volume: Path, modality: str) -> Path:
        """Rewrites a staged volume without its face; gives the mask of what it does not show any more.

        Args:
            volume: ``.nii.gz`` as ``write_nifti`` makes it.
            modality: as in the table.

        Returns:
            A mask beside the volume, True where its voxels are not the patient's own tissue.

        Raises:
            DefacingError: the program failed, or its answer cannot be used; the volume is then as it was.
            OSError: a file cannot be written.
        """
        with tempfile.TemporaryDirectory(dir=volume.parent, prefix="defacing-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            shutil.copyfile(volume, folder / "input.nii.gz")
            self._run(folder, modality)
            before = read_stored(volume)
            after = _answer(folder / "output.nii.gz", before)
        hidden = _hidden(before, after, modality)
        write_nifti(volume, _as_stored(after, before), before.affine, slope=before.slope, intercept=before.intercept)
        mask = volume.with_name(volume.name.replace(".nii", "-defaced.nii"))
        write_nifti(mask, hidden.astype(np.uint8), before.affine)
        return mask

    def _run(self, folder: Path, modality: str) -> None:
        words = {"input": f"{folder}/input.nii.gz", "output": f"{folder}/output.nii.gz", "modality": modality}
        filled = [
            re.sub(r"\{(input|output|modality)\}", lambda found: words[found[1]], part)
            for part in self.config.command[1:]
        ]
        environment = {
            name: os.environ[name] for name in (*_ENVIRONMENT, *self.config.environment) if name in os.environ
        }
        said = b""
        with subprocess.Popen(  # noqa: S603 - the site's own command, as a list, without a shell
            [sys.executable, "-I", "-S", keeper.__file__, str(self.config.timeout_s), self.program, *filled],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment | {"TMPDIR": str(folder)},
            start_new_session=True,
        ) as process:
            pipe = process.stdout.fileno() if process.stdout else -1
            while heard := os.read(pipe, 2**16):
                said = (said + heard)[-_TAIL:]
        causes = {keeper.DONE: "", keeper.LATE: "time limit"}
        cause = causes.get(process.returncode, "the program failed")
        if not cause and not (folder / "output.nii.gz").is_file():
            cause = "nothing written"
        if cause:
            self._note(cause, said)
            raise DefacingError(cause)

    def _note(self, cause: str, said: bytes) -> None:
        handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "wb") as stream:
            if os.fstat(handle).st_size < _LOG_LIMIT:
                stream.write(f"--- {cause}\n".encode() + said + b"\n")


def hook_of(config: DefacingConfig, log: Path) -> Hook:
    """Finds the program; the log of an earlier run is emptied.

    Raises:
        ConfigError: PM103 there is no such program.
    """
    program = shutil.which(config.command[0])
    if program is None:
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE,
            "site.defacing.command: the program is not there or may not be run; name one that is on the PATH, or its "
            "absolute path",
            site_detail=config.command[0],
        )
    log.unlink(missing_ok=True)
    return Hook(config, os.path.abspath(program), log)  # noqa: PTH100 - a link may be what decides how it behaves


def _answer(path: Path, before: Stored) -> NDArray[np.float32]:
    """What the program wrote, on the volume's grid and finite."""
    try:
        geometry = open_geometry(path)
        extent = (*before.voxels.shape, *(1 for _ in geometry.shape[3:]))
        if geometry.shape != extent or not np.allclose(geometry.affine, before.affine, rtol=0, atol=_SAME_AFFINE):
            raise DefacingError("another grid")
        voxels, _ = read_voxels(path)
    except VolumeFileError:
        raise DefacingError("no readable NIfTI file") from None
    if not np.isfinite(voxels).all():
        raise DefacingError("values that are not finite")
    return voxels


def _hidden(before: Stored, after: NDArray[np.float32], modality: str) -> NDArray[np.bool_]:
    """All that is not the patient's own tissue any more: what the program changed, and the air.

    The air belongs to it because a face is the border between the two: where a program sets tissue and air to 0, the
    voxels that it changed are the tissue, and their mask alone would show the face that was taken out.
    """
    values = before.voxels * np.float32(before.slope) + np.float32(before.intercept)
    step = abs(before.slope) if before.voxels.dtype.kind in "iu" else 0.0
    unchanged = np.abs(values - after) <= max(0.51 * step, _SAME_VALUE * float(np.ptp(values)))
    if unchanged.all():
        raise DefacingError("nothing changed")
    # Opened: within what the program filled evenly, single voxels of tissue had that value by chance, and air had not.
    kept: NDArray[np.bool_] = ndimage.binary_opening(_body(after, before.affine, modality) & unchanged)
    if not kept.any():
        raise DefacingError("nothing of the patient is left")
    return ~kept


def _body(voxels: NDArray[np.float32], affine: NDArray[np.float64], modality: str) -> NDArray[np.bool_]:
    """Where the patient is, in the file's own order of axes."""
    turn = io_orientation(affine)
    body = body_mask(np.ascontiguousarray(apply_orientation(voxels, turn)), modality)
    back = io_orientation(inv_ornt_aff(turn, voxels.shape))
    return np.asarray(apply_orientation(body, back))


def _as_stored(after: NDArray[np.float32], before: Stored) -> NDArray[Any]:
    """In the volume's own type and scaling."""
    kind = before.voxels.dtype
    stored: NDArray[Any] = after.astype(np.float32 if kind.itemsize < 4 else np.float64)
    stored = (stored - before.intercept) / before.slope
    if kind.kind in "iu":
        stored = np.rint(stored).clip(np.iinfo(kind).min, np.iinfo(kind).max)
    converted: NDArray[Any] = stored.astype(kind)
    return converted
