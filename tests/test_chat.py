"""Chat: the model's own template, the begin token once, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

import interp
import models
from interp import ModelError, RunError
from recipes import RECIPES

#: <|endoftext|>: the vocabulary's own begin token, <|im_start|>, also begins every message
BOS = 0

CHATML = (
    "{{ bos_token }}{% for m in messages %}\n"
    "    {% if loop.index0 > 8 %}{% break %}{% endif %}\n"
    "<|im_start|>{{ m['role'] }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
)


def with_template(folder: Path, template: str | None, add_bos: bool) -> Path:
    """The tiny Llama with a chat template and a begin token."""
    source, path = models.default_gguf(), folder / "chat.gguf"
    changed = {"tokenizer.ggml.add_bos_token": (add_bos, gguf.GGUFValueType.BOOL),
               "tokenizer.ggml.bos_token_id": (BOS, gguf.GGUFValueType.UINT32)}  # fmt: skip
    vocabulary = [entry for entry in models._vocabulary(source) if entry[0] not in changed]
    vocabulary += [(key, value, kind, None) for key, (value, kind) in changed.items()]
    if template is not None:
        vocabulary.append(("tokenizer.chat_template", template, gguf.GGUFValueType.STRING, None))
    RECIPES["llama"]().write(path, vocabulary)
    return path


def loaded(folder: Path, template: str | None, add_bos: bool = True) -> interp.Model:
    return interp.Model(with_template(folder, template, add_bos), n_ctx=128, n_threads=1)


def test_the_default_models_template_writes_the_conversation(model):
    text = model.chat_prompt("Hello!")
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n")
    assert not model.chat_prompt("Hello!", add_generation_prompt=False).endswith("assistant\n")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    assert model.chat_prompt(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_chat_generates_from_that_text(model):
    question = "What is the capital of France?"
    made = model.chat(question, max_tokens=12)
    prompt = model.chat_prompt(question)
    assert made.tokens == model.generate(prompt, max_tokens=12).tokens
    assert made.run.prompt == prompt
    shown = []
    edited = model.chat(question, 12, edits=interp.scale("l_out-5", 0.0), on_text=shown.append)
    assert edited.text != made.text and "".join(shown) == edited.text


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("writes_bos", [True, False])
def test_the_begin_token_comes_once(tmp_path, add_bos, writes_bos):
    with loaded(tmp_path, CHATML if writes_bos else CHATML.replace("{{ bos_token }}", ""), add_bos) as model:
        bare = model.vocab.tokens("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", special=False)
        expected = [BOS, *bare] if add_bos or writes_bos else bare
        assert model.chat("Hi", 1).run.tokens == expected
        with model.prefix("Once"):
            # a conversation that continues a prefix begins nothing
            assert model.chat("Hi", 1).run.tokens == (bare if add_bos or not writes_bos else expected)


def test_a_template_of_any_length_is_read_whole(tmp_path):
    template = "{# " + "long " * 4000 + "#}{{ messages[0].content }} – the end"
    with loaded(tmp_path, template) as model:
        assert model.chat_prompt("begin") == "begin – the end"


def test_blocks_leave_no_blank_lines_and_loop_controls_work(tmp_path):
    with loaded(tmp_path, CHATML) as model:
        text = model.chat_prompt([{"role": "user", "content": f" {i} "} for i in range(12)])
        assert text.count("user") == 9 and "\n\n" not in text


def test_what_templates_call_is_there(tmp_path):
    template = (
        "{{ strftime_now('%Y') | length }} {{ messages | tojson }} {% generation %}é{% endgeneration %}"
        "{{ eos_token }}{% if tools is not none %}tools{% endif %}"
    )
    with loaded(tmp_path, template) as model:
        end = model.vocab.special_text(model.vocab.eos)
        assert model.chat_prompt("ü<b>") == '4 [{"role": "user", "content": "ü<b>"}] é' + end


def test_a_model_without_a_template_says_how_to_write_the_prompt(tiny):
    for call in (tiny.chat, tiny.chat_prompt):
        with pytest.raises(ModelError, match="no chat template.*Write the prompt yourself.*generate"):
            call("Hello")


@pytest.mark.parametrize(
    "messages, what",
    [([], "empty"), (3, "int"), (None, "NoneType"), ([3], r"messages\[0\] is 3"), ({"role": "user"}, "dict"),
     ([{"role": "user"}], r"messages\[0\] has no 'content'"), ([{"content": "a"}], "no 'role'"),
     ([{"role": "user", "content": "a"}, {"role": "user", "content": None}], r"messages\[1\] has content=None")],
)  # fmt: skip
def test_malformed_messages_are_refused(model, messages, what):
    with pytest.raises(RunError, match=what):
        model.chat(messages)


@pytest.mark.parametrize(
    "template, kind, what",
    [
        ("{{ raise_exception('roles must alternate') }}", RunError, "refuses.*roles must alternate"),
        ("{{ messages[7].content }}", RunError, "refuses"),
        ("{{ messages[0].content + 1 }}", RunError, "refuses"),
        ("{% for %}", ModelError, "no valid template"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", RunError, "refuses"),
        ("{{ messages.append(1) }}", RunError, "refuses"),
    ],
)
def test_templates_that_fail_are_errors(tmp_path, template, kind, what):
    with loaded(tmp_path, template) as model, pytest.raises(kind, match=what):
        model.chat_prompt("Hello")


def test_a_conversation_longer_than_the_context_is_refused(tmp_path):
    with loaded(tmp_path, "{{ messages[0].content }}") as model, pytest.raises(RunError, match="n_ctx="):
        model.chat("word " * 200)
