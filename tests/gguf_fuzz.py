"""GGUF files that are wrong in every way that a seed leads to, and what becomes of each: refused, or a model that runs.

    python tests/gguf_fuzz.py 20000            # that many files, and a table of the outcomes
    python tests/gguf_fuzz.py 1 --first 123    # file 123 again

A file is known by its number: it is made again from it, here and anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import struct
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from gguf import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType

import gguf_parts as parts
import models
from recipes import RECIPES
from tiny_parts import N_VOCAB, Tiny

#: tokens of the small files: all single bytes, and some merges
FEW = 320

ARCHS = tuple(RECIPES)

#: what a loader divides by, multiplies with, or takes as a length
COUNTS = [0, 1, 2, 3, 5, 7, 31, 63, 65, 96, 127, 256, 512, 513, 1000, 2**15, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1]
WIDE = [2**32, 2**33, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]
REALS = [0.0, -0.0, -1.0, 1e-45, 1e-30, 1e30, -1e30, float("inf"), float("-inf"), float("nan"), 0.5, 2.0]
TEXTS = [
    b"", b"\0", b"x", b" ", b"llama", b"gpt2", b"bert", b"t5", b"rwkv", b"none", b"no_vocab", b"plamo2", b"gemma4", b"default",
    b"yarn", b"longrope", b"linear", b"{{ 1/0 }}", b"{% for", b"{{ messages[9].x.y }}", b"\xff\xfe\x80", "é日".encode(),
    b"%s%n%d", b"a" * 70, b"a b", b"mamba", b"qwen2", b"clip", b"whisper", b"deepseek2", b"llama4", b"bloom", b"mpt", b"t5encoder",
]  # fmt: skip

#: types that have blocks of the small files' rows
QUANTISED = [
    kind for kind, (block, _) in GGML_QUANT_SIZES.items() if block <= 64 and kind not in (0, 24, 25, 26, 27, 28)  # F32, I8 … F64
]  # fmt: skip

#: the kind of a token that is one byte
_BYTE = 6

#: keys that a file need not have, without their architecture, and kinds that they come in
MORE = {
    parts.U32: """attention.head_count attention.head_count_kv attention.key_length attention.value_length
        attention.sliding_window attention.sliding_window_pattern rope.dimension_count expert_count expert_used_count
        expert_group_count expert_group_used_count expert_shared_count expert_feed_forward_length
        expert_gating_func leading_dense_block_count feed_forward_length block_count embedding_length context_length
        vocab_size pooling_type nextn_predict_layers rope.scaling.original_context_length attention.q_lora_rank
        attention.kv_lora_rank attention.key_length_mla decoder_block_count attention.group_norm_groups
        embedding_length_out rope.dimension_count_swa attention.key_length_swa attention.shared_kv_layers
        tensor_data_layout n_deepstack_layers""".split(),
    parts.F32: """rope.freq_base rope.scaling.factor rope.scaling.attn_factor attention.layer_norm_rms_epsilon
        attention.layer_norm_epsilon attention.clamp_kqv attention.max_alibi_bias logit_scale embedding_scale
        residual_scale attention.scale attn_logit_softcapping final_logit_softcapping rope.scaling.yarn_log_multiplier
        expert_weights_scale rope.freq_base_swa rope.scaling.alpha""".split(),
    parts.BOOL: "attention.causal use_parallel_residual expert_weights_norm rope.scaling.finetuned swin_norm".split(),
    parts.STRING: ["rope.scaling.type"],
}  # fmt: skip

#: the same for the tokenizer and the whole file
MORE_TOKENS = """bos_token_id eos_token_id unknown_token_id padding_token_id seperator_token_id mask_token_id eot_token_id
    eom_token_id fim_pre_token_id fim_suf_token_id fim_pad_token_id cls_token_id token_type_count""".split()
MORE_FLAGS = "add_bos_token add_eos_token add_space_prefix remove_extra_whitespaces add_sep_token".split()


# The whole files


def small(made: Tiny) -> Tiny:
    """The same model with ``FEW`` tokens."""
    tensors = {
        name: dataclasses.replace(normal, shape=tuple(FEW if n == N_VOCAB else n for n in normal.shape))
        for name, normal in made.tensors.items()
    }
    return dataclasses.replace(made, tensors=tensors)


def small_file(arch: str) -> Path:
    """A valid file of an architecture, quickly loaded."""
    return models.random_model(f"few-{arch}", small(RECIPES[arch]()), FEW)


@cache
def whole(arch: str) -> parts.Parts:
    """The same in parts."""
    return parts.take_apart(small_file(arch).read_bytes())


# Changes of the metadata


def number(draw: random.Random, kind: int):
    """An extreme value of a type."""
    if kind == parts.BOOL:
        return draw.random() < 0.5
    if kind in (parts.F32, parts.F64):
        return draw.choice(REALS)
    if kind == parts.STRING:
        return draw.choice(TEXTS)
    size = 8 * struct.calcsize(parts.FORMATS[kind])
    value = draw.choice(COUNTS + (WIDE if size == 64 else [])) % (1 << size)
    signed = parts.FORMATS[kind].islower()
    return value - (1 << size) if signed and value >> (size - 1) else value


def change_value(draw: random.Random, file: parts.Parts) -> None:
    """Extreme values in a key, of its own type."""
    key = draw.choice(file.keys)
    if key.kind != parts.ARRAY:
        key.value = number(draw, key.kind)
    elif key.value:
        key.value = list(key.value)
        for _ in range(draw.choice([1, 1, 5, 100])):
            key.value[draw.randrange(len(key.value))] = number(draw, key.item)


def change_size(draw: random.Random, file: parts.Parts) -> None:
    """A number of the model's sizes, which the tensors do not follow."""
    keys = [key for key in file.keys if key.kind in (parts.U32, parts.F32)]
    key = draw.choice(keys)
    key.value = number(draw, key.kind)


