"""What the conversion of a tower consists of."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from transformers.configuration_utils import PreTrainedConfig

from ..mapping.config_table import ConfigTable
from ..mapping.state_dict import Table


Tensors = dict[str, torch.Tensor]
# What was changed: key -> how.
Changes = dict[str, str]


def _leave(tensors: Tensors, changes: Changes, prefix: str, config: PreTrainedConfig):
    """For towers whose tensors open_clip loads as they are."""


def _keep(config: PreTrainedConfig, keys: Collection[str]):
    """For towers whose tensors have one form."""


@dataclass(frozen=True)
class Intermediate:
    """A value inside a tower that both libraries compute.

    Args:
        name: what it is called in reports.
        ours: path of the module, below our tower, that returns it.
        theirs: path of open_clip's module that returns it, below its tower. Like the others, it may hold `{n}` for a
            number, and `{blocks}` for the path of any module that has a number for its own name.
        is_input: the value is what these modules are given first, and not what they return.
    """

    name: str
    ours: str
    theirs: str
    is_input: bool = False

    def under(self, part: str, ours: str, theirs: str) -> "Intermediate":
        """This value of a tower that is `part` of a whole model, below these two prefixes."""
        return replace(self, name=f"{part} {self.name}", ours=ours + self.ours, theirs=theirs + self.theirs)


@dataclass(frozen=True)
class TowerConversion:
    """How open_clip's form of a tower becomes ours.

    Args:
        config_table: open_clip's fields and ours.
        rename_table: from our configuration to the tower's rename table, for keys below the tower. The configuration
            is asked only where one of our tensors has two forms in open_clip, so that the table can be read backwards.
        fit: what open_clip does to the tower's tensors when it loads them (`load_checkpoint` in `factory.py`): changes
            `tensors` in place, whose keys begin with `prefix`, and says in `changes` what and how.
        adapt: sets in our configuration which form of the tower a checkpoint holds, from its keys, where it may hold
            several.
        intermediates: values inside the tower by which a wrong layer is found; they come to no more than a report.
    """

    config_table: ConfigTable
    rename_table: Callable[[PreTrainedConfig], Table]
    fit: Callable[[Tensors, Changes, str, PreTrainedConfig], None] = _leave
    intermediates: tuple[Intermediate, ...] = ()
    adapt: Callable[[PreTrainedConfig, Collection[str]], None] = _keep

    @property
    def model_type(self) -> str:
        """`model_type` of our configuration of the tower."""
        return self.config_table.config_class.model_type
