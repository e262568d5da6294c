"""Recipes for MNIST."""

from dataclasses import replace

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

_BIASED = Recipe(
    name="mnist-mlp-bias",
    about="784-128-10 with biases, below 4 KB of weights: Adam on moved and turned images",
    model="mnist-mlp",
    data="mnist",
    # 128 x 10 weights of two bits gain more than a bias of ten floats.
    sizes={"centre": True, "head_bits": 2, "head_bias": False},
    epochs=400,
    batch_size=250,
    learning_rate=3e-3,
    magnitude_rate=0.02,
    gradient="exact",
    # Half of the 128 units bend the other way: 32 products, each seen from both sides.
    alpha="mirrored",
    augment=("affine:8:0.08:0.03:6:0.8",),
    evaluate_every=10,
)

_SMOOTHED = replace(
    _BIASED,
    name="mnist-mlp-smooth",
    about="mnist-mlp-bias behind a mean over 3 x 3 pixels, which has no weights",
    sizes={**_BIASED.sizes, "smooth": 3},
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
    epochs=20,
    batch_size=100,
    learning_rate=3e-3,
    min_size=12_000,
    gradient="exact",
    augment=("affine:8:0.08:0.05:6",),
)

RECIPES = (_MLP, _BIASED, _SMOOTHED, _PAPER, _CNN)
