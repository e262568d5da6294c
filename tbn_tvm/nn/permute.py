"""Reorder the outputs of layers, and whatever reads them, without changing what a model computes.

The model is traced once with sample inputs, or, where it cannot be traced as a whole, those of its
parts that can. From each layer asked for, every use of its output is
followed through what keeps channels apart (activations, pooling, dropout, batch and layer
normalisation, flattening) to the layers that mix them. Where all uses end there, an order of the
outputs is absorbed by their input axes and by the parameters on the way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from tbn_tvm.nn.observe import Observation, observe, run_once, tensors_of

_ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Dropout,
    nn.Identity,
)
_ELEMENTWISE_FUNCTIONS = (
    torch.relu,
    torch.tanh,
    torch.sigmoid,
    F.relu,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.gelu,
    F.silu,
    F.hardswish,
    F.tanh,
    F.sigmoid,
    F.dropout,
)
_ELEMENTWISE_METHODS = ("relu", "tanh", "sigmoid", "contiguous")
_POOLS = {
    1: (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.Dropout1d),
    2: (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout2d),
}
_POOL_FUNCTIONS = {
    1: (F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d),
    2: (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
}
_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)
_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2}


@dataclass(frozen=True)
class _Absorber:
    """Tensors whose axis ``axis`` follows an order, in runs of ``run`` elements a channel."""

    tensors: tuple[Tensor, ...]
    axis: int
    run: int = 1


@dataclass(frozen=True)
class _Place:
    """Where channels lie in a value: one axis, each channel ``run`` neighbours on it."""

    node: fx.Node
    axis: int
    run: int = 1


class _NotFollowed(Exception):
    """Why an order cannot be followed."""


def permute_outputs(
    model: nn.Module,
    samples: tuple[Tensor, ...],
    layers: Iterable[nn.Module],
    order_of: Callable[[nn.Module], Tensor],
) -> dict[nn.Module, str]:
    """Reorder the outputs of layers in place where the graph allows it.

    Parameters
    ----------
    model : nn.Module
        In any mode. Its outputs stay the same, up to the order of sums.
    samples : tuple of Tensor
        Example inputs: shapes are found with them.
    layers : iterable of nn.Module
        ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d`` of the model.
    order_of : callable
        From a layer to the order of its rows, int64 of shape ``(m,)``. It is asked in the order of
        execution, and sees what has been done to the layer's inputs.

    Returns
    -------
    dict
        For each layer a word on why it was left alone, empty where it was not.
    """
    samples = tuple(sample[:2] for sample in samples)
    seen = observe(model, samples)
    outcome = {layer: "it is never called as a module" for layer in layers}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _permute_part(model, samples, _Context(model, seen, order_of), outcome)
    if not all(outcome.values()) and not _same(seen.output, run_once(model, samples)):
        # A weight is read in a way that the graph does not show.
        model.load_state_dict(before)
        outcome = dict.fromkeys(outcome, "the model would compute something else")
    return outcome


@dataclass(frozen=True)
class _Context:
    model: nn.Module
    seen: Observation
    order_of: Callable[[nn.Module], Tensor]


def _permute_part(
    part: nn.Module, inputs: tuple[Tensor, ...], context: _Context, outcome: dict[nn.Module, str]
) -> None:
    """Permute in a part of the model, or in its children where it cannot be traced."""
    wanted = [module for module in part.modules() if module in outcome]
    if not wanted:
        return
    try:
        graph = _trace(part, inputs)
    except Exception as error:  # tracing runs the model's own code
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        outcome |= {layer: f"the model cannot be traced ({reason})" for layer in wanted}
        for child in part.children():
            if context.seen.calls[child] == 1 and child in context.seen.inputs:
                _permute_part(child, context.seen.inputs[child], context, outcome)
        return
    uses = _Uses(context, graph, part)
    for layer in (module for module in uses.in_order if module in outcome):
        try:
            absorbers = _follow(uses, layer)
        except _NotFollowed as reason:
            outcome[layer] = str(reason)
            continue
        _apply(context.order_of(layer), absorbers)
        outcome[layer] = ""


def _same(first, second) -> bool:
    """Whether outputs are equal up to the order of sums."""
    pairs = zip(tensors_of(first), tensors_of(second), strict=True)
    return all(
        torch.allclose(x, y, rtol=1e-2, atol=1e-2 * float(x.abs().max()))
        for x, y in pairs
        if x.is_floating_point() and x.numel()
    )


class _Uses:
    """Who calls what, and which tensors have more than one reader."""

    def __init__(self, context: _Context, graph: fx.GraphModule, part: nn.Module) -> None:
        self.graph, self._total = graph, context.seen.calls
        self.where = "model" if part is context.model else "part that can be traced"
        self.calls: dict[nn.Module, list[fx.Node]] = {}
        owners: Counter = Counter()
        for module in context.model.modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                owners[id(tensor)] += 1
        for node in graph.graph.nodes:
            if node.op == "call_module":
                self.calls.setdefault(self.module(node), []).append(node)
            elif node.op == "get_attr":
                parent, _, name = node.target.rpartition(".")
                owners[id(getattr(graph.get_submodule(parent), name))] += 1
        self._owners = owners

    @property
    def in_order(self) -> list[nn.Module]:
        """Modules by their first call."""
        return list(self.calls)

    def module(self, node: fx.Node) -> nn.Module:
        """What a node calls."""
        return self.graph.get_submodule(node.target)

    def check_alone(self, module: nn.Module, tensors: tuple[Tensor, ...]) -> None:
        """That nothing but one call of this module reads its tensors."""
        if len(self.calls[module]) != 1 or self._total[module] != 1:
            raise _NotFollowed(f"a {type(module).__name__} on the way is called more than once")
        if any(self._owners[id(tensor)] != 1 for tensor in tensors):
            raise _NotFollowed(f"a {type(module).__name__} on the way shares its parameters")


def _trace(part: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The part's graph in eval mode, with the shapes of all values; modes stay as they are."""
    training = [module for module in part.modules() if module.training]
    part.eval()
    try:
        graph = fx.symbolic_trace(part)
        with torch.no_grad():
            ShapeProp(graph).propagate(*inputs)
    finally:
        for module in training:
            module.training = True
    return graph


