"""Register our classes with transformers' Auto classes and pipelines, without importing them or torch yet.

`import transformers` alone imports neither torch nor the Auto classes, whereas `AutoModel.register` and its like need
both and our classes too, which takes seconds. So registering waits twice: until transformers imports the module that
holds a table of its Auto classes ([`after_import`]), and then until somebody looks at the table
([`register_at_first_look`]), because our modules cannot be imported in the middle of transformers' own imports.

The towers come from the tables in `configuration_towers.py` and `modeling_towers.py`; nothing is added here for a new
one.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from threading import RLock, get_ident


class _AfterImport(MetaPathFinder):
    """Leave finding modules to the other finders, and call back once a module that is waited for has run."""

    def __init__(self):
        self.callbacks: dict[str, Callable[[], None]] = {}

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.callbacks:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            run = partial(self._run, spec.loader.exec_module, self.callbacks[fullname])
            spec.loader.exec_module = run  # type: ignore[method-assign]
        return spec

    @staticmethod
    def _run(exec_module: Callable, callback: Callable[[], None], module):
        exec_module(module)
        callback()


_finder = _AfterImport()


def after_import(module: str, callback: Callable[[], None]):
    """Call `callback` as soon as `module` (a dotted name) has been imported: at once where it already is."""
    if module in sys.modules:
        callback()
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.callbacks[module] = callback


def register_at_first_look(table, load: Callable[[], dict]):
    """Register classes in a table of the Auto classes when it is first looked at, in whichever way.

    Until then the table is of a subclass of its class, which registers and makes it what it was.

    Args:
        table: such as `transformers.MODEL_MAPPING`, with a method `register(key, value, exist_ok)`.
        load: returns configuration class (or model type) -> class to register. It is called in each thread that looks
            at the table before it is whole, and again where it raised.
    """
    plain, lock, fillers = type(table), RLock(), []

    def fill():
        if get_ident() in fillers:  # this thread is in `register` below
            return
        entries = load()
        # Nothing is imported under the lock, so that it cannot wait for an import that waits for the lock.
        with lock:
            if not fillers:
                fillers.append(get_ident())
                for key, value in entries.items():
                    table.register(key, value, exist_ok=True)
                table.__class__ = plain

    def looking(method: str):
        def look(table, *args):
            fill()
            return getattr(plain, method)(table, *args)

        return look

    # Python looks for these on the class, and for all else through the first of them.
    looks = ("__getattribute__", "__getitem__", "__contains__", "__iter__", "__len__", "__bool__")
    methods = {method: looking(method) for method in looks if hasattr(plain, method)}
    table.__class__ = type(plain.__name__, (plain,), methods)


def _by_config(*models) -> dict:
    return {model.config_class: model for model in models}


def _configs() -> dict:
    from .configuration.configuration_coca import CoCaDecoderConfig
    from .configuration.configuration_mammut import MaMMUTDecoderConfig
    from .configuration.configuration_modern_decoder import CoCaModernDecoderConfig, MaMMUTModernDecoderConfig

    decoders = (CoCaDecoderConfig, CoCaModernDecoderConfig, MaMMUTDecoderConfig, MaMMUTModernDecoderConfig)
    return {config.model_type: config for config in (*_towers().values(), *_composites(), *decoders)}


def _towers() -> dict:
    from .configuration.configuration_towers import TEXT_CONFIGS, VISION_CONFIGS

    return {**VISION_CONFIGS, **TEXT_CONFIGS}


def _composites() -> tuple:
    from .configuration.configuration_coca import CoCaConfig
    from .configuration.configuration_mammut import MaMMUTConfig
    from .configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig

    return OpenClipConfig, OpenClipSiglipConfig, CoCaConfig, MaMMUTConfig


def _models() -> dict:
    from .modeling.modeling_coca import CoCaModel
    from .modeling.modeling_mammut import MaMMUTModel
    from .modeling.modeling_open_clip import OpenClipModel, OpenClipSiglipModel
    from .modeling.modeling_towers import TEXT_MODELS, VISION_MODELS

    composites = (OpenClipModel, OpenClipSiglipModel, CoCaModel, MaMMUTModel)
    return _by_config(*VISION_MODELS.values(), *TEXT_MODELS.values(), *composites)


def _backbones() -> dict:
    from .modeling.modeling_modified_resnet import ModifiedResNetBackbone
    from .modeling.modeling_siglip_vit import SiglipVitBackbone
    from .modeling.modeling_vit import OpenClipVitBackbone

    return _by_config(ModifiedResNetBackbone, OpenClipVitBackbone, SiglipVitBackbone)


def _image_text_to_text_models() -> dict:
    from .modeling.modeling_coca import CoCaForConditionalGeneration
    from .modeling.modeling_mammut import MaMMUTForConditionalGeneration

    return _by_config(CoCaForConditionalGeneration, MaMMUTForConditionalGeneration)


def _zero_shot_models() -> dict:
    from .modeling.modeling_coca import CoCaForZeroShotImageClassification
    from .modeling.modeling_mammut import MaMMUTForZeroShotImageClassification
    from .modeling.modeling_open_clip import OpenClipModel, OpenClipSiglipModel

    captioners = (CoCaForZeroShotImageClassification, MaMMUTForZeroShotImageClassification)
    return _by_config(OpenClipModel, OpenClipSiglipModel, *captioners)


def _image_classifiers() -> dict:
    from .modeling.modeling_coca import CoCaForImageClassification
    from .modeling.modeling_mammut import MaMMUTForImageClassification
    from .modeling.modeling_open_clip import OpenClipForImageClassification, OpenClipSiglipForImageClassification

    captioners = (CoCaForImageClassification, MaMMUTForImageClassification)
    return _by_config(OpenClipForImageClassification, OpenClipSiglipForImageClassification, *captioners)


def _processors() -> dict:
    from .processing.processing_coca import CoCaProcessor
    from .processing.processing_open_clip import OpenClipProcessor

    return {
        config: CoCaProcessor if "multimodal_config" in config.sub_configs else OpenClipProcessor
        for config in _composites()
    }


def _image_processors() -> dict:
    from .configuration.configuration_naflex_vit import NaFlexVitConfig
    from .configuration.configuration_towers import VISION_CONFIGS
    from .processing.image_processing_naflex import NaFlexImageProcessor
    from .processing.image_processing_open_clip import OpenClipImageProcessor
    from .processing.image_processing_pil_naflex import NaFlexImageProcessorPil
    from .processing.image_processing_pil_open_clip import OpenClipImageProcessorPil

    back_ends = {"torchvision": OpenClipImageProcessor, "pil": OpenClipImageProcessorPil}
    processors = {config: dict(back_ends) for config in (*VISION_CONFIGS.values(), *_composites())}
    return processors | {NaFlexVitConfig: {"torchvision": NaFlexImageProcessor, "pil": NaFlexImageProcessorPil}}


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
        "MODEL_FOR_MULTIMODAL_LM_MAPPING": _image_text_to_text_models,
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING": _zero_shot_models,
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": _image_classifiers,
    },
    "processing_auto": {"PROCESSOR_MAPPING": _processors},
    "image_processing_auto": {"IMAGE_PROCESSOR_MAPPING": _image_processors},
    "tokenization_auto": {"TOKENIZER_MAPPING": _tokenizers},
}


def _register_in_tables(module: str):
    for name, load in _TABLES[module].items():
        register_at_first_look(getattr(import_module(f"transformers.models.auto.{module}"), name), load)
    if module == "modeling_auto":
        from .auto_backbone_compat import let_local_folders_pass

        let_local_folders_pass()
        # `transformers serve` looks here, and not at what is registered, for the models that take images.
        names = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
        names["open_clip_coca"] = "CoCaForConditionalGeneration"
        names["open_clip_mammut"] = "MaMMUTForConditionalGeneration"


# Task -> module and class of our pipeline, and transformers' task whose other entries it has. Each hands models that
# are not ours over to transformers' own pipeline.
_PIPELINES = {
    "image-to-text": ("pipeline_image_to_text", "ImageToTextPipeline", "image-text-to-text"),
    "image-text-to-text": ("pipeline_image_to_text", "CoCaImageTextToTextPipeline", "image-text-to-text"),
    "image-feature-extraction": (
        "pipeline_image_feature_extraction",
        "OpenClipImageFeatureExtractionPipeline",
        "image-feature-extraction",
    ),
}


class _Task(dict):
    """A task of transformers' pipelines whose class is imported when it is asked for."""

    def __init__(self, module: str, pipeline: str, entries: dict):
        super().__init__({name: value for name, value in entries.items() if name != "impl"})
        self.module, self.pipeline = module, pipeline

    def __missing__(self, key):
        if key != "impl":
            raise KeyError(key)
        return getattr(import_module(f"{__package__}.processing.{self.module}"), self.pipeline)


def _register_pipelines():
    from .processing.pipelines_compat import let_registered_task_pass

    tasks = import_module("transformers.pipelines").PIPELINE_REGISTRY.supported_tasks
    # Not `register_pipeline`: with it, a pipeline's `save_pretrained` would copy our code beside the weights, and the
    # folder then ask for `trust_remote_code`.
    for task, (module, pipeline, like) in _PIPELINES.items():
        tasks[task] = _Task(module, pipeline, tasks[like])
    let_registered_task_pass("image-to-text")


def register():
    """Make transformers' Auto classes and pipelines know ours, as soon as transformers imports its own."""
    for module in _TABLES:
        after_import(f"transformers.models.auto.{module}", partial(_register_in_tables, module))
    after_import("transformers.pipelines", _register_pipelines)
