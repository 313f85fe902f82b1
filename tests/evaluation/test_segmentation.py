"""Fine-tuning for segmentation: labels on the lattice, crops that match, networks that learn."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from cohort_files import ct, grid_affine, row, save, write_rows
from parametrium.cohort.manifest import read_cohort
from parametrium.config import JobConfig, PreparationConfig
from parametrium.data.cache import PreparedPatient
from parametrium.data.labels import label_map
from parametrium.data.prepare import prepare_cohort
from parametrium.evaluation import segmentation
from parametrium.evaluation.segmentation import (
    FineTuning,
    Labelled,
    Segmenter,
    dice_scores,
    fine_tune,
    segmenter_of,
    small_cnn,
)
from parametrium.model.encoder import Encoder
from parametrium.model.presets import PRESETS
from parametrium.objectives.registry import build_model

MM = (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> PreparedPatient:
    """A CT on the lattice, and two masks: one on the CT's grid, one on a finer, shifted grid of the same frame."""
    folder = tmp_path_factory.mktemp("labels")
    affine = grid_affine(MM, (-60.0, 30.0, 0.0))
    save(folder / "x.nii.gz", ct((40, 38, 36)), affine)
    box = np.zeros((40, 38, 36), dtype=np.float32)
    box[12:20, 14:20, 10:18] = 1
    save(folder / "box.nii.gz", box, affine)
    fine = np.zeros((60, 60, 60), dtype=np.float32)
    fine[20:40, 20:40, 20:40] = 1
    save(folder / "fine.nii.gz", fine, grid_affine((1.5, 1.5, 1.5), (-36.0, 57.0, 15.0)))
    write_rows(folder / "cohort.csv", [row("p", "x.nii.gz")])
    (folder / "masks.csv").write_text(
        "patient,study,structure,path,frame\n"
        "p,s1,organ,box.nii.gz,f1\np,s1,tumour,fine.nii.gz,f1\np,s1,elsewhere,box.nii.gz,f9\n"
    )
    cohort = prepare_cohort(read_cohort(folder, ("CT",)), PreparationConfig(spacing_mm=MM), folder / "cache")
    return cohort.patients[0]


def test_masks_lie_where_their_files_put_them(patient: PreparedPatient) -> None:
    (volume,) = patient.volumes
    labels = label_map(patient, volume, ("organ", "tumour"), MM)
    alone = label_map(patient, volume, ("organ",), MM)
    assert labels is not None
    assert alone is not None
    assert labels.shape == alone.shape == volume.shape
    places = np.argwhere(alone == 1) + volume.offset
    assert places.min(0).tolist() == [-20 + 12, 10 + 14, 0 + 10]
    assert places.max(0).tolist() == [-20 + 19, 10 + 19, 0 + 17]
    assert len(places) == 8 * 6 * 8
    assert ((labels == 1) == ((alone == 1) & (labels != 2))).all()  # the later structure has what both cover
    tumour = (np.argwhere(labels == 2) + volume.offset) * 3.0
    centre = np.array([-36.0, 57.0, 15.0]) + 29.5 * 1.5
    np.testing.assert_allclose((tumour.min(0) + tumour.max(0)) / 2, centre, atol=1.6)
    assert (labels == 2).sum() == pytest.approx(20**3 / 8, rel=0.2)


def test_a_structure_that_is_not_drawn_in_the_frame_gives_no_labels(patient: PreparedPatient) -> None:
    (volume,) = patient.volumes
    assert label_map(patient, volume, ("organ", "elsewhere"), MM) is None
    assert label_map(patient, volume, ("organ", "bladder"), MM) is None


