"""What a training run is: a declaration, nothing that runs.

A recipe, its seed and the data determine a run. How it is carried out (device, precision, number
of processes, when it is interrupted) is in :class:`tbn_tvm.training.engine.Options`.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from tbn_tvm.errors import UsageError

_FIXED = ("name", "about", "tuning")
_CHOICES = {
    "task": ("classification", "segmentation", "forecasting"),
    "optimiser": ("sgd", "adam", "adamw", "adadelta"),
    "schedule": ("cosine", "step", "constant"),
    "normalise": ("unit", "standard"),
    "alpha": ("tile", "layer", "mirrored"),
    "alpha_from": ("separate", "scores"),
    "gradient": ("identity", "exact"),
    "start": ("kaiming", "model"),
    "select": ("last", "best"),
}
# Attribute: smallest value, whether it is allowed itself, and the bound above (inclusive).
_RANGES = {
    "epochs": (1, True, math.inf),
    "batch_size": (1, True, math.inf),
    "learning_rate": (0, False, math.inf),
    "warmup_epochs": (0, True, math.inf),
    "final_rate": (0, True, 1),
    "magnitude_rate": (0, True, math.inf),
    "step_epochs": (1, True, math.inf),
    "step_factor": (0, False, 1),
    "momentum": (0, True, 1),
    "weight_decay": (0, True, math.inf),
    "clip_norm": (0, True, math.inf),
    "label_smoothing": (0, True, 1),
    "penalty": (0, True, math.inf),
    "plain_epochs": (0, True, math.inf),
    "mixup": (0, True, math.inf),
    "cutmix": (0, True, math.inf),
    "ema": (0, True, 1),
    "validation": (0, True, 0.9),
    "evaluate_every": (1, True, math.inf),
    "seed": (0, True, 2**63 - 1),
    "p": (1, True, math.inf),
    "min_size": (0, True, math.inf),
    "distill": (0, True, 1),
    "temperature": (0, False, math.inf),
    "polish_sweeps": (0, True, math.inf),
    "calibration": (0, True, math.inf),
}


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes
    ----------
    name, about : str
        What the command line calls it, and one line about it.
    model : str
        Architecture, by its name in :mod:`tbn_tvm.models.registry`.
    data : str
        Data set, by its name in :mod:`tbn_tvm.training.data`.
    sizes : mapping
        Arguments of the architecture that go before the registry's.
    data_options : mapping
        Arguments of the data set's reader (window lengths of a series, say).
    task : {"classification", "segmentation", "forecasting"}
        Decides loss and metrics: cross entropy and accuracy; cross entropy a point and mean
        intersection over union; mean squared error.
    epochs, batch_size : int
        Passes over the training split; samples a step, of all processes together.
    optimiser : {"sgd", "adam", "adamw", "adadelta"}
        SGD has Nesterov's momentum where ``momentum`` is not 0.
    learning_rate : float
        At the start, after warm-up.
    schedule : {"cosine", "step", "constant"}
        From ``learning_rate`` to ``final_rate`` times it along a half cosine; by ``step_factor``
        every ``step_epochs``; or not at all.
    magnitude_rate : float
        The rate of the tensors whose means are alphas (A of the paper), as a multiple of the
        others'. Adam moves all entries of one by a whole step in the same direction, and with
        them the alpha: at 1 that can be a tenth of it in a single step.
    warmup_epochs : float
        The rate grows linearly over these first epochs, which count as part of the schedule.
    momentum, weight_decay : float
        Weights decay only in linear layers and convolutions: no biases, norms or embeddings.
    clip_norm : float
        Bound on the gradient's norm; 0 for none.
    label_smoothing : float
        Share of the target that is spread over all classes.
    penalty : float
        Weight of what layers add to the loss by a method ``penalty``, as PointNet's feature
        transform does; see :func:`tbn_tvm.training.losses.collected_penalties`.
    augment : tuple of str
        Steps by name, in order, with arguments after colons: ``("crop:4", "flip")``; see
        :mod:`tbn_tvm.training.augment`.
    plain_epochs : int
        Of the last so many epochs samples are neither augmented nor mixed: a small model ends
        nearer to what it is tested on (as Touvron et al. find of resolutions, arXiv:1906.06423).
    normalise : {"unit", "standard"}
        Images become pixel / 255, or that less the data set's mean, over its deviation, a channel.
    mixup, cutmix : float
        Parameter of the Beta distribution; 0 for none. With both, each step draws one of them.
    ema : float
        Decay a step of an average of the weights, which is then what is evaluated and exported;
        0 for none.
    validation : float
        Share of the training split that is held out, where the data set has no validation split.
    select : {"last", "best"}
        Which weights are exported: after the last epoch, or after the one with the best validation
        metric. Test data is never selected on.
    evaluate_every : int
        Epochs from one evaluation to the next; the last epoch always ends with one.
    seed : int
        Of initialisation, order, augmentation and dropout.
    p, min_size : int
        Compression factor; layers with fewer weights are binary (lambda of the paper).
    alpha, alpha_from, gradient : str
        Of :class:`tbn_tvm.nn.layers.TiledLayer`.
    start : {"kaiming", "model"}
        Random start of tiled layers: Kaiming normal, as the authors of the paper do, or the float
        weights that the architecture starts from, so that model and twin start from the same.
    skip : tuple of str
        ``fnmatch`` patterns of layers that stay float.
    init : str
        A float model (``.pt2`` or checkpoint) of this architecture to start from; empty for none.
    calibration : int
        Training samples with which the start from ``init`` is fitted and its outputs permuted (see
        :func:`tbn_tvm.nn.tile_model`); 0 for neither.
    teacher : str
        To distil from: a ``.pt2`` with the same inputs and outputs, or a checkpoint of this
        architecture's float twin; empty for none.
    distill, temperature : float
        Weight of the teacher in the loss, and temperature of its soft targets.
    polish : str
        ``package.module:function`` called after the last epoch, up to ``polish_sweeps`` times; see
        :mod:`tbn_tvm.training.polish`. Float twins are not polished.
    polish_sweeps : int
        At most; 0 for none.
    tuning : mapping
        Fields that are different where a trained float model is fine-tuned; see
        :meth:`fine_tuning`.
    """

    name: str
    model: str
    data: str
    about: str = ""
    sizes: Mapping[str, object] = field(default_factory=dict)
    data_options: Mapping[str, object] = field(default_factory=dict)
    task: str = "classification"
    epochs: int = 100
    batch_size: int = 128
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    final_rate: float = 0.0
    magnitude_rate: float = 1.0
    step_epochs: int = 1
    step_factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    penalty: float = 0.0
    augment: tuple[str, ...] = ()
    plain_epochs: int = 0
    normalise: str = "unit"
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    validation: float = 0.0
    select: str = "last"
    evaluate_every: int = 1
    seed: int = 1
    p: int = 4
    min_size: int = 64_000
    alpha: str = "tile"
    alpha_from: str = "separate"
    gradient: str = "identity"
    start: str = "kaiming"
    skip: tuple[str, ...] = ()
    init: str = ""
    calibration: int = 0
    teacher: str = ""
    distill: float = 0.0
    temperature: float = 4.0
    polish: str = ""
    polish_sweeps: int = 0
    tuning: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"{_spoken(name)} {value!r}: expected one of {', '.join(allowed)}")
        for name, (low, closed, high) in _RANGES.items():
            value = getattr(self, name)
            # Also false for NaN.
            inside = low <= value <= high if closed else low < value <= high
            if not (inside and value < math.inf):
                bound = f"{'at least' if closed else 'above'} {low}"
                above = "" if high == math.inf else f", at most {high}"
                raise UsageError(f"{_spoken(name)} {value}: expected a number {bound}{above}")
        if self.ema == 1:
            raise UsageError(
                "ema 1: expected a decay below 1, since nothing else would be averaged"
            )
        if self.distill and not self.teacher:
            raise UsageError(f"distill {self.distill}: needs a teacher, a .pt2 to learn from")
        if self.task != "classification" and any(s.split(":")[0] == "drop" for s in self.augment):
            raise UsageError(f"augmentation drop: points' targets would not follow, in {self.task}")
        if (self.mixup or self.cutmix) and self.task != "classification":
            raise UsageError(f"mixup and cutmix mix classes: not for {self.task}")

    def to_dict(self) -> dict:
        """For JSON and checkpoints: plain types only."""
        return json.loads(json.dumps(asdict(self)))

    def fine_tuning(self, init: str) -> Recipe:
        """This recipe's way of fine-tuning a trained float model.

        A quarter of the epochs at a third of the rate, without warm-up, from the tiled model
        nearest to the float one; half of the loss is the distance to its outputs. What ``tuning``
        holds goes before that.

        Parameters
        ----------
        init : str
            The float model's file.
        """
        return replace(
            self,
            init=init,
            teacher=init,
            distill=0.5,
            calibration=500,
            epochs=max(1, self.epochs // 4),
            learning_rate=self.learning_rate / 3,
            warmup_epochs=0.0,
        ).with_settings(self.tuning)

    def with_settings(self, settings: Mapping[str, object]) -> Recipe:
        """This recipe with some fields changed.

        Parameters
        ----------
        settings : mapping
            Values by field, or by ``sizes.ARGUMENT`` and ``data_options.ARGUMENT``; strings are
            read as the field's type, None keeps a field as it is.

        Raises
        ------
        UsageError
            For an unknown field or a value that it cannot have.
        """
        types_by_name = typing.get_type_hints(Recipe)
        changes: dict[str, object] = {}
        for key, value in settings.items():
            if value is None:
                continue
            group, dot, argument = key.partition(".")
            if dot and group in ("sizes", "data_options"):
                held = changes.get(group, getattr(self, group))
                changes[group] = {**held, argument: _parse_any(value)}
            elif key not in types_by_name or key in (*_FIXED, "sizes", "data_options"):
                known = [f.name for f in fields(self) if f.name not in _FIXED]
                raise UsageError(f"unknown setting {key!r}: expected one of {', '.join(known)}")
            else:
                changes[key] = _parse(key, value, types_by_name[key])
        return replace(self, **changes)


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _parse(name: str, value: object, kind: object) -> object:
    """A field's value, from text where it is text."""
    if isinstance(kind, types.GenericAlias):  # tuple[str, ...]
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else tuple(value)
    try:
        return kind(value)
    except (TypeError, ValueError):
        wanted = {int: "an integer", float: "a number"}[kind]
        raise UsageError(f"{_spoken(name)} {value!r}: expected {wanted}") from None


def _parse_any(value: object) -> object:
    """An argument whose type only the callee knows: JSON where it is that, else text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
