"""What each preset costs: parameters, arithmetic, memory of training, and the time of a step.

    python benchmarks/encoder_cost.py                          # arithmetic and memory, this machine's CPU
    python benchmarks/encoder_cost.py --time tiny small        # and step times, by schedule

Arithmetic is counted by torch while it runs, windowed and with every block global (``--crop`` and mask ratio as said);
that of a forward pass is for one crop, that of Muon for one step, however many crops it has.
Memory is what the backward pass keeps: every tensor that autograd saved, each storage once, without the parameters,
under bf16 autocast as on a GPU; it is measured for one crop and grows in proportion to the crops. To it come weights,
gradients and the optimiser's moments in fp32: 12 bytes a parameter of the blocks' matrices (Muon has one moment), 16 of
the others (AdamW has two). A GPU's workspace and fragmentation are not in it.
On a GPU the time table also has the share of the card's bf16 peak (``--peak`` in TFLOP/s), with and without compile.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from parametrium.config import JobConfig, OptimiserConfig, parse_job
from parametrium.data.batch import Batch
from parametrium.data.loader import Batches
from parametrium.model.encoder import Encoder
from parametrium.model.masking import draw_mask
from parametrium.model.presets import PRESETS, Architecture
from parametrium.training.optim import block_matrices, build_optimiser
from parametrium.training.step import TrainState, new_state, train_step

SPACING = (1.5, 1.5, 1.5)
OBJECTIVES = ("masked_reconstruction", "cross_modal_reconstruction", "soft_contrastive")


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


def kept_bytes(shape: Architecture, crop: int, ratio: float, checkpointing: bool) -> int:
    """Bytes that the backward pass of one crop keeps."""
    encoder = Encoder(("CT",), replace(shape, drop_path=0.0)).train()
    encoder.activation_checkpointing = checkpointing
    parameters = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    volume, modality = torch.randn(1, crop, crop, crop), torch.tensor([0])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        encoded = encoder.encode(volume, modality, SPACING, visible_of(shape, crop, ratio))
    del encoded
    return sum(kept.values())


def resident_bytes(encoder: Encoder) -> int:
    """Weights, gradients and moments of an encoder."""
    everything = sum(parameter.numel() for parameter in encoder.parameters())
    return 16 * everything - 4 * sum(matrix.numel() for matrix in block_matrices(encoder))


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
                (resident + batch * kept_bytes(shape, crop, ratio, checkpointing)) / 1e9
                for checkpointing in (False, True)
            ]
            cells = [name, f"{ratio:g}", f"{millions:.1f}", *(f"{m:.1f}" for m in macs), *(f"{m:.1f}" for m in memory)]
            print(f"| {' | '.join(cells)} |", flush=True)


def job_of(preset: str, schedule: str, crop: int, batch: int) -> JobConfig:
    """All objectives, two modalities of every patient."""
    return parse_job(
        {
            "name": "cost",
            "modalities": ["CT", "T2"],
            "crop": [crop] * 3,
            "model": {"preset": preset},
            "schedule": schedule,
            "precision": "auto",
            "objectives": [{"kind": kind} for kind in OBJECTIVES],
            "batch": {"patients": batch // 2, "volumes_per_patient": 2},
            "clinical": [
                {"kind": "continuous", "name": "age", "unit": "years", "lower": 0.0, "upper": 99.0, "sigma": 9.0}
            ],
        }
    )


def batches_of(job: JobConfig, device: torch.device) -> Batches:
    """Noise in the layouts that the job's objectives ask for."""
    patients, edge = job.batch.patients, job.crop[0]

    def layout(crops: int) -> Batch:
        n = patients * crops
        patient = torch.arange(patients).repeat_interleave(crops)
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
        ).to(device)

    contrast = next(o for o in job.objectives if o.kind == "soft_contrastive")
    return {"aligned": layout(2), "contrast": layout(2 * contrast.crops)}  # type: ignore[union-attr]


def step_seconds(state: TrainState, batches: Batches, job: JobConfig, steps: int) -> list[float]:
    """Seconds of each step after a warm-up through every objective."""
    times = []
    for step in range(len(OBJECTIVES) + steps):
        if state.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        train_step(state, batches, job, "cost")
        if state.device.type == "cuda":
            torch.cuda.synchronize()
        if step >= len(OBJECTIVES):
            times.append(time.perf_counter() - started)
    return times


def time_table(presets: list[str], crop: int, batch: int, steps: int, peak: float | None, compiled: bool) -> None:
    """Prints the time of a step by preset and schedule."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{name}; crops of {crop}^3, {batch} crops, all objectives" + (", compiled" if compiled else ""))
    print("| preset | schedule | s a step, median (quartiles) | TFLOP/s | of peak | peak memory, GB |")
    print("|---|---|---|---|---|---|")
    for preset in presets:
        for schedule in ("cyclic", "summed"):
            job = job_of(preset, schedule, crop, batch)
            state, batches = new_state(job, device), batches_of(job, device)
            with (
                sdpa_kernel(SDPBackend.MATH),
                FlopCounterMode(display=False) as counter,
            ):  # counted over one turn of every objective
                for _ in range(1 if schedule == "summed" else len(OBJECTIVES)):
                    train_step(state, batches, job, "cost")
            flops = counter.get_total_flops() / (1 if schedule == "summed" else len(OBJECTIVES))
            if compiled:
                state.model.encoder.compile()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times = step_seconds(state, batches, job, steps)
            memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
            rate = flops / statistics.mean(times) / 1e12
            low, middle, high = statistics.quantiles(times, n=4)
            share = f"{rate / peak:.0%}" if peak else ""
            print(
                f"| {preset} | {schedule} | {middle:.2f} ({low:.2f}-{high:.2f}) | {rate:.2f} | {share} | {memory:.1f} |"
            )


def main() -> None:
    """Prints the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8, help="crops")
    parser.add_argument("--time", nargs="*", choices=list(PRESETS), default=[], help="presets whose steps are timed")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--peak", type=float, default=None, help="the card's bf16 peak, TFLOP/s")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    memory_table(arguments.crop, arguments.batch)
    if arguments.time:
        time_table(arguments.time, arguments.crop, arguments.batch, arguments.steps, arguments.peak, arguments.compile)


if __name__ == "__main__":
    main()
