"""`llava-pose demo`: the page of :mod:`llava_pose.serve.page`, served on this machine."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from dataclasses import dataclass, field

from llava_pose.errors import InputError
from llava_pose.serve.listening import cannot_listen, require_free
from llava_pose.utils.config import command, require

logger = logging.getLogger(__name__)


@dataclass
class DemoConfig:
    """Options of ``llava-pose demo``."""

    checkpoint: str = field(default="", metadata={"help": "checkpoint folder or hub id"})
    host: str = field(
        default="127.0.0.1", metadata={"help": "address to listen at; 0.0.0.0: the whole network may ask"}
    )
    port: int = field(default=7860, metadata={"help": "port to listen at"})
    share: bool = field(default=False, metadata={"help": "open a public link through gradio.live, for a week at most"})
    max_new_tokens: int = field(default=128, metadata={"help": "an answer's tokens at most"})
    max_seconds: float = field(default=60.0, metadata={"help": "an answer that takes longer is cut off"})
    queue_size: int = field(default=32, metadata={"help": "questions that may wait; the model answers one at a time"})
    visitors: int = field(
        default=64, metadata={"help": "chats that are remembered at a time, each with its picture of 8 MB at most"}
    )
    base: str | None = field(default=None, metadata={"help": "an adapter's base, if it has moved"})
    device: str | None = field(default=None, metadata={"help": "default: a GPU if there is one"})

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise InputError(f"--port {self.port}: must be between 1 and 65535")
        if not 0 < self.max_seconds < float("inf"):
            raise InputError(f"--max-seconds {self.max_seconds}: must be a positive number of seconds")
        for option in ("max_new_tokens", "queue_size", "visitors"):
            if getattr(self, option) < 1:
                raise InputError(f"--{option.replace('_', '-')} {getattr(self, option)}: must be at least 1")


def demo(config: DemoConfig) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        InputError: gradio is not installed, the checkpoint cannot be loaded, or the port is taken.
    """
    require(config.checkpoint, "--checkpoint")
    require_free(config.host, config.port)
    try:
        from llava_pose.serve import page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError("the demo needs gradio; install it with: pip install 'llava-pose[demo]'") from error
    from llava_pose.inference.predictor import PosePredictor

    predictor = PosePredictor.from_checkpoint(config.checkpoint, base=config.base, device=config.device)
    # a folder that only this demo knows: Gradio's own is shared by whatever else uses it on this machine
    parent = os.environ.get("GRADIO_TEMP_DIR") or None
    if parent is not None:
        os.makedirs(parent, exist_ok=True)
    # as Ctrl-C does: what visitors have given is deleted at the end, whoever ends it
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with tempfile.TemporaryDirectory(prefix="llava-pose-demo-", dir=parent, ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = page.build_page(
            predictor,
            max_new_tokens=config.max_new_tokens,
            max_seconds=config.max_seconds,
            queue_size=config.queue_size,
        )
        try:
            _, url, public_url = page.launch(
                blocks, host=config.host, port=config.port, share=config.share, visitors=config.visitors
            )
        except OSError as error:
            raise cannot_listen(config.host, config.port, error) from error
        try:
            logger.info(
                f"the demo is at {public_url or url} (Ctrl-C ends it); for programs: gradio_client.Client({url!r})"
            )
            blocks.block_thread()
        except KeyboardInterrupt:  # gradio sees to one that comes while it waits, and to no earlier one
            blocks.close()


main = command(
    DemoConfig,
    demo,
    prog="llava-pose demo",
    description="Ask about pictures in the browser: answers with angles, and the object's axes drawn on the picture.",
    example="llava-pose demo --checkpoint runs/first",
)

if __name__ == "__main__":
    raise SystemExit(main())
