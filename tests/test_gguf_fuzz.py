"""No GGUF file, however wrong its header, ends the process: it is refused, or it is a model that runs."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from gguf import GGMLQuantizationType

import gguf_fuzz
import gguf_parts as parts
import interp
from child import Child

#: files that a run of the tests opens; LLAMA_INTERP_FUZZ=20000 opens more. `python tests/gguf_fuzz.py` counts them by kind
COUNT = int(os.environ.get("LLAMA_INTERP_FUZZ", "120"))


def test_a_changed_file_is_refused_or_runs(tried):
    outcomes: Counter[str] = Counter()
    with Child("gguf_child.py") as child:
        for number in range(COUNT):
            outcome = child.ask(number)
            assert not outcome.startswith(("BUG", "DEAD", "HANGS")), f"file {number}, {gguf_fuzz.changed(number)[1]}: {outcome}"
            outcomes[outcome] += 1
        assert child.deaths == 0
    print(dict(outcomes))
    tried("changed GGUF files", COUNT)
    # files that are nearly all refused at once, or hardly changed, would prove nothing
    assert outcomes["ok"] > COUNT / 10 and outcomes["ModelError"] > COUNT / 2


def test_a_file_taken_apart_and_put_together_is_the_same():
    for arch in gguf_fuzz.ARCHS:
        content = gguf_fuzz.small_file(arch).read_bytes()
        assert parts.take_apart(content).pack() == content


# Found by abuse: each of these ended the process, or never ended


def changed(tmp_path, arch: str, **values) -> interp.Model:
    """A model whose metadata has other values; keywords spell dots as two underscores."""
    file = gguf_fuzz.whole(arch).copy()
    for name, value in values.items():
        name = name.replace("__", ".").encode()
        kind = parts.F32 if isinstance(value, float) else parts.STRING if isinstance(value, bytes) else parts.U32
        file.keys = [key for key in file.keys if key.name != name] + [parts.Key(name, kind, value)]
    path = tmp_path / "changed.gguf"
    path.write_bytes(file.pack())
    return interp.Model(path, n_ctx=16, n_threads=2)


def test_a_tokenizer_that_lacks_bytes_is_an_error_and_token_ids_still_run(tmp_path):
    with changed(tmp_path, "llama", tokenizer__ggml__model=b"llama") as model:
        with pytest.raises(interp.ModelError, match="tokenizer fails.*cannot be tokenized.*Give token ids"):
            model.tokens("w\u00f6rld")
        assert model.run([1, 2, 3]).logits.shape == (3, model.n_vocab)


def test_a_tokenizer_that_would_never_end_is_refused(tmp_path):
    with pytest.raises(interp.ModelError, match="rwkv tokenizer lacks single bytes"):
        changed(tmp_path, "gpt2", tokenizer__ggml__model=b"rwkv")


@pytest.mark.parametrize("values, said", [
    ({"phi3__rope__dimension_count": 0}, "rotates 0 of 16"),
    ({"phi3__rope__dimension_count": 7}, "rotates 7 of 16"),
    ({"phi3__rope__dimension_count": 2**31 - 2}, "rotates 2147483646 of 16"),
    ({"phi3__attention__layer_norm_rms_epsilon": -1.0}, "epsilon of -1"),
    ({"phi3__attention__layer_norm_rms_epsilon": float("nan")}, "epsilon of nan"),
])  # fmt: skip
def test_what_a_kernel_asserts_on_a_thread_of_its_own_is_an_error_before(tmp_path, values, said):
    with changed(tmp_path, "phi3", **values) as model:
        for _ in range(2):
            with pytest.raises(interp.RunError, match=f"model file is damaged.*{said}"):
                model.run([1, 2, 3])


#: types that no kernel takes, of norms and biases, and of matrices
WRONG_TYPES = [
    (arch, name, kind)
    for names, kinds in {
        (("gpt-oss", "blk.0.ffn_up_exps.bias"), ("gpt2", "blk.1.attn_norm.weight"), ("gpt2", "blk.0.ffn_up.bias")): ("Q8_0", "F16"),
        (("qwen3", "blk.0.ffn_down.weight"), ("olmoe", "blk.1.ffn_down_exps.weight")): ("I8", "I16", "I32", "I64", "F64"),
    }.items()
    for arch, name in names
    for kind in kinds
]  # fmt: skip


@pytest.mark.parametrize("arch, name, kind", WRONG_TYPES)
def test_a_weight_of_a_type_that_no_kernel_takes_is_an_error(tmp_path, arch, name, kind):
    file, path = gguf_fuzz.whole(arch).copy(), tmp_path / "changed.gguf"
    gguf_fuzz.quantise(random.Random(0), file, GGMLQuantizationType[kind], lambda tensor: tensor.name == name.encode())
    path.write_bytes(file.pack())
    with interp.Model(path, n_ctx=16, n_threads=2) as model:
        with pytest.raises(interp.RunError, match=f"model file is damaged.*{name} has type {kind.lower()}"):
            model.run([1, 2, 3])


def test_a_name_that_is_no_text_may_stand_in_an_error(tmp_path):
    file = gguf_fuzz.whole("llama").copy()
    file.tensors[3].name = b"\xff\xfe"
    path = tmp_path / "changed.gguf"
    path.write_bytes(file.pack())
    with pytest.raises(interp.ModelError, match="changed.gguf"):
        interp.Model(path, n_ctx=16, n_threads=1)
