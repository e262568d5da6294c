"""Recipes for MNIST."""

from tbn_tvm.training.recipe import Recipe

_MLP = Recipe(
    name="mnist-mlp",
    about="784-128-10 without biases: Adam, then coordinate descent over the bits",
    model="mnist-mlp",
    data="mnist",
    epochs=200,
    batch_size=100,
    learning_rate=3e-3,
    polish="tbn_tvm.models.mnist_mlp:polish",
    polish_sweeps=10,
)

_PAPER = Recipe(
    name="mnist-mlp-paper",
    about="784-128-10 without biases as the authors train it (arXiv:2407.12075, section 5)",
    model="mnist-mlp",
    data="mnist",
    epochs=50,
    batch_size=64,
    optimiser="adadelta",
    learning_rate=1.0,
    schedule="step",
    step_epochs=4,
    step_factor=0.75,
)

_CNN = Recipe(
    name="mnist-cnn",
    about="four convolutions and a classifier, for a microcontroller",
    model="mnist-cnn",
    data="mnist",
    epochs=60,
    batch_size=128,
    learning_rate=2e-3,
    warmup_epochs=1,
    min_size=12_000,
    augment=("affine:10:0.1:0.1",),
    label_smoothing=0.05,
)

RECIPES = (_MLP, _PAPER, _CNN)
