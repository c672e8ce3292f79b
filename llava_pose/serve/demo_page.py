"""The demo's page: a picture, questions about it, answers with angles, and the objects' axes on the picture.

Nothing on it is fetched from elsewhere, so that it works on a machine without internet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.middleware import Middleware

from llava_pose.data.conversation import JOINT_QUESTIONS
from llava_pose.errors import InputError
from llava_pose.inference.predictor import PosePredictor
from llava_pose.inference.wires import Wires
from llava_pose.serve import page_html
from llava_pose.serve.demo_gate import Gate, Uploads
from llava_pose.serve.desk import NO_PICTURE, Desk, said
from llava_pose.serve.examples import questions_about, thumbnail_style, title_of
from llava_pose.serve.limits import KEPT_SECONDS, QUESTION_CHARACTERS, QUESTIONS_AT_ONCE, UPLOAD_BYTES
from llava_pose.serve.pane import Pane
from llava_pose.serve.session import ChatSession, doubt, numbered, require_short
from llava_pose.serve.transcript import message, note, refusal, transcript
from llava_pose.utils.files import printable

NO_QUESTION = "What would you like to know about the picture? Type a question, or click one of the examples."


@dataclass(frozen=True)
class Limits:
    """The limits of the demo: how long an answer may become, and how many questions may wait.

    Attributes:
        new_tokens, seconds: of an answer, after which it is cut off.
        waiting: questions.
    """

    new_tokens: int = 128
    seconds: float = 60
    waiting: int = 32


class DemoPage:
    """The page over one checkpoint, or over two side by side. The model answers one question at a time.

    Endpoints for gradio_client: ``/ask`` (picture, question, box) -> (conversation, picture with axes, poses, …), where a
    client's further questions about the same picture are follow-ups; ``/new_chat`` forgets them.

    Args:
        predictors: by the name of their checkpoints, one or two.
        examples: pictures that were prepared by :func:`llava_pose.serve.examples.prepare_pictures`.
        models: the wires of a CAD model by category, drawn round its objects in the place of a cube.
    """

    def __init__(
        self,
        predictors: Mapping[str, PosePredictor],
        limits: Limits,
        examples: Sequence[Path] = (),
        models: Mapping[str, Wires] | None = None,
    ):
        self._predictors = list(predictors.values())
        self._limits = limits
        self._models = models or {}
        self._model = ThreadPoolExecutor(1, "model")
        cached = [save_file_to_cache(path, get_upload_folder()) for path in examples]
        self.style = Path(__file__).with_name("page.css").read_text("utf-8") + "".join(
            thumbnail_style(f"example-{index}", path) for index, path in enumerate(examples)
        )
        self.blocks = gr.Blocks(
            title="LLaVA-pose", analytics_enabled=False, delete_cache=(KEPT_SECONDS // 12, KEPT_SECONDS)
        )
        self._uploads = Uploads(get_upload_folder(), self.blocks, cached)
        with self.blocks:
            self._build(list(predictors), examples)
        self.blocks.queue(default_concurrency_limit=QUESTIONS_AT_ONCE, max_size=limits.waiting)

    def launch(
        self, *, host: str, port: int, share: bool, visitors: int, root_path: str
    ) -> tuple[Any, str, str | None]:
        """Start the server and return (application, its address, its public address or None).

        Args:
            visitors: whose chats are remembered at a time; another's takes the place of the one that was silent for longest.
            root_path: where a proxy puts the page.

        Raises:
            OSError: it cannot listen there.
        """
        # fonts of the visitor's own machine: none is downloaded
        fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        return self.blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            root_path=root_path,
            max_file_size=UPLOAD_BYTES,
            state_session_capacity=visitors,
            app_kwargs={"middleware": [Middleware(Gate, blocks=self.blocks, uploads=self._uploads)]},
            footer_links=["api"],
            theme=gr.themes.Soft(**fonts),
            css=self.style,
        )

    # What stands on the page

    def _build(self, names: Sequence[str], examples: Sequence[Path]) -> None:
        gr.HTML(page_html.head(names, [predictor.categories for predictor in self._predictors]))
        self._desk = gr.State(Desk(), time_to_live=KEPT_SECONDS)
        compared = len(names) > 1
        with gr.Row(elem_id="page", elem_classes=["compare"] if compared else [], equal_height=False):
            with gr.Column(elem_classes=["asking"]):
                self._picture = gr.Image(
                    label="Picture", height=300, elem_id="picture", alt_text="the picture to ask about"
                )
                self._question = gr.Textbox(
                    label="Question",
                    show_label=False,
                    placeholder=f"For example: {JOINT_QUESTIONS[0]}",
                    max_lines=3,
                    elem_id="question",
                )
                with gr.Row():
                    restart = gr.Button("New chat", min_width=100, elem_id="new-chat")
                    send = gr.Button("Ask", variant="primary", min_width=100, elem_id="ask")
            self._panes = [Pane(index, name if compared else "") for index, name in enumerate(names)]
            with gr.Column(elem_classes=["more"]):
                self._box = gr.Textbox(
                    value="",
                    label="Box round one object",
                    info="Click two opposite corners in the drawn picture, or type left, top, width and height in percent.",
                    placeholder="the whole picture",
                    max_lines=1,
                    elem_id="box",
                )
                chosen = _example_buttons(examples)
                self._question_buttons()
        self._connect(send, restart, chosen)
        self._connect_programs()

    def _question_buttons(self) -> None:
        """Make buttons that write a question into its field."""
        first = self._predictors[0]
        gr.HTML('<p class="hint">Questions to try</p>')
        with gr.Row(elem_classes=["try"]):
            for text in questions_about(first.categories, first.kinds):
                button = gr.Button(text, size="sm", min_width=0)
                button.click(None, None, self._question, js=f"() => {json.dumps(text)}")

    def _connect(self, send: gr.Button, restart: gr.Button, chosen: Mapping[Path, gr.Button]) -> None:
        picture, question, box, desk = self._picture, self._question, self._box, self._desk
        inputs = [picture, question, box, desk]
        conversations = [pane.conversation for pane in self._panes]
        others = [part for pane in self._panes for part in pane.others]
        # the file as it was uploaded: Gradio's own reading of one that is no picture is a traceback
        private: dict[str, Any] = {"preprocess": False, "api_visibility": "private", "show_progress": "hidden"}
        latest: dict[str, Any] = {**private, "trigger_mode": "always_last"}  # none is dropped while another is at work
        asked = gr.on([send.click, question.submit], self._stream, inputs, [*conversations, desk, question], **private)
        asked.then(self._filled, desk, others, **latest)
        # the old answers go first and at once: a picture takes a while, and what is asked meanwhile must not go with them
        showing: dict[str, Any] = {
            "fn": self._show,
            "inputs": [picture, box, desk],
            "outputs": [*conversations, *others, desk],
            **latest,
        }
        cleared = [conversation.clear for conversation in conversations]
        emptied = [picture.change, box.submit, restart.click, *cleared]
        gr.on(emptied, self._empty, desk, [*conversations, desk], queue=False, **private).then(**showing)
        for path, button in chosen.items():
            button.click(partial(_chosen, path), None, [picture, box], **private)
        for pane in self._panes:
            pane.axes.select(self._mark, [box, desk], [*conversations, box, desk], **private).then(**showing)
            turning, put_back = [pane.axes, pane.words], [pane.axes, *pane.sliders, pane.words]
            moved = [slider.input for slider in pane.sliders]
            gr.on(moved, partial(self._turn, pane), [pane.which, *pane.sliders, desk], turning, **latest)
            gr.on([pane.which.input, pane.back.click], pane.put_back, [pane.which, desk], put_back, **private)

    def _connect_programs(self) -> None:
        programs = gr.Button(visible=False)
        answered = [part for pane in self._panes for part in (pane.conversation, *pane.others)]
        programs.click(
            self._ask,
            [self._picture, self._question, self._box, self._desk],
            [*answered, self._desk],
            preprocess=False,
            api_name="ask",
            api_description="Ask about a picture, or the part of it in a box (left, top, width, height in percent); further "
            "questions about the same are follow-ups.",
        )
        programs.click(
            self._forget,
            None,
            [*answered, self._desk],
            api_name="new_chat",
            api_description="Forget the chat.",
            queue=False,
        )

    # What it does

    def _new_chats(self, picture: Image.Image, box: Sequence[float] | None) -> tuple[ChatSession, ...]:
        limits = self._limits
        return tuple(
            ChatSession(
                predictor,
                picture,
                box=box,
                max_new_tokens=limits.new_tokens,
                max_seconds=limits.seconds,
                models=self._models,
            )
            for predictor in self._predictors
        )

    def _look(self, picture: Mapping[str, Any], box: str | None, desk: Desk) -> tuple[ChatSession, ...]:
        return desk.look(picture, box or "", self._uploads, self._new_chats)

    def _stream(
        self, picture: Mapping[str, Any] | None, question: str | None, box: str | None, desk: Desk
    ) -> Iterator[list[Any]]:
        """Yield the conversations as the answers grow, and what is to stand in the field of the question."""
        question = (question or "").strip()
        try:
            if not picture or not picture.get("path"):
                raise InputError(NO_PICTURE)
            if not question:
                raise InputError(NO_QUESTION)
            require_short(question)
            chats = self._look(picture, box, desk)
        except InputError as error:
            shown = question if len(question) <= QUESTION_CHARACTERS else f"{question[:80]}…"
            asked = [message("user", shown)] if shown else []
            yield [*self._conversations(desk, [*asked, refusal(error)]), desk, question]
            return
        conversations, left = self._conversations(desk), ""
        for index, chat in enumerate(chats):
            before, asking = conversations[index], message("user", question)
            try:
                for text in said(chat, question, self._model):
                    conversations[index] = [*before, asking, message("assistant", numbered(printable(text)))]
                    yield [*conversations, desk, question]
                predictor = self._predictors[index]
                unsure = doubt(question, predictor.categories, predictor.kinds)
                conversations[index] = [*transcript(chat), *([note(unsure)] if unsure else [])]
            except InputError as error:
                conversations[index], left = [*before, asking, refusal(error)], question
        self._uploads.make_room()
        yield [*conversations, desk, left]

    def _ask(self, picture: Mapping[str, Any] | None, question: str | None, box: str | None, desk: Desk) -> list[Any]:
        """Answer a program: all that a visitor sees in the end, pane by pane."""
        *_, (*conversations, _, _) = self._stream(picture, question, box, desk)
        shown = zip(conversations, self._panes, strict=True)
        return [part for conversation, pane in shown for part in (conversation, *pane.filled(desk))] + [desk]

    def _conversations(self, desk: Desk, more: Sequence[dict[str, Any]] = ()) -> list[list[dict[str, Any]]]:
        said_before = [transcript(chat) for chat in desk.chats] or [[] for _ in self._panes]
        return [[*before, *more] for before in said_before]

    def _filled(self, desk: Desk) -> list[Any]:
        """Return all but the conversations."""
        return [part for pane in self._panes for part in pane.filled(desk)]

    def _forget(self) -> list[Any]:
        desk = Desk()
        return [part for pane in self._panes for part in ([], *pane.filled(desk))] + [desk]

    def _empty(self, desk: Desk) -> list[Any]:
        desk.clear()
        return [*self._conversations(desk), desk]

    def _show(self, picture: Mapping[str, Any] | None, box: str | None, desk: Desk) -> list[Any]:
        """Draw a picture that has just been given, or the box in it."""
        conversations: list[Any] = [gr.skip() for _ in self._panes]
        try:
            if picture and picture.get("path"):
                self._look(picture, box, desk)
            else:
                desk.clear()
        except InputError as error:
            conversations = [[refusal(error)] for _ in self._panes]
        self._uploads.make_room()
        return [*conversations, *self._filled(desk), desk]

    def _mark(self, box: str | None, desk: Desk, event: gr.SelectData) -> list[Any]:
        """Take a click on the drawn picture: the first corner of a box, or the second, which writes the box."""
        marked = desk.mark(*event.index)
        if marked is None:
            return [*(gr.skip() for _ in self._panes), box or "", desk]
        return [*([] for _ in self._panes), marked, desk]

    def _turn(self, pane: Pane, which: Any, azimuth: Any, elevation: Any, theta: Any, desk: Desk) -> list[Any]:
        self._uploads.make_room()  # each place of a slider is another picture
        return pane.turn(which, azimuth, elevation, theta, desk)


def _example_buttons(examples: Sequence[Path]) -> dict[Path, gr.Button]:
    """Make a button for each picture."""
    if not examples:
        return {}
    gr.HTML('<p class="hint">Pictures to try</p>')
    with gr.Row(elem_classes=["try", "shown"]):
        return {
            path: gr.Button(title_of(path), elem_id=f"example-{index}", min_width=0)
            for index, path in enumerate(examples)
        }


def _chosen(path: Path) -> list[Any]:
    """Return an example as a visitor's picture, and no box. Gradio deletes the copies that it keeps after a while."""
    return [save_file_to_cache(path, get_upload_folder()), ""]
