"""LLaVA-pose: vision-language models that know how an object is turned in space.

The model classes are imported on first use, so that geometry and metrics cost no import of torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("llava-pose")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

_EXPORTS = {
    "LlavaPoseConfig": "llava_pose.model",
    "LlavaPoseForConditionalGeneration": "llava_pose.model",
    "LlavaPoseProcessor": "llava_pose.model",
    "PosePredictor": "llava_pose.inference.predictor",
    "pipeline": "llava_pose.inference.pipeline",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
