"""Twelve chat formats of well-known families as small templates, each with a tiny tokenizer of its kind.

Written from the documented form of a conversation (role markers and special tokens); not the families' own templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Family:
    """A chat format.

    special: its special tokens besides bos and eos. ends: what the trained tokens of a turn end with. pieces: how its
    tokenizer writes spaces. system: whether it takes a system message. rewrites: whether it strips earlier reasoning.
    tools: whether it writes tool calls.
    """

    template: str
    eos: str
    bos: str | None = None
    special: tuple[str, ...] = ()
    end: str = ""
    eos_tokens: tuple[str, ...] = ()
    pieces: Literal["bytes", "sentence"] = "bytes"
    system: bool = True
    rewrites: bool = False
    tools: bool = False

    @property
    def turn_end(self) -> str:
        """The text of the token that ends a turn."""
        return self.end or self.eos


ALTERNATE = (
    "{% for m in messages %}{% if loop.index0 and m['role'] == messages[loop.index0 - 1]['role'] %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% set said = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set said.system = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}"
    "{% elif m['role'] == 'user' %}{{ bos_token + '[INST] ' + said.system + m['content'].strip() + ' [/INST]' }}"
    "{% set said.system = '' %}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'tool' %}{{ '[TOOL_RESULTS] ' + m['content'] + '[/TOOL_RESULTS]' }}"
    "{% elif m['tool_calls'] %}{{ '[TOOL_CALLS] ' + m['tool_calls'] | map(attribute='function') | list | tojson"
    " + eos_token }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}" + ALTERNATE + "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
TOOL_TURNS = (
    "{% elif m['role'] == 'tool' %}{% if messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<|im_start|>user' }}"
    "{% endif %}{{ '\n<tool_response>\n' + m['content'] + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)
CALLS = (
    "{% for c in m['tool_calls'] or [] %}{{ '\n<tool_call>\n{\"name\": \"' + c.function.name + '\", \"arguments\": '"
    " + c.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}"
)
QWEN25 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set system = 'Be of help.' %}{% endif %}"
    "{{ '<|im_start|>system\n' + system }}"
    "{% if tools %}{{ '\n<tools>' }}{% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}"
    "{{ '\n</tools>' }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% for m in messages %}{% if m['role'] == 'system' %}" + TOOL_TURNS + "{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}" + CALLS + "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (
    "{% set at = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set at.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set i = loop.index0 %}{% if m['role'] != 'assistant' %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>assistant\n' }}{% set parts = m['content'].split('</think>') %}"
    "{% if i > at.last %}{% if parts | length > 1 %}"
    "{{ '<think>\n' + parts[0].split('<think>')[-1].strip('\n') + '\n</think>\n\n' }}"
    "{% else %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ parts[-1].lstrip('\n') + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% else %}{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TULU = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + m['content'] + eos_token + ('' if loop.last else '\n') }}"
    "{% else %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

IM = ("<|im_start|>",)
FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>", special=IM),
    "llama-2": Family(LLAMA2, "</s>", "<s>", pieces="sentence"),
    "llama-3": Family(LLAMA3, "<|end_of_text|>", "<|begin_of_text|>",
                      ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", ("<|eot_id|>",)),
    "mistral": Family(MISTRAL, "</s>", "<s>",
                      ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
                      pieces="sentence", system=False, tools=True),
    "gemma": Family(GEMMA, "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", ("<end_of_turn>",),
                    "sentence", system=False),
    "zephyr": Family(ZEPHYR, "</s>", "<s>", pieces="sentence"),
    "phi-3": Family(PHI3, "<|endoftext|>", None, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|end|>",
                    ("<|end|>",), "sentence"),
    "qwen-2.5": Family(QWEN25, "<|im_end|>", special=IM, tools=True),
    "qwen-3": Family(QWEN3, "<|im_end|>", special=IM, rewrites=True),
    "deepseek-r1": Family(DEEPSEEK, "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>",
                          ("<｜User｜>", "<｜Assistant｜>"), rewrites=True),
    "vicuna": Family(VICUNA, "</s>", "<s>", pieces="sentence"),
    "tulu": Family(TULU, "<|endoftext|>", "<|endoftext|>"),
}  # fmt: skip

#: gives the tokenizers some merges, across spaces, line breaks and colons, too
TEXT = [
    "the user asks the model, the model answers: yes\n\nno, ab abc abcd AB ABC ASSISTANT: USER: assistant\nuser\n"
] * 3


@cache
def tokenizer(name: str) -> Any:
    """The tokenizer of a family, with its chat template: byte-level, or with ▁ for spaces and one before everything."""
    family = FAMILIES[name]
    made = Tokenizer(models.BPE(byte_fallback=family.pieces == "sentence", unk_token=None))
    if family.pieces == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = []
    bytes_ = [f"<0x{i:02X}>" for i in range(256)] if family.pieces == "sentence" else []
    trainer = trainers.BpeTrainer(
        vocab_size=430, initial_alphabet=alphabet, show_progress=False, special_tokens=bytes_, min_frequency=2
    )
    made.train_from_iterator(TEXT, trainer)
    if bytes_:
        made = _without_added(made)
    names = [n for n in (family.bos, family.eos, *family.special) if n]
    made.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in dict.fromkeys(names)])
    out = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=family.eos, bos_token=family.bos)
    out.chat_template = family.template
    return out


def _without_added(made: Tokenizer) -> Tokenizer:
    """The same, the byte pieces as ordinary tokens of the vocabulary, not as special ones."""
    import json

    plain = json.loads(made.to_str())
    plain["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(plain))


def ends(name: str) -> list[int]:
    """The ids that end an answer, beside the tokenizer's own."""
    return [int(tokenizer(name).convert_tokens_to_ids(t)) for t in FAMILIES[name].eos_tokens]
