"""The towers and decoders that can be converted, one row each: mirrors `configuration_towers.py` and
`modeling_towers.py`.

Of each table, an open_clip configuration describes the first tower whose `selects` is true.
"""

from .coca_decoder import COCA_DECODER, COCA_MODERN_DECODER
from .hf_text import HF_TEXT
from .mammut_text import MAMMUT_DECODER, MAMMUT_MODERN_DECODER, MAMMUT_TEXT
from .modern_text import MODERN_TEXT
from .modified_resnet import MODIFIED_RESNET
from .naflex_vit import NAFLEX_VIT
from .siglip_vit import SIGLIP_VIT
from .text import TEXT
from .timm_vision import TIMM_VISION
from .vit import VIT


VISION_TOWERS = (MODIFIED_RESNET, SIGLIP_VIT, NAFLEX_VIT, TIMM_VISION, VIT)
TEXT_TOWERS = (HF_TEXT, MODERN_TEXT, MAMMUT_TEXT, TEXT)

VISION_CONVERSIONS = {tower.model_type: tower for tower in VISION_TOWERS}
TEXT_CONVERSIONS = {tower.model_type: tower for tower in TEXT_TOWERS}
DECODER_CONVERSIONS = {
    decoder.model_type: decoder
    for decoder in (COCA_DECODER, COCA_MODERN_DECODER, MAMMUT_DECODER, MAMMUT_MODERN_DECODER)
}
