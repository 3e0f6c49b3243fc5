"""How the functions of the library cross to another process: which arguments are memory, and how much of it.

Arguments that are neither memory nor functions cross as they are: numbers, texts, and addresses of the other process
(the model, a tensor of its graph), which mean something there only.
"""

from __future__ import annotations

import ctypes as ct
import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import header

#: bytes behind an argument, from the library (for what it knows besides) and all arguments
Size = Callable[[object, Sequence], int]

#: as long as the ctypes array or struct that was passed
OWN = None


def _bytes(count: int, each: int = 1) -> Size:
    """As many elements as another argument says."""
    return lambda _lib, args: each * args[count]


#: memory that a function reads, by argument; texts that a struct points to cross as well
GIVEN: dict[str, dict[int, Size | None]] = {
    "init": {1: OWN},
    "devices_needed": {1: OWN},
    "capture_add": {6: OWN, 8: OWN},
    "start_set": {4: lambda lib, args: 4 * args[7] * lib.n_embd, 5: OWN, 6: OWN},
    "logits_set": {1: OWN},
    "logits_set_ids": {1: OWN},
    "state_set": {2: _bytes(3)},
    "op": {4: OWN, 5: OWN},
    "const": {2: OWN, 3: lambda _lib, args: 4 * math.prod(args[2])},
    "input_mask": {1: OWN},
    "input_rows": {1: OWN, 2: OWN, 4: lambda _lib, args: 4 * args[3] * args[5]},
    "input_keys": {1: OWN},
}

#: memory that a function writes; structs are read as well, for their size
FILLED: dict[str, dict[int, Size | None]] = {
    "log_take": {0: OWN},
    "get_info": {1: OWN},
    "meta": {2: OWN},
    "tokenize": {3: OWN},
    "token_to_piece": {2: OWN},
    "weight_info": {2: OWN},
    "weight_read": {2: _bytes(3, 4)},
    "scan_get": {2: OWN},
    "logits_read": {1: lambda lib, args: 4 * args[3] * lib.logits_width(args[0])},
    "state_get": {2: _bytes(3)},
    "graph_counts": {1: OWN, 2: OWN},
    "capture_get_info": {2: OWN},
    "capture_read": {2: _bytes(3)},
    "capture_rows": {2: OWN, 3: OWN},
    "stats_read": {3: _bytes(4)},
    "node_get": {2: OWN},
    "tensor_get_info": {2: OWN},
    "devices_list": {0: OWN},
    "devices_used": {1: OWN},
    "devices_needed": {2: OWN, 4: OWN},
    "layer_get": {2: OWN},
    "rpc_connect": {1: OWN},
}

#: functions that take one of ours, which the library calls
CALLING = {"set_edit_fn", "set_host_fn", "set_graph_fn", "set_poll_fn"}

#: the function that takes a batch, a struct with arrays
BATCH = "decode"

#: functions whose first argument is not the model
WITHOUT_MODEL = {
    "log_init", "log_take", "init", "attach", "capture_free", "devices_list", "devices_needed", "rpc_connect",
    "rpc_disconnect", "rpc_n_lost",
}  # fmt: skip

#: functions whose result tells of mistakes that our own code does not make: nobody waits for it
UNREAD = {"start_set", "stop_set", "logits_set", "logits_set_ids", "memory_seq_cp", "memory_seq_rm"}

#: functions that give one struct after the other, by an index that is their second argument
SERIES = {"scan_get", "node_get"}

#: what has no meaning in another process: memory of the library, a context that somebody made here, and being a server
NOT_HERE = {"attach", "capture_take", "capture_free", "rpc_serve"}


@dataclass(frozen=True)
class Crossing:
    """How one function crosses.

    Attributes:
        name: of the function.
        number: what messages call it.
        kinds: of its arguments, in ctypes.
        given, filled: which of them are memory, see :data:`GIVEN` and :data:`FILLED`.
        of_model: the first is the model.
        is_answered: it has a result that is read, or fills something; for others nobody waits.
    """

    name: str
    number: int
    kinds: tuple
    given: tuple[tuple[int, Size | None], ...]
    filled: tuple[tuple[int, Size | None], ...]
    of_model: bool
    is_answered: bool


def _crossing(number: int, name: str) -> Crossing:
    result, kinds = header.PROTOTYPES[name]
    given, filled = GIVEN.get(name, {}), FILLED.get(name, {})
    return Crossing(
        name, number, tuple(kinds), tuple(given.items()), tuple(filled.items()), name not in WITHOUT_MODEL,
        is_answered=bool(filled) or (result is not None and name not in UNREAD),
    )  # fmt: skip


CROSSINGS = {name: _crossing(number, name) for number, name in enumerate(header.PROTOTYPES) if name not in NOT_HERE}


# // memory

_MUCH = 1 << 18

#: the kind of ``byref(…)``
_ByRef = type(ct.byref(ct.c_int()))


def own_size(value) -> int:
    """Bytes of what an array, a number of ctypes or ``byref(…)`` stands for."""
    return ct.sizeof(value._obj if isinstance(value, _ByRef) else value)


def is_struct(value) -> bool:
    """Whether an argument is a struct of ours, or an array of those."""
    kind = type(value._obj) if isinstance(value, _ByRef) else getattr(value, "_type_", object)
    return isinstance(kind, type) and issubclass(kind, ct.Structure)


def texts_of(value) -> dict[str, bytes | None]:
    """The texts that a struct points to, by field: an address would mean nothing on the other side."""
    struct = value._obj if isinstance(value, _ByRef) else None
    return {name: getattr(struct, name) for name, kind in getattr(struct, "_fields_", ()) if kind is ct.c_char_p}


def address_of(value) -> int | None:
    """Where the memory behind an argument lies: whatever ctypes takes for a pointer."""
    if isinstance(value, (int, ct._Pointer, ct.c_void_p)):
        # ctypes.cast would make a cycle of the pointer, and the memory behind it would wait for the garbage collector
        return value if isinstance(value, int) else ct.c_void_p.from_buffer(value).value
    return ct.addressof(value._obj if isinstance(value, _ByRef) else value)


def pointer(data: ct.Array, kind):
    """A pointer to memory that is kept elsewhere: made of the memory itself it would be a cycle, as in `address_of`."""
    return ct.cast(ct.addressof(data), kind)


def memory(address: int, size: int) -> ct.Array:
    return (ct.c_char * size).from_address(address)


def room(size: int) -> ct.Array:
    """New memory. Much of it comes from the system, whose pages are taken as they are used, and goes back there."""
    kind = ct.c_char * size
    try:
        return kind() if size < _MUCH else kind.from_buffer(mmap.mmap(-1, size))
    except OSError as err:
        raise MemoryError(f"no memory for {size} bytes in the model's process") from err


# // a batch

#: of each of its arrays, bytes for a token
_EACH = {"token": 4, "pos": 4, "seq": 4, "output": 1}


def batch_parts(batch: header.Batch) -> list[bytes]:
    """The arrays of a batch."""
    return [ct.string_at(getattr(batch, name), batch.n_tokens * each) for name, each in _EACH.items()]


def batch_of(n_tokens: int, parts: Sequence[ct.Array]) -> header.Batch:
    """A batch from its arrays, which must be kept as long as it is."""
    kinds = dict(header.Batch._fields_)
    return header.Batch(n_tokens=n_tokens, **{name: pointer(part, kinds[name]) for name, part in zip(_EACH, parts)})
