"""``Graph``: the computation graph of a run, as llama.cpp built it and placed it on its backends."""

from __future__ import annotations

import ctypes as ct
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from . import header, native
from .errors import RunError

if TYPE_CHECKING:
    from .program import Program

#: what a node was added by: the model itself, or a capture
_MODEL, _CAPTURE = -1, -2


@dataclass(frozen=True)
class Node:
    """One tensor of a graph.

    Attributes:
        index: its place in :attr:`Graph.nodes`, where inputs come before what uses them.
        name: the graph's name, with the layer; may be empty.
        op: what computes it, ``"NONE"`` for weights, inputs and constants.
        type: of its elements: ``"f32"``, ``"q4_1"``, …
        shape: in numpy's order, tokens first.
        inputs: indices of the tensors that it is computed from.
        backend: where it is computed or lies: ``"CPU"``, ``"CUDA0"``, …
        is_leaf: a weight, an input or a constant: nothing computes it.
        is_output: kept until the end of the run, to be read.
        added_by: the edit or ``"capture"`` that added it; None: the model itself.
    """

    index: int
    name: str
    op: str
    type: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    backend: str
    is_leaf: bool
    is_output: bool
    added_by: str | None


class Graph:
    """The nodes of one graph, in the order in which they run; leafs first.

    Attributes:
        nodes: all of them.
        n_tokens: of the batch that it was built for.
    """

    def __init__(self, nodes: list[Node]):
        self.nodes = nodes
        tokens = self.find("inp_tokens")
        self.n_tokens = tokens[0].shape[-1] if tokens else 0

    def __repr__(self) -> str:
        added = len(self.added)
        return f"<Graph of {len(self)} nodes for {self.n_tokens} tokens{f', {added} of them added' if added else ''}>"

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def added(self) -> list[Node]:
        """What edits and captures added."""
        return [node for node in self.nodes if node.added_by is not None]

    def find(self, name: str) -> list[Node]:
        """The nodes with a name, such as ``"l_out-5"``."""
        return [node for node in self.nodes if node.name == name]

    def text(self) -> str:
        """One line for each node: index, op, type, shape, name, inputs, backend, and who added it."""
        rows = [_cells(node) for node in self.nodes]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))] if rows else []
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)

    def json(self) -> str:
        """A JSON object with ``n_tokens`` and ``nodes``, each with the attributes of :class:`Node`."""
        return json.dumps({"n_tokens": self.n_tokens, "nodes": [asdict(node) for node in self.nodes]}, indent=1)

    def dot(self) -> str:
        """The same for Graphviz; what edits and captures added is coloured, weights are left out."""
        lines = ["digraph graph_of_the_run {", '  node [shape=box, fontname="monospace", fontsize=10];']
        shown = {node.index for node in self.nodes if not (node.is_leaf and node.added_by is None and node.name.endswith((".weight", ".bias")))}
        for node in self.nodes:
            if node.index not in shown:
                continue
            label = "\\n".join(part for part in (node.name, f"{node.op} {node.type}", str(list(node.shape)), node.backend) if part)
            colour = ' style=filled fillcolor="#fdd0a2"' if node.added_by else ' style=rounded' if node.is_leaf else ""
            lines.append(f"  n{node.index} [label={_quoted(label)}{colour}];")
            lines += [f"  n{source} -> n{node.index};" for source in node.inputs if source in shown]
        return "\n".join([*lines, "}"])

    def save(self, path: str | os.PathLike) -> None:
        """Writes the graph as its suffix says: ``.txt``, ``.json`` or ``.dot``.

        Raises:
            FileError: another suffix, or the place cannot be written.
        """
        from .plot import written

        forms = {".txt": self.text, ".json": self.json, ".dot": self.dot}
        with written(path, tuple(forms)) as temporary:
            temporary.write_text(forms[temporary.suffix.lower()]() + "\n", encoding="utf-8")


def _cells(node: Node) -> tuple[str, ...]:
    inputs = f"({', '.join(map(str, node.inputs))})" if node.inputs else ""
    note = " ".join(filter(None, ["output" if node.is_output else "", f"added by {node.added_by}" if node.added_by else ""]))
    return (str(node.index), node.op, node.type, str(list(node.shape)), node.name or "-", inputs, node.backend, note)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def read_graph(lib: native.Library, handle: int, program: Program) -> Graph:
    """The graph that the library shows at this moment; to be called while it does."""
    nodes, raw = [], header.Node()
    for index in range(lib.node_count(handle)):
        if lib.node_get(handle, index, ct.byref(raw)) != 0:
            raise RunError("The graph cannot be read.")
        nodes.append(_node(index, raw, program))
    return Graph(nodes)


def _node(index: int, raw: header.Node, program: Program) -> Node:
    shape = list(reversed(raw.ne))
    while len(shape) > 1 and shape[0] == 1:
        shape.pop(0)
    added_by = None if raw.added == _MODEL else "capture" if raw.added == _CAPTURE else program.edits[raw.added].name
    return Node(
        index=index,
        name=raw.name.decode(errors="replace"),
        op=raw.op.decode(),
        type=raw.type.decode(),
        shape=tuple(int(d) for d in shape),
        inputs=tuple(source for source in raw.src[: raw.n_src] if source >= 0),
        backend=raw.backend.decode(),
        is_leaf=bool(raw.is_leaf),
        is_output=bool(raw.is_output),
        added_by=added_by,
    )
