"""`llava-pose demo`: the page of :mod:`llava_pose.serve.demo_page`, served on this machine."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from llava_pose.errors import InputError
from llava_pose.inference.photos import find_photos
from llava_pose.serve.listening import cannot_listen, require_free
from llava_pose.utils.command import command
from llava_pose.utils.config import require, require_folder
from llava_pose.utils.files import shortened

logger = logging.getLogger(__name__)


@dataclass
class DemoConfig:
    """Options of ``llava-pose demo``."""

    checkpoint: str = field(default="", metadata={"help": "The checkpoint: a folder or a hub id."})
    compare: str | None = field(
        default=None, metadata={"help": "A second checkpoint, which answers the same questions side by side."}
    )
    examples: str | None = field(
        default=None, metadata={"help": "A folder of pictures to try; a dozen from all of it are shown."}
    )
    cad: str | None = field(
        default=None,
        metadata={
            "help": "A folder of CAD models, <category>/NN.off; the first of an object's category is drawn as wires round it, "
            "in the place of a cube."
        },
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "The address to listen at; at 0.0.0.0 the whole network may ask."}
    )
    port: int = field(default=7860, metadata={"help": "The port to listen at."})
    root_path: str = field(
        default="",
        metadata={"help": "Where a proxy puts the page, such as /pose; the proxy takes this off before it passes on."},
    )
    share: bool = field(default=False, metadata={"help": "Open a public link through gradio.live, for a week at most."})
    max_new_tokens: int = field(default=128, metadata={"help": "The tokens of an answer, at most."})
    max_seconds: float = field(default=60.0, metadata={"help": "An answer that takes longer is cut off."})
    queue_size: int = field(
        default=32, metadata={"help": "The questions that may wait; the model answers one at a time."}
    )
    visitors: int = field(
        default=64, metadata={"help": "The chats that are remembered at a time, each with its picture of 8 MB at most."}
    )
    base: str | None = field(
        default=None, metadata={"help": "The base of an adapter, if it has moved; not that of --compare."}
    )
    device: str | None = field(default=None, metadata={"help": "The device; by default a GPU if there is one."})

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise InputError(f"--port {self.port}: must be between 1 and 65535")
        if not 0 < self.max_seconds < float("inf"):
            raise InputError(f"--max-seconds {self.max_seconds}: must be a positive number of seconds")
        if self.root_path and not re.fullmatch(r"(https?://[^\s/]+)?(/[\w.~-]+)+/?", self.root_path):
            raise InputError(
                f"--root-path {shortened(self.root_path)}: must be a path such as /pose, or a whole address"
            )
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
    if config.examples is not None:
        find_photos([config.examples])
    cad = None if config.cad is None else require_folder(config.cad, "--cad", "give the folder with <category>/NN.off")
    if not config.share:  # it asks nobody but itself, which a proxy would be in the way of
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            os.environ.pop(name, None)
            os.environ.pop(name.upper(), None)
    try:
        from llava_pose.serve import demo_page as page
        from llava_pose.serve.examples import prepare_pictures
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError("the demo needs gradio; install it with: pip install 'llava-pose[demo]'") from error
    from llava_pose.inference.predictor import PosePredictor
    from llava_pose.inference.wires import first_models

    predictors = {
        _name(config.checkpoint): PosePredictor.from_checkpoint(
            config.checkpoint, base=config.base, device=config.device
        )
    }
    if config.compare is not None:
        name = _name(config.compare)
        name = f"{name} (2)" if name in predictors else name
        predictors[name] = PosePredictor.from_checkpoint(config.compare, device=config.device)
    known = {category for predictor in predictors.values() for category in predictor.categories}
    models = {} if cad is None else first_models(cad, known)
    # a folder that only this demo knows: Gradio's own is shared by whatever else uses it on this machine
    parent = os.environ.get("GRADIO_TEMP_DIR") or None
    if parent is not None:
        os.makedirs(parent, exist_ok=True)
    # as Ctrl-C does: what visitors have given is deleted at the end, whoever ends it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="llava-pose-demo-", dir=parent, ignore_cleanup_errors=True) as folder:
        visitors, shown = Path(folder, "visitors"), Path(folder, "examples")
        for part in (visitors, shown):
            part.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(visitors)
        examples = [] if config.examples is None else prepare_pictures(config.examples, shown)
        limits = page.Limits(config.max_new_tokens, config.max_seconds, config.queue_size)
        demo_page = page.DemoPage(predictors, limits, examples, models)
        blocks = demo_page.blocks
        try:
            _, url, public_url = demo_page.launch(
                host=config.host,
                port=config.port,
                share=config.share,
                visitors=config.visitors,
                root_path=config.root_path,
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


def _name(checkpoint: str) -> str:
    """Return what a checkpoint is called, without where it stands."""
    path = Path(checkpoint)
    if not path.exists():
        return checkpoint
    path = path.resolve()
    return path.parent.name if path.name == "checkpoint" else path.name


main = command(
    DemoConfig,
    demo,
    prog="llava-pose demo",
    description="Ask about pictures in the browser: answers with angles, and the object's axes drawn on the picture.",
    example="llava-pose demo --checkpoint runs/first",
)

if __name__ == "__main__":
    raise SystemExit(main())
