"""The model: pose parts on a backbone, their configuration and the processor."""

import llava_pose.compact  # noqa: F401  # which the Auto classes know then
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.efficientnet_lite import register_efficientnet_lite
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.processing import LlavaPoseProcessor

register_efficientnet_lite()

__all__ = ["LlavaPoseConfig", "LlavaPoseForConditionalGeneration", "LlavaPoseProcessor"]
