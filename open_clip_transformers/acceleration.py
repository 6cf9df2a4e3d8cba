"""Faster inference on the processor at hand: layers compute in another way where that was measured to be faster.

Models know nothing of this. An accelerated layer keeps its parameters, its hooks, its name and its place; its class
becomes a subclass of the plain one. By itself it becomes plain again where anything but inference is done with it: its
weight is read or replaced, an attribute set, it is moved, cast, loaded or trained. Its copies and pickles are plain.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .configuration.configuration_common import height_and_width
from .modeling.modeling_modified_resnet import (
    ModifiedResNetBottleneck,
    ModifiedResNetConvLayer,
    ModifiedResNetModel,
    ModifiedResNetShortcut,
)


# Rows (images or texts times tokens) of the inputs with which a layer is measured; each stands for four times as many.
ROW_COUNTS = (1, 4, 16, 64, 256)
# Another way is taken where it needs at most this share of the plain one's time: less may be chance.
MARGIN = 0.92
# One comparison ends after so many seconds and three repeats, or after this number of repeats.
BUDGET = 0.01
REPEATS = 5
# Numbers of rows with which one run would take longer than so many seconds are not measured.
LONGEST_RUN = 0.05
# On a busy machine measuring takes long and tells little: after so many seconds the layers that are left stay plain.
LONGEST_SEARCH = 2.0
# Layers measured in turn have so many bytes of weights together, so that they are not all in the processor's cache.
MEASURED_BYTES = 32e6


@torch.no_grad()
def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Make inference on a CPU faster; on other devices nothing changes.

    Measures with the model's own layers which way of computing them is the fastest, the plain one included: linear
    layers with their weights in oneDNN's layout, by the number of rows, or as a product with a vector for a single
    row; a ResNet's convolutions with their batch norms folded in. Packed and folded weights are held beside the
    model's own, with which everything is computed as ever where autograd, autocast, `torch.compile` or an export is at
    work.

    Layers become plain again, one by one, where they are moved, cast, loaded, trained, quantised or given an adapter:
    call this again afterwards. `save_pretrained` writes the model's own weights. One thing cannot be seen: values
    written in place through `parameter.data` of a parameter from `parameters()`; call [`restore`] before that.

    Args:
        model: a model in eval mode, on any device.

    Returns:
        The model.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("optimize_for_inference got a model in training mode: call model.eval() before.")
    restore(model)
    # First, because it makes a tower plain in between.
    for tower in [module for module in model.modules() if isinstance(module, ModifiedResNetModel)]:
        _fold_batch_norms(tower)
    end = perf_counter() + LONGEST_SEARCH
    for layers in _layers_by_shape(model):
        if perf_counter() < end:
            _accelerate_linear(layers)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Make all layers plain again, as they were before [`optimize_for_inference`]. Returns the model."""
    for module in model.modules():
        if isinstance(module, AcceleratedLayer):
            module.restore()
    return model


def seconds_of(way: str, run: Callable[[], Any]) -> float:
    """Time a call of `run`, which computes in the way of that name, such as "plain", "packed" or "folded"."""
    start = perf_counter()
    run()
    return perf_counter() - start


def fastest(runs: Mapping[str, Callable[[], Any]]) -> tuple[str, float]:
    """Measure `runs` in turns -> the name of the fastest, and the seconds that the plain one takes.

    The plain one is the first, and the fastest unless another is faster by the margin, at best and in the median.
    """
    plain = next(iter(runs))
    times: dict[str, list[float]] = {way: [] for way in runs}
    end = perf_counter() + BUDGET
    for repeat in range(REPEATS):
        for way, run in runs.items():
            times[way].append(seconds_of(way, run))
        if repeat > 1 and perf_counter() > end:
            break
    chosen = min(runs, key=lambda way: median(times[way]))
    is_faster = all(reduced(times[chosen]) <= MARGIN * reduced(times[plain]) for reduced in (min, median))
    return chosen if is_faster else plain, min(times[plain])


def can_use_kernel(inputs: torch.Tensor) -> bool:
    """Whether kernels may be called that know nothing of gradients, autocast, compilers and exports."""
    return not (
        torch.compiler.is_compiling()  # also in an export
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()
        # Transforms of `torch.func`, forward-mode derivatives, and modes that are shown each operator.
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or type(inputs) is not torch.Tensor
        or not inputs.is_cpu
    )


