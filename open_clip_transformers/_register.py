"""Registers our classes with transformers' Auto classes and pipelines, without importing them or torch yet.

The towers come from the tables in `configuration_towers.py` and `modeling_towers.py`; nothing is added here for a new
one.
"""

from functools import partial
from importlib import import_module

from ._deferred import LateEntries, add_entries, after_import


def _towers() -> dict:
    from .configuration.configuration_towers import TEXT_CONFIGS, VISION_CONFIGS

    return {**VISION_CONFIGS, **TEXT_CONFIGS}


def _composites() -> tuple:
    from .configuration.configuration_coca import CoCaConfig
    from .configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig

    return OpenClipConfig, OpenClipSiglipConfig, CoCaConfig


def _configs() -> dict:
    from .configuration.configuration_coca import CoCaDecoderConfig

    return {config.model_type: config for config in (*_towers().values(), *_composites(), CoCaDecoderConfig)}


def _dual_models() -> dict:
    from .configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig
    from .modeling.modeling_open_clip import OpenClipModel, OpenClipSiglipModel

    return {OpenClipConfig: OpenClipModel, OpenClipSiglipConfig: OpenClipSiglipModel}


def _models() -> dict:
    from .configuration.configuration_coca import CoCaConfig
    from .modeling.modeling_coca import CoCaModel
    from .modeling.modeling_towers import TEXT_MODELS, VISION_MODELS

    tower_models = {**VISION_MODELS, **TEXT_MODELS}
    towers = {config: tower_models[model_type] for model_type, config in _towers().items()}
    return {**towers, **_dual_models(), CoCaConfig: CoCaModel}


def _backbones() -> dict:
    from .modeling.modeling_modified_resnet import ModifiedResNetBackbone
    from .modeling.modeling_siglip_vit import SiglipVitBackbone
    from .modeling.modeling_vit import OpenClipVitBackbone

    return {model.config_class: model for model in (ModifiedResNetBackbone, OpenClipVitBackbone, SiglipVitBackbone)}


def _image_text_to_text_models() -> dict:
    from .configuration.configuration_coca import CoCaConfig
    from .modeling.modeling_coca import CoCaForConditionalGeneration

    return {CoCaConfig: CoCaForConditionalGeneration}


def _zero_shot_models() -> dict:
    from .configuration.configuration_coca import CoCaConfig
    from .modeling.modeling_coca import CoCaForZeroShotImageClassification

    return {**_dual_models(), CoCaConfig: CoCaForZeroShotImageClassification}


def _image_classifiers() -> dict:
    from .modeling.modeling_coca import CoCaForImageClassification
    from .modeling.modeling_open_clip import OpenClipForImageClassification, OpenClipSiglipForImageClassification

    classifiers = OpenClipForImageClassification, OpenClipSiglipForImageClassification, CoCaForImageClassification
    return dict(zip(_composites(), classifiers, strict=True))


def _processors() -> dict:
    from .configuration.configuration_coca import CoCaConfig
    from .processing.processing_coca import CoCaProcessor
    from .processing.processing_open_clip import OpenClipProcessor

    return {**dict.fromkeys(_composites(), OpenClipProcessor), CoCaConfig: CoCaProcessor}


def _image_processors() -> dict:
    from .configuration.configuration_towers import VISION_CONFIGS
    from .processing.image_processing_open_clip import OpenClipImageProcessor
    from .processing.image_processing_pil_open_clip import OpenClipImageProcessorPil

    back_ends = {"torchvision": OpenClipImageProcessor, "pil": OpenClipImageProcessorPil}
    return {config: dict(back_ends) for config in (*VISION_CONFIGS.values(), *_composites())}


def _tokenizers() -> dict:
    from .configuration.configuration_towers import TEXT_CONFIGS
    from .processing.tokenization_open_clip import OpenClipTokenizer

    return dict.fromkeys((*TEXT_CONFIGS.values(), *_composites()), OpenClipTokenizer)


# Module of transformers.models.auto -> table in it -> what is registered there.
_TABLES = {
    "configuration_auto": {"CONFIG_MAPPING": _configs},
    "modeling_auto": {
        "MODEL_MAPPING": _models,
        "MODEL_FOR_BACKBONE_MAPPING": _backbones,
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING": _image_text_to_text_models,
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING": _zero_shot_models,
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": _image_classifiers,
    },
    "processing_auto": {"PROCESSOR_MAPPING": _processors},
    "image_processing_auto": {"IMAGE_PROCESSOR_MAPPING": _image_processors},
    "tokenization_auto": {"TOKENIZER_MAPPING": _tokenizers},
}


def _fill_tables(module: str):
    for name, load in _TABLES[module].items():
        add_entries(getattr(import_module(f"transformers.models.auto.{module}"), name), load)


def _pipelines() -> dict:
    from .processing.pipeline_image_to_text import ImageToTextPipeline

    return {"impl": ImageToTextPipeline}


def _register_pipeline():
    from .processing.pipelines_compat import let_registered_task_pass

    tasks = import_module("transformers.pipelines").PIPELINE_REGISTRY.supported_tasks
    # Not `register_pipeline`: with it, a pipeline's `save_pretrained` would copy our code beside the weights, and the
    # folder then ask for `trust_remote_code`.
    entry = {name: value for name, value in tasks["image-text-to-text"].items() if name != "impl"}
    tasks["image-to-text"] = LateEntries(entry, _pipelines)
    let_registered_task_pass("image-to-text")


def _load_backbones_from_folders():
    from ._auto_backbone_compat import let_local_folders_pass

    let_local_folders_pass()


def register():
    """Makes transformers' Auto classes and pipelines know ours, as soon as transformers imports its own."""
    for module in _TABLES:
        after_import(f"transformers.models.auto.{module}", partial(_fill_tables, module))
    after_import("transformers.models.auto.modeling_auto", _load_backbones_from_folders)
    after_import("transformers.pipelines", _register_pipeline)
