"""Building timm's modules for [`TimmVisionModel`] (open_clip: `TimmModel.__init__` in `timm_model.py`).

timm is imported in this file alone, and only when a tower is built.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from transformers.modeling_utils import local_torch_dtype
from transformers.utils import is_timm_available, requires_backends

from ..configuration.configuration_common import height_and_width
from ..configuration.configuration_timm_vision import POOLERS, TimmVisionConfig


def import_timm() -> ModuleType:
    """The library, imported at its first use because that takes long. Raises `ImportError` where it is missing."""
    requires_backends(TimmVisionConfig, "timm")
    if is_timm_available():  # this form marks an import as optional for code on the Hub
        import timm
        import timm.layers
        import timm.models
        import timm.utils
    return timm


@dataclass(frozen=True)
class TimmArchitecture:
    """A model of timm, as far as its configuration must agree with it.

    Args:
        hidden_size: channels of its features.
        input_size: `(height, width)` in pixels that it is made for.
        fixed_input_size: it takes no other size, unless it is set to it.
    """

    hidden_size: int
    input_size: tuple[int, int]
    fixed_input_size: bool


@cache
def describe_architecture(architecture: str) -> TimmArchitecture:
    """Look a model of timm up, without weights. Raises `ImportError` without timm, `ValueError` for unknown names."""
    config = TimmVisionConfig(architecture=architecture, proj_type="none")
    with storage_free_parameters(), _errors_of_timm(config):
        model = _create_model(config, num_classes=0)
    patch_embed = getattr(model, "patch_embed", None)
    return TimmArchitecture(
        hidden_size=model.num_features,
        input_size=tuple(getattr(patch_embed, "img_size", None) or model.default_cfg["input_size"][-2:]),
        fixed_input_size=model.default_cfg.get("fixed_input_size", False) and hasattr(model, "set_input_size"),
    )


@contextmanager
def _errors_of_timm(config: TimmVisionConfig) -> Iterator[None]:
    """Turn timm's errors of many kinds, which do not name the model, into `ValueError`s that do."""
    timm = import_timm()
    try:
        yield
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        fields = ("architecture", "model_args", "pool_type", "proj_type", "input_size")
        values = ", ".join(f"{name}={getattr(config, name)!r}" for name in fields)
        raise ValueError(
            f"timm {timm.__version__} cannot build an image tower with {values}: {error or type(error).__name__}. "
            "Correct the configuration, or upgrade timm where the model is newer."
        ) from error


def build_modules(config: TimmVisionConfig) -> nn.ModuleDict:
    """The modules of a tower with new weights, in torch's default dtype: `timm_model`, and open_clip's `head` on it.

    They are computed in fp32 and cast, because timm's tables and initialisations lose much in half precision. On the
    meta device only what a checkpoint holds is left without values: tables that it does not hold are real.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm does not know the model, or cannot build it with these arguments.
    """
    dtype = torch.get_default_dtype()
    on_meta = torch.get_default_device().type == "meta"
    with local_torch_dtype(torch.float32), storage_free_parameters() if on_meta else nullcontext():
        with _errors_of_timm(config):
            modules = _build_modules(config)
        if on_meta:
            _move_to_meta(modules)
        return modules.to(dtype)


def _build_modules(config: TimmVisionConfig) -> nn.ModuleDict:
    timm_model = _build_timm_model(config)
    head = nn.Sequential(_head_layers(config, timm_model))
    if config.input_size is not None:
        timm_model.set_input_size(height_and_width(config.input_size))
    if config.reparameterized:
        reparameterize(timm_model)
    return nn.ModuleDict({"timm_model": timm_model, "head": head})


def _build_timm_model(config: TimmVisionConfig) -> nn.Module:
    has_pooler = config.pool_type in POOLERS
    if has_pooler or config.proj_type in ("linear", "mlp"):
        timm_model = _create_model(config)
        # Without a pooling of the configuration, that of the model stays.
        pool = {"global_pool": "" if has_pooler else config.pool_type} if config.pool_type else {}
        timm_model.reset_classifier(0, **pool)
        return timm_model
    # The model's own classifier is the projection, or there is none.
    num_classes = config.projection_dim if config.proj_type is None else 0
    return _create_model(config, num_classes=num_classes, global_pool=config.pool_type)


def _create_model(config: TimmVisionConfig, **kwargs) -> nn.Module:
    return import_timm().create_model(config.architecture, pretrained=False, **(config.model_args or {}), **kwargs)


def _head_layers(config: TimmVisionConfig, timm_model: nn.Module) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    timm_layers = import_timm().layers
    width = timm_model.num_features
    if config.proj_type in ("linear", "mlp") and getattr(timm_model, "head_hidden_size", width) != width:
        raise ValueError(
            f"its pooling makes {timm_model.head_hidden_size} channels of the {width} that open_clip projects; use "
            "proj_type=None"
        )
    if config.pool_type in POOLERS:
        feat_size = timm_model.default_cfg.get("pool_size")
        if not feat_size:
            raise ValueError("its features are no maps, which attention pooling needs")
        pooler = {
            "abs_attn": partial(timm_layers.AttentionPool2d, feat_size=feat_size),
            "rot_attn": timm_layers.RotAttentionPool2d,
        }[config.pool_type]
        layers["pool"] = pooler(width, out_features=config.projection_dim)
        width = config.projection_dim
    if config.proj_type == "linear":
        layers["drop"] = nn.Dropout(config.proj_dropout)
        layers["proj"] = nn.Linear(width, config.projection_dim, bias=config.proj_bias)
    elif config.proj_type == "mlp":
        layers["mlp"] = timm_layers.Mlp(
            width,
            2 * config.projection_dim,
            config.projection_dim,
            drop=(config.proj_dropout, 0),
            bias=(True, config.proj_bias),
        )
    return layers


