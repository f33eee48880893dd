"""What a message with a recipient calls, and with which arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from oss_tools.chat.completion import Finding, read_arguments
from oss_tools.chat.harmony import NAMESPACE
from oss_tools.chat.messages import Message
from oss_tools.chat.sections import CODE, PYTHON

JSON_CODE = re.compile(rf'\s*\{{\s*"{CODE}"\s*:')


def name_of(message: Message) -> str:
    """The tool's name, without the namespace `functions.`."""
    return (message.recipient or "").removeprefix(NAMESPACE)


def is_raw_code(message: Message) -> bool:
    """Whether a message is code for `python` as gpt-oss writes it: as it is, in no JSON."""
    return name_of(message) == PYTHON and message.content_type != "json" and not JSON_CODE.match(message.content)


def read_call(message: Message) -> Mapping[str, Any] | Finding:
    """The arguments of a call, or what is wrong with them."""
    return {CODE: message.content} if is_raw_code(message) else read_arguments(message.content)
