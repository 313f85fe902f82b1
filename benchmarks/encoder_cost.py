"""What each preset costs: parameters, arithmetic, memory of training, and the time of a step.

    python benchmarks/encoder_cost.py                      # arithmetic and memory of the encoder, this machine's CPU
    python benchmarks/encoder_cost.py --objectives base    # and memory of each objective with its heads
    python benchmarks/encoder_cost.py --time tiny small    # and step times and memory, by schedule

Arithmetic is counted by torch while it runs, windowed and with every block global (``--crop`` and mask ratio as said);
that of a forward pass is for one crop, that of Muon for one step, however many crops it has.
Memory is what the backward pass keeps: every tensor that autograd saved, each storage once, without the parameters,
under bf16 autocast as on a GPU; it is measured for two sizes of a batch, and what does not grow with it (the weights
in bf16) is counted once. To it come weights, gradients and the optimiser's moments in fp32: 12 bytes a parameter of the
blocks' matrices (Muon has one moment), 16 of the others (AdamW has two). A GPU's workspace and fragmentation are not
in it.
The time table has the largest memory that a step took: of the process on a CPU, as torch counts it on a GPU; and what
forward and backward pass compute a second, without the optimiser's own products, on a GPU as a share of the card's bf16
peak (``--peak`` in TFLOP/s), with and without compile. Every row is measured in a process of its own.
"""

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from parametrium.config import JobConfig, OptimiserConfig, parse_job
from parametrium.data.batch import Batch, CropRequest
from parametrium.data.loader import Batches
from parametrium.model.attention import DropPath
from parametrium.model.encoder import Encoder
from parametrium.model.masking import draw_mask
from parametrium.model.presets import PRESETS, Architecture
from parametrium.objectives.registry import OBJECTIVES, PretrainingModel, build_model
from parametrium.objectives.schedule import CropPlan
from parametrium.training.optim import block_matrices, build_optimiser
from parametrium.training.step import TrainState, new_state, train_step

SPACING = (1.5, 1.5, 1.5)
OBJECTIVES_TIMED = ("masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive")


