"""multipart/form-data with one part, parsed as it comes: its bytes go on, nothing is kept."""

from http import HTTPStatus

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from .problems import Refusal


class OneFile:
    """The one part of a body.

    Args:
        boundary: between the parts.

    Raises:
        Refusal: 400, a boundary that cannot be one.
    """

    def __init__(self, boundary: bytes) -> None:
        self._parts = 0
        self._ended = False
        self._ready: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {"on_part_begin": self._begin, "on_part_data": self._data, "on_end": self._end},
            )
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def push(self, data: bytes) -> list[bytes]:
        """What of the part is in these bytes.

        Raises:
            Refusal: 400, malformed, or a second part begins.
        """
        self._ready = []
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(str(error)) from None
        if self._parts > 1:
            raise Refusal(
                HTTPStatus.BAD_REQUEST,
                "the body has a second part: send one part with the audio, and options in the query",
            )
        return self._ready

    def finish(self) -> None:
        """Checks that the body was whole.

        Raises:
            Refusal: 400, it was cut off, or had no part.
        """
        if not self._ended:
            raise _malformed("it ends without its last boundary" if self._parts else "it has no part")

    def _begin(self) -> None:
        self._parts += 1

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._ready.append(data[start:end])

    def _end(self) -> None:
        self._ended = True


def _malformed(why: str) -> Refusal:
    return Refusal(
        HTTPStatus.BAD_REQUEST, f"the body is not multipart/form-data ({why}): send one part, or the audio itself"
    )
