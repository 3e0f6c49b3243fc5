"""``Corpus``: a text file or many documents as chunks of tokens, read as they are needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FileError, RunError

if TYPE_CHECKING:
    from .vocab import Vocab

# Characters of a file that are held and tokenised at once.
_PIECE = 1 << 14

# Borders at which tokenizers split too, so that a text gives the same tokens in pieces as in one: after a line, else
# before a word. Tokenizers that put a space before every text (SentencePiece) put one before every piece.
_BORDERS = (re.compile(r"(?<=\S\n)(?=\S)"), re.compile(r"(?<=\S)(?= \w)"), re.compile(r"(?<=\s)(?=\S)"))


@dataclass(frozen=True)
class Chunk:
    """Tokens that are run as one context.

    Attributes:
        tokens: the begin token first, where the model wants one.
        document: which document, from 0.
        first: tokens of this document in the chunks before, begin tokens included.
        n_own: how many come from the document: all but the begin token.
    """

    tokens: list[int]
    document: int
    first: int
    n_own: int


class Corpus:
    """Documents cut into chunks.

    Args:
        vocab: the tokenizer.
        corpus: the path of a text file in UTF-8, or an iterable of documents: texts or token ids.
        chunk: tokens of a chunk, the begin token included.
        max_tokens: at most so many tokens of the documents; None: all.

    Attributes:
        name: of the file; for an iterable, what it is.
        total: bytes of the file, documents of a list; None where nobody knows.
        done: how much of ``total`` has been read.

    Raises:
        FileError: the file is not there or cannot be read; while reading: it is no text.
        RunError: neither a path nor documents.
    """

    def __init__(self, vocab: Vocab, corpus, chunk: int, max_tokens: int | None = None):
        self._vocab, self._chunk, self._left = vocab, chunk, max_tokens
        self.begin = [vocab.bos] if vocab.add_bos and vocab.bos >= 0 else []
        self.done = 0
        if isinstance(corpus, (str, os.PathLike)):
            self._path: Path | None = Path(corpus)
            self.name, self.total = self._path.name, _size(self._path)
            return
        if isinstance(corpus, (bytes, dict)) or not isinstance(corpus, Iterable):
            raise RunError(f"A corpus is the path of a text file or a list of texts, not {type(corpus).__name__}.")
        self._path, self._documents = None, corpus
        self.total = len(corpus) if hasattr(corpus, "__len__") else None
        self.name = "documents" if self.total is None else f"{self.total} document{'s' * (self.total != 1)}"

    def chunks(self) -> Iterator[Chunk]:
        """All chunks in order; documents without tokens have none."""
        size = self._chunk - len(self.begin)
        for document, pieces in enumerate(self._tokens()):
            first = 0
            for own in _cut(pieces, size):
                if self._left is not None:
                    own = own[: self._left]
                    self._left -= len(own)
                yield Chunk(self.begin + own, document, first, len(own))
                first += self._chunk
                if self._left == 0:
                    return

    def _tokens(self) -> Iterator[Iterable[list[int]]]:
        """The tokens of each document, piece by piece, without begin token."""
        if self._path is not None:
            yield (self._vocab.tokens(text, special=False) for text in self._read(self._path))
            return
        for document in self._documents:
            self.done += 1
            if isinstance(document, str):
                yield [self._vocab.tokens(document, special=False)]
            elif isinstance(document, bytes) or not isinstance(document, Iterable):
                raise RunError(
                    f"A document is a text or a list of token ids, not {document!r}. One document alone: [document]"
                )
            else:
                tokens = self._vocab.check(document)
                # the chunks get their own
                yield [tokens[1:] if self.begin and tokens[:1] == self.begin else tokens]

    def _read(self, path: Path) -> Iterator[str]:
        rest = ""
        try:
            with path.open(encoding="utf-8-sig") as file:
                while text := file.read(_PIECE):
                    if "\0" in text:
                        raise FileError(f"{path} is no text: it holds zero bytes.")
                    self.done = file.buffer.tell()
                    rest += text
                    cut = _border(rest)
                    yield rest[:cut]
                    rest = rest[cut:]
        except UnicodeDecodeError as err:
            raise FileError(f"{path} is no text in UTF-8: {err.reason} ({err.object[err.start]:#04x}).") from err
        except FileError:
            raise
        except OSError as err:
            raise FileError(f"{path} cannot be read: {err.strerror or err}") from err
        if rest:
            yield rest


def _size(path: Path) -> int:
    hint = "A corpus is the path of a text file; a text itself goes into a list: stats(model, [text])."
    shown = str(path) if len(str(path)) <= 80 else f"{str(path)[:60]}…"
    try:
        if path.is_dir():
            raise FileError(f"{shown} is a folder. {hint}")
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError as err:
        raise FileError(f"{shown} does not exist. {hint}") from err
    except FileError:
        raise
    except (OSError, ValueError) as err:
        raise FileError(f"{shown} cannot be read: {getattr(err, 'strerror', None) or err}. {hint}") from err


def _border(text: str) -> int:
    """Where to cut a piece that goes on: the last border of its second half, else nowhere: at its end."""
    for border in _BORDERS:
        found = None
        for found in border.finditer(text, len(text) // 2):
            pass
        if found:
            return found.start()
    return len(text)


def _cut(pieces: Iterable[list[int]], size: int) -> Iterator[list[int]]:
    """Lists of exactly ``size`` from lists of any length, and what is left."""
    rest: list[int] = []
    for piece in pieces:
        tokens = rest + piece
        whole = len(tokens) - len(tokens) % size
        for i in range(0, whole, size):
            yield tokens[i : i + size]
        rest = tokens[whole:]
    if rest:
        yield rest
