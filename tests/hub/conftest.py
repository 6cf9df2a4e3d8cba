"""A Hub on this machine, for this process and for others."""

import contextlib

import huggingface_hub
import pytest
import transformers
from hub_server import WRITER, running_hub
from huggingface_hub import constants
from typer.testing import CliRunner

from open_clip_transformers.cli import app


@pytest.fixture
def hub(monkeypatch):
    """A server like the Hub, which this process takes for it, with the token of a user who may write.

    Subprocesses are to get `os.environ`.
    """
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(running_hub())
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": WRITER,
            "no_proxy": "127.0.0.1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        # huggingface_hub reads most of these when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)  # not in 5.5
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        # A client keeps its connections and what it read of proxies.
        huggingface_hub.close_session()
        stack.callback(huggingface_hub.close_session)
        yield hub


@pytest.fixture
def run():
    """Runs the command line: `run("push", folder, "org/name", exit_code=1)` -> result with `stdout` and `stderr`."""

    def run(*arguments, exit_code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == exit_code, (result.stdout, result.stderr, result.exception)
        assert "Traceback" not in result.stderr
        return result

    return run
