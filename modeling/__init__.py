"""Models: towers, the dual models made of two of them, and CoCa."""

from .fusible import copied_weight_hooks
from .mapped_memory import give_back


# Here, since code that repositories bring along calls nothing of the system: there the memory stays as it is.
copied_weight_hooks.append(give_back)
