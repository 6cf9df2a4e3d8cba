"""What looks at the calls of a module from outside: shortcuts past it, or through it in parts, must know."""

from torch import nn
from torch.nn.modules import module as global_hooks
from transformers.utils.output_capturing import capture_outputs


def is_watched(module: nn.Module) -> bool:
    """Whether a hook, or a `forward` of its own, is told of the module's calls.

    transformers' hooks for `output_hidden_states` and `output_attentions` are not counted: they stay when first asked.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return bool(
        any(hook.__module__ != capture_outputs.__module__ for hook in hooks)
        or "forward" in module.__dict__
        or global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
    )
