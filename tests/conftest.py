"""Small things that many tests need: a job, a batch, the public scans beside the checkout."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from parametrium.config import JobConfig, parse_job
from parametrium.data.batch import Batch

# A busy machine is no failure: no example has a deadline, and slow drawing of examples is no fault of the test.
# Every run tries the same examples; HYPOTHESIS_PROFILE=explore tries others, to look for what nobody thought of.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, database=None, **_PATIENT)
settings.register_profile("explore", **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

REAL_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def signals_of_a_terminal() -> Iterator[None]:
    """A runner that was started in the background ignores some signals, and its children would inherit that."""
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        if handler == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def torch_seed() -> None:
    """A test's random tensors do not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    """The folder of public scans; a test that needs it is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("the public scans are not beside this checkout (../shared/data)")
    return REAL_DATA


@pytest.fixture
def make_job() -> Callable[..., JobConfig]:
    """A tiny job; keyword arguments replace its settings."""

    def make(**changes: Any) -> JobConfig:
        job: dict[str, Any] = {
            "name": "tiny",
            "modalities": ["CT", "T1", "PET"],
            "crop": [16, 16, 16],
            "model": {"patch": 4, "width": 24, "depth": 2, "heads": 2, "decoder_width": 24, "decoder_depth": 1},
            "objectives": [{"kind": "masked_reconstruction"}],
            "batch": {"patients": 4},
            "rounds": 2,
            "local_steps": 4,
            "clinical": [
                {"kind": "continuous", "name": "age", "unit": "years", "lower": 18.0, "upper": 100.0, "sigma": 10.0},
                {"kind": "ordinal", "name": "stage", "levels": ["I", "II", "III"]},
                {"kind": "nominal", "name": "histology", "levels": ["a", "b"]},
            ],
        }
        return parse_job({**job, **changes})

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Random crops: ``modalities`` holds one list of modality indices a patient."""

    def make(
        modalities: list[list[int]], *, extent: int = 16, variables: int = 3, aligned: bool = True, seed: int = 0
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        flat = [m for row in modalities for m in row]
        slots = [p for p, row in enumerate(modalities) for _ in row]
        n = len(flat)
        return Batch(
            images=torch.randn(n, extent, extent, extent, generator=generator),
            body=torch.ones(n, extent, extent, extent, dtype=torch.bool),
            patient=torch.tensor(slots),
            modality=torch.tensor(flat),
            frame=torch.tensor(slots) if aligned else torch.arange(n),
            corner=torch.zeros(n, 3, dtype=torch.long),
            box=torch.tensor([[0.0] * 3, [2.0 * extent] * 3]).repeat(n, 1, 1),
            clinical=torch.rand(len(modalities), variables, generator=generator),
            observed=torch.ones(len(modalities), variables, dtype=torch.bool),
            identity=torch.arange(len(modalities)),
        )

    return make
