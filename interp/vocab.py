"""``Vocab``: a model's tokens and their texts, and the token that a word means."""

from __future__ import annotations

import ctypes as ct
import operator

from . import header, native
from .errors import RunError

#: what the library returns where it failed
_FAILED = -(1 << 31)


class Vocab:
    """Tokenizer of a loaded model; the model's own, so that token ids are what it was trained on."""

    def __init__(self, lib: native.Library, handle: int, info: header.Info):
        self._lib, self._open_handle = lib, handle
        self.n_vocab, self.add_bos = info.n_vocab, bool(info.add_bos)
        self.bos, self.eos = info.token_bos, info.token_eos  # -1: none
        self._piece = ct.create_string_buffer(256)
        # what was asked for once: the same tokens come again and again
        self._bytes: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    def close(self) -> None:
        """The model is gone."""
        self._open_handle = None

    @property
    def _handle(self) -> int:
        if not self._open_handle:
            raise RunError("This model is closed.")
        return self._open_handle

    def tokens(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            special: add the tokens that the model wants around a text, such as the begin token.

        Raises:
            RunError: not a text, or one that UTF-8 cannot hold.
        """
        if not isinstance(text, str):
            raise RunError(f"A text is a str, not {type(text).__name__}.")
        try:
            data = text.encode()
        except UnicodeEncodeError as err:
            raise RunError(f"The text holds a lone surrogate at {err.start}; it is no valid Unicode.") from err
        room = len(data) + 8
        while True:
            buf = (ct.c_int32 * room)()
            n = self._lib.tokenize(self._handle, data, len(data), buf, room, int(special), 1)
            if n >= 0:
                return list(buf[:n])
            if -n <= room or n == _FAILED:
                raise RunError(f"The text cannot be tokenized: {self._lib.reason(self._handle)}.")
            room = -n

    def check(self, tokens) -> list[int]:
        """Token ids as a list of plain integers.

        Raises:
            RunError: something else, or an id that the vocabulary does not have.
        """
        try:
            given = list(tokens)
        except TypeError:
            raise RunError(f"A prompt is a text or a list of token ids, not {type(tokens).__name__}.") from None
        for token in given:
            if isinstance(token, bool) or not hasattr(token, "__index__"):
                raise RunError(f"{token!r} is no token id: a prompt is a text or a list of integers.")
            if not 0 <= int(token) < self.n_vocab:
                raise RunError(f"Token {int(token)} does not exist: ids are 0 to {self.n_vocab - 1}.")
        return [int(token) for token in given]

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token: not always whole characters."""
        handle = self._handle
        while token not in self._bytes:
            n = self._lib.token_to_piece(handle, token, self._piece, len(self._piece))
            if n >= 0:
                self._bytes[token] = self._piece.raw[:n]
            elif n == _FAILED:
                raise RunError(f"Token {token} cannot be read: {self._lib.reason(handle)}.")
            else:
                self._piece = ct.create_string_buffer(-n)
        return self._bytes[token]

    def pieces(self, tokens) -> list[str]:
        """The text of each token."""
        return [self.bytes_of(token).decode(errors="replace") for token in self.check(tokens)]

    def text(self, tokens) -> str:
        """The text of all tokens together."""
        return b"".join(map(self.bytes_of, self.check(tokens))).decode(errors="replace")

    def special_text(self, token: int) -> str:
        """The text of a special token; empty where the model has none."""
        return self.bytes_of(token).decode(errors="replace") if token >= 0 else ""

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""
        handle = self._handle
        if token not in self._ends:
            self._ends[token] = bool(self._lib.token_is_eog(handle, token))
        return self._ends[token]


def one_token(model, piece: str | int) -> int:
    """The token that a user means by a word or an id.

    Args:
        model: anything with ``n_vocab``, ``tokens`` and ``pieces``: a model or its vocabulary.
        piece: a token id, or a text that is one token. Where a bare word is not one token, it is tried with a leading
            space, as most vocabularies hold words: "Paris" then means " Paris".

    Raises:
        RunError: a text of several tokens, or an id that the vocabulary does not have.
    """
    if not isinstance(piece, str):
        try:
            token = operator.index(piece)
        except TypeError:
            raise RunError(f"a token is given as text or as its id, not as {type(piece).__name__}") from None
        if not 0 <= token < model.n_vocab:
            raise RunError(f"token {token} is not in the vocabulary: ids are 0 to {model.n_vocab - 1}")
        return token
    if not piece:
        raise RunError("an empty text is no token")
    # Many tokenizers put a token of their own before any text.
    start = list(model.tokens(""))
    tries = []
    for text in (piece, " " + piece):
        tokens = list(model.tokens(text))
        if start and tokens[: len(start)] == start:
            tokens = tokens[len(start) :]
        if len(tokens) == 1:
            return tokens[0]
        tries.append(tokens)
    found = ", ".join(repr(p) for p in model.pieces(tries[0]))
    raise RunError(f"{piece!r} is {len(tries[0])} tokens, not one: {found}; give one of them, or a token id")
