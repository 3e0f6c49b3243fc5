"""A GGUF file taken apart into keys, tensors and data, and put together again, however wrong the parts have become."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)

#: struct's letter of each type of one number
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}

ALIGNMENT = 32


@dataclass
class Key:
    """One entry of the metadata. ``item`` is the type of an array's values; ``count`` None: as many as there are."""

    name: bytes
    kind: int
    value: object
    item: int | None = None
    count: int | None = None

    def pack(self) -> bytes:
        head = _text(self.name) + struct.pack("<I", self.kind)
        if self.kind != ARRAY:
            return head + _value(self.kind, self.value)
        count = len(self.value) if self.count is None else self.count
        head += struct.pack("<IQ", self.item, count % (1 << 64))
        if self.item in FORMATS:
            return head + struct.pack(f"<{len(self.value)}{FORMATS[self.item]}", *self.value)
        return head + b"".join(_value(self.item, value) for value in self.value)


@dataclass
class Tensor:
    """What the header says of a tensor: its dimensions in ggml's order, its type, where in the data it begins."""

    name: bytes
    dims: list[int]
    kind: int
    offset: int
    n_dims: int | None = None

    def pack(self) -> bytes:
        n_dims = len(self.dims) if self.n_dims is None else self.n_dims
        dims = struct.pack(f"<I{len(self.dims)}Q", n_dims, *(n % (1 << 64) for n in self.dims))
        return _text(self.name) + dims + struct.pack("<iQ", self.kind, self.offset % (1 << 64))


@dataclass
class Parts:
    """A whole file. Counts that are None are those of the lists."""

    keys: list[Key]
    tensors: list[Tensor]
    data: bytes
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None

    def copy(self) -> Parts:
        tensors = [replace(tensor, dims=list(tensor.dims)) for tensor in self.tensors]
        return replace(self, keys=[replace(key) for key in self.keys], tensors=tensors)

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        head = b"GGUF" + struct.pack("<IQQ", self.version, n_tensors % (1 << 64), n_keys % (1 << 64))
        return head + b"".join(part.pack() for part in [*self.keys, *self.tensors])

    def pack(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % ALIGNMENT) + self.data


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _value(kind: int, value) -> bytes:
    if kind in FORMATS:
        return struct.pack("<" + FORMATS[kind], value)
    return _text(value)


def take_apart(content: bytes) -> Parts:
    """The parts of a valid file, whose ``pack`` gives the same bytes."""
    reader = _Reader(content)
    _, version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", content)
    reader.at = 24
    keys = [reader.key() for _ in range(n_keys)]
    tensors = [reader.tensor() for _ in range(n_tensors)]
    return Parts(keys, tensors, content[reader.at + -reader.at % ALIGNMENT :], version)


@dataclass
class _Reader:
    content: bytes
    at: int = field(default=0)

    def numbers(self, letters: str) -> tuple:
        found = struct.unpack_from("<" + letters, self.content, self.at)
        self.at += struct.calcsize("<" + letters)
        return found

    def text(self) -> bytes:
        (length,) = self.numbers("Q")
        self.at += length
        return self.content[self.at - length : self.at]

    def value(self, kind: int):
        return self.text() if kind == STRING else self.numbers(FORMATS[kind])[0]

    def key(self) -> Key:
        name, (kind,) = self.text(), self.numbers("I")
        if kind != ARRAY:
            return Key(name, kind, self.value(kind))
        item, count = self.numbers("IQ")
        return Key(name, kind, [self.value(item) for _ in range(count)], item)

    def tensor(self) -> Tensor:
        name, (n_dims,) = self.text(), self.numbers("I")
        dims = list(self.numbers(f"{n_dims}Q"))
        return Tensor(name, dims, *self.numbers("iQ"))
