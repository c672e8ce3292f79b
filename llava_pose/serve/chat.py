"""`llava-pose chat`: ask about one picture in the terminal."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from llava_pose.data.images import open_picture
from llava_pose.errors import InputError
from llava_pose.serve.limits import QUESTION_CHARACTERS
from llava_pose.serve.session import ChatSession, angles_in_degrees, doubt, taught
from llava_pose.utils.config import command, require
from llava_pose.utils.files import atomic_file, printable
from llava_pose.utils.output_folder import own_file, require_other, require_suffix

if TYPE_CHECKING:
    from llava_pose.inference.predictor import ChatAnswer

logger = logging.getLogger(__name__)
PROMPT = "> "
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of overlays; any can hold any picture


@dataclass
class ChatConfig:
    """Options of ``llava-pose chat``."""

    checkpoint: str = field(default="", metadata={"help": "checkpoint folder or hub id"})
    image: str = field(default="", metadata={"help": "the picture: JPEG, PNG, WebP, …"})
    question: list[str] | None = field(
        default=None,
        metadata={"help": "ask this and end; may be repeated. Without it, questions are read line by line"},
    )
    save_overlay: str | None = field(
        default=None,
        metadata={"help": "write the picture with the axes of the latest poses to this file, e.g. axes.png"},
    )
    details: bool = field(
        default=False, metadata={"help": "show tenths of degrees, confidence, distance and place of each pose"}
    )
    max_new_tokens: int = field(default=128, metadata={"help": "an answer's tokens at most"})
    viewport: float | None = field(
        default=None, metadata={"help": "pixels per unit focal length of the camera; default: the longer side"}
    )
    base: str | None = field(default=None, metadata={"help": "an adapter's base, if it has moved"})
    device: str | None = field(default=None, metadata={"help": "default: a GPU if there is one"})

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens {self.max_new_tokens}: must be at least 1")
        if self.viewport is not None and not 0 < self.viewport < float("inf"):
            raise InputError(f"--viewport {self.viewport}: must be a positive number of pixels")


def chat(config: ChatConfig) -> ChatSession:
    """Ask the questions of the config, or those that are typed until an empty line or the end of the input.

    Answers go to stdout, all else to stderr.

    Raises:
        InputError: the checkpoint, the picture or a question that was not typed by hand cannot be used.
    """
    require(config.checkpoint, "--checkpoint")
    if not config.image:
        raise InputError("no picture is given: name its file before --question, or after --image")
    picture = open_picture(config.image)
    if config.save_overlay is None:
        return _chat(config, picture)
    require_suffix("--save-overlay", config.save_overlay, *_FORMATS)
    require_other("--save-overlay", [config.save_overlay], [config.image])
    with own_file(config.save_overlay, "--save-overlay", "chat"):
        return _chat(config, picture)


def _chat(config: ChatConfig, picture: Image.Image) -> ChatSession:
    from llava_pose.inference.predictor import PosePredictor  # seconds, which --help does without

    predictor = PosePredictor.from_checkpoint(config.checkpoint, base=config.base, device=config.device)
    session = ChatSession(predictor, picture, viewport=config.viewport, max_new_tokens=config.max_new_tokens)
    by_hand = config.question is None and sys.stdin.isatty()
    if by_hand:
        logger.info(
            f"{config.image}: {picture.width}×{picture.height} pixels. Ask about it, for example "
            '"What is this and what is its pose?"; an empty line or Ctrl-D ends.'
        )
        if known := taught(predictor.categories):
            logger.info(known)
    for question in typed_questions(by_hand) if config.question is None else config.question:
        try:
            answer = session.ask(question)
            _show(answer, config)
            if unsure := doubt(question, predictor.categories):
                logger.warning(unsure)
            if answer.poses and config.save_overlay is not None:
                save_picture(session.overlay(), config.save_overlay)
        except InputError as error:
            if not by_hand:
                raise
            logger.info(f"{error}")
        except KeyboardInterrupt:
            if not by_hand:
                raise
            logger.info("(stopped; ask something else, or end with an empty line)")
    if config.save_overlay is not None:
        logger.info(
            f"the axes are drawn in {config.save_overlay}"
            if session.last_with_poses
            else f"{config.save_overlay} was not written: no answer held a pose"
        )
    return session


def typed_questions(by_hand: bool) -> Iterator[str]:
    """Lines of stdin up to an empty one, or to its end, with a prompt and line editing where a person types them."""
    if by_hand:
        _enable_line_editing()
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            # of a line without end no more is read than shows that it is too long; it is the last one then
            question = input(PROMPT) if by_hand else sys.stdin.readline(QUESTION_CHARACTERS + 1)
        except (EOFError, KeyboardInterrupt):
            if by_hand:
                sys.stdout.write("\n")
            return
        if not question.strip():
            return
        yield question


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401, arrow keys and history in input()
    except ImportError:
        logger.debug("this Python has no readline: lines are edited as the terminal does it")


def _show(answer: ChatAnswer, config: ChatConfig) -> None:
    lines = [answer.readable or "(no answer)"]
    if config.details:
        lines += [describe_details(answer, index) for index in range(len(answer.poses))]
    sys.stdout.write(printable("\n".join(lines)) + "\n")
    sys.stdout.flush()
    if not answer.complete:
        logger.info(f"(cut off at {config.max_new_tokens} tokens; --max-new-tokens allows more)")


def describe_details(answer: ChatAnswer, index: int) -> str:
    """Everything that is known of one pose of an answer, on one line."""
    pose = answer.poses[index]
    azimuth, elevation, theta = angles_in_degrees(pose)
    return (
        f"  pose {index + 1}: azimuth {azimuth:.1f}°, elevation {elevation:.1f}°, in-plane {theta:.1f}°, "
        f"confidence {answer.confidences[index]:.0%}, distance {pose.distance:.2f}, "
        f"at ({pose.px:.0f}, {pose.py:.0f}) px"
    )


def save_picture(picture: Image.Image, path: str) -> None:
    """Write a picture whole or not at all, in the format that the name's ending says."""
    with atomic_file(path, "wb") as file:
        picture.save(file, _FORMATS[Path(path).suffix.lower()])


main = command(
    ChatConfig,
    chat,
    prog="llava-pose chat",
    description="Ask about one picture. Angles in the answers are read from the model's pose head, in degrees.",
    example="llava-pose chat --checkpoint runs/first photo.jpg --question 'What is the pose of the car?'",
    positional="image",
)

if __name__ == "__main__":
    raise SystemExit(main())