def change_kind(draw: random.Random, file: parts.Parts) -> None:
    """Another type of a key: with a value of its own, or the bytes that are there."""
    key = draw.choice(file.keys)
    kind = draw.choice([*parts.FORMATS, parts.STRING, parts.ARRAY, parts.ARRAY])
    if kind == parts.ARRAY:
        key.item = draw.choice([*parts.FORMATS, parts.STRING])
        key.value = [number(draw, key.item) for _ in range(draw.choice([0, 1, 2, 4, 5, FEW]))]
    else:
        key.value = number(draw, kind)
    key.kind = kind


def change_array(draw: random.Random, file: parts.Parts) -> None:
    """An array of another length, or with a count that is not its length."""
    key = draw.choice([key for key in file.keys if key.kind == parts.ARRAY])
    how = draw.randrange(4)
    if how == 0:
        key.count = draw.choice([0, 1, len(key.value) - 1, len(key.value) + 1, *COUNTS, *WIDE])
    elif how == 1:
        key.value = key.value[: draw.randrange(len(key.value) + 1)]
    elif how == 2:
        key.value = key.value + key.value[: draw.choice([1, len(key.value)])]
    else:
        key.value = draw.sample(key.value, len(key.value))


def remove_key(draw: random.Random, file: parts.Parts) -> None:
    file.keys.pop(draw.randrange(len(file.keys)))


def double_key(draw: random.Random, file: parts.Parts) -> None:
    file.keys.insert(draw.randrange(len(file.keys)), dataclasses.replace(draw.choice(file.keys)))


def rename_key(draw: random.Random, file: parts.Parts) -> None:
    key = draw.choice(file.keys)
    key.name = draw.choice([b"", b"\0" + key.name, key.name[:-1], key.name * 200, draw.choice(TEXTS), b"general.alignment"])


def more_keys(draw: random.Random, file: parts.Parts) -> None:
    """Keys that the file did not have; where it had one of the name, that one changes."""
    arch = next((key.value for key in file.keys if key.name == b"general.architecture"), b"llama")
    arch = arch if isinstance(arch, bytes) else b"llama"
    where = draw.randrange(8)
    if where == 0:
        kind, name = parts.U32, b"tokenizer.ggml." + draw.choice(MORE_TOKENS).encode()
    elif where == 1:
        kind, name = parts.BOOL, b"tokenizer.ggml." + draw.choice(MORE_FLAGS).encode()
    elif where == 2:
        kind, name = draw.choice([(parts.U32, b"general.alignment"), (parts.U16, b"split.count"), (parts.U16, b"split.no")])
    else:
        kind = draw.choice([*MORE, parts.U32, parts.U32])
        name = arch + b"." + draw.choice(MORE[kind]).encode()
    key = parts.Key(name, kind, number(draw, kind))
    if where > 2 and draw.randrange(5) == 0:
        key = parts.Key(name, parts.ARRAY, [number(draw, kind) for _ in range(draw.choice([0, 1, 3, 4, 4, 5]))], kind)
    file.keys = [other for other in file.keys if other.name != name] + [key]


def change_arch(draw: random.Random, file: parts.Parts) -> None:
    """Another architecture, whose keys are those that the file has."""
    arch = draw.choice(sorted(MODEL_ARCH_NAMES.values())).encode()
    name = next(key for key in file.keys if key.name == b"general.architecture" and key.kind == parts.STRING)
    old, name.value = name.value, arch
    for key in file.keys:
        if key.name.startswith(old + b"."):
            key.name = arch + key.name[len(old) :]


