"""The delivered part of one text or list of an answer, compared while another engine writes that answer once more."""

from __future__ import annotations

from itertools import chain
from typing import Any

from aiaas.openai.joint import DiffersError

TextPart = str | list[Any]


class Delivered:
    """A text or a list (of tokens) of which the client has the beginning.

    First `add` what it has, piece by piece; then ask with `left` for the news in each piece of the second engine.
    """

    __slots__ = ("_again", "_pieces", "_whole")

    def __init__(self) -> None:
        self._pieces: list[TextPart] = []
        self._whole: TextPart = ""
        self._again = 0  # length of the part that the second engine has written, too

    def add(self, piece: TextPart) -> None:
        """The client has this piece, too."""
        self._pieces.append(piece)

    @property
    def pending(self) -> bool:
        """Whether the second engine has not come to the end of what was delivered yet."""
        self._join()
        return self._again < len(self._whole)

    def left(self, piece: TextPart) -> TextPart:
        """The part of this piece that the client does not have. Raises DiffersError where the rest of it is another."""
        self._join()
        known = min(len(piece), len(self._whole) - self._again)
        if known and piece[:known] != self._whole[self._again : self._again + known]:
            raise DiffersError("other text than was delivered")
        self._again += known
        return piece[known:]

    def _join(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            texts = [piece for piece in pieces if isinstance(piece, str)]
            lists = [piece for piece in pieces if isinstance(piece, list)]
            self._whole = "".join(texts) if texts else list(chain.from_iterable(lists))
