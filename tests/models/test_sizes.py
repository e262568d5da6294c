"""Architectures have their published sizes, and the sizes that their docstrings tell."""

import pytest
import torch
from torch import nn

import tbn_tvm
from tbn_tvm.errors import UsageError
from tbn_tvm.importing import import_model
from tbn_tvm.inspect import totals
from tbn_tvm.models.convmixer import ConvMixer
from tbn_tvm.models.mixer import Mixer
from tbn_tvm.models.registry import find_model
from tbn_tvm.models.swin import SwinTransformer
from tbn_tvm.models.vgg import VGG

PUBLISHED = {
    "resnet-18-imagenet": 11_689_512,  # torchvision
    "resnet-34-imagenet": 21_797_672,  # torchvision
    "resnet-50-imagenet": 25_557_032,  # torchvision
    "swin-t": 28_288_354,  # torchvision
    "mixer-s16": 18_528_264,  # timm
    "convmixer-768-32": 21_110_248,  # timm
}

TOLD = {
    "mnist-mlp": (101_632, 101_632, 100_352),
    "mnist-cnn": (246_250, 245_536, 239_616),
    "vgg-small": (4_660_106, 4_656_512, 4_653_056),
    "resnet-18": (11_173_962, 11_164_352, 10_969_088),
    "resnet-34": (21_282_122, 21_265_088, 20_996_096),
    "resnet-50": (23_520_842, 23_467_712, 23_199_744),
    "resnet-18-imagenet": (11_689_512, 11_678_912, 11_481_088),
    "resnet-34-imagenet": (21_797_672, 21_779_648, 21_508_096),
    "resnet-50-imagenet": (25_557_032, 25_502_912, 25_247_744),
    "vit": (54_630_376, 54_501_376, 54_501_376),
    "vit-cifar": (9_524_842, 9_466_880, 9_437_184),
    "swin-t": (28_288_354, 28_199_424, 27_899_904),
    "mixer-s16": (18_528_264, 18_485_248, 17_682_432),
    "mixer-cifar": (1_819_530, 1_799_168, 1_572_864),
    "convmixer-768-32": (21_110_248, 20_959_488, 19_755_264),
    "convmixer-cifar": (594_186, 581_120, 524_288),
    "pointnet": (3_471_473, 3_449_472, 3_407_872),
    "pointnet-part": (8_342_395, 8_303_488, 8_212_480),
    "pointnet-semantic": (3_529_558, 3_507_200, 3_440_640),
    "series-transformer": (840_046, 835_584, 786_432),
    "series-transformer-steps": (17_332_910, 17_303_296, 17_301_504),
    "tsmixer": (35_260, 29_440, 27_648),
}
"""Parameters; those in layers that tiling takes; those in layers of lambda weights and more."""


def twin(name: str) -> nn.Module:
    """The float twin, as shapes without values."""
    with torch.device("meta"):
        return find_model(name).build(p=None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_architecture_has_its_published_size(name):
    assert sum(p.numel() for p in twin(name).parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", TOLD)
def test_sizes_are_those_of_the_docstrings(name):
    module = twin(name)
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    weights = [layer.weight.numel() for layer in layers]
    tiled = [count for count in weights if count >= find_model(name).min_size]
    total = sum(p.numel() for p in module.parameters())
    assert (total, sum(weights), sum(tiled)) == TOLD[name]


@pytest.mark.parametrize(
    ("name", "bits"), [("resnet-50", 0.259), ("vit-cifar", 0.252), ("pointnet", 0.259)]
)
def test_bits_a_weight_are_the_papers(name, bits):
    sums = totals(import_model(find_model(name).program(p=4)).layers)
    assert sums["bits_per_weight"] == pytest.approx(bits, rel=0.01)
    assert sums["weights"] == TOLD[name][1]
    assert sums["mbit"] == pytest.approx(bits * TOLD[name][1] / 1e6, rel=0.01)


def test_the_cnn_for_mnist_has_less_than_12_kilobytes_of_weights():
    program = find_model("mnist-cnn").program(p=4)
    project = tbn_tvm.compile(program, "mps2-an386", name="mnist_cnn")
    assert project.memory["weights"] < 12_000


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VGG(image_size=20), "an image of 20 cannot be halved 3 times"),
        (lambda: Mixer(image_size=30, patch_size=8), "patches of 8 do not tile an image of 30"),
        (lambda: ConvMixer(kernel_size=4), "kernel_size=4: expected an odd number"),
        (lambda: SwinTransformer(image_size=62), "patches of 4 do not tile an image of 62"),
        (lambda: SwinTransformer(image_size=96), "stage 0 has 24 x 24 places"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(build, message):
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        build()