def change_tokenizer(draw: random.Random, file: parts.Parts) -> None:
    """Another kind of tokenizer, with scores and tokens for single bytes as it may want them."""
    n = next((len(key.value) for key in file.keys if key.name.endswith(b"ggml.tokens") and key.kind == parts.ARRAY), FEW)
    for key in file.keys:
        if key.name == b"tokenizer.ggml.model":
            key.value, key.kind = draw.choice([b"llama", b"bert", b"t5", b"rwkv", b"none", b"plamo2", b"gemma4"]), parts.STRING
    if draw.random() < 0.7:
        scores = [draw.choice([0.0, -1.0, 1.0, *REALS]) for _ in range(n)]
        file.keys.append(parts.Key(b"tokenizer.ggml.scores", parts.ARRAY, scores, parts.F32))
    if draw.random() < 0.7:
        _byte_tokens(file)
    if draw.random() < 0.3:
        size = draw.choice([0, 1, 3, 4, 5, 8, 100])
        blob = list(struct.pack("<I", draw.choice([0, 4, 8, 92, 2**31, 2**32 - 4])) + draw.randbytes(size))[: size + 4]
        file.keys.append(parts.Key(b"tokenizer.ggml.precompiled_charsmap", parts.ARRAY, blob, parts.U8))


def _byte_tokens(file: parts.Parts) -> None:
    """The first tokens are single bytes, as SentencePiece has them."""
    for key in file.keys:
        if key.name == b"tokenizer.ggml.tokens" and key.item == parts.STRING:
            key.value = [b"<0x%02X>" % i for i in range(256)] + key.value[256:]
        if key.name == b"tokenizer.ggml.token_type" and key.item == parts.I32:
            key.value = [_BYTE] * 256 + key.value[256:]


# Changes of the tensors


def change_dims(draw: random.Random, file: parts.Parts) -> None:
    tensor = draw.choice(file.tensors)
    how, i = draw.randrange(5), draw.randrange(len(tensor.dims))
    if how == 0:
        tensor.dims[i] = draw.choice(COUNTS + WIDE)
    elif how == 1:
        tensor.dims[i] = max(0, tensor.dims[i] + draw.choice([-1, 1, -32, 32, tensor.dims[i]]))
    elif how == 2:
        tensor.dims = tensor.dims[::-1]
    elif how == 3:
        tensor.dims = draw.choice([[], tensor.dims[:1], [1, *tensor.dims], [*tensor.dims, 2], [*tensor.dims, 1, 1, 1]])
    else:
        tensor.n_dims = draw.choice([0, 1, 3, 4, 5, 255, 2**31, 2**32 - 1])


def change_type(draw: random.Random, file: parts.Parts) -> None:
    draw.choice(file.tensors).kind = draw.choice([*range(-1, 45), 255, 2**31 - 1, -(2**31)])


def change_offset(draw: random.Random, file: parts.Parts) -> None:
    tensor = draw.choice(file.tensors)
    tensor.offset = draw.choice(
        [0, 1, 32, tensor.offset + 1, tensor.offset + 32, tensor.offset - 32, len(file.data), len(file.data) - 32,
         draw.choice(file.tensors).offset, *WIDE, 2**31]
    )  # fmt: skip


def change_tensors(draw: random.Random, file: parts.Parts) -> None:
    """One removed, doubled, renamed or moved in the list."""
    how, i = draw.randrange(5), draw.randrange(len(file.tensors))
    tensor = file.tensors[i]
    if how == 0:
        file.tensors.pop(i)
    elif how == 1:
        file.tensors.append(dataclasses.replace(tensor))
    elif how == 2:
        other = draw.choice(file.tensors)
        tensor.name, other.name = other.name, tensor.name
    elif how == 3:
        tensor.name = draw.choice([b"", b"x", tensor.name + b"x", b"a" * 63, b"a" * 64, b"blk.99.attn_q.weight", b"\xff", b"output.weight"])
    else:
        file.tensors.insert(0, file.tensors.pop(i))


def change_quantised(draw: random.Random, file: parts.Parts) -> None:
    """Tensors of quantised types, whose blocks and scales are any bits; norms and biases too, which no kernel takes."""
    chance, least = draw.choice([0.05, 0.5, 1.0]), draw.choice([1, 2, 2, 2])
    quantise(draw, file, draw.choice(QUANTISED), lambda tensor: len(tensor.dims) >= least and draw.random() < chance)


