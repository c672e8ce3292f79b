"""The limits of the demo: what one visitor may ask of the machine, and what all of them together may keep; and what is said
to a request beyond the limits of a server."""

from __future__ import annotations

MIB = 1 << 20

# one request
QUESTION_CHARACTERS = 4000
CALL_BYTES = 2 * MIB  # of a question as JSON, so that one that is too long still gets its sentence on the page
UPLOAD_BYTES = 50 * MIB
RECEIVING_SECONDS = 120  # for a request to come in
DECODING_SECONDS = 20
DECODING_BYTES = 1536 * MIB  # of memory, in a process of its own
LARGEST_SIDE = 1600  # pixels: larger photographs are shrunk, the model sees less anyway

# all requests together
UPLOADS_AT_ONCE = 8
QUESTIONS_AT_ONCE = 3  # one is answered while the pictures of the others are decoded
KEPT_BYTES = 1024 * MIB  # of uploads and drawings on disk; the oldest are deleted
KEPT_FILES = 2000
KEPT_SECONDS = 3600  # a visitor's chat and files


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status
