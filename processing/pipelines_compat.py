"""Differences between the supported versions of transformers' pipelines."""

import functools
import inspect

from transformers import pipelines


def let_registered_task_pass(task: str):
    """Keep transformers from renaming `task` although a pipeline is registered under that name.

    From 5.20 on it renames tasks that it dropped before it looks at the registry, by a function that is not public.
    Without that function nothing is done. This can go once transformers looks at the registry first.
    """
    rename = getattr(pipelines, "_resolve_deprecated_task", None)
    if rename is None:
        return

    @functools.wraps(rename)
    def rename_unless_registered(name):
        return name if name == task and name in pipelines.PIPELINE_REGISTRY.supported_tasks else rename(name)

    pipelines._resolve_deprecated_task = rename_unless_registered


def transformers_own_task(task: str, default: str) -> str:
    """Return the task that transformers itself runs for `task`, with its warning; `default` where it knows none."""
    rename = getattr(pipelines, "_resolve_deprecated_task", None)
    return default if rename is None else inspect.unwrap(rename)(task)