def state_of(tensor: torch.Tensor | None) -> tuple[int, int]:
    """Where a tensor lies and how often it was written to, as far as torch counts that."""
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class AcceleratedLayer(nn.Module):
    """Mixin of layers that compute inference in another way, and become plain with anything else."""

    plain_class: ClassVar[type[nn.Module]]
    # Parameters and buffers of which the accelerator holds a copy. Who gets one of them may write to it unseen.
    copied: ClassVar[frozenset[str]] = frozenset()
    accelerator: Any

    @classmethod
    def accelerate(cls, layer: nn.Module, accelerator: Any):
        """Make a layer of the plain class one of this class, which computes with `accelerator`."""
        object.__setattr__(layer, "__class__", cls)
        layer.__dict__["accelerator"] = accelerator

    def restore(self):
        """Become a layer of the plain class, and so do the others that share the accelerator."""
        accelerator = self.__dict__.pop("accelerator", None)
        if accelerator is None:  # torch.compile still looks at the class that it saw
            return
        object.__setattr__(self, "__class__", self.plain_class)
        for other in accelerator.members:
            if isinstance(other, AcceleratedLayer):
                other.restore()

    def __getattr__(self, name: str) -> Any:
        if name in self.copied:
            self.restore()
        return nn.Module.__getattr__(self, name)

    def __setattr__(self, name: str, value: Any):
        if name == "qconfig":
            raise RuntimeError(
                "torch.ao.quantization goes by the types of layers, and those of this model are accelerated: call "
                "open_clip_transformers.acceleration.restore(model) before, or quantise a copy (inplace=False)."
            )
        if name != "training" or value:
            self.restore()
        nn.Module.__setattr__(self, name, value)

    def _apply(self, *args, **kwargs):
        self.restore()
        return self._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self.restore()
        return self._load_from_state_dict(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        state = {name: value for name, value in self.__dict__.items() if name != "accelerator"}
        return object.__new__, (self.plain_class,), state


class LinearWays:
    """How a linear layer is computed, by the number of rows: plainly, packed, or as a product with a vector."""

    members = ()

    def __init__(self, layer: nn.Linear, ways: Sequence[str]):
        self.ways = ways
        self.source, self.dtype, self.in_features = layer.weight, layer.weight.dtype, layer.in_features
        self.state = state_of(self.source)
        self.packed = pack(self.source) if "packed" in ways else None

    def way_for(self, inputs: torch.Tensor) -> str:
        """The fastest way for inputs (..., in features)."""
        rows = inputs.numel() // self.in_features
        return self.ways[min(rows.bit_length() // 2, len(ROW_COUNTS) - 1)] if inputs.dtype == self.dtype else "plain"

    def compute(self, way: str, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`F.linear`: (..., in features) -> (..., out features), in that way."""
        if way == "packed":
            return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, bias, "none", [], "")
        if way == "vector" and inputs.numel() == weight.shape[1]:
            vector = inputs.reshape(-1)
            outputs = torch.mv(weight, vector) if bias is None else torch.addmv(bias, weight, vector)
            return outputs.view(*inputs.shape[:-1], -1)
        return F.linear(inputs, weight, bias)


class AcceleratedLinear(AcceleratedLayer, nn.Linear):
    """`nn.Linear` that is computed as its [`LinearWays`] say."""

    plain_class = nn.Linear
    copied = frozenset({"weight"})
    accelerator: LinearWays

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in features) -> (..., out features)."""
        weight, bias, ways = self._parameters["weight"], self._parameters["bias"], self.accelerator
        # First the one check that plain ways need, which are not to take longer than in a plain layer.
        way = ways.way_for(inputs)
        if way == "plain" or not can_use_kernel(inputs):
            return F.linear(inputs, weight, bias)
        if weight is not ways.source or state_of(weight) != ways.state:
            self.restore()
            return F.linear(inputs, weight, bias)
        return ways.compute(way, inputs, weight, bias)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Copy a weight (out features, in features) to the layout of oneDNN, for which torch has no public function."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this torch has oneDNN's kernels for the weight on this processor."""
    mkldnn = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not (torch.backends.mkldnn.is_available() and all(hasattr(mkldnn, name) for name in names)):
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and mkldnn._is_mkldnn_bf16_supported())


def _layers_by_shape(model: nn.Module) -> Iterable[list[nn.Linear]]:
    """The plain linear layers on the CPU, those of one shape and dtype together; those with most weights first."""
    groups: dict[tuple, list[nn.Linear]] = defaultdict(list)
    for layer in model.modules():
        weight = layer._parameters.get("weight") if type(layer) is nn.Linear else None
        if type(weight) is nn.Parameter and weight.is_cpu and "forward" not in layer.__dict__:
            groups[weight.shape, weight.dtype, layer.bias is None].append(layer)
    return sorted(groups.values(), key=lambda layers: len(layers) * layers[0].weight.nbytes, reverse=True)


def _accelerate_linear(layers: list[nn.Linear]):
    """Measure some layers of one shape, and accelerate all of them where a way is faster than the plain one."""
    weight = layers[0].weight
    names = ("plain", "packed", "vector") if can_pack(weight) else ("plain", "vector")
    measured = layers[: max(1, math.ceil(MEASURED_BYTES / weight.nbytes))]
    candidates = [LinearWays(layer, names) for layer in measured]

    def run(way: str, inputs: torch.Tensor):
        for layer, candidate in zip(measured, candidates, strict=True):
            candidate.compute(way, inputs, layer.weight, layer.bias)

    ways: list[str] = []
    seconds = 0.0
    for rows in ROW_COUNTS:
        if 4 * seconds > LONGEST_RUN:
            ways.append(ways[-1] if ways[-1] != "vector" else "plain")
            continue
        inputs = torch.randn(rows, weight.shape[1]).to(weight.dtype)
        runs = {way: partial(run, way, inputs) for way in names if way != "vector" or rows == 1}
        way, seconds = fastest(runs)
        ways.append(way)
    if set(ways) != {"plain"}:
        for layer in layers:
            AcceleratedLinear.accelerate(layer, LinearWays(layer, ways))


class FoldedConv2d(AcceleratedLayer, nn.Conv2d):
    """`nn.Conv2d` of which there is a folded copy; computes plainly."""

    plain_class = nn.Conv2d
    copied = frozenset({"weight"})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, in channels, height, width) -> (batch, out channels, ...)."""
        return self._conv_forward(inputs, self._parameters["weight"], self._parameters["bias"])


class FoldedBatchNorm2d(AcceleratedLayer, nn.BatchNorm2d):
    """`nn.BatchNorm2d` in eval mode that was folded into a convolution; computes plainly."""

    plain_class = nn.BatchNorm2d
    copied = frozenset({"weight", "bias", "running_mean", "running_var"})

    def extra_repr(self) -> str:
        # torch's reads the bias, which is to look as if somebody wanted to change it.
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) -> the same."""
        parameters, buffers = self._parameters, self._buffers
        statistics = (buffers["running_mean"], buffers["running_var"], parameters["weight"], parameters["bias"])
        return F.batch_norm(inputs, *statistics, training=False, eps=self.eps)


class FoldedWeights:
    """The weight and bias of a convolution with the batch norm behind it folded in."""

    def __init__(self, module: nn.Module, memory_format: torch.memory_format):
        convolution, normalization = self.layers = convolution_and_norm(module)
        self.members = (*self.layers, module)
        tensors = self._tensors()
        self.state, self.dtype = [state_of(tensor) for tensor in tensors], tensors[0].dtype
        weight, scale, shift, mean, variance = (tensor.detach().float() for tensor in tensors)
        weight, bias = fuse_conv_bn_weights(weight, None, mean, variance, normalization.eps, scale, shift)
        self.weight = weight.detach().to(self.dtype).contiguous(memory_format=memory_format)
        self.bias = bias.detach().to(self.dtype)
        self.settings = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)

    def _tensors(self) -> list[torch.Tensor]:
        parameters, buffers = self.layers[1]._parameters, self.layers[1]._buffers
        weight = self.layers[0]._parameters["weight"]
        return [weight, parameters["weight"], parameters["bias"], buffers["running_mean"], buffers["running_var"]]

    def is_for(self, inputs: torch.Tensor, layers: tuple[nn.Module, nn.Module]) -> bool:
        """Whether it computes `layers`, as they are now, on these inputs, and no hook is to see the layers."""
        return (
            inputs.dtype == self.dtype
            and layers == self.layers
            and (type(layers[0]), type(layers[1])) == (FoldedConv2d, FoldedBatchNorm2d)
            and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
            and not nn.modules.module._has_any_global_hook()
            and self.state == [state_of(tensor) for tensor in self._tensors()]
        )


class FoldedModule(AcceleratedLayer):
    """Mixin of modules of a ResNet in which a batch norm follows a convolution."""

    accelerator: FoldedWeights

    def convolve(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, in channels, height, width) -> (batch, out channels, ...), convolved and normalised."""
        convolution, normalization = convolution_and_norm(self)
        if can_use_kernel(inputs) and self.accelerator.is_for(inputs, (convolution, normalization)):
            return F.conv2d(inputs, self.accelerator.weight, self.accelerator.bias, *self.accelerator.settings)
        return normalization(convolution(inputs))


class FoldedConvLayer(FoldedModule, ModifiedResNetConvLayer):
    """[`ModifiedResNetConvLayer`] with its two layers as one."""

    plain_class = ModifiedResNetConvLayer

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.relu(self.convolve(hidden_states), inplace=True)


class FoldedShortcut(FoldedModule, ModifiedResNetShortcut):
    """[`ModifiedResNetShortcut`] with its two layers as one."""

    plain_class = ModifiedResNetShortcut

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.stride > 1:
            hidden_states = F.avg_pool2d(hidden_states, self.stride)
        return self.convolve(hidden_states)


class FoldedBottleneck(FoldedModule, ModifiedResNetBottleneck):
    """[`ModifiedResNetBottleneck`] with its last convolution and batch norm as one."""

    plain_class = ModifiedResNetBottleneck

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.conv2(self.conv1(hidden_states))
        if self.stride > 1:
            residual = F.avg_pool2d(residual, self.stride)
        return F.relu(self.convolve(residual).add_(self.shortcut(hidden_states)), inplace=True)


FOLDED_MODULES: tuple[type[FoldedModule], ...] = (FoldedConvLayer, FoldedShortcut, FoldedBottleneck)
FOLDED_LAYERS: tuple[type[AcceleratedLayer], ...] = (FoldedConv2d, FoldedBatchNorm2d)


def convolution_and_norm(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The convolution of a module of a ResNet and the batch norm that follows it."""
    convolution = module.conv3 if isinstance(module, ModifiedResNetBottleneck) else module.convolution
    return convolution, module.normalization


def _fold_batch_norms(tower: ModifiedResNetModel):
    """Measure a ResNet on one image, and fold its batch norms, with the channels last or not, if that is faster."""
    classes = {kind.plain_class: kind for kind in (*FOLDED_MODULES, *FOLDED_LAYERS)}
    modules = [module for module in tower.modules() if type(module) in [kind.plain_class for kind in FOLDED_MODULES]]
    types = {tuple(map(type, convolution_and_norm(module))) for module in modules}
    # Adapters or other layers in their place stay what they are, and so does the tower.
    if tower.device.type != "cpu" or types != {(nn.Conv2d, nn.BatchNorm2d)}:
        return
    height, width = height_and_width(tower.config.image_size)
    pixel_values = torch.randn(1, tower.config.num_channels, height, width).to(tower.dtype)
    formats = {"folded": torch.contiguous_format, "folded, channels last": torch.channels_last}
    folded = {
        way: [FoldedWeights(module, memory_format) for module in modules] for way, memory_format in formats.items()
    }

    def take(way: str):
        if way == "plain":
            restore(tower)
            return
        for weights in folded[way]:
            for layer in weights.members:
                classes.get(type(layer), type(layer)).accelerate(layer, weights)

    def run(way: str):
        take(way)
        tower(pixel_values)

    take(fastest({way: partial(run, way) for way in ("plain", *formats)})[0])
