"""One training step of masked reconstruction beside MONAI's MaskedAutoEncoderViT, in one run.

    make bench                                  # the shapes below on this machine's CPU (or GPU, where there is one)
    python benchmarks/training_step.py --shapes small --rounds 20

Both do forward, backward and an AdamW step on the same random crops at the same width, depth, heads, crop, patch, mask
ratio and batch, fp32 and (where the device gains from it) bf16 autocast. They take turns, so that a noisy machine is
noisy for both; the table gives the median of the paired ratios with its quartiles. The decoders have the same width,
depth and heads, but differ by design: MONAI's decodes all patches with self-attention, ours lets the masked patches ask
the visible ones. The last columns: MONAI's arithmetic over ours, which is what the ratio can reach when both use the
machine equally well (the encoders are the same size, so it is not large where the encoder is most of the work), and our
own arithmetic (2 x multiply-adds, backward counted twice) per second as a share of the fp32 matrix product measured in
the same run.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from monai.networks.nets import MaskedAutoEncoderViT

from parametrium.config import JobConfig, parse_job
from parametrium.data.batch import Batch
from parametrium.training.step import autocast, new_state, train_step


class Shape(NamedTuple):
    """Sizes of one comparison."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    crop: int
    patch: int
    batch: int


SHAPES = {
    "tiny": Shape(96, 4, 3, 96, 2, 3, crop=48, patch=8, batch=8),
    "small": Shape(384, 12, 6, 192, 4, 6, crop=96, patch=8, batch=2),
    "small-48": Shape(384, 12, 6, 192, 4, 6, crop=48, patch=8, batch=8),
}
MASK_RATIO = 0.75


def job_of(shape: Shape) -> JobConfig:
    """The job that trains this shape with masked reconstruction alone."""
    return parse_job(
        {
            "name": "benchmark",
            "modalities": ["T1"],
            "crop": [shape.crop] * 3,
            "model": {
                "preset": "tiny" if shape.width < 384 else "small",
                "patch": shape.patch,
                "width": shape.width,
                "depth": shape.depth,
                "heads": shape.heads,
                "decoder_width": shape.decoder_width,
                "decoder_depth": shape.decoder_depth,
            },
            "objectives": [{"kind": "masked_reconstruction", "mask_ratio": MASK_RATIO}],
        }
    )


def ours(shape: Shape, device: torch.device) -> Callable[[], None]:
    """A closure that trains one step of Parametrium."""
    job = job_of(shape)
    state = new_state(job, device)
    n = shape.batch
    images = torch.randn(n, shape.crop, shape.crop, shape.crop)
    zeros = torch.zeros(n, dtype=torch.long)
    batch = Batch(
        images=images,
        body=torch.ones_like(images, dtype=torch.bool),
        patient=torch.arange(n),
        modality=zeros,
        frame=torch.arange(n),
        corner=torch.zeros(n, 3, dtype=torch.long),
        box=torch.zeros(n, 2, 3),
        clinical=torch.zeros(n, 0),
        observed=torch.zeros(n, 0, dtype=torch.bool),
        identity=torch.arange(n),
    ).to(device)

    def step() -> None:
        state.step = 0
        train_step(state, {"aligned": batch}, job, "benchmark")

    return step


def peer(shape: Shape, device: torch.device) -> Callable[[], None]:
    """A closure that trains one step of MONAI's masked autoencoder, masked voxels only, with the same optimiser."""
    model = MaskedAutoEncoderViT(
        in_channels=1,
        img_size=(shape.crop,) * 3,
        patch_size=(shape.patch,) * 3,
        hidden_size=shape.width,
        mlp_dim=4 * shape.width,
        num_layers=shape.depth,
        num_heads=shape.heads,
        masking_ratio=MASK_RATIO,
        decoder_hidden_size=shape.decoder_width,
        decoder_mlp_dim=4 * shape.decoder_width,
        decoder_num_layers=shape.decoder_depth,
        decoder_num_heads=shape.decoder_heads,
        spatial_dims=3,
    ).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images = torch.randn(shape.batch, 1, shape.crop, shape.crop, shape.crop, device=device)
    p, grid = shape.patch, shape.crop // shape.patch
    target = (
        images.reshape(shape.batch, grid, p, grid, p, grid, p).permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
    )

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast("auto", device):
            predicted, mask = model(images)
        error = (predicted.float() - target).square().mean(-1)
        loss = (error * mask).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Wall time of one step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def matrix_rate(device: torch.device, size: int = 1536) -> float:
    """Floating-point operations per second of a square fp32 matrix product, best of 10."""
    a, b = torch.randn(2, size, size, device=device)
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def operations(shape: Shape) -> float:
    """Floating-point operations of one of our steps: multiply-adds twice, backward twice the forward."""
    L, K, V = _patches(shape)
    Q, G = L - K, shape.decoder_width
    extras = 1 + (2 if shape.width < 384 else 4)
    decoder = K * shape.width * G + shape.decoder_depth * (10 * Q * G * G + 2 * K * G * G + 2 * Q * K * G) + Q * G * V
    return 3 * 2 * shape.batch * (K * V * shape.width + _blocks(K + extras, shape.width, shape.depth) + decoder)


def peer_operations(shape: Shape) -> float:
    """The same for MONAI's: all patches are embedded, and all pass the decoder's self-attention and the voxel head."""
    L, K, V = _patches(shape)
    G = shape.decoder_width
    decoder = (K + 1) * shape.width * G + _blocks(L + 1, G, shape.decoder_depth) + L * G * V
    return 3 * 2 * shape.batch * (L * V * shape.width + _blocks(K + 1, shape.width, shape.depth) + decoder)


def _patches(shape: Shape) -> tuple[int, int, int]:
    """Patches of a crop, visible ones, voxels of a patch."""
    patches = (shape.crop // shape.patch) ** 3
    return patches, round(patches * (1 - MASK_RATIO)), shape.patch**3


def _blocks(tokens: int, width: int, depth: int) -> int:
    """Multiply-adds of self-attention blocks with an MLP of four times the width."""
    return depth * (12 * tokens * width * width + 2 * tokens * tokens * width)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["tiny", "small-48", "small"])
    parser.add_argument("--rounds", type=int, default=12, help="paired repetitions")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matrix_rate(device)
    print(f"{device.type}, {arguments.threads} thread(s); fp32 matrix product {rate / 1e9:.0f} GFLOP/s")
    print(
        "| shape | ours, volumes/s | MONAI, volumes/s | ratio, median (quartiles) | operations, MONAI / ours "
        "| share of the matrix product |"
    )
    print("|---|---|---|---|---|---|")
    for name in arguments.shapes:
        shape = SHAPES[name]
        own, other = ours(shape, device), peer(shape, device)
        for step in (own, other, own, other):
            step()
        pairs = [(seconds(own, device), seconds(other, device)) for _ in range(arguments.rounds)]
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        low, middle, high = statistics.quantiles((b / a for a, b in pairs), n=4)
        share = operations(shape) / mine / rate
        print(
            f"| {name} | {shape.batch / mine:.1f} | {shape.batch / theirs:.1f} "
            f"| {middle:.2f} ({low:.2f}-{high:.2f}) | {peer_operations(shape) / operations(shape):.2f} "
            f"| {100 * share:.0f} % |"
        )


if __name__ == "__main__":
    main()
