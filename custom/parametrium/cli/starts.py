"""The command that makes a run's start of weights from elsewhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

from parametrium.cli.options import AsJson, JobFile, example
from parametrium.cli.printing import answer, print_counts, say
from parametrium.config import load_job

MOST_NAMES = 12
"""Names of a list that are printed; --json and the checkpoint's description have all."""

starts_app = typer.Typer()


@starts_app.command(
    "warm-start", epilog=example("warm-start model.safetensors jobs/pretrain.yaml --channels T1,T2 --out starts/one")
)
def warm_start(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="a run, a checkpoint, .safetensors, .pt or .pth")],
    job_file: JobFile,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="the start that is written; must not exist")],
    channels: Annotated[
        str, typer.Option("--channels", metavar="LIST", help="modality of each input channel of the source, by comma")
    ] = "",
    prefix: Annotated[
        str | None, typer.Option("--prefix", metavar="TEXT", help="what stands before the encoder's names")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a job's model from other weights: ours, MONAI's ViT family, a timm-like 3D ViT; says what became of each.

    Give what it writes to train or simulate as --start, or put it into the server's folder of starts under the job's
    name. A pickle is read for its tensors only; nothing in it is run.
    """
    from parametrium.training.warm_start.start import save_start
    from parametrium.training.warm_start.transfer import transfer
    from parametrium.training.warm_start.weights import read_weights

    job = load_job(job_file)
    names = [name.strip() for name in channels.split(",")] if channels else []
    tensors, report = transfer(job, read_weights(source), channels=names, prefix=prefix)
    save_start(out, job, tensors, report)
    data = report.as_json()
    answer({"start": str(out), **data}, as_json, lambda: _show(data, out))


def _show(data: dict[str, Any], out: Path) -> None:
    kinds = ("loaded", "resized", "adapted", "missing", "left")
    say(f"recognised as {data['source']}")
    print_counts("tensors", {kind: len(data[kind]) for kind in kinds})
    for kind in ("resized", "adapted"):
        _list(kind, [f"{name}: {origin['how']}" for name, origin in data[kind].items()])
    _list("missing: ours, with the job's own initial values", data["missing"])
    _list("left: the source's, without counterpart", data["left"])
    for note in data["notes"]:
        say(f"note: {note}")
    say(str(out))


def _list(title: str, lines: list[str]) -> None:
    if lines:
        say(title)
    for line in lines[:MOST_NAMES]:
        say(f"  {line}")
    if len(lines) > MOST_NAMES:
        say(f"  and {len(lines) - MOST_NAMES} more; --json lists all")
