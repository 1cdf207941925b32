"""The marks by which models structure what they say: reasoning, channels, turns.

Written as they are spelt in the chat templates of shipped models. Some are special tokens, which an engine leaves out
of a text; without them a thought runs into the answer, so engines here keep them and `grading.answer` reads them.
"""

from __future__ import annotations

import re

_EDGE = r"[ \t]{0,3}"
_THOUGHT = (
    r"(?:think(?:ing)?|thoughts?|reason(?:ing)?(?:_content)?|reflection|scratchpad|inner_?(?:thoughts?|monologue)"
    r"|cot|chain_?of_?thoughts?)"
)
_BRACKET = r"(?:think(?:ing)?|reasoning|thought)"
_MAKER = r"(?:[a-z0-9.-]{1,20}[:_])?"  # seed:think, mm:think, longcat_think
_LEFT, _RIGHT = r"(?:[<＜]|&lt;)", r"(?:[>＞]|&gt;)"  # noqa: RUF001 - as some models write them
_ATTRIBUTES = r"(?:\s[^<>＜＞&]{0,200})?"  # noqa: RUF001
_BAR, _JOIN = r"[|｜]", r"[_▁ -]"  # noqa: RUF001
_ROLE = r"(?:user|human|prompter|system|tool|observation|developer|assistant|model|bot|ipython|environment)"

OPEN = (
    rf"{_LEFT}{_EDGE}{_MAKER}{_THOUGHT}{_ATTRIBUTES}/?{_EDGE}{_RIGHT}"
    rf"|<{_BAR}{_EDGE}(?:(?:begin|start){_JOIN}?(?:of{_JOIN}?)?)?{_THOUGHT}(?:{_JOIN}(?:start|begin))?{_EDGE}{_BAR}>"
    rf"|<{_BAR}inner_prefix{_BAR}>|\[{_BRACKET}\]|\[unused16\]|◁{_EDGE}think(?:ing)?{_EDGE}▷"
    r"|<unused94>(?:thought\b)?|<\|channel>(?:thought\b|analysis\b)?"
)
"""What begins a thought: Qwen, DeepSeek, GLM, MiniMax, Hunyuan and others `<think>`, EXAONE `<thought>`, Seed-OSS
`<seed:think>`, Magistral `[THINK]`, Cohere `<|START_THINKING|>`, OpenThoughts `<|begin_of_thought|>`, Apertus
`<|inner_prefix|>`, Pangu `[unused16]`, Kimi `◁think▷`, MedGemma `<unused94>thought`, Gemma `<|channel>thought`."""
CLOSE = (
    rf"{_LEFT}{_EDGE}[/\\]{_EDGE}{_MAKER}{_THOUGHT}{_EDGE}{_RIGHT}"
    rf"|<{_BAR}{_EDGE}(?:/{_EDGE}|end{_JOIN}?(?:of{_JOIN}?)?){_THOUGHT}{_EDGE}{_BAR}>"
    rf"|<{_BAR}{_EDGE}{_THOUGHT}{_JOIN}end{_EDGE}{_BAR}>"
    rf"|<{_BAR}inner_suffix{_BAR}>|\[/{_EDGE}{_BRACKET}\]|\[unused17\]|◁{_EDGE}/{_EDGE}think(?:ing)?{_EDGE}▷"
    r"|<unused95>|<channel\|>"
)
"""What ends one."""
END = (
    rf"<{_BAR}{_EDGE}(?:im_end|eot_id|eom_id|end|return|call|endoftext|end_of_text|eot|eom|end_of_turn|endofturn"
    r"|end_of_turn_token|end▁of▁sentence|end_of_sentence|assistant_end|user_end|eos|endofprompt|flush|calls|hy_place▁holder▁no▁2)"
    rf"{_EDGE}{_BAR}>"
    r"|<end_of_turn>|<end_of_utterance>|<turn\|>|</s>|<eos>|<seed:eos>|<EOT>|<eo[ah]>|\[e~\[|_<EOT>|\[EOS\]|\[EOT\]|\[\|endofturn\|\]"
)
"""What ends a turn."""
TURN = (
    rf"<{_BAR}im_start{_BAR}>\s{{0,3}}{_ROLE}?"
    rf"|<{_BAR}(?:start_header_id|role_start){_BAR}>\s{{0,3}}{_ROLE}?\s{{0,3}}(?:<{_BAR}(?:end_header_id|role_end){_BAR}>)?"
    rf"|<{_BAR}start{_BAR}>{_ROLE}?|<\|turn>{_ROLE}?|<start_of_turn>{_ROLE}?|<seed:bos>{_ROLE}?"
    rf"|<{_BAR}start_of_turn_token{_BAR}>|<{_BAR}(?:user|system|chatbot)_token{_BAR}>"
    rf"|<{_BAR}{_EDGE}(?:hy_)?{_ROLE}(?:_start)?{_EDGE}{_BAR}>|\[\|{_ROLE}\|\]|<extra_id_1>{_ROLE}?|\]~b\]{_ROLE}?"
    r"|<reserved_10[67]>"
    r"|\[/?INST\]|<</?SYS>>|\[/?SYSTEM_PROMPT\]|\[/?AVAILABLE_TOOLS\]|\[TOOL_RESULTS\]"
)
"""What begins one, with the role where it stands beside it."""
CHANNEL = rf"<{_BAR}(?:channel|message|constrain){_BAR}>"
"""Parts of harmony (gpt-oss): `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final...`."""
OTHER = (
    rf"<{_BAR}{_EDGE}(?:begin_of_text|startoftext|bos|pad|begin▁of▁sentence|start_response|end_response"
    rf"|(?:begin|end)_of_solution|start_text|end_text){_EDGE}{_BAR}>"
    r"|<bos>|<pad>|<unk>|<s>|\[BOS\]|\[PAD\]|\[gMASK\]|<sop>|\[\|startofturn\|\]"
)
"""What else is no word of an answer."""

_MARK = re.compile(f"(?:{OPEN}|{CLOSE}|{END}|{TURN}|{CHANNEL})", re.IGNORECASE)
_LEFT_OPEN = re.compile(rf"(?:{OPEN}|<{_BAR}channel{_BAR}>analysis<{_BAR}message{_BAR}>)\s*\Z", re.IGNORECASE)
_TAIL = 300


def is_mark(token: str) -> bool:
    """Whether a special token structures an answer, and so belongs to its raw text."""
    return _MARK.fullmatch(token) is not None


def opens_reasoning(prompt: str | None) -> bool:
    """Whether a prompt, as the engine gets it, ends inside a thought that its template opened."""
    return prompt is not None and _LEFT_OPEN.search(prompt[-_TAIL:]) is not None
