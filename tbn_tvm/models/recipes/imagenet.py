"""Recipes for ImageNet (ILSVRC 2012).

Residual networks: the recipe of He et al. (arXiv:1512.03385), batches of 256 and 90 epochs, with a
cosine and warm-up. Transformers: AdamW with strong augmentation, after DeiT (arXiv:2012.12877) and
Swin (arXiv:2103.14030). None of them has been run to its end with this project: they need days of
a GPU.
"""

from dataclasses import replace

from tbn_tvm.training.recipe import Recipe

_RESNET18 = Recipe(
    name="imagenet-resnet18",
    about="ResNet-18",
    model="resnet-18-imagenet",
    data="imagenet",
    epochs=90,
    batch_size=256,
    optimiser="sgd",
    learning_rate=0.1,
    warmup_epochs=5,
    weight_decay=1e-4,
    augment=("flip",),
    normalise="standard",
)

_SWIN = replace(
    _RESNET18,
    name="imagenet-swin-t",
    about="Swin-T",
    model="swin-t",
    epochs=300,
    batch_size=1024,
    optimiser="adamw",
    learning_rate=1e-3,
    warmup_epochs=20,
    weight_decay=0.05,
    clip_norm=5.0,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)

RECIPES = (
    _RESNET18,
    replace(_RESNET18, name="imagenet-resnet34", about="ResNet-34", model="resnet-34-imagenet"),
    replace(_RESNET18, name="imagenet-resnet50", about="ResNet-50", model="resnet-50-imagenet"),
    _SWIN,
    replace(
        _SWIN,
        name="imagenet-vit",
        about="ViT, 32 x 32 patches of 256 x 256 images, dimension 1024, depth 6",
        model="vit",
        data_options={"side": 256},
    ),
)
