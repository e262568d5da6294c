"""Recipes for CIFAR-10."""

from tbn_tvm.training.recipe import Recipe

_RESNET8 = Recipe(
    name="cifar10-resnet8",
    about="the ResNet of MLPerf Tiny, for a CPU's patience",
    model="resnet-8",
    data="cifar10",
    epochs=60,
    batch_size=128,
    optimiser="adam",
    learning_rate=3e-3,
    warmup_epochs=1,
    # Its 77,360 weights are spread over small layers; the first and the classifier stay binary.
    min_size=2_000,
    augment=("crop:4", "flip"),
    normalise="standard",
)

RECIPES = (_RESNET8,)
