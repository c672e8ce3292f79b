"""The demo's page: a picture, questions about it, answers with angles, and the object's axes on the picture.

Nothing on it is fetched from elsewhere, so that it works on a machine without internet.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.middleware import Middleware

from llava_pose.data.conversation import CAPTION_QUESTIONS, JOINT_QUESTIONS, POSE_QUESTIONS, object_words
from llava_pose.errors import InputError
from llava_pose.inference.drawing import AXIS_COLOURS
from llava_pose.inference.predictor import PosePredictor
from llava_pose.pose import categories
from llava_pose.serve.decoding import decode_apart
from llava_pose.serve.gate import NOT_HERE, Gate, Uploads
from llava_pose.serve.limits import KEPT_SECONDS, QUESTION_CHARACTERS, QUESTIONS_AT_ONCE, UPLOAD_BYTES
from llava_pose.serve.session import ChatSession, Turn, angles_in_degrees, doubt, require_short, taught
from llava_pose.utils.files import open_regular, printable

SHOWN_SIDE = 720  # pixels: smaller ones are enlarged for the drawing
ANGLE_HEADERS = ["Azimuth °", "Elevation °", "In-plane °", "Distance", "Confidence %"]
NO_PICTURE = "Give me a picture first: drop one into the box on the left, or click it to choose a file. Then ask again."
NO_QUESTION = "What would you like to know about the picture? Type a question, or click one of the examples."
INTRODUCTION = """# LLaVA-pose
Show a picture and ask how an object in it is turned. The angles are read from the model's pose head, and the object's
axes are drawn on the picture."""
ANGLES_EXPLAINED = """
- **Azimuth**: from which side the camera sees the object. 0° is its front; 90° is the side that is on the right for
  somebody who looks at the front.
- **Elevation**: how high the camera stands. 0° is level, 90° looks straight down.
- **In-plane**: how far the picture is tilted, counter-clockwise.
- **Distance**: in lengths of the object, for a camera of ordinary field of view (53°).
- **Confidence**: the model's own estimate that it is less than 30° wrong.
"""
_STYLE = """
.taught { font-size: 0.9em; max-height: 4.5em; overflow-y: auto; margin: 0; }
.legend { text-align: center; font-size: 0.9em; margin: -0.5em 0; }
footer { opacity: 0.6; }
"""


@dataclass(frozen=True)
class _Visit:
    """A visitor's picture and the chat about it."""

    file: str
    chat: ChatSession


