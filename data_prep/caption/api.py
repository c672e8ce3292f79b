"""Captions from a model behind an OpenAI-compatible server (``llava_pose.utils.openai_client``)."""

from __future__ import annotations

from pathlib import Path

from data_prep.caption.check import Mismatch, ModelCaption, read_answer
from data_prep.caption.lines import FAILED, OK, CaptionLine
from data_prep.caption.prompt import first_messages
from data_prep.scene.scenes import Scene
from llava_pose.utils.openai_client import BadAnswer, Endpoint, ServedModel


class Captioner(ServedModel):
    """Asks one server for captions. Safe to use from several threads.

    Args:
        attempts: answers to one picture, before it is recorded as failed.
        send_images: whether pictures go with the text.

    Raises:
        InputError: the client is not installed.
    """

    def __init__(self, endpoint: Endpoint, *, attempts: int = 3, send_images: bool = True) -> None:
        super().__init__(endpoint)
        self._model = endpoint.model
        self._attempts = attempts
        self._send_images = send_images

    def caption(self, image: str, scene: Scene, picture: Path) -> CaptionLine:
        """The line of one picture, ok or failed.

        Raises:
            InputError, Stopped: as :meth:`llava_pose.utils.openai_client.ServedModel.ask`.
        """

        def read(answer: str | None) -> ModelCaption:
            try:
                return read_answer(answer, scene.distinct)
            except Mismatch as error:
                raise BadAnswer(str(error)) from error

        reply = self.ask(first_messages(scene, picture if self._send_images else None), read, attempts=self._attempts)
        found = reply.value
        return CaptionLine(
            image,
            FAILED if found is None else OK,
            "" if found is None else found.caption,
            () if found is None else tuple(record.id for record in found.objects),
            self._model,
            reply.attempts,
            reply.prompt_tokens,
            reply.completion_tokens,
            reply.reason,
        )
