"""Recipes for PointNet (Qi et al., arXiv:1612.00593), section 5 and its appendices.

Adam at 0.001, lowered by 0.7 every 20 epochs; the feature transform's distance from an orthogonal
matrix counts with 0.001. Augmentation as in widespread PyTorch versions of it, by which "Tiled Bit
Networks" (arXiv:2407.12075) trains its own. None of them has been run to its end with this project.
"""

from dataclasses import replace

from tbn_tvm.training.recipe import Recipe

_MODELNET40 = Recipe(
    name="modelnet40-pointnet",
    about="PointNet: 1,024 points to 40 classes of shapes",
    model="pointnet",
    data="modelnet40",
    epochs=200,
    batch_size=24,
    optimiser="adam",
    learning_rate=1e-3,
    schedule="step",
    step_epochs=20,
    step_factor=0.7,
    weight_decay=1e-4,
    penalty=1e-3,
    augment=("rotate:1", "resize", "jitter", "drop"),
)

_SHAPENET_PART = replace(
    _MODELNET40,
    name="shapenet-part-pointnet",
    about="PointNet: a part of 50 for each of 2,048 points; the shape's category is known",
    model="pointnet-part",
    data="shapenet-part",
    task="segmentation",
    epochs=250,
    batch_size=16,
    augment=("resize", "jitter"),
)

_S3DIS = replace(
    _MODELNET40,
    name="s3dis-pointnet",
    about="PointNet: a class of 13 for each of 4,096 points of a room; area 5 for test",
    model="pointnet-semantic",
    data="s3dis",
    task="segmentation",
    epochs=32,
    batch_size=16,
    step_epochs=10,
    augment=("rotate:2",),
)

RECIPES = (_MODELNET40, _SHAPENET_PART, _S3DIS)