def quantise(draw: random.Random, file: parts.Parts, kind: int, is_chosen: Callable[[parts.Tensor], bool]) -> None:
    """Give tensors another type and random blocks; what follows them in the data moves."""
    sizes = {kind: GGML_QUANT_SIZES[kind], GGMLQuantizationType.F32: (1, 4)}
    data = bytearray()
    for tensor in file.tensors:
        n = math.prod(tensor.dims)
        if tensor.kind != GGMLQuantizationType.F32 or 4 * n > len(file.data):
            continue  # changed already
        old = file.data[tensor.offset : tensor.offset + 4 * n]
        is_changed = bool(tensor.dims) and tensor.dims[0] % sizes[kind][0] == 0 and is_chosen(tensor)
        tensor.kind, tensor.offset = int(kind if is_changed else GGMLQuantizationType.F32), len(data)
        block, size = sizes[tensor.kind]
        data += draw.randbytes(n // block * size) if is_changed else old
        data += bytes(-len(data) % parts.ALIGNMENT)
    file.data = bytes(data)


def change_counts(draw: random.Random, file: parts.Parts) -> None:
    how = draw.randrange(3)
    if how == 0:
        file.version = draw.choice([0, 1, 2, 4, 2**16, 3 << 24, 2**32 - 1])
    elif how == 1:
        file.n_keys = draw.choice([0, len(file.keys) - 1, len(file.keys) + 1, *COUNTS, *WIDE])
    else:
        file.n_tensors = draw.choice([0, len(file.tensors) - 1, len(file.tensors) + 1, *COUNTS, *WIDE])


def change_data(draw: random.Random, file: parts.Parts) -> None:
    """Numbers that are none, or less data than the tensors take."""
    data = bytearray(file.data)
    if draw.randrange(3) == 0:
        del data[draw.randrange(len(data)) :]
    for _ in range(draw.choice([1, 10, 1000])):
        if len(data) > 4:
            spot = 4 * draw.randrange(len(data) // 4)
            data[spot : spot + 4] = draw.choice([struct.pack("<f", draw.choice(REALS)), draw.randbytes(4)])
    file.data = bytes(data)


CHANGES: list[Callable[[random.Random, parts.Parts], None]] = [
    change_value, change_value, change_size, change_size, change_kind, change_array, remove_key, double_key, rename_key,
    more_keys, more_keys, more_keys, change_arch, change_tokenizer, change_dims, change_type, change_offset,
    change_tensors, change_counts, change_data, change_quantised,
]  # fmt: skip


# Changes of bytes


def change_bytes(draw: random.Random, content: bytearray, n_header: int) -> None:
    """Bits, words and pieces of the header, or an end that is missing."""
    how, spot = draw.randrange(6), draw.randrange(n_header)
    if how == 0:
        for _ in range(draw.choice([1, 1, 2, 8])):
            content[draw.randrange(n_header)] ^= 1 << draw.randrange(8)
    elif how == 1:
        del content[draw.choice([spot, spot, draw.randrange(len(content))]) :]
    elif how == 2:
        content[spot : spot + 4] = struct.pack("<I", draw.choice(COUNTS))
    elif how == 3:
        content[spot : spot + 8] = struct.pack("<Q", draw.choice(COUNTS + WIDE))
    elif how == 4:
        del content[spot : spot + draw.choice([1, 4, 8, 100])]
    else:
        content[spot:spot] = draw.randbytes(draw.choice([1, 4, 8, 100]))


def changed(seed: int) -> tuple[bytes, str]:
    """A file by its number, and what was done to it; never the file as it was."""
    draw = random.Random(seed)
    arch = draw.choice(ARCHS)
    before = whole(arch).pack()
    while True:
        content, done = _changed_bytes(draw, arch) if draw.randrange(5) == 0 else _changed_parts(draw, arch)
        # a change may find nothing to choose from, or choose what is there already
        if content != before:
            return content, f"{arch}: {done}"


def _changed_bytes(draw: random.Random, arch: str) -> tuple[bytes, str]:
    file = whole(arch)
    content = bytearray(file.pack())
    for _ in range(draw.choice([1, 1, 2])):
        change_bytes(draw, content, min(len(file.header()), len(content)))
    return bytes(content), "change_bytes"


def _changed_parts(draw: random.Random, arch: str) -> tuple[bytes, str]:
    file, done = whole(arch).copy(), []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        change = draw.choice(CHANGES)
        try:
            change(draw, file)
        except (IndexError, ValueError, StopIteration):
            continue  # an earlier change left nothing to choose from
        done.append(change.__name__)
    return file.pack(), ", ".join(done)


# The long form


def main() -> None:
    from child import Child

    parser = argparse.ArgumentParser(description="Load damaged GGUF files and count what becomes of them.")
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0, help="the number of the first file")
    given = parser.parse_args()
    outcomes: Counter[str] = Counter()
    with Child("gguf_child.py", patience=30) as child:
        for seed in range(given.first, given.first + given.count):
            outcome = child.ask(seed)
            outcomes[outcome.split()[0]] += 1
            if outcome.startswith(("BUG", "DEAD", "HANGS")):
                print(f"file {seed} ({changed(seed)[1]}): {outcome}\n", flush=True)
    for outcome, count in outcomes.most_common():
        print(f"{count:7,}  {outcome}")


if __name__ == "__main__":
    main()