def resize_to_input(config: TimmVisionConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Resize the tensors of timm's model that change when it is set to `config.input_size`.

    Args:
        config: configuration of the tower; nothing changes without an `input_size`.
        tensors: state dict of timm's model; tensors that fit already, or that do not fit either size, are left out.
    """
    if config.input_size is None:
        return {}
    as_built = copy(config)
    as_built.input_size = None
    with storage_free_parameters():
        expected = _build_modules(config)["timm_model"].state_dict()
        timm_model = _build_modules(as_built)["timm_model"]
    shapes = {name: tensor.shape for name, tensor in timm_model.state_dict().items()}
    resized = [
        name
        for name, tensor in tensors.items()
        if name in expected and tensor.shape == shapes.get(name) != expected[name].shape
    ]
    if resized:
        timm_model.load_state_dict({name: tensors[name] for name in resized}, strict=False, assign=True)
        with StorageFreeParameters():
            timm_model.set_input_size(height_and_width(config.input_size))
    return {name: timm_model.state_dict()[name].detach() for name in resized}


def fuse_tensors(config: TimmVisionConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State dict of the reparameterised form of timm's model, in fp32.

    Args:
        config: its configuration.
        tensors: state dict of timm's model as it is trained.

    Raises:
        ValueError: the tensors are not those of the model.
    """
    as_trained = copy(config)
    as_trained.reparameterized = False
    with torch.device("meta"):
        timm_model = build_modules(as_trained)["timm_model"]
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    try:
        timm_model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"The branches of {config.architecture} cannot be fused: {error}") from error
    reparameterize(timm_model)
    return timm_model.state_dict()


@torch.no_grad()
def reparameterize(timm_model: nn.Module):
    """Fuse the branches of a model in place, such as those of MobileCLIP's image encoders, for inference alone.

    Computed in fp32 and cast back: in half precision the sums of branches would lose much.
    """
    dtype = next(timm_model.parameters()).dtype
    import_timm().utils.reparameterize_model(timm_model.float(), inplace=True)
    timm_model.to(dtype)


# What changes its first argument in place, beside the functions whose names end in an underscore.
_OPERATORS_IN_PLACE = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"})
_CHANGES_NO_VALUE = frozenset({"requires_grad_", "detach_"})


def _writes(func) -> bool:
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__") and name not in _CHANGES_NO_VALUE
    return in_place or name in _OPERATORS_IN_PLACE


def _is_storage_free(value) -> bool:
    return isinstance(value, torch.Tensor) and 0 in value.stride()


class StorageFreeParameters(TorchFunctionMode):
    """Leave storage-free tensors, all elements of which lie in one place of memory, as they are: torch refuses to
    write to them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        operands = (*args, *(kwargs or {}).values())
        # torch's convolutions initialise an empty copy of such a weight.
        if (_writes(func) or func is torch.empty_like) and _is_storage_free(operands[0]):
            return operands[0]
        if func is torch.conv2d and _is_storage_free(operands[1]):  # for the shape of what comes out
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
            return torch.zeros(()).expand(func(*args, **(kwargs or {})).shape)
        return func(*args, **(kwargs or {}))


@contextmanager
def storage_free_parameters() -> Iterator[None]:
    """Give modules that are built here, by this thread, parameters without memory, and real buffers and tables.

    Not on the meta device, because modules of timm compute tables on the device of their parameters, and some run
    their layers once to know the shape of what comes out.
    """
    owner = threading.get_ident()

    def to_storage_free(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != owner:
            return None
        return nn.Parameter(parameter.new_zeros(()).expand(parameter.shape), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_storage_free)
    try:
        with torch.device("cpu"), StorageFreeParameters():
            yield
    finally:
        handle.remove()


def _move_to_meta(modules: nn.Module):
    """Move the tensors that a checkpoint holds to the meta device."""
    for name, tensor in modules.state_dict(keep_vars=True).items():
        path, _, attribute = name.rpartition(".")
        shape_alone = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        if isinstance(tensor, nn.Parameter):
            shape_alone = nn.Parameter(shape_alone, requires_grad=tensor.requires_grad)
        setattr(modules.get_submodule(path), attribute, shape_alone)


def parameters_by_depth(timm_model: nn.Module) -> list[list[str]]:
    """Names of the parameters of a model of timm in its own groups, the input's first."""
    groups = import_timm().models.group_parameters(timm_model, timm_model.group_matcher())
    return [groups[depth] for depth in sorted(groups)]