def blobs(count: int, edge: int = 20) -> list[Labelled]:
    """A bright ball (1) and a dark cube (2) at random places in noise."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        image = rng.normal(0, 0.3, (edge,) * 3).astype(np.float32)
        labels = np.zeros((edge,) * 3, dtype=np.uint8)
        a, b = rng.integers(5, edge - 5, 3), rng.integers(4, edge - 4, 3)
        cube = tuple(slice(int(x) - 3, int(x) + 3) for x in b)
        labels[cube] = 2
        ball = sum((g - c) ** 2 for g, c in zip(np.ogrid[:edge, :edge, :edge], a, strict=True)) <= 16
        labels[ball] = 1
        image[labels == 1] += 2
        image[labels == 2] -= 2
        made.append(Labelled(image, labels))
    return made


def segmenter(patch: int = 4, pretrained: bool = False) -> Segmenter:
    torch.manual_seed(0)
    shape = replace(PRESETS["tiny"], patch=patch, width=24, depth=2, heads=2)
    return Segmenter(Encoder(("CT", "T2"), shape), 1, MM, 2, pretrained)


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_networks_learn_and_find_what_they_were_shown(name: str) -> None:
    torch.manual_seed(0)
    network = segmenter() if name == "vit" else small_cnn(2)
    samples = blobs(6)
    how = FineTuning(crop=(16, 16, 16), steps=40, batch=2, rate=5e-3)
    untrained = dice_scores(network, samples[4:], ("ball", "cube"), how)
    losses = fine_tune(network, samples[:4], how, seed=0)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    found = dice_scores(network, samples[4:], ("ball", "cube"), how)
    assert {len(scores) for scores in found.values()} == {2}
    assert np.mean([*found["ball"], *found["cube"]]) > 0.5 > np.mean([*untrained["ball"], *untrained["cube"]])


def test_bf16_is_used_where_it_is_asked_for_and_learns_the_same() -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        network, seen = segmenter(), set()
        network.head.register_forward_hook(lambda _, inputs, output, seen=seen: seen.add(output.dtype))
        how = FineTuning(crop=(16, 16, 16), steps=6, batch=2, precision=precision)  # type: ignore[arg-type]
        losses[precision] = fine_tune(network, blobs(2), how, seed=0)
        dice_scores(network, blobs(1), ("ball", "cube"), how)
        assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_the_encoder_rests_while_the_decoder_comes_first() -> None:
    network = segmenter()
    before = {name: tensor.clone() for name, tensor in network.encoder.named_parameters()}
    fine_tune(network, blobs(2), FineTuning(crop=(16, 16, 16), steps=4, batch=1, decoder_first=1.0), seed=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.encoder.named_parameters())
    fine_tune(network, blobs(2), FineTuning(crop=(16, 16, 16), steps=4, batch=1, decoder_first=0.5), seed=0)
    moved = [name for name, tensor in network.encoder.named_parameters() if not torch.equal(before[name], tensor)]
    assert any(name.startswith("patch_embed.of.T2") for name in moved)
    assert not any("of.CT" in name for name in moved)


def test_the_blocks_of_a_pretrained_encoder_move_less_than_those_of_a_fresh_one() -> None:
    how = FineTuning(crop=(16, 16, 16), steps=1, batch=1, matrix_rate=0.02, kept_rate=0.005, weight_decay=0.0)
    steps = {}
    for pretrained in (False, True):
        network = segmenter(pretrained=pretrained)
        before = {name: tensor.clone() for name, tensor in network.named_parameters()}
        fine_tune(network, blobs(2), how, seed=0)
        steps[pretrained] = {name: tensor.detach() - before[name] for name, tensor in network.named_parameters()}
    for name, step in steps[False].items():
        matrix = ".blocks." in f".{name}" and step.ndim == 2
        assert torch.allclose(steps[True][name], step * (0.25 if matrix else 1.0), atol=1e-7)
    assert any(step.abs().max() > 1e-3 for name, step in steps[False].items() if "blocks" in name)


def test_a_decoder_that_is_taken_over_has_a_rate_of_its_own(make_job: Callable[..., JobConfig]) -> None:
    job = make_job(objectives=[{"kind": "cross_modal_synthesis"}], modalities=["CT", "T2"])
    how = FineTuning(crop=(16, 16, 16), steps=1, batch=1, rate=0.004, kept_decoder_rate=0.001, weight_decay=0.0)
    steps = []
    for taken_over in (False, True):
        network = segmenter_of(job, "T2", 2, build_model(job))
        assert network.taken_over == (network.decoder, network.stem)
        network.taken_over = network.taken_over if taken_over else ()
        before = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
        torch.manual_seed(0)
        fine_tune(network, blobs(2), how, seed=0)
        steps.append({name: tensor.detach() - before[name] for name, tensor in network.named_parameters()})
    sizes = [{name: float(step.abs().max()) for name, step in each.items()} for each in steps]
    for name in sizes[0]:
        own = name.startswith(("decoder.", "stem."))
        assert sizes[1][name] == pytest.approx(sizes[0][name] * (0.25 if own else 1.0), rel=0.02, abs=1e-6), name
    assert any(size > 0.003 for name, size in sizes[0].items() if name.startswith("decoder."))


@pytest.mark.parametrize("size", [(9, 16, 21), (3, 4, 5)])
def test_any_size_is_segmented_whole(size: tuple[int, int, int]) -> None:
    logits = segmenter().eval()(torch.randn(1, 1, *size))
    assert logits.shape == (1, 3, *size)


def test_crops_of_image_and_labels_match_and_go_beyond_small_volumes() -> None:
    rng = np.random.default_rng(0)
    image = np.arange(6 * 30 * 10, dtype=np.float32).reshape(6, 30, 10) + 1
    sample = Labelled(image, (image % 3).astype(np.uint8))
    for _ in range(50):
        seen, labels = segmentation.labelled_crop(rng, sample, (8, 8, 8))
        assert (labels == seen % 3)[seen > 0].all()
        assert not labels[seen == 0].any()
        assert (seen > 0).sum() == 6 * 8 * 8


def test_dice_against_counting() -> None:
    class Threshold(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(image), image], dim=1)

    rng = np.random.default_rng(0)
    samples = [Labelled(rng.normal(size=(7, 9, 8)).astype(np.float32), rng.integers(0, 2, (7, 9, 8), np.uint8))]
    samples.append(Labelled(-np.ones((7, 9, 8), dtype=np.float32), np.zeros((7, 9, 8), dtype=np.uint8)))
    # Where neither has it, nothing counts.
    (score,) = dice_scores(Threshold(), samples, ("s",), FineTuning(crop=(8, 8, 8)))["s"]
    both = true = found = 0
    for value, label in zip(samples[0].image.flat, samples[0].labels.flat, strict=True):
        found, true, both = found + (value > 0), true + int(label), both + (value > 0 and label == 1)
    assert score == pytest.approx(2 * both / (true + found))


def test_intermediate_layers_are_those_of_the_forward_pass() -> None:
    network = segmenter()
    encoder = network.encoder.eval()
    begin = encoder.tokens(torch.randn(1, 20, 8, 8), torch.tensor([0]), MM)
    first, last = encoder.intermediate(begin, (0, 2))
    assert torch.equal(first, begin.tokens)
    assert torch.allclose(encoder.norm(last), encoder(*begin).patches, atol=1e-6)
