"""The part of the demo's page for one checkpoint: its answers, the drawn picture, the poses, and sliders that turn them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from llava_pose.serve import page_html
from llava_pose.serve.desk import Desk, turned
from llava_pose.serve.session import angles_in_degrees, possible_words, seen_words, shown_name

if TYPE_CHECKING:
    from llava_pose.inference.answers import PoseAnswer

ANGLE_HEADERS = ["Azimuth °", "Elevation °", "In-plane °", "Distance", "Confidence %"]
_SLIDERS = (("Azimuth", 0, 360), ("Elevation", -90, 90), ("In-plane", -180, 180))


class Pane:
    """The components of one checkpoint, and what stands in them.

    Attributes:
        conversation: the chat.
        others: what an answer changes beside the conversation, in the order of :meth:`filled`.
        axes: the picture with the axes.
        which: the object that the sliders turn.
        sliders: azimuth, elevation, in-plane.
        words: the pose of the sliders in words.
        back: the button that puts the sliders back.
    """

    def __init__(self, index: int, name: str):
        """
        Args:
            index: of the checkpoint.
            name: of the checkpoint, where there are two.
        """
        self._index = index
        more = f"-{index + 1}" if index else ""
        of = f" of {name}" if name else ""
        with gr.Column(elem_classes=["answering", "second" if index else "first"]):
            if name:
                gr.HTML(f"<h2>{html.escape(name)}</h2>")
            self.conversation = gr.Chatbot(
                label=f"Answers{of}",
                show_label=False,  # it would lie over the messages
                height=200,
                elem_id=f"answers{more}",
                elem_classes=["answers"],
                buttons=[],
                render_markdown=False,
                feedback_options=None,
                placeholder="Answers appear here.",
            )
            self.axes = gr.Image(
                label=f"The object's axes{of}",
                show_label=False,  # it would lie over the picture; the legend says it
                height=360,
                interactive=False,
                elem_id=f"axes{more}",
                elem_classes=["axes"],
                alt_text="the picture with the axes of the object",
                buttons=["download", "fullscreen"],
            )
            gr.HTML(page_html.legend())
            poses = gr.JSON(visible=False)  # for programs
            table = gr.HTML(elem_id=f"angles{more}")
            with gr.Accordion("What the angles mean: turn the axes yourself", open=False, elem_id=f"turn{more}"):
                self.which = gr.Radio(label=f"Object{of}", choices=[], visible=False)
                self.sliders = [
                    gr.Slider(low, high, value=0, step=1, label=f"{label} °{of}", buttons=[])
                    for label, low, high in _SLIDERS
                ]
                self.words = gr.HTML(elem_id=f"words{more}")
                self.back = gr.Button("Back to the answer", size="sm")
                gr.Markdown(page_html.ANGLES_EXPLAINED)
        self.others = [self.axes, poses, table, self.which, *self.sliders, self.words]

    def filled(self, desk: Desk) -> list[Any]:
        """Return what stands in all components but the conversation."""
        objects = desk.objects(self._index)
        poses = {
            "headers": ANGLE_HEADERS,
            "data": [
                [*angles_in_degrees(one.pose), round(one.pose.distance or 0.0, 2), round(100 * one.confidence)]
                for one in objects
            ],
            "poses": [{**one.to_dict(), "words": possible_words(one)} for one in objects],
        }
        table = (
            page_html.table(objects) + page_html.files(desk.chats[self._index], objects, desk.name) if objects else ""
        )
        names = [(f"{number} {shown_name(one.category)}", number - 1) for number, one in enumerate(objects, start=1)]
        which = gr.Radio(choices=names, value=0 if names else None, visible=len(names) > 1)
        return [desk.drawn(self._index), poses, table, which, *_slid(objects, 0)]

    def turn(self, which: float | None, azimuth: float, elevation: float, theta: float, desk: Desk) -> list[Any]:
        """Draw an object as the sliders say, and return the picture and the words for it."""
        objects, number = desk.objects(self._index), int(which or 0)
        if not 0 <= number < len(objects):
            return [desk.drawn(self._index), ""]
        poses = turned(objects, number, [angle or 0.0 for angle in (azimuth, elevation, theta)])
        words = seen_words(poses[number], objects[number].category)
        return [desk.drawn(self._index, poses), html.escape(words)]

    def put_back(self, which: float | None, desk: Desk) -> list[Any]:
        """Put the axes and the sliders to an object's own pose."""
        return [desk.drawn(self._index), *_slid(desk.objects(self._index), int(which or 0))]


def _slid(objects: Sequence[PoseAnswer], number: int) -> list[Any]:
    """Return where the sliders stand for an object, and its pose in words."""
    if not 0 <= number < len(objects):
        return [0, 0, 0, ""]
    one = objects[number]
    return [*map(round, angles_in_degrees(one.pose)), html.escape(seen_words(one.pose, one.category))]
