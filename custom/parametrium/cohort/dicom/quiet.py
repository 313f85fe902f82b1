"""Libraries that say nothing: their warnings and log lines hold header values."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config

_LOGGERS = ("pydicom", "highdicom", "pylibjpeg", "nibabel.global", "nibabel.nicom")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences pydicom and what it calls, and lets it read values that break the standard.

    Everything that touches a DICOM file runs inside it. It changes the process: it is for workers, not for threads.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    mode = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)  # their children ask them for a level, but not whether they are off
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode = mode
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