def build_page(
    predictor: PosePredictor, *, max_new_tokens: int = 128, max_seconds: float = 60, queue_size: int = 32
) -> gr.Blocks:
    """The page over one predictor, which answers one question at a time.

    Endpoints for gradio_client: ``/ask`` (picture, question) -> (conversation, picture with axes, table of angles), where a
    client's further questions about the same picture are follow-ups; ``/new_chat`` forgets them.

    Args:
        max_new_tokens: of an answer.
        max_seconds: after which an answer is cut off.
        queue_size: questions that may wait.
    """
    turn = threading.Lock()

    def ask(picture: Mapping[str, Any] | None, question: str | None, visit: _Visit | None) -> tuple[Any, ...]:
        upload = picture or {}
        file, question = upload.get("path"), (question or "").strip()
        try:
            if not file:
                raise InputError(NO_PICTURE)
            if not question:
                raise InputError(NO_QUESTION)
            if len(question) > QUESTION_CHARACTERS:
                long, question = question, f"{question[:80]}…"
                require_short(long)
            if visit is not None and visit.file != file:
                visit = None
            if visit is None:
                opened = _open_picture(file, upload.get("orig_name"), uploads)
                chat = ChatSession(predictor, opened, max_new_tokens=max_new_tokens, max_seconds=max_seconds)
                visit = _Visit(file, chat)
            with turn:
                visit.chat.ask(question)
            uploads.make_room()
        except InputError as error:
            notice = _message("assistant", str(error))
            said = [_message("user", question)] if question else []
            return [*_transcript(visit), *said, notice], _axes(visit), _angles(visit), visit, question
        notes = [_message("assistant", note) for note in [doubt(question, predictor.categories)] if note]
        return [*_transcript(visit), *notes], _axes(visit), _angles(visit), visit, ""

    def new_chat() -> tuple[Any, ...]:
        return [], None, _angles(None), None

    with gr.Blocks(
        title="LLaVA-pose", analytics_enabled=False, delete_cache=(KEPT_SECONDS // 12, KEPT_SECONDS)
    ) as blocks:
        visit = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.Markdown(INTRODUCTION)
        gr.HTML(f'<p class="taught">{html.escape(taught(predictor.categories))}</p>')
        with gr.Row(equal_height=False):
            with gr.Column():
                picture = gr.Image(label="Picture", height=340, elem_id="picture", alt_text="the picture to ask about")
                question = gr.Textbox(label="Question", placeholder=JOINT_QUESTIONS[0], max_lines=3, elem_id="question")
                with gr.Row():
                    restart = gr.Button("New chat", min_width=100, elem_id="new-chat")
                    send = gr.Button("Ask", variant="primary", min_width=100, elem_id="ask")
                gr.Examples(
                    [[text] for text in _examples(predictor.categories)],
                    [question],
                    label="Questions to try",
                    cache_examples=False,
                )
            with gr.Column():
                axes = gr.Image(
                    label="The object's axes",
                    show_label=False,  # it would lie over the picture; the legend says it
                    height=340,
                    interactive=False,
                    elem_id="axes",
                    alt_text="the picture with the axes of the object",
                    buttons=["download", "fullscreen"],
                )
                gr.HTML(_legend())
                conversation = gr.Chatbot(
                    label="Answers",
                    show_label=False,  # it would lie over the messages
                    height=260,
                    elem_id="answers",
                    buttons=[],
                    render_markdown=False,
                    feedback_options=None,
                    placeholder="Answers appear here.",
                )
                angles = gr.Dataframe(
                    headers=ANGLE_HEADERS,
                    label="Poses of the latest answer that has any, in the order of its text",
                    interactive=False,
                    elem_id="angles",
                    buttons=["copy"],
                )
                with gr.Accordion("What the angles mean", open=False):
                    gr.Markdown(ANGLES_EXPLAINED)
        shown = [conversation, axes, angles, visit]
        gr.on(
            [send.click, question.submit],
            ask,
            [picture, question, visit],
            [*shown, question],
            preprocess=False,  # the file as it was uploaded: Gradio's own reading of one that is no picture is a traceback
            api_name="ask",
            api_description="Ask about a picture; further questions about the same picture are follow-ups.",
        )
        restart.click(new_chat, None, shown, api_name="new_chat", api_description="Forget the chat.", queue=False)
        gr.on(
            [picture.change, conversation.clear],
            new_chat,
            None,
            shown,
            api_visibility="private",
            queue=False,
            show_progress="hidden",
        )
    uploads = Uploads(get_upload_folder(), blocks)
    return blocks.queue(default_concurrency_limit=QUESTIONS_AT_ONCE, max_size=queue_size)


def _examples(known: Sequence[str]) -> list[str]:
    """Return questions to try, about what the checkpoint was taught where it says so."""
    names = [
        object_words(categories.get(name, allow_custom=True))["object"] for name in list(known) or ["car", "chair"]
    ]
    one, other = names[0], names[-1]
    return [
        JOINT_QUESTIONS[0],
        POSE_QUESTIONS[0].format(object=one),
        POSE_QUESTIONS[3].format(object=other),
        CAPTION_QUESTIONS[0],
    ]


def launch(blocks: gr.Blocks, *, host: str, port: int, share: bool, visitors: int) -> tuple[Any, str, str | None]:
    """Start the server and return (application, its address, its public address or None).

    Args:
        visitors: whose chats are remembered at a time; another's takes the place of the one that was silent for longest.

    Raises:
        OSError: it cannot listen there.
    """
    uploads = Uploads(get_upload_folder(), blocks)
    fonts: dict[str, Any] = {
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "monospace"],
    }  # none is downloaded
    return blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        max_file_size=UPLOAD_BYTES,
        state_session_capacity=visitors,
        app_kwargs={"middleware": [Middleware(Gate, blocks=blocks, uploads=uploads)]},
        footer_links=["api"],
        theme=gr.themes.Soft(**fonts),
        css=_STYLE,
    )


def _open_picture(path: str, name: str | None, uploads: Uploads) -> Image.Image:
    """Return what a visitor uploaded. Nothing in a message tells whether there is another file, and where."""
    try:
        if not uploads.holds(path):
            raise InputError(NOT_HERE)
        with open_regular(path) as file:
            return decode_apart(file, printable(" ".join((name or "").split()) or "the picture"))
    except OSError as error:
        raise InputError(NOT_HERE) from error


def _transcript(visit: _Visit | None) -> list[dict[str, str]]:
    turns = visit.chat.turns if visit else []
    return [
        _message(role, text)
        for turn in turns
        for role, text in (("user", turn.question), ("assistant", _read_out(turn)))
    ]


def _message(role: str, text: str) -> dict[str, str]:
    """Return a message as the page shows it. Gradio's Chatbot takes text for HTML, also where it is told to render no
    Markdown, so that a picture from elsewhere could stand in it.
    """
    return {"role": role, "content": html.escape(text, quote=False)}


def _read_out(turn: Turn) -> str:
    text = turn.answer.readable or "(no answer)"
    if turn.answer.complete:
        return text
    return f"{text} … (cut off: the answer {'took' if turn.answer.took_too_long else 'grew'} too long)"


def _axes(visit: _Visit | None) -> Image.Image | None:
    return visit.chat.overlay(at_least=SHOWN_SIDE) if visit else None


def _angles(visit: _Visit | None) -> Mapping[str, Any]:
    answer = visit.chat.last_with_poses if visit else None
    rows = [
        [*angles_in_degrees(pose), round(cast(float, pose.distance), 2), round(100 * confidence)]
        for pose, confidence in (zip(answer.poses, answer.confidences, strict=True) if answer else ())
    ]
    return {"headers": ANGLE_HEADERS, "data": rows}


def _legend() -> str:
    names = {"front": "front", "up": "up", "left": "its left"}
    parts = [
        f'<span style="color: rgb{AXIS_COLOURS[name]}; font-weight: 600">&#9632;</span> {words}'
        for name, words in names.items()
    ]
    return f'<div class="legend">The object\'s axes: {" &nbsp; ".join(parts)}</div>'
