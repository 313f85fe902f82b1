"""A head to deface, and small real programs that do it, well and badly."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parametrium.config import DefacingConfig

TAKEN_MM = 40.0
"""A good program takes what lies more than this before the middle of the grid."""

_BEGIN = f"""
import os, sys, time
import nibabel
import numpy as np
image = nibabel.load(sys.argv[1])
voxels = np.asarray(image.dataobj, dtype=np.float64)
places = np.moveaxis(np.indices(voxels.shape), 0, -1) @ image.affine[:3, :3].T
places -= (np.array(voxels.shape) - 1) / 2 @ image.affine[:3, :3].T
face = places[..., 1] > {TAKEN_MM}
"""
PROGRAMS = {
    "zero": "voxels[face] = 0\nnibabel.save(nibabel.Nifti1Image(voxels, image.affine), sys.argv[2])",
    "own type": (
        "voxels[face] = 0\nout = nibabel.Nifti1Image(voxels, image.affine, image.header)\n"
        "nibabel.save(out, sys.argv[2])"
    ),
    "text": (
        "voxels[face] = 0\nout = nibabel.Nifti1Image(voxels, image.affine)\nout.header['descrip'] = 'TATTLE descrip'\n"
        "out.header['intent_name'] = out.header['db_name'] = out.header['aux_file'] = 'TATTLE'\n"
        "out.header.extensions.append(nibabel.nifti1.Nifti1Extension('comment', b'TATTLE extension'))\n"
        "nibabel.save(out, sys.argv[2])"
    ),
    "fails": "print('a TATTLE of a complaint')\nsys.exit(3)",
    "hangs": "time.sleep(3600)",
    "nothing": "",
    "unchanged": "nibabel.save(nibabel.Nifti1Image(voxels, image.affine), sys.argv[2])",
    "all zero": "nibabel.save(nibabel.Nifti1Image(0 * voxels, image.affine), sys.argv[2])",
    "rescaled": "nibabel.save(nibabel.Nifti1Image(voxels * 2, image.affine), sys.argv[2])",
    "other shape": "nibabel.save(nibabel.Nifti1Image(voxels[1:], image.affine), sys.argv[2])",
    "more axes": "nibabel.save(nibabel.Nifti1Image(np.stack([voxels] * 2, -1), image.affine), sys.argv[2])",
    "other place": "image.affine[0, 3] += 0.01\nnibabel.save(nibabel.Nifti1Image(voxels, image.affine), sys.argv[2])",
    "not finite": (
        "voxels[face] = 0\nvoxels[0, 0, 0] = np.nan\n"
        "nibabel.save(nibabel.Nifti1Image(voxels, image.affine), sys.argv[2])"
    ),
    "no image": "open(sys.argv[2], 'w').write('no image at all')",
    "a folder": "os.mkdir(sys.argv[2])",
    "a pipe": "os.mkfifo(sys.argv[2])",
}


def program(folder: Path, name: str, *, before: str = "") -> DefacingConfig:
    """Writes a program of ``PROGRAMS`` and gives the site's setting that runs it."""
    path = folder / f"{name.replace(' ', '_')}.py"
    path.write_text(f"{before}\n{_BEGIN}\n{PROGRAMS[name]}\n")
    return setting(path)


def setting(path: Path, *arguments: str, **fields: Any) -> DefacingConfig:
    """A setting that runs a Python script with the two files and what else is asked for."""
    return DefacingConfig(command=(sys.executable, str(path), "{input}", "{output}", *arguments), **fields)


def head(shape: Sequence[int] = (44, 52, 40), step: float = 4.0) -> NDArray[np.int16]:
    """A head with skull, brain and nose in air, HU, on axes right, anterior, superior; air is -1000, exactly."""
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * step for n in shape], indexing="ij")
    radius = np.sqrt((x / 68) ** 2 + (y / 82) ** 2 + (z / 66) ** 2)
    nose = (np.abs(x) < 14) & (y > 60) & (y < 96) & (z > -24) & (z < 12)
    image = np.full(tuple(shape), -1000, dtype=np.int16)
    image[(radius < 1) | nose] = 40
    image[(radius > 0.8) & (radius < 0.92)] = 800
    noise = np.random.default_rng(0).integers(-12, 13, image.shape)
    image[image > -1000] += noise[image > -1000].astype(np.int16)
    return image