def visible_of(shape: Architecture, crop: int, ratio: float) -> torch.Tensor:
    """One crop's visible patches."""
    grid = (crop // shape.patch,) * 3
    return draw_mask(1, grid, ratio, torch.Generator().manual_seed(0))[0]


def arithmetic(shape: Architecture, crop: int, ratio: float) -> float:
    """Multiply-adds of one crop's forward pass, in billions."""
    encoder = Encoder(("CT",), shape).eval()
    volume, modality = torch.randn(1, crop, crop, crop), torch.tensor([0])
    # The plain attention: of the fused one for CPUs the counter knows nothing.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder.encode(volume, modality, SPACING, visible_of(shape, crop, ratio))
    return counter.get_total_flops() / 2e9


def kept_bytes(module: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that the backward pass of ``forward`` keeps, without the module's parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that held its own output would never be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        alive = forward()
    del alive
    return sum(kept.values())


def grown(measure: Callable[[int], int], sizes: tuple[int, int], size: int) -> float:
    """What ``measure`` would be at ``size``, from two sizes: a part that grows with it, and one that does not."""
    few, more = (measure(n) for n in sizes)
    return few + (more - few) / (sizes[1] - sizes[0]) * (size - sizes[0])


def encoder_bytes(shape: Architecture, crop: int, ratio: float, checkpointing: bool, batch: int) -> float:
    """What the encoder's backward pass of a batch keeps."""
    encoder = Encoder(("CT",), replace(shape, drop_path=0.0)).train()
    encoder.activation_checkpointing = checkpointing

    def kept(n: int) -> int:
        volumes, modality = torch.randn(n, crop, crop, crop), torch.zeros(n, dtype=torch.long)
        visible = visible_of(shape, crop, ratio).expand(n, -1)
        return kept_bytes(encoder, lambda: encoder.encode(volumes, modality, SPACING, visible))

    return grown(kept, (1, 2), batch)


def resident_bytes(module: nn.Module) -> int:
    """Weights, gradients and moments."""
    everything = sum(parameter.numel() for parameter in module.parameters())
    return 16 * everything - 4 * sum(matrix.numel() for matrix in block_matrices(module))


def optimiser_arithmetic(encoder: Encoder) -> float:
    """Multiply-adds of the optimiser's step, in billions: Muon's products, whose cost no batch changes."""
    for parameter in encoder.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser = build_optimiser(encoder, OptimiserConfig())
    with FlopCounterMode(display=False) as counter:
        optimiser.step()
    return counter.get_total_flops() / 2e9


def memory_table(crop: int, batch: int) -> None:
    """Prints parameters, arithmetic and memory of the presets."""
    print(f"one crop of {crop}^3, patch 8; memory of training at a batch of {batch} crops")
    columns = ("GMAC windowed", "GMAC all global", "GMAC of Muon", "GB", "GB with checkpointing")
    print(f"| preset | mask | parameters, M | {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    for name, shape in PRESETS.items():
        encoder = Encoder(("CT",), shape)
        millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
        resident, products = resident_bytes(encoder), optimiser_arithmetic(encoder)
        for ratio in (0.75, 0.0):
            everywhere = arithmetic(replace(shape, global_every=1), crop, ratio)
            macs = arithmetic(shape, crop, ratio), everywhere, products
            memory = [
                (resident + encoder_bytes(shape, crop, ratio, checkpointing, batch)) / 1e9
                for checkpointing in (False, True)
            ]
            cells = [name, f"{ratio:g}", f"{millions:.1f}", *(f"{m:.1f}" for m in macs), *(f"{m:.1f}" for m in memory)]
            print(f"| {' | '.join(cells)} |", flush=True)


def objective_table(preset: str, crop: int, batch: int) -> None:
    """Prints what training each objective alone needs: its encoder, its heads, its crops."""
    print(f"\n{preset}: {batch // 2} patients of two modalities, crops of {crop}^3")
    print("| objective | crops | parameters, M | GB | GB with checkpointing |\n|---|---|---|---|---|")
    for kind in sorted(OBJECTIVES.keys() - {"text_contrastive"}):  # that needs texts; it encodes as soft_contrastive
        trained_by = ("template_reconstruction",) if kind == "modality_contrastive" else ()
        job = job_of(preset, "cyclic", crop, batch, (kind, *trained_by))
        model = build_model(job).train()
        (request,) = CropPlan(job, model)(0)
        memory = [objective_bytes(model, kind, request, job, checkpointing) / 1e9 for checkpointing in (False, True)]
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        cells = f"{crops_of(request)} | {millions:.1f} | {memory[0]:.1f} | {memory[1]:.1f}"
        print(f"| {kind} | {cells} |", flush=True)


def objective_bytes(
    model: PretrainingModel, kind: str, request: CropRequest, job: JobConfig, checkpointing: bool
) -> float:
    """Weights, gradients, moments, a teacher where there is one, and what the backward pass keeps."""
    objective, model.encoder.activation_checkpointing = model.objective(kind), checkpointing
    for module in model.modules():
        if isinstance(module, DropPath):
            module.probability = 0.0  # which branches it drops is chance
    objective.begin_round(model.encoder, 0)
    teacher = sum(tensor.nbytes for tensor in objective.kept().values())

    def kept(patients: int) -> int:
        noise = batch_of(request._replace(patients=patients), job)
        return kept_bytes(model, lambda: objective(model.encoder, noise, torch.Generator().manual_seed(0)))

    return resident_bytes(model) + teacher + grown(kept, (2, 3), request.patients)


def job_of(preset: str, schedule: str, crop: int, batch: int, kinds: Sequence[str] = OBJECTIVES_TIMED) -> JobConfig:
    """These objectives, two modalities of every patient."""
    return parse_job(
        {
            "name": "cost",
            "modalities": ["CT", "T2"],
            "crop": [crop] * 3,
            "model": {"preset": preset},
            "schedule": schedule,
            "precision": "auto",
            "objectives": [{"kind": kind} for kind in kinds],
            "batch": {"patients": batch // 2, "volumes_per_patient": 2},
            "clinical": [
                {"kind": "continuous", "name": "age", "unit": "years", "lower": 0.0, "upper": 99.0, "sigma": 9.0}
            ],
        }
    )


def crops_of(request: CropRequest) -> int:
    """How many crops a request reads."""
    return request.patients * (request.volumes if request.layout == "aligned" else 2 * request.crops)


def batch_of(request: CropRequest, job: JobConfig) -> Batch:
    """Noise as an objective asks for it."""
    patients, n, edge = request.patients, crops_of(request), job.crop[0]
    patient = torch.arange(patients).repeat_interleave(n // patients)
    return Batch(
        images=torch.randn(n, edge, edge, edge),
        body=torch.ones(n, edge, edge, edge, dtype=torch.bool),
        patient=patient,
        modality=torch.arange(n) % 2,
        frame=patient,
        corner=torch.zeros(n, 3, dtype=torch.long),
        box=torch.tensor([[0.0] * 3, [2.0 * edge] * 3]).repeat(n, 1, 1),
        clinical=torch.rand(patients, 1),
        observed=torch.ones(patients, 1, dtype=torch.bool),
        identity=torch.arange(patients),
    )


def step_seconds(state: TrainState, batches: Batches, job: JobConfig, steps: int) -> list[float]:
    """Seconds of each step after a warm-up through every objective."""
    times = []
    for step in range(len(OBJECTIVES_TIMED) + steps):
        if state.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        train_step(state, batches, job, "cost")
        if state.device.type == "cuda":
            torch.cuda.synchronize()
        if step >= len(OBJECTIVES_TIMED):
            times.append(time.perf_counter() - started)
    return times


def largest_resident_bytes() -> int:
    """Of this process since it began; ``getrusage`` would give that of the process which started it, if larger."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def time_row(preset: str, schedule: str, arguments: argparse.Namespace) -> str:
    """Times steps, then counts what forward and backward pass of a step compute, on average over the objectives."""
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    job = job_of(preset, schedule, arguments.crop, arguments.batch)
    state = new_state(job, device)
    requests = CropPlan(job.model_copy(update={"schedule": "summed"}), state.model)(0)
    batches = {request.layout: batch_of(request, job).to(device) for request in requests}
    if arguments.compile:
        state.model.encoder.compile()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    turns = 1 if schedule == "summed" else len(OBJECTIVES_TIMED)
    # Whole turns, so that time and arithmetic are of the same mix of objectives.
    times = step_seconds(state, batches, job, math.ceil(arguments.steps / turns) * turns)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
    else:
        memory = largest_resident_bytes() / 1e9
    # The plain attention: of the fused one for CPUs the counter knows nothing. Muon's products are not the model's.
    plain = new_state(job, device)
    with (
        sdpa_kernel(SDPBackend.MATH),
        mock.patch.object(plain.optimiser, "step"),
        FlopCounterMode(display=False) as counter,
    ):
        for _ in range(turns):
            train_step(plain, batches, job, "cost")
    rate = counter.get_total_flops() / turns / statistics.fmean(times) / 1e12
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else (math.nan, times[0], math.nan)
    share = f"{rate / arguments.peak:.0%}" if arguments.peak else ""
    crops = " + ".join(str(crops_of(request)) for request in requests)
    seconds = f"{middle:.2f} ({low:.2f}-{high:.2f})"
    return f"| {preset} | {schedule} | {crops} | {seconds} | {rate:.3f} | {share} | {memory:.1f} |"


def time_table(arguments: argparse.Namespace) -> None:
    """Prints the time and the memory of a step by preset and schedule."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {arguments.threads} threads"
    compiled = ", compiled" if arguments.compile else ""
    print(f"\n{name}; crops of {arguments.crop}^3; {', '.join(OBJECTIVES_TIMED)}{compiled}")
    print("| preset | schedule | crops (aligned + contrast) | s a step, median (quartiles) | TFLOP/s | of peak | GB |")
    print("|---|---|---|---|---|---|---|")
    for preset in arguments.time:
        for schedule in ("cyclic", "summed"):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                print(fresh.submit(time_row, preset, schedule, arguments).result(), flush=True)


def main() -> None:
    """Prints the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8, help="crops")
    parser.add_argument("--objectives", nargs="*", choices=list(PRESETS), default=[], help="presets, by objective")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--time", nargs="*", choices=list(PRESETS), default=[], help="presets whose steps are timed")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--peak", type=float, default=None, help="the card's bf16 peak, TFLOP/s")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    memory_table(arguments.crop, arguments.batch)
    for preset in arguments.objectives:
        objective_table(preset, arguments.crop, arguments.batch)
    if arguments.time:
        time_table(arguments)


if __name__ == "__main__":
    main()
