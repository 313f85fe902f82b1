"""The page of the objectives is true: its settings, and its example, which is built into a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from parametrium.config import objectives
from parametrium.config.objectives import ObjectiveKind
from parametrium.objectives.registry import OBJECTIVES

HOME = Path(__file__).parent.parent
PAGE = (HOME / "docs" / "objectives.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- (\S+\.py) -->\n```python\n(.*?)```", PAGE, re.DOTALL))

TRAIN = """
import torch
from memory_volumes import memory_patients
from parametrium.config import parse_job
from parametrium.data.loader import CropLoader
from parametrium.model.modality import tensor_owners
from parametrium.objectives.crop_height import heights
from parametrium.objectives.registry import build_model
from parametrium.objectives.schedule import CropPlan
from parametrium.training.round import train_round
from parametrium.training.step import new_state
from parametrium.training.update import check_update
from parametrium.privacy.egress import check_scalars
from parametrium.training.round import tensors_of

torch.set_num_threads(1)
job = parse_job({
    "name": "page", "modalities": ["CT", "T1"], "crop": [8, 8, 8],
    "model": {"patch": 4, "width": 24, "depth": 2, "heads": 2, "decoder_width": 24, "decoder_depth": 1},
    "objectives": [{"kind": "crop_height", "mask_ratio": 0.0}], "batch": {"patients": 8, "foreground_fraction": 0.0},
    "precision": "fp32", "optimiser": {"learning_rate": 0.005}, "rounds": 2, "local_steps": 40,
})
patients = memory_patients([["CT"]] * 6)
for patient in patients:
    for volume in patient.volumes:  # brighter towards the head
        volume.image[:] = 0.1 * volume.image + 0.1 * torch.arange(volume.shape[2]).numpy()
state = new_state(job, torch.device("cpu"))
loader = CropLoader(patients, job, "alpha", CropPlan(job, state.model))
batch = loader[0]["aligned"]
own = heights(batch)
assert own.min() >= 0 and own.max() <= 1 and own.std() > 0.1
first, before = None, tensors_of(state)
for number in range(2):
    update = train_round(state, loader, job, "alpha", number)
    scalars = check_scalars(job, update.scalars)
    if number == 0:
        check_update(update, before, round_number=0)
        assert not any(".T1." in name for name in update.tensors)
        assert update.contributions["objectives.crop_height.head.1.weight"] == update.samples
assert scalars["train/loss/crop_height"] < 0.7 * scalars["train/chance/crop_height"], scalars
print("trained")
"""


def insert(path: Path, pattern: str, text: str) -> None:
    """Puts text after the only match."""
    source = path.read_text(encoding="utf-8")
    changed, count = re.subn(pattern, lambda match: match.group(0) + text, source)
    assert count == 1, f"{path.name}: {pattern}"
    path.write_text(changed, encoding="utf-8")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A copy of the package into which the page's example was added as the page says."""
    package = tmp_path / "parametrium"
    shutil.copytree(HOME / "custom" / "parametrium", package, ignore=shutil.ignore_patterns("__pycache__"))
    assert BLOCKS.keys() == {"config/objectives.py", "objectives/crop_height.py"}
    settings, registry = package / "config" / "objectives.py", package / "objectives" / "registry.py"
    source = settings.read_text(encoding="utf-8")
    place = source.index("ObjectiveConfig = Annotated[")
    settings.write_text(f"{source[:place]}{BLOCKS['config/objectives.py']}\n\n{source[place:]}", encoding="utf-8")
    insert(settings, r"ObjectiveConfig = Annotated\[\s*", "CropHeightConfig | ")
    insert(settings, r"ObjectiveKind = Literal\[\s*", '"crop_height", ')
    (package / "objectives" / "crop_height.py").write_text(BLOCKS["objectives/crop_height.py"], encoding="utf-8")
    insert(registry, r"for objective in \(\s*", "CropHeight, ")
    insert(registry, r"(?m)^from torch import .*\n", "from parametrium.objectives.crop_height import CropHeight\n")
    return tmp_path


def run(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(HOME / "tests")])}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)


def test_the_example_of_the_page_trains_in_a_job(built: Path) -> None:
    result = run("-c", TRAIN, path=built)
    assert result.stdout == "trained\n", result.stderr


def test_the_example_of_the_page_is_in_the_style_of_the_house(built: Path) -> None:
    file = built / "parametrium" / "objectives" / "crop_height.py"
    config = str(HOME / "pyproject.toml")
    for arguments in (("check",), ("format", "--check")):
        result = run("-m", "ruff", *arguments, "--config", config, str(file), path=built)
        assert result.returncode == 0, result.stdout


def test_the_page_names_every_objective_and_every_setting_with_its_default() -> None:
    for kind in get_args(ObjectiveKind):
        assert PAGE.count(f"`{kind}`") >= 3, kind
    assert set(get_args(ObjectiveKind)) == set(OBJECTIVES)
    for name, fields in settings().items():
        for setting, default in fields.items():
            found = re.search(rf"\| `{setting}` \| `?{re.escape(default)}`? \|", PAGE)
            assert found, f"{name}.{setting}, default {default}"


def settings() -> dict[str, dict[str, str]]:
    """Each config class's own settings and defaults as the page writes them."""
    found = {}
    for name, config in vars(objectives).items():
        if name.endswith("Config") and not name.startswith("_") and hasattr(config, "model_fields"):
            own = {key: field for key, field in config.model_fields.items() if key in config.__annotations__}
            found[name] = {key: written(field.default) for key, field in own.items() if key != "kind"}
    return found


def written(default: object) -> str:
    if default is None:
        return "batch.patients"
    return str(list(default)) if isinstance(default, tuple) else str(default)
