"""The compact LLaVA, a backbone of our own: any vision tower and any causal language model of transformers.

Importing this registers it with the Auto classes, so that it is loaded as every other image-text-to-text model is.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from llava_pose.compact.configuration import CompactLlavaConfig
from llava_pose.compact.modeling import CompactLlavaForConditionalGeneration, CompactLlavaModel
from llava_pose.compact.processing import CompactLlavaProcessor

AutoConfig.register(CompactLlavaConfig.model_type, CompactLlavaConfig, exist_ok=True)
AutoModel.register(CompactLlavaConfig, CompactLlavaModel, exist_ok=True)
AutoModelForImageTextToText.register(CompactLlavaConfig, CompactLlavaForConditionalGeneration, exist_ok=True)
AutoProcessor.register(CompactLlavaConfig, CompactLlavaProcessor, exist_ok=True)

__all__ = [
    "CompactLlavaConfig",
    "CompactLlavaForConditionalGeneration",
    "CompactLlavaModel",
    "CompactLlavaProcessor",
]
