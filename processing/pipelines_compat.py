"""What differs between the supported versions of transformers' pipelines."""

import functools
import inspect

from transformers import pipelines


def let_registered_task_pass(task: str):
    """Keeps transformers from renaming `task` although a pipeline is registered under that name.

    5.23 renames tasks that it dropped before it looks at the registry; 5.5 has no such step. This can go once the step
    looks at the registry first.
    """
    rename = getattr(pipelines, "_resolve_deprecated_task", None)
    if rename is None:
        return

    @functools.wraps(rename)
    def rename_unless_registered(name):
        return name if name == task and name in pipelines.PIPELINE_REGISTRY.supported_tasks else rename(name)

    pipelines._resolve_deprecated_task = rename_unless_registered


def transformers_own_task(task: str, default: str) -> str:
    """The task that transformers itself would run for `task`, with its warning; `default` where it knows none."""
    rename = getattr(pipelines, "_resolve_deprecated_task", None)
    return default if rename is None else inspect.unwrap(rename)(task)
