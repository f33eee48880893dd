"""Tokens that end a turn or a text, known by their names, whatever type a file gives them.

After llama.cpp (`src/llama-vocab.cpp`, "maintain a list of tokens that cause end-of-generation"), which needs it for files
whose authors typed such a token as ordinary text.
"""

from __future__ import annotations

from collections.abc import Callable

END_NAMES = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<end_of_turn>", "<turn|>", "<|tool_response>"),
    *("<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~["),
)
# Code models begin another file or repository, or fill up, after the text: llama.cpp stops there too.
FILL_NAMES = ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<|file_sep|>")
NO_END = (  # (all of these in the vocabulary, then this ends no text)
    (("<|return|>", "<|call|>"), "<|end|>"),  # harmony: a message ends, not the turn
    (("<|calls|>", "<|flush|>"), "<|end|>"),
    (("<|tool_response>",), "</s>"),
)


def end_tokens(number_of: Callable[[str], int | None]) -> dict[str, int]:
    """The tokens of a vocabulary that end a text by their names: name -> number. `number_of` gives a name's number."""
    found = {name: number for name in END_NAMES + FILL_NAMES if (number := number_of(name)) is not None}
    for others, name in NO_END:
        if name in found and all(other in found for other in others):
            del found[name]
    return found
