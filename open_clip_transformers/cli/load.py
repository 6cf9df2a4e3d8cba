"""Load models and processors for the command line, and say clearly why one does not fit."""

import re
from pathlib import Path
from reprlib import repr as brief
from shlex import quote

import torch
from safetensors import safe_open
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from ..configuration.configuration_coca import CoCaConfig
from ..configuration.configuration_common import Range, height_and_width
from ..configuration.configuration_mammut import MaMMUTConfig
from ..configuration.configuration_naflex_vit import NaFlexVitConfig
from ..configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig
from ..configuration.configuration_vit import OpenClipVitConfig
from ..configuration.errors import UserError
from ..convert_scripts.common import check_no_pointer, failing_as, hub_id_of_address, read_json, user_path
from ..modeling.generation_captioning import check_numbers
from ..processing.image_settings_naflex import NaFlexImageSettings
from ..processing.image_settings_open_clip import ImageSettings
from ..processing.processing_coca import CoCaProcessor
from ..processing.processing_open_clip import OpenClipProcessor
from .messages import UsageError, hide_progress_bars_in_logs


# Models that caption -> their names.
CAPTIONERS = {CoCaConfig.model_type: "CoCa", MaMMUTConfig.model_type: "MaMMUT"}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What generation_config.json holds of a converted model.
PLAIN_SETTINGS = {*TOKEN_IDS, "max_length", "transformers_version", "_from_model_config"}
# Towers that take images of one size alone, unless they are told to interpolate.
FIXED_SIZE = {OpenClipVitConfig.model_type}
_HUB_ID = r"[\w.-]+/[\w.-]+"
KINDS = {OpenClipConfig.model_type: "CLIP", OpenClipSiglipConfig.model_type: "SigLIP", **CAPTIONERS}


def load_model(
    auto_class, name: str, revision: str | None, device: str, dtype: str, *, captions: bool = False, **settings
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a converted model, ready for inference, and its processor.

    Args:
        auto_class: the Auto class of the model.
        name: a folder or a Hub id.
        revision: branch, tag or commit of the Hub repository, by default its main branch.
        device: such as `"cpu"` or `"cuda:1"`; `"auto"` for the accelerator of this machine, if it has one.
        dtype: such as `"bfloat16"`; `"auto"` for the one it was saved in.
        captions: whether the model must be able to caption.
        settings: further arguments of the model's `from_pretrained`.

    Raises:
        UsageError: there is no such model or device, or the model is of a kind that the command cannot use.
    """
    hide_progress_bars_in_logs()
    place = pick_device(device)
    folder = find_model(name, revision, captions)
    _check_files(Path(folder))
    with failing_as(f"{name} has no processor that can be loaded; converting it again writes one.", UsageError):
        processor = AutoProcessor.from_pretrained(folder, revision=revision, trust_remote_code=False)
    with failing_as(f"{name} cannot be loaded, as its config.json or its weights are damaged.", UserError):
        model, info = auto_class.from_pretrained(
            folder,
            revision=revision,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            trust_remote_code=False,
            **settings,
        )
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"{name} does not hold a whole {KINDS[model.config.model_type]}: {len(missing)} tensors are missing, such "
            f"as {missing[0]}."
        )
    _check_processor(name, model, processor)
    model = model.eval().to(place)
    if model.can_generate():
        _check_generation(name, model)
    return model, processor


def _check_files(folder: Path):
    """Raise `UserError` or `OSError` with the name of a file of a local folder that cannot be read."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file():
            check_no_pointer(path)
        if path.suffix == ".safetensors":
            with failing_as(f"{path} cannot be read", UserError), safe_open(path, framework="pt"):
                pass
        # transformers takes its own settings in silence where it cannot read these.
        if path.name == GENERATION_CONFIG_NAME:
            read_json(path)


def _image_problem(vision: PreTrainedConfig, image_processor: ImageSettings) -> str | None:
    """Why images made by an image processor are not those that a vision tower takes; `None` where they are."""
    takes_patches = vision.model_type == NaFlexVitConfig.model_type
    if takes_patches != isinstance(image_processor, NaFlexImageSettings):
        kinds = ("whole images", "patches")
        return f"its images are {kinds[not takes_patches]}, and the model takes {kinds[takes_patches]}"
    name, taken = ("patch_size", vision.patch_size) if takes_patches else ("size", vision.image_size)
    made = getattr(image_processor, name)
    made = height_and_width(made) if takes_patches else (made["height"], made["width"])
    if (takes_patches or vision.model_type in FIXED_SIZE) and made != height_and_width(taken):
        what = "patches" if takes_patches else "images"
        return f"its {what} have {made} pixels, and the model takes {height_and_width(taken)}"
    return None


def _check_processor(name: str, model: PreTrainedModel, processor: ProcessorMixin):
    """Raise `UsageError` where images and texts would be made ready for another model than this."""
    problem = None
    if not isinstance(processor, OpenClipProcessor | CoCaProcessor):
        problem = f"its processor is a {type(processor).__name__}"
    else:
        vision, text = model.config.vision_config, model.config.text_config
        length = processor.tokenizer.model_max_length
        if images := _image_problem(vision, processor.image_processor):
            problem = images
        elif length > text.max_position_embeddings:
            problem = f"its texts have {length} tokens, and the model takes {text.max_position_embeddings}"
    if problem:
        raise UsageError(f"{name} has a processor of another model: {problem}. Converting it again writes one.")


def _check_generation(name: str, model: PreTrainedModel):
    """Raise `UsageError` where generation_config.json has settings that no caption can be made with."""
    file, settings = GENERATION_CONFIG_NAME, model.generation_config
    ids = Range(0, model.config.vocab_size - 1)
    with failing_as(f"{name} cannot caption", UsageError):
        check_numbers(file, vars(settings))
        for field in TOKEN_IDS:
            value = getattr(settings, field)
            values = value if isinstance(value, list) and value else [value]
            if value is not None and not all(isinstance(token_id, int) and token_id in ids for token_id in values):
                raise ValueError(f"{file}: {field} must be a whole number in {ids}, got {brief(value)}.")
    if settings.to_diff_dict().keys() <= PLAIN_SETTINGS:
        return
    try_settings(model, f"{name} cannot caption with the settings in its {file}")


def try_settings(model: PreTrainedModel, message: str, **settings):
    """Raise a `UsageError` that begins with `message` where `generate` cannot take settings: it checks as it goes."""
    image = torch.zeros(1, 1, model.config.vision_config.token_dim, dtype=model.dtype, device=model.device)
    with failing_as(message, UsageError), torch.inference_mode():
        model.generate(image_hidden_states=image, **{**settings, "max_new_tokens": 1})


def pick_device(device: str) -> torch.device:
    """Try out the device of that name; `"auto"` is this machine's accelerator, or the CPU where it has none."""
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(1, device=device).device
    except Exception as error:  # torch says in many ways that there is no such device
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"--device {device} cannot be used here: {reason}. `auto` picks a device.") from error


