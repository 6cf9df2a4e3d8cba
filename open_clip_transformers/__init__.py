"""open_clip's CLIP and CoCa models as transformers models.

Importing this package registers the models, processors and pipelines with transformers' Auto classes. The public names
are loaded when they are first used, so that the import stays cheap.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING


if not (Path(__file__).parent / "modeling").is_dir():  # a checkout: the sub-packages lie beside this folder
    __path__.append(str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from .configuration.configuration_coca import CoCaConfig as CoCaConfig
    from .configuration.configuration_coca import CoCaDecoderConfig as CoCaDecoderConfig
    from .configuration.configuration_open_clip import OpenClipConfig as OpenClipConfig
    from .configuration.configuration_open_clip import OpenClipSiglipConfig as OpenClipSiglipConfig
    from .configuration.configuration_text import OpenClipTextConfig as OpenClipTextConfig
    from .configuration.configuration_vit import OpenClipVitConfig as OpenClipVitConfig

__version__ = "0.1.0"

# Public name -> module it lives in. The imports above say the same to static tools.
_PUBLIC = {
    "CoCaConfig": "configuration.configuration_coca",
    "CoCaDecoderConfig": "configuration.configuration_coca",
    "OpenClipConfig": "configuration.configuration_open_clip",
    "OpenClipSiglipConfig": "configuration.configuration_open_clip",
    "OpenClipTextConfig": "configuration.configuration_text",
    "OpenClipVitConfig": "configuration.configuration_vit",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