def _follow(uses: _Uses, layer: nn.Module) -> list[_Absorber]:
    """Everything that an order of a layer's outputs must be applied to."""
    if getattr(layer, "groups", 1) != 1:
        raise _NotFollowed("it is a grouped convolution")
    node = uses.calls[layer][0]
    own = _parameters(layer)
    uses.check_alone(layer, own)
    absorbers = [_Absorber(own, 0)]
    rank = len(_shape(node))
    axis = rank - 1 if isinstance(layer, nn.Linear) else rank - 1 - _CONVOLUTIONS[type(layer)]
    places = [_Place(node, axis)]
    while places:
        place = places.pop()
        if not place.node.users:
            raise _NotFollowed("its output is not used")
        for user in place.node.users:
            found, after = _step(uses, place, user)
            absorbers += found
            places += after
    return absorbers


def _step(uses: _Uses, place: _Place, user: fx.Node) -> tuple[list[_Absorber], list[_Place]]:
    """What a use absorbs of an order, and where channels lie in its own output."""
    if user.op == "output":
        raise _NotFollowed(f"its output is an output of the {uses.where}")
    if user.args[:1] != (place.node,) or place.node in user.args[1:]:
        raise _NotFollowed(f"its output meets other values ({user.name})")
    if _is_elementwise(uses, user):
        return [], [_Place(user, place.axis, place.run)]
    if _flattens(uses, user, place):
        run = place.run * math.prod(_shape(place.node)[place.axis + 1 :])
        return [], [_Place(user, place.axis, run)]
    spatial = _pooled_axes(uses, user)
    if spatial and place.axis == len(_shape(user)) - 1 - spatial:
        return [], [_Place(user, place.axis)]
    if user.op == "call_module":
        return _module_step(uses, place, user)
    raise _NotFollowed(f"nothing is known of {user.name}, which reads its output")


def _module_step(uses: _Uses, place: _Place, user: fx.Node) -> tuple[list[_Absorber], list[_Place]]:
    module = uses.module(user)
    parameters = _parameters(module)
    last = place.axis == len(_shape(place.node)) - 1
    if type(module) in _NORMALISATIONS and place.axis == 1:
        uses.check_alone(module, parameters)
        return [_Absorber(parameters, 0, place.run)], [_Place(user, 1, place.run)]
    if type(module) is nn.LayerNorm and last and len(module.normalized_shape) == 1:
        uses.check_alone(module, parameters)
        return [_Absorber(parameters, 0, place.run)], [_Place(user, place.axis, place.run)]
    if type(module) is nn.Linear and last:
        uses.check_alone(module, (module.weight,))
        return [_Absorber((module.weight,), 1, place.run)], []
    rank = _CONVOLUTIONS.get(type(module))
    if rank and module.groups == 1 and place.axis == len(_shape(place.node)) - 1 - rank:
        uses.check_alone(module, (module.weight,))
        return [_Absorber((module.weight,), 1)], []
    raise _NotFollowed(f"nothing is known of {user.name} ({type(module).__name__})")


def _is_elementwise(uses: _Uses, user: fx.Node) -> bool:
    if user.op == "call_module":
        return type(uses.module(user)) in _ELEMENTWISE
    if user.op == "call_function":
        return user.target in _ELEMENTWISE_FUNCTIONS
    return user.op == "call_method" and user.target in _ELEMENTWISE_METHODS


def _flattens(uses: _Uses, user: fx.Node, place: _Place) -> bool:
    """Whether everything from the channels on becomes one axis."""
    if user.op == "call_module":
        module = uses.module(user)
        if type(module) is not nn.Flatten:
            return False
        start, end = module.start_dim, module.end_dim
    elif user.target in (torch.flatten, "flatten"):
        given = dict(zip(("start_dim", "end_dim"), user.args[1:], strict=False)) | user.kwargs
        start, end = given.get("start_dim", 0), given.get("end_dim", -1)
    else:
        return False
    rank = len(_shape(place.node))
    return start % rank == place.axis and end % rank == rank - 1


def _pooled_axes(uses: _Uses, user: fx.Node) -> int:
    """Spatial axes of a pooling, 0 for anything else."""
    if user.op == "call_module":
        kind = type(uses.module(user))
        return next((rank for rank, kinds in _POOLS.items() if kind in kinds), 0)
    return next((rank for rank, known in _POOL_FUNCTIONS.items() if user.target in known), 0)


def _parameters(module: nn.Module) -> tuple[Tensor, ...]:
    """Parameters and running statistics with an axis of channels."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    return tuple(tensor for tensor in tensors if tensor is not None and tensor.dim())


def _shape(node: fx.Node) -> torch.Size:
    found = node.meta.get("tensor_meta")
    if not hasattr(found, "shape"):
        raise _NotFollowed(f"{node.name} is no single tensor")
    return found.shape


@torch.no_grad()
def _apply(order: Tensor, absorbers: list[_Absorber]) -> None:
    for absorber in absorbers:
        runs = order[:, None] * absorber.run + torch.arange(absorber.run)
        for tensor in absorber.tensors:
            index = runs.reshape(-1).to(tensor.device)
            tensor.copy_(tensor.index_select(absorber.axis, index))
