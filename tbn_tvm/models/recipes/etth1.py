"""Recipes for ETTh1: 96 hours of seven variables in, 96 out.

Reversible instance normalisation goes around both models, as in the literature, where they reach a
mean squared error of 0.37 to 0.39 with float weights. The weights that count are those after the
epoch with the least validation error. All layers but those along variables have more than 4,096
weights and are tiled.

Fine-tuning is what ``benchmarks/accuracy/etth1`` measured: rate and warm-up stay, and the twin's
outputs are most of the loss, which leaves less to dropout.
"""

from tbn_tvm.training.recipe import Recipe

_TSMIXER = Recipe(
    name="etth1-tsmixer",
    about="TSMixer with an MLP of 256 units along time",
    model="tsmixer",
    data="etth1",
    task="forecasting",
    sizes={"time_hidden": 256, "dropout": 0.3},
    epochs=10,
    batch_size=64,
    learning_rate=2e-3,
    warmup_epochs=0.5,
    ema=0.99,
    select="best",
    min_size=4_096,
    start="model",
    tuning={
        "epochs": 6,
        "learning_rate": 2e-3,
        "warmup_epochs": 0.5,
        "distill": 0.8,
        "calibration": 0,
        "sizes.dropout": 0.1,
    },
)

_TRANSFORMER = Recipe(
    name="etth1-transformer",
    about="an encoder whose tokens are variables (iTransformer)",
    model="series-transformer",
    data="etth1",
    task="forecasting",
    sizes={"dim": 128, "mlp_dim": 128},
    epochs=6,
    batch_size=32,
    learning_rate=1e-3,
    warmup_epochs=0.5,
    ema=0.99,
    select="best",
    min_size=4_096,
    start="model",
    tuning={
        "epochs": 4,
        "learning_rate": 1e-3,
        "warmup_epochs": 0.5,
        "distill": 0.8,
        "calibration": 0,
    },
)

RECIPES = (_TSMIXER, _TRANSFORMER)
