"""Chat: conversations as the text that a model's own template makes of them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .errors import ModelError, RunError

if TYPE_CHECKING:
    from .session import Context

_TEMPLATE = "tokenizer.chat_template"


def as_messages(messages) -> list[dict]:
    """A conversation as a list of dicts with ``role`` and ``content``; a text is one message of the user's.

    Raises:
        RunError: something else; the message names the first entry that is wrong.
    """
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, (list, tuple)):
        kind = type(messages).__name__
        raise RunError(f'messages: give a text or a list of {{"role": "user", "content": "…"}}, not {kind}.')
    if not messages:
        raise RunError('messages is empty: give at least one {"role": "user", "content": "…"}.')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RunError(f'messages[{i}] is {message!r}: give {{"role": "user", "content": "…"}}.')
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = f"{key}={message[key]!r}" if key in message else f"no {key!r}"
                raise RunError(f"messages[{i}] has {found}: {key!r} must be a text.")
    return [dict(message) for message in messages]


def render(context: Context, messages, add_generation_prompt: bool = True) -> str:
    """The conversation as the template in the model's file writes it.

    Rendered as transformers does: ``apply_chat_template`` in its ``utils/chat_template_utils.py``.

    Raises:
        ModelError: the model has no template, or one that is no template.
        RunError: malformed messages, or the template refuses them.
    """
    import jinja2

    messages = as_messages(messages)
    source = context._meta(_TEMPLATE)
    if not source:
        raise ModelError(
            f"{context.name} has no chat template ({_TEMPLATE}): it was probably not trained for chats. "
            "Write the prompt yourself, as the model's card shows it, and give it to generate()."
        )
    vocab = context.vocab
    try:
        template = _environment().from_string(source)
    except jinja2.TemplateError as err:
        raise ModelError(f"The chat template of {context.name} is no valid template: {err}.") from err
    try:
        return template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=bool(add_generation_prompt),
            bos_token=vocab.special_text(vocab.bos),
            eos_token=vocab.special_text(vocab.eos),
        )
    # the template's own code runs here and may raise anything: a concatenation of None, a missing key
    except Exception as err:
        raise RunError(
            f"The chat template of {context.name} refuses these messages: {err}. Look at their roles and their order."
        ) from err


def _environment():
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generated(Extension):
        """``{% generation %}`` marks what the assistant says, for training; here it is plain text."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # jinja2's own escapes what HTML does not like
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    extensions = [Generated, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def tokens_of(context: Context, text: str, n_prefix: int) -> list[int]:
    """Tokens of a rendered conversation: the begin token once, whether or not the template writes it, and none after
    a prefix."""
    vocab = context.vocab
    tokens = vocab.tokens(text, special=False)
    begins = bool(tokens) and tokens[0] == vocab.bos
    if n_prefix:
        return tokens[1:] if begins and vocab.add_bos else tokens
    return [vocab.bos, *tokens] if vocab.add_bos and vocab.bos >= 0 and not begins else tokens