def find_model(name: str, revision: str | None, captions: bool) -> str:
    """Return the folder or Hub id to load, after a look at the model's type. For the arguments see [`load_model`]."""
    path = user_path(name)
    convert = f"`open-clip-transformers convert {quote(name)} FOLDER` makes a folder of an open_clip checkpoint"
    if path.is_file():
        raise UsageError(f"{name} is a file, expected a folder or a Hub id; {convert}.")
    if not path.is_dir() and not re.fullmatch(_HUB_ID, name):
        repo_id, _, at = (hub_id_of_address(name) or name).partition("@")
        is_id = re.fullmatch(_HUB_ID, repo_id) and repo_id != name
        hint = f" Give {repo_id}{f' and --revision {quote(at)}' if at else ''}." if is_id else ""
        raise UsageError(f"{name}: there is no such folder, and it is not a Hub id (org/name).{hint}")
    if path.is_dir() and revision is not None:
        raise UsageError(f"{name} is on this machine and has no revisions: leave out --revision {revision}.")
    folder = str(path) if path.is_dir() else name
    with failing_as(f"{name}: there is no configuration that can be read.", UsageError):
        if path.is_dir() and (path / CONFIG_NAME).is_file():
            read_json(path / CONFIG_NAME)
        model_type = PreTrainedConfig.get_config_dict(folder, revision=revision)[0].get("model_type")
    if model_type is None:
        raise UsageError(f"{name} has no config.json that says what the model is; {convert}.")
    if not isinstance(model_type, str) or model_type not in KINDS:
        raise UsageError(
            f"{name} is a {model_type!r} model, expected one that was converted from open_clip "
            f"({', '.join(KINDS)}); {convert}."
        )
    if captions and model_type not in CAPTIONERS:
        captioners = " or a ".join(f"{name} ({kind})" for kind, name in CAPTIONERS.items())
        raise UsageError(
            f"{name} is a {KINDS[model_type]} ({model_type}), which has no decoder to write captions with: `caption` "
            f"needs a {captioners}. `classify` and `embed` work with this model."
        )
    return folder
