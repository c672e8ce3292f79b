"""Lines that other packages write at their start and that nobody can act on, left out one by one: by who says them and what."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

# logger -> a part of the message
_LOGGED = {
    # bitsandbytes has a second way, and takes it
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    # pictures are read by Pillow here, on purpose
    "transformers.utils.import_utils": "requires torchvision (not installed); falling back to",
}
# of transformers, about a name that its own Trainer and PEFT use
_WARNED = r"`is_gradient_checkpointing` is deprecated"


@dataclass(frozen=True)
class _Without(logging.Filter):
    part: str

    def filter(self, record: logging.LogRecord) -> bool:
        return self.part not in record.getMessage()


def quiet_others() -> None:
    """Leave these lines out; a command calls it before it imports what is heavy, and again without effect."""
    for name, part in _LOGGED.items():
        logging.getLogger(name).addFilter(_Without(part))
    warnings.filterwarnings("ignore", message=_WARNED, category=FutureWarning)
    # of Pillow, at half of its own limit: pictures have ours (llava_pose.data.images.MAX_PIXELS)
    warnings.filterwarnings("ignore", message=r"Image size .* exceeds limit")
