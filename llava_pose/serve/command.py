"""`llava-pose serve`: the addresses of :mod:`llava_pose.serve.server`, at a port of this machine."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from llava_pose.serve.listening import listen, require_free, require_uvicorn
from llava_pose.serve.server import Application, ModelThread, ServerLimits
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields
from llava_pose.utils.values import Name

logger = logging.getLogger(__name__)
KEY = "LLAVA_POSE_API_KEY"  # of the environment


@dataclass(kw_only=True)
class ServeConfig:
    """The options of ``llava-pose serve``."""

    checkpoint: Name = field(metadata={"help": "The checkpoint: a folder or a hub id."})
    host: str = field(
        default="127.0.0.1", metadata={"help": "The address to listen at; at 0.0.0.0 the whole network may ask."}
    )
    port: Annotated[int, Field(gt=0, lt=65536)] = field(default=8000, metadata={"help": "The port to listen at."})
    name: str | None = field(
        default=None, metadata={"help": "The name of the model in answers; by default the checkpoint folder's."}
    )
    max_new_tokens: PositiveInt = field(default=256, metadata={"help": "The most tokens of an answer."})
    max_seconds: PositiveFloat = field(default=60.0, metadata={"help": "An answer that takes longer is cut off."})
    max_mib: PositiveInt = field(default=32, metadata={"help": "The most MiB of a request."})
    max_megapixels: PositiveInt = field(default=32, metadata={"help": "The most million pixels of a picture."})
    queue_size: PositiveInt = field(
        default=64, metadata={"help": "The most questions that wait; others are refused (429)."}
    )
    batch_size: PositiveInt = field(default=16, metadata={"help": "The most objects of a forward pass."})
    base: str | None = field(default=None, metadata={"help": "The base of an adapter, if it has moved."})
    device: str | None = field(default=None, metadata={"help": "The device; by default a GPU if there is one."})

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def limits(self) -> ServerLimits:
        """The limits that the options say."""
        return ServerLimits(
            body_bytes=self.max_mib << 20,
            pixels=self.max_megapixels * 1_000_000,
            new_tokens=self.max_new_tokens,
            seconds=self.max_seconds,
            waiting=self.queue_size,
            batch=self.batch_size,
        )


def serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM. A key that stands in the environment as LLAVA_POSE_API_KEY is asked for.

    Raises:
        InputError: uvicorn or starlette is not installed, the checkpoint cannot be loaded, or the port is taken.
    """
    require_free(config.host, config.port)
    require_uvicorn("server")
    from llava_pose.inference.pipeline import pipeline

    pipe = pipeline(config.checkpoint, base=config.base, device=config.device)
    model = ModelThread(pipe, config.limits)
    name = config.name or Path(config.checkpoint).resolve().name
    application = Application(model, name=name, limits=config.limits, api_key=os.environ.get(KEY) or None)
    logger.info("%s is at http://%s:%d/v1 (Ctrl-C ends it)", name, config.host, config.port)
    try:
        listen(application.build(), config.host, config.port, connections=4 * config.queue_size)
    finally:
        model.close()


main = command(
    ServeConfig,
    serve,
    prog="llava-pose serve",
    description="Serve a checkpoint to programs: OpenAI's chat completions with poses, and batches of pictures.",
    example="llava-pose serve --checkpoint runs/first",
)

if __name__ == "__main__":
    raise SystemExit(main())
