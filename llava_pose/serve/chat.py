"""`llava-pose chat`: ask about pictures in the terminal, or from a pipe."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from llava_pose.data.conversation import describe_pose
from llava_pose.data.images import open_picture
from llava_pose.errors import InputError, left_out
from llava_pose.inference.pose_lines import csv_text, pose_line
from llava_pose.serve.limits import QUESTION_CHARACTERS
from llava_pose.serve.session import ChatSession, angles_in_degrees, doubt, numbered, possible_words, shown_name, taught
from llava_pose.utils.command import command
from llava_pose.utils.config import require
from llava_pose.utils.files import atomic_file, printable, write_atomic
from llava_pose.utils.output_folder import own_file, require_other, require_suffix

if TYPE_CHECKING:
    from llava_pose.inference.answers import ChatAnswer, PoseAnswer
    from llava_pose.inference.predictor import PosePredictor

logger = logging.getLogger(__name__)
PROMPT = "> "
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of overlays; any can hold any picture
_TABLES = (".csv", ".jsonl")
HELP = """\
/image [PATH]  ask about another picture; without PATH, the next of those that were given
/box X Y W H   ask about the part of the picture with this corner, width and height in pixels; /box: about all of it
/save FILE     write the latest poses: axes on the picture (.png, .jpg, .webp) or numbers (.csv, .jsonl)
/json          show the latest answer with all its numbers, as JSON
/help          show this
/quit          end; so does an empty line"""


@dataclass
class ChatConfig:
    """Options of ``llava-pose chat``."""

    checkpoint: str = field(default="", metadata={"help": "The checkpoint: a folder or a hub id."})
    image: list[str] = field(default_factory=list, metadata={"help": "The pictures: JPEG, PNG, WebP, …"})
    question: list[str] | None = field(
        default=None,
        metadata={
            "help": "Ask this of each picture and end; may be repeated. Without it, questions are read line by line, and a "
            "line that begins with / is a command: /help lists them."
        },
    )
    save_overlay: str | None = field(
        default=None,
        metadata={"help": "Write the picture with the axes of the latest poses to this file, e.g. axes.png."},
    )
    json: bool = field(default=False, metadata={"help": "Write each answer as a line of JSON with all its numbers."})
    details: bool = field(
        default=False,
        metadata={
            "help": "Show tenths of degrees, words, confidence, distance and place of each pose; at a terminal, all but the "
            "tenths, the distance and the place are shown anyway."
        },
    )
    max_new_tokens: int = field(default=128, metadata={"help": "The tokens of an answer, at most."})
    viewport: float | None = field(
        default=None, metadata={"help": "The camera's pixels per unit focal length; by default the longer side."}
    )
    base: str | None = field(default=None, metadata={"help": "The base of an adapter, if it has moved."})
    device: str | None = field(default=None, metadata={"help": "The device; by default a GPU if there is one."})

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens {self.max_new_tokens}: must be at least 1")
        if self.viewport is not None and not 0 < self.viewport < float("inf"):
            raise InputError(f"--viewport {self.viewport}: must be a positive number of pixels")


def chat(config: ChatConfig) -> None:
    """Ask the questions of the config, or those that are typed until an empty line, /quit or the end of the input.

    Answers go to stdout, all else to stderr.

    Raises:
        InputError: the checkpoint, a picture or a line that was not typed by hand cannot be used.
    """
    require(config.checkpoint, "--checkpoint")
    if not config.image:
        raise InputError("no picture is given: name its file before --question, or after --image")
    picture = open_picture(config.image[0])
    if config.save_overlay is None:
        return _chat(config, picture)
    if len(config.image) > 1:
        raise InputError("--save-overlay is one file, and there are several pictures; save each with /save")
    require_suffix("--save-overlay", config.save_overlay, *_FORMATS)
    require_other("--save-overlay", [config.save_overlay], config.image)
    with own_file(config.save_overlay, "--save-overlay", "chat"):
        return _chat(config, picture)


def _chat(config: ChatConfig, picture: Image.Image) -> None:
    from llava_pose.inference.predictor import PosePredictor  # seconds, which --help does without

    predictor = PosePredictor.from_checkpoint(config.checkpoint, base=config.base, device=config.device)
    talk = Talk(config, predictor, picture)
    if config.question is None:
        _typed(talk, config.image[0], taught(predictor.categories))
    else:
        _each(talk, config.image, config.question)
    if config.save_overlay is not None:
        logger.info(
            f"the axes are drawn in {config.save_overlay}"
            if talk.session.last_with_poses
            else f"{config.save_overlay} was not written: no answer held a pose"
        )


def _each(talk: Talk, pictures: list[str], questions: list[str]) -> None:
    """Ask all questions of each picture. One that cannot be read stops nothing, where there are others."""
    faults: list[InputError] = []
    for index, path in enumerate(pictures):
        try:
            if index:
                talk.look_at(path)
        except InputError as error:
            faults.append(error)
            continue
        for question in questions:
            talk.take(question)
    if faults:
        raise left_out(faults, f"{len(faults)} of {len(pictures)} pictures could not be used")


def _typed(talk: Talk, path: str, known: str) -> None:
    """Take lines from stdin. What is wrong with one ends the chat only where no person sits there."""
    by_hand = sys.stdin.isatty()
    if by_hand:
        size = talk.session.picture.size
        logger.info(
            f"{path}: {size[0]}×{size[1]} pixels. Ask about it, for example "
            '"What is this and what is its pose?"; /help lists what else there is; an empty line or Ctrl-D ends.'
        )
        if known:
            logger.info(known)
    for line in typed_lines(by_hand):
        try:
            if line.strip() == "/quit":
                return
            talk.take(line)
        except InputError as error:
            if not by_hand:
                raise
            logger.info(f"{error}")
        except KeyboardInterrupt:
            if not by_hand:
                raise
            logger.info("(stopped; ask something else, or end with an empty line)")


class Talk:
    """A talk at the terminal: questions about one picture at a time, and commands.

    Attributes:
        session: the chat about the present picture.
    """

    def __init__(self, config: ChatConfig, predictor: PosePredictor, picture: Image.Image):
        self._config = config
        self._predictor = predictor
        self._at_terminal = sys.stdout.isatty() and not config.json
        self._left = list(config.image[1:])
        self._path = config.image[0]
        self._pictures = list(config.image)  # all that were named, which no command replaces
        self._saved: set[str] = set()  # what commands have written, and may replace
        self.session = self._about(picture)

    def _about(self, picture: Image.Image, box: tuple[float, ...] | None = None) -> ChatSession:
        return ChatSession(
            self._predictor,
            picture,
            box=box,
            viewport=self._config.viewport,
            max_new_tokens=self._config.max_new_tokens,
        )

    def look_at(self, path: str) -> None:
        """Begin a chat about another picture.

        Raises:
            InputError: it cannot be read.
        """
        self.session, self._path = self._about(open_picture(path)), path
        self._pictures.append(path)

    def take(self, line: str) -> None:
        """Answer a question, or do what a command says.

        Raises:
            InputError: it cannot be done; nothing has changed.
        """
        if not line.lstrip().startswith("/"):
            self._ask(line)
            return
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if name == "/image":
            self._other_picture(rest)
        elif name == "/box":
            self._box(rest)
        elif name == "/save":
            self._save(rest)
        elif name == "/json":
            if not self.session.turns:
                raise InputError("/json: there is no answer yet; ask a question first")
            _write(printable(self._as_json()) + "\n")
        elif name == "/help":
            logger.info(HELP)
        elif name != "/quit":
            raise InputError(f"there is no command {printable(name)[:20]}; /help lists them")

    def _ask(self, question: str) -> None:
        sent = ""

        def show(text: str) -> None:
            nonlocal sent
            text = printable(numbered(text))
            # a token may change what stands before it (half a letter of several bytes): only what stays is shown
            if text.startswith(sent) and not text.endswith("\ufffd"):
                _write(text[len(sent) :])
                sent = text

        try:
            answer = self.session.ask(question, on_text=show if self._at_terminal else None)
            if self._at_terminal:
                whole = printable(numbered(answer.text)) or "(no answer)"
                _write(whole[len(sent) :] if whole.startswith(sent) else f"\n{whole}")
        finally:
            if sent:
                _write("\n")
        self._tell(answer, ended=bool(sent))
        if unsure := doubt(question, self._predictor.categories, self._predictor.kinds):
            logger.warning(unsure)
        if answer.poses and self._config.save_overlay is not None:
            save_picture(self.session.overlay(), self._config.save_overlay)

    def _tell(self, answer: ChatAnswer, *, ended: bool) -> None:
        if self._config.json:
            _write(printable(self._as_json()) + "\n")
        else:
            name = self._path if len(self._config.image) > 1 else ""
            said = None if self._at_terminal else (f"{name}: " if name else "") + (answer.readable or "(no answer)")
            if self._at_terminal and not ended:
                _write("\n")  # the end of the line of an answer without a word
            _write(told(said, answer, self.session.objects(answer), details=self._config.details))
        if not answer.complete:
            logger.info(f"(cut off at {self._config.max_new_tokens} tokens; --max-new-tokens allows more)")

    def _other_picture(self, path: str) -> None:
        if not path and not self._left:
            raise InputError("/image: no further picture was given; name one: /image PATH")
        self.look_at(path or self._left[0])
        if not path:
            del self._left[0]
        width, height = self.session.picture.size
        logger.info(f"{self._path}: {width}×{height} pixels")

    def _box(self, numbers: str) -> None:
        if not numbers:
            self.session = self._about(self.session.picture)
            logger.info("from now on about the whole picture")
            return
        try:
            x, y, width, height = (float(number) for number in numbers.replace(",", " ").split())
        except ValueError as error:
            raise InputError(f"/box takes x, y, width and height in pixels, not {printable(numbers)[:40]!r}") from error
        self.session = self._about(self.session.picture, (x, y, x + width, y + height))
        logger.info("from now on about the part of the picture in this box; /box alone goes back")

    def _save(self, path: str) -> None:
        if not path:
            raise InputError("/save: name the file, for example: /save axes.png")
        require_suffix("/save", path, *_FORMATS, *_TABLES)
        require_other("/save", [path], self._pictures)
        if os.path.lexists(path) and os.path.realpath(path) not in self._saved:
            raise InputError(f"/save {path}: is there already; name another")
        answer = self.session.last_with_poses
        if answer is None:
            raise InputError("/save: there is no pose yet; ask for one first")
        with own_file(path, "/save", "chat"):
            if Path(path).suffix.lower() in _FORMATS:
                save_picture(self.session.overlay(), path)
            else:
                lines = session_lines(self.session, answer, self._path)
                is_csv = Path(path).suffix.lower() == ".csv"
                write_atomic(path, csv_text(lines) if is_csv else "".join(json.dumps(line) + "\n" for line in lines))
        self._saved.add(os.path.realpath(path))
        logger.info(f"saved in {path}")

    def _as_json(self) -> str:
        turn = self.session.turns[-1]
        poses = [{**one.to_dict(), "words": possible_words(one)} for one in self.session.objects(turn.answer)]
        told: dict[str, Any] = {"picture": self._path, "box": self.session.box, "question": turn.question}
        told |= {"answer": turn.answer.readable, "complete": turn.answer.complete, "poses": poses}
        return json.dumps(told, allow_nan=False)


def session_lines(session: ChatSession, answer: ChatAnswer, name: str) -> list[dict[str, Any]]:
    """Return the poses of an answer as lines of ``predict``, which ``convert`` reads."""
    return [
        pose_line(f"{name}#{index}", name, session.picture.size, session.box, one)
        for index, one in enumerate(session.objects(answer))
    ]


def typed_lines(by_hand: bool) -> Iterator[str]:
    """Lines of stdin up to an empty one, or to its end, with a prompt and line editing where a person types them."""
    if by_hand:
        _enable_line_editing()
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    prompted = by_hand and sys.stdout.isatty()
    while True:
        try:
            # of a line without end no more is read than shows that it is too long; it is the last one then
            line = input(PROMPT) if prompted else sys.stdin.readline(QUESTION_CHARACTERS + 1)
        except (EOFError, KeyboardInterrupt):
            if prompted:
                _write("\n")
            return
        if not line.strip():
            return
        yield line


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401, arrow keys and history in input()
    except ImportError:
        logger.debug("this Python has no readline: lines are edited as the terminal does it")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def told(said: str | None, answer: ChatAnswer, objects: Sequence[PoseAnswer], *, details: bool) -> str:
    """Return lines without control characters: what was said, and each pose in words.

    Args:
        said: None where it has been seen already; if it is given, poses are told with ``details`` alone.
    """
    lines = [] if said is None else [said]
    for index, one in enumerate(objects if said is None or details else ()):
        words = (f"{shown_name(one.category)} {describe_pose(one.pose)}", possible_words(one))
        lines.append(f"  [{index + 1}] {', '.join(filter(None, words))}, {one.confidence:.0%} sure")
        if details:
            lines.append(describe_details(answer, index))
    return "".join(f"{printable(line)}\n" for line in lines)


def describe_details(answer: ChatAnswer, index: int) -> str:
    """Everything that is known of one pose of an answer, on one line."""
    pose = answer.poses[index]
    azimuth, elevation, theta = angles_in_degrees(pose)
    known = pose.distance is not None and pose.px is not None and pose.py is not None
    place = f"distance {pose.distance:.2f}, at ({pose.px:.0f}, {pose.py:.0f}) px" if known else "its place is unknown"
    return (
        f"  pose {index + 1}: azimuth {azimuth:.1f}°, elevation {elevation:.1f}°, in-plane {theta:.1f}°, "
        f"confidence {answer.confidences[index]:.0%}, {place}"
    )


def save_picture(picture: Image.Image, path: str) -> None:
    """Write a picture whole or not at all, in the format that the name's ending says."""
    with atomic_file(path, "wb") as file:
        picture.save(file, _FORMATS[Path(path).suffix.lower()])


main = command(
    ChatConfig,
    chat,
    prog="llava-pose chat",
    description="Ask about pictures. Angles in the answers are read from the model's pose head, in degrees.",
    example="llava-pose chat --checkpoint runs/first photo.jpg --question 'What is the pose of the car?'",
    positional="image",
)

if __name__ == "__main__":
    raise SystemExit(main())
