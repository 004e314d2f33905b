"""Chat templates in the styles of known families, with `{% generation %}` marks around what the assistant writes."""

from __future__ import annotations

import re
from typing import Any

from rlhf.rendering import Message, Rendering
from rlhf.template import Template
from tests.helpers.tiny import sentencepiece_tokenizer, tiny_tokenizer

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>", "<turn>", "</turn>", "<|end|>"),
    *("<|user|>", "<|assistant|>", "<|system|>"),
]
# What the marks hold in each of these is the text of a turn and its end token.
EXACT: dict[str, str] = {
    "ChatML": (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
        "{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
        "{%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{{- '\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    "Llama 3": (
        "{{- bos_token }}{%- for m in messages %}{{- '<|header|>' + m.role + '<|/header|>\n\n' }}"
        "{%- if m.role == 'assistant' %}{%- generation %}{{- m.content | trim + '<|eot|>' }}{%- endgeneration %}"
        "{%- else %}{{- m.content | trim + '<|eot|>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\n\n' }}{%- endif %}"
    ),
    "Gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('turns must alternate') }}{% endif %}"
        "{% if m.role == 'assistant' %}{{ '<turn>model\n' }}"
        "{% generation %}{{ m.content | trim + '</turn>' }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ '<turn>user\n' + m.content | trim + '</turn>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
    ),
    "Zephyr": (
        "{% for m in messages %}\n{% if m.role == 'user' %}\n{{ '<|user|>\n' + m.content + eos_token }}\n"
        "{% elif m.role == 'system' %}\n{{ '<|system|>\n' + m.content + eos_token }}\n"
        "{% elif m.role == 'assistant' %}\n{{ '<|assistant|>\n' }}"
        "{% generation %}{{ m.content + eos_token }}{% endgeneration %}{{ '\n' }}{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "Mistral": (
        "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + (first if loop.index0 < 2 else '') + m.content + '[/INST]' }}"
        "{% elif m.role == 'assistant' %}{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}"
        "{% endif %}{% endfor %}"
    ),
    "Phi": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|end|>' }}"
        "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "blocks of thoughts in all turns": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    ),
}
# What people also put between them.
WIDER: dict[str, str] = {
    "a line break behind the end": EXACT["ChatML"].replace("'<|im_end|>' }}{% endg", "'<|im_end|>\n' }}{% endg"),
    "a line break of the header": (
        EXACT["ChatML"].replace("m.role + '\n' }}", "m.role + ('' if m.role == 'assistant' else '\n') }}", 1)
        .replace("{{ m.content", "{{ '\n' + m.content")
    ),
    "the whole turn": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "an end of all": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|end|>\n' }}{% endgeneration %}{% else %}{{ m.content + '<|end|>\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
        "{% elif messages[-1].role == 'assistant' %}{% generation %}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ eos_token }}{% endif %}"
    ),
    "no end": (
        EXACT["ChatML"].replace("{{ m.content + '<|im_end|>' }}{% endgeneration %}",
                                "{{ m.content }}{% endgeneration %}{{ '<|im_end|>' }}")
    ),
}  # fmt: skip
# Thoughts are dropped from the turns before the last question, and the last turn gets a block, perhaps an empty one.
FORGETFUL = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{% generation %}{{ parts[-1].lstrip('\n') + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


_HEAD = (
    "{% for m in messages %}{% if m.role != 'assistant' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
)
_LAST = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
# Write what the assistant thought before its text, each with the field that it knows.
THOUGHTS: dict[str, tuple[str, str]] = {
    # in the turns behind the last question alone, with an empty block where there are none
    "Qwen3": (
        _LAST + _HEAD + "{% else %}{% set thought = (m.reasoning_content or '').strip('\n') %}"
        "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last %}"
        "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ m.content.lstrip('\n') + '<|im_end|>\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{% endif %}",
        "reasoning_content",
    ),
    # in all turns that have some, and its prompt opens the block
    "always thinks": (
        _HEAD + "{% else %}{{ '<|im_start|>assistant\n<think>\n' + (m.reasoning or '') + '\n</think>\n\n' + m.content"
        " + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
        "reasoning",
    ),
    # a turn of their own, without thoughts in earlier ones, and an end of its own for the last
    "harmony": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if loop.last and not add_generation_prompt %}"
        "{% if m.thinking %}{{ '<|header|>assistant<|turn|>analysis<|/header|>' + m.thinking + '<|end|>' }}{% endif %}"
        "{{ '<|header|>assistant<|turn|>final<|/header|>' + m.content + '<|eot|>' }}"
        "{% else %}{{ '<|header|>assistant<|turn|>final<|/header|>' + m.content + '<|end|>' }}{% endif %}"
        "{% else %}{{ '<|header|>' + m.role + '<|/header|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|header|>assistant' }}{% endif %}",
        "thinking",
    ),
    # an option of another name, and marks
    "DeepSeek": (
        _LAST + _HEAD + "{% else %}{{ '<|assistant|>' }}{% generation %}{% if loop.index0 > ns.last %}"
        "{{ '<think>' + m.reasoning_content if m.reasoning_content else '' }}{{ '</think>' }}{% endif %}"
        "{{ m.content + '<|end|>' }}{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{{ '' if thinking else '</think>' }}{% endif %}",
        "reasoning_content",
    ),
}
# Writes tools, their calls and what they gave.
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + (messages[0].content + '\n' if messages[0].role == 'system' else '') }}"
    "{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    "{{ '<call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user\n<result>' + m.content + '</result><|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def unmarked(source: str) -> str:
    """The template without its marks."""
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)


def template_of(source: str, *, sentencepiece: str = "") -> Template:
    """A template on a tokenizer that has the tokens of all of these."""
    tokenizer: Any = sentencepiece_tokenizer(sentencepiece) if sentencepiece else tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = source
    return Template(tokenizer)


def by_transformers(template: Template, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and 1 for those that are the assistant's, as transformers gives them."""
    options: Any = Rendering(template.tokenizer)._options
    tokenizer: Any = template.tokenizer
    found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
    return found["input_ids"], found["assistant_masks"]
