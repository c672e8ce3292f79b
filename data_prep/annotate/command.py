"""`llava-pose annotate`: a page in the browser to label photographs, whose output is the raw layout that `prepare` reads."""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from data_prep.annotate.labels import Labels
from data_prep.annotate.server import Application
from llava_pose.errors import InputError
from llava_pose.inference.wires import list_models
from llava_pose.serve.listening import listen, require_free, require_uvicorn
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.files import is_plain_name
from llava_pose.utils.output_folder import keep_settings, own_folder, require_other
from llava_pose.utils.values import Name

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class AnnotateConfig:
    """The options of ``llava-pose annotate``."""

    images: Name = field(metadata={"help": "The folder of the photographs, with all that is in it."})
    out: Name = field(metadata={"help": "The folder to write in the raw layout; the same command goes on with it."})
    checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint whose answers the labels start from, a folder or a hub id."}
    )
    cad: str | None = field(
        default=None, metadata={"help": "A folder of CAD models, <category>/NN.off, to lay over the photographs."}
    )
    split: str = field(default="train", metadata={"help": "The split that the photographs go to."})
    allow_custom_categories: bool = field(
        default=False, metadata={"help": "Accept categories that are not in the taxonomy."}
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "The address to listen at; at 0.0.0.0 the whole network may label."}
    )
    port: Annotated[int, Field(gt=0, lt=65536)] = field(default=7870, metadata={"help": "The port to listen at."})
    base: str | None = field(default=None, metadata={"help": "The base of an adapter, if it has moved."})
    device: str | None = field(default=None, metadata={"help": "The device; by default a GPU if there is one."})

    def __post_init__(self) -> None:
        check_fields(self)
        if not is_plain_name(self.split):
            raise InputError(f"--split {self.split}: cannot name a split; use letters and digits")


def annotate(config: AnnotateConfig) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Raises:
        InputError: there are no photographs, the output is another command's or another set's, starlette or uvicorn is not
            installed, the checkpoint cannot be loaded, or the port is taken.
    """
    images = require_folder(config.images, "IMAGES", "give the folder of your photographs")
    cad = None if config.cad is None else require_folder(config.cad, "--cad", "give the folder with <category>/NN.off")
    out = Path(config.out)
    require_other("--out", [out], [images])
    require_free(config.host, config.port)
    require_uvicorn("page")
    with own_folder(out, "--out", "annotate"):
        keep_settings(out, "--out", "annotate", {"images": str(images.resolve()), "split": config.split})
        labels = Labels(images, out, split=config.split, allow_custom_categories=config.allow_custom_categories)
        pipe = None
        if config.checkpoint is not None:
            from llava_pose.inference.pipeline import pipeline

            custom = config.allow_custom_categories
            pipe = pipeline(config.checkpoint, base=config.base, device=config.device, allow_custom_categories=custom)
        application = Application(labels, list_models(cad), pipe=pipe, host=config.host)
        done = sum(count is not None for count in labels.counts())
        logger.info(
            "%d of %d photographs are labelled; the page is at http://%s:%d (Ctrl-C ends it)",
            *(done, len(labels.names), config.host, config.port),
        )
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # both end it in one way
        with suppress(KeyboardInterrupt):  # uvicorn has ended, and hands it on
            listen(application.build(), config.host, config.port)
        logger.info(
            "labels: %s   next: llava-pose prepare --data-root %s --out %s --splits %s --crop box",
            *(out, out, out.with_name(f"{out.name}_prepared"), config.split),
        )


main = command(
    AnnotateConfig,
    annotate,
    prog="llava-pose annotate",
    description="Label photographs in the browser: category, box, and a CAD model or cuboid turned until it fits.",
    example="llava-pose annotate photos --out photos_raw --checkpoint checkpoints/everyday",
    positional="images",
)

if __name__ == "__main__":
    raise SystemExit(main())
