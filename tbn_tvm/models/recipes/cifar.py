"""Recipes for CIFAR-10.

The convolutional ones follow "Tiled Bit Networks" (arXiv:2407.12075, section 4 and the authors'
code): SGD at 0.1 with momentum 0.9 and a cosine, weight decay 1e-4, batches of 128, crop and flip,
300 epochs. Those without convolutions take Adam's decoupled form and stronger augmentation, as is
usual for them on a small data set.
"""

from dataclasses import replace

from tbn_tvm.training.recipe import Recipe

_RESNET18 = Recipe(
    name="cifar10-resnet18",
    about="ResNet-18 as the authors train it; 93.24 % at p = 4 in their logs",
    model="resnet-18",
    data="cifar10",
    epochs=300,
    batch_size=128,
    optimiser="sgd",
    learning_rate=0.1,
    weight_decay=1e-4,
    augment=("crop:4", "flip"),
    normalise="standard",
)

_RESNET8 = replace(
    _RESNET18,
    name="cifar10-resnet8",
    about="the ResNet of MLPerf Tiny at twice its width, within a CPU's patience",
    model="resnet-8",
    sizes={"widths": (32, 64, 128)},
    epochs=16,
    learning_rate=0.2,
    weight_decay=5e-4,
    warmup_epochs=3,
    label_smoothing=0.1,
    evaluate_every=2,
    seed=0,
    # As is usual for binary weights: the first layer, the classifier and the 1 x 1 shortcuts stay
    # float, and so does the first block, with 10 % of the weights in all. Of the others two layers
    # are tiled, 72 %, and two binary, 18 %.
    skip=("stem", "head", "blocks.*.shortcut", "blocks.0.*"),
    # Adam, since few bits flip at rates of SGD that keep what the float model has learnt; the
    # float model's outputs say more than labels do.
    tuning={
        "epochs": 80,
        "optimiser": "adam",
        "learning_rate": 5e-4,
        "magnitude_rate": 0.02,
        "weight_decay": 0.0,
        "warmup_epochs": 0.5,
        "distill": 0.8,
        "temperature": 2.0,
        "evaluate_every": 8,
    },
)

_CONVMIXER = replace(
    _RESNET18,
    name="cifar10-convmixer",
    about="ConvMixer-256/8, 5 x 5 kernels, 2 x 2 patches (arXiv:2201.09792); 91.3 % at p = 4",
    model="convmixer-cifar",
    optimiser="adamw",
    learning_rate=1e-2,
    weight_decay=1e-2,
    warmup_epochs=5,
    clip_norm=1.0,
)

_MLP_MIXER = replace(
    _CONVMIXER,
    name="cifar10-mlp-mixer",
    about="MLP-Mixer, 4 x 4 patches (arXiv:2105.01601); 81.45 % at p = 4",
    model="mixer-cifar",
    learning_rate=1e-3,
    weight_decay=5e-2,
    warmup_epochs=10,
    label_smoothing=0.1,
    mixup=0.5,
    cutmix=1.0,
)

_VIT = replace(
    _MLP_MIXER,
    name="cifar10-vit",
    about="ViT, 4 x 4 patches, dimension 512, depth 6 (arXiv:2010.11929)",
    model="vit-cifar",
    learning_rate=5e-4,
)

RECIPES = (
    _RESNET8,
    _RESNET18,
    replace(_RESNET18, name="cifar10-resnet34", about="ResNet-34", model="resnet-34"),
    replace(
        _RESNET18,
        name="cifar10-resnet50",
        about="ResNet-50; 94.95 % at p = 4 in the authors' logs",
        model="resnet-50",
    ),
    replace(
        _RESNET18,
        name="cifar10-vgg-small",
        about="VGG-small; 92.66 % at p = 4 in the authors' logs",
        model="vgg-small",
    ),
    _CONVMIXER,
    _MLP_MIXER,
    _VIT,
)
