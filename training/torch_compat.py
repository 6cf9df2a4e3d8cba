"""Names that differ between the supported versions of torch."""

from torch.distributed import _functional_collectives


# `all_gather_tensor_autograd` has a deprecation warning from torch 2.14 on; its successor is not in 2.6.
all_gather_autograd = getattr(
    _functional_collectives, "all_gather_single_autograd", _functional_collectives.all_gather_tensor_autograd
)
