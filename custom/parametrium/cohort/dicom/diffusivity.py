"""The unit of an ADC map, brought to 1e-6 mm2/s."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PLAUSIBLE = (100.0, 5000.0)  # median over tissue in 1e-6 mm2/s: below fibrous tissue's, above free water's
_FACTORS = (1.0, 1e3, 1e6)  # from 1e-6, 1e-3 and 1 mm2/s; the plausible ranges of the three do not touch
_UNITS = {
    "UM2/S": 1.0,
    "10*-6.MM2/S": 1.0,
    "10-6.MM2/S": 1.0,
    "10^-6 MM2/S": 1.0,
    "1E-6 MM2/S": 1.0,
    "10*-3.MM2/S": 1e3,
    "10-3.MM2/S": 1e3,
    "10^-3 MM2/S": 1e3,
    "1E-3 MM2/S": 1e3,
    "MM2/S": 1e6,
}
_SAMPLE = 2**20


def adc_factor(stored: NDArray[Any], slope: float, intercept: float, unit: str) -> float | None:
    """What the values must be multiplied with; None where that cannot be told.

    The unit that the header names is believed where it makes the tissue's diffusivity plausible; scanners that name
    none, or another than they write, are told by the range of their values.

    Args:
        stored: [I, J, K]; value = slope * stored + intercept.
        slope: see stored.
        intercept: see stored.
        unit: as the header names it, upper case.
    """
    sample = stored.ravel(order="K")[:: max(1, stored.size // _SAMPLE)] * float(slope) + intercept
    tissue = sample[sample > 0]
    if not tissue.size:
        return None
    median = float(np.median(tissue))
    named = _UNITS.get(unit.replace("²", "2"))
    candidates = ((named,) if named else ()) + _FACTORS
    return next((factor for factor in candidates if _PLAUSIBLE[0] <= factor * median <= _PLAUSIBLE[1]), None)
