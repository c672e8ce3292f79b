"""The model: configuration, modules and processor, registered with transformers' Auto classes on import."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.efficientnet_lite import register_efficientnet_lite
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration, LlavaPoseModel
from llava_pose.model.processing import LlavaPoseProcessor

register_efficientnet_lite()
AutoConfig.register(LlavaPoseConfig.model_type, LlavaPoseConfig, exist_ok=True)
AutoModelForImageTextToText.register(LlavaPoseConfig, LlavaPoseForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LlavaPoseConfig, LlavaPoseProcessor, exist_ok=True)

__all__ = ["LlavaPoseConfig", "LlavaPoseForConditionalGeneration", "LlavaPoseModel", "LlavaPoseProcessor"]
