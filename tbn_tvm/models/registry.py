"""Every architecture by the name that the command line calls it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tbn_tvm.errors import UsageError
from tbn_tvm.models.architecture import Model

_RESNET = "tbn_tvm.models.resnet:resnet"
_CIFAR, _IMAGENET = ((3, 32, 32),), ((3, 224, 224),)
_CLOUD = ((3, 2048),)
_FEW_UNITS = {"transform_widths": (8, 16, 32), "transform_hidden": (16, 16)}
_SERIES = ((96, 7),)
_SHORT = {"length": 24, "horizon": 12}
_SMALL_TRANSFORMER = {**_SHORT, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
_SMALL_RESNET = {"blocks": (1, 2), "widths": (8, 16), "classes": 10}
_SMALL_BOTTLENECKS = {"blocks": (2, 1), "widths": (4, 16), "classes": 10}
_SMALL_VIT = {
    "image_size": 16,
    "patch_size": 4,
    "dim": 32,
    "depth": 1,
    "heads": 2,
    "head_dim": 16,
    "mlp_dim": 64,
    "classes": 10,
}
_SMALL_MIXER = {
    "image_size": 16,
    "patch_size": 4,
    "dim": 32,
    "depth": 1,
    "token_dim": 24,
    "channel_dim": 64,
    "classes": 10,
}
_SMALL_CONVMIXER = {"dim": 32, "depth": 1, "kernel_size": 5, "patch_size": 4, "classes": 10}


def _resnet(depth: int, stem: str) -> Model:
    large = stem == "imagenet"
    return Model(
        f"resnet-{depth}-imagenet" if large else f"resnet-{depth}",
        _RESNET,
        {"depth": depth, "stem": stem, "classes": 1000 if large else 10},
        _IMAGENET if large else _CIFAR,
        _SMALL_BOTTLENECKS if depth == 50 else _SMALL_RESNET,
        ((3, 32, 32),) if large else ((3, 16, 16),),
    )


_ENTRIES = (
    Model(
        "mnist-mlp",
        "tbn_tvm.models.mlp:mlp",
        {"widths": (784, 128, 10)},
        ((784,),),
        small={"widths": (64, 32, 10)},
        small_input_shapes=((64,),),
    ),
    Model(
        "mnist-cnn",
        "tbn_tvm.models.mnist_cnn:mnist_cnn",
        {},
        ((1, 28, 28),),
        small={"widths": (4, 8, 16, 16)},
        min_size=12_000,
    ),
    Model(
        "autoencoder",
        "tbn_tvm.models.mlperf_tiny:autoencoder",
        {},
        ((640,),),
        small={"widths": (64, 32, 8, 32, 64)},
        small_input_shapes=((64,),),
        min_size=0,
    ),
    Model(
        "resnet-8",
        "tbn_tvm.models.mlperf_tiny:resnet8",
        {},
        _CIFAR,
        small={"widths": (4, 8, 16)},
        small_input_shapes=((3, 16, 16),),
        min_size=0,
        small_min_size=200,
    ),
    Model(
        "vgg-small",
        "tbn_tvm.models.vgg:vgg_small",
        {},
        _CIFAR,
        small={"widths": (8, 16, 16), "image_size": 16},
        small_input_shapes=((3, 16, 16),),
    ),
    *(_resnet(depth, stem) for stem in ("cifar", "imagenet") for depth in (18, 34, 50)),
    Model(
        "vit",
        "tbn_tvm.models.vit:vit",
        {},
        ((3, 256, 256),),
        small=_SMALL_VIT,
        small_input_shapes=((3, 16, 16),),
    ),
    Model(
        "vit-cifar",
        "tbn_tvm.models.vit:vit",
        {
            "image_size": 32,
            "patch_size": 4,
            "dim": 512,
            "heads": 8,
            "mlp_dim": 512,
            "classes": 10,
        },
        _CIFAR,
        small=_SMALL_VIT,
        small_input_shapes=((3, 16, 16),),
    ),
    Model(
        "swin-t",
        "tbn_tvm.models.swin:swin",
        {},
        _IMAGENET,
        # Two stages, windows that are shifted in the first and the whole image in the second.
        small={
            "image_size": 16,
            "patch_size": 2,
            "window": 4,
            "dim": 16,
            "depths": (2, 1),
            "heads": (2, 4),
            "classes": 10,
        },
        small_input_shapes=((3, 16, 16),),
    ),
    Model(
        "mixer-s16",
        "tbn_tvm.models.mixer:mixer",
        {},
        _IMAGENET,
        small=_SMALL_MIXER,
        small_input_shapes=((3, 16, 16),),
    ),
    Model(
        "mixer-cifar",
        "tbn_tvm.models.mixer:mixer",
        {
            "image_size": 32,
            "patch_size": 4,
            "depth": 6,
            "channel_dim": 256,
            "classes": 10,
        },
        _CIFAR,
        small=_SMALL_MIXER,
        small_input_shapes=((3, 16, 16),),
    ),
    Model(
        "convmixer-768-32",
        "tbn_tvm.models.convmixer:convmixer",
        {},
        _IMAGENET,
        small=_SMALL_CONVMIXER,
        small_input_shapes=((3, 16, 16),),
    ),
    Model(
        "convmixer-cifar",
        "tbn_tvm.models.convmixer:convmixer",
        {"dim": 256, "depth": 8, "kernel_size": 5, "patch_size": 2, "classes": 10},
        _CIFAR,
        small=_SMALL_CONVMIXER,
        small_input_shapes=((3, 16, 16),),
    ),
    Model(
        "pointnet",
        "tbn_tvm.models.pointnet:classifier",
        {},
        _CLOUD,
        small={"classes": 10, "widths": ((8,), (16, 32)), "hidden": (32, 16), **_FEW_UNITS},
        small_input_shapes=((3, 16),),
        small_min_size=256,
    ),
    Model(
        "pointnet-part",
        "tbn_tvm.models.pointnet:part_segmenter",
        {},
        (*_CLOUD, (16,)),
        small={
            "classes": 6,
            "categories": 4,
            "widths": ((8, 8), (16, 32)),
            "hidden": (16, 8),
            **_FEW_UNITS,
        },
        small_input_shapes=((3, 16), (4,)),
        small_min_size=256,
    ),
    Model(
        "pointnet-semantic",
        "tbn_tvm.models.pointnet:semantic_segmenter",
        {},
        ((9, 4096),),
        small={"widths": ((8,), (16, 32)), "hidden": (16, 8), **_FEW_UNITS},
        small_input_shapes=((9, 16),),
        small_min_size=256,
    ),
    Model(
        "series-transformer",
        "tbn_tvm.models.series_transformer:series_transformer",
        {},
        _SERIES,
        small=_SMALL_TRANSFORMER,
        small_input_shapes=((24, 7),),
        small_min_size=256,
    ),
    Model(
        "series-transformer-steps",
        "tbn_tvm.models.series_transformer:series_transformer",
        {"tokens": "steps"},
        _SERIES,
        small={**_SMALL_TRANSFORMER, "tokens": "steps"},
        small_input_shapes=((24, 7),),
        small_min_size=256,
    ),
    Model(
        "tsmixer",
        "tbn_tvm.models.tsmixer:tsmixer",
        {},
        _SERIES,
        small={**_SHORT, "hidden": 8, "time_hidden": 32},
        small_input_shapes=((24, 7),),
        min_size=4096,
        small_min_size=256,
    ),
)

MODELS: Mapping[str, Model] = MappingProxyType({model.name: model for model in _ENTRIES})
"""All architectures, by name."""


def find_model(name: str) -> Model:
    """The architecture of a name.

    Raises
    ------
    UsageError
        Where there is none, with all there are.
    """
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")
    return MODELS[name]
