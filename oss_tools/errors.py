"""Every error that a user can cause or meet, one level deep. The CLI prints one line and exits with the status given here."""


class OssToolsError(Exception):
    """Base of all expected errors: the message says what is wrong, where, and what to do. Exit status 2."""

    exit_status = 2


class BadCheckpoint(OssToolsError):
    """A checkpoint, or one of its files, is damaged, inconsistent or of an unknown kind."""


class BadTensor(OssToolsError):
    """A tensor's shape or values do not suit what was asked: a last axis no multiple of the block, NaN, infinity."""


class BadRecipe(OssToolsError):
    """A recipe, format name or quantization rule that does not exist or cannot be applied."""


class BadRequest(OssToolsError):
    """What is asked of a model cannot be done: a prompt longer than its context, a token outside its vocabulary."""


class NoRoom(OssToolsError):
    """The machine lacks disk or memory for what was asked. Exit status 3."""

    exit_status = 3


class MissingPackage(OssToolsError):
    """An optional package (an extra of oss-tools) is needed. Exit status 3."""

    exit_status = 3


def how_to_install(extra: str) -> str:
    """What installs an extra of oss-tools (`eval`, or several: `eval,peers`): no public index has oss-tools, a clone has it."""
    return f"pip install '.[{extra}]' in a clone of oss-tools"


class Unsupported(OssToolsError):
    """The machine or its system lacks a feature that is needed: a kernel's, a processor's. Exit status 3."""

    exit_status = 3


class VerificationFailed(OssToolsError):
    """Two things that had to be equal are not. Exit status 1."""

    exit_status = 1


class BadSource(OssToolsError):
    """A repository, file or address that does not exist, may not be read, or offers what must not be taken."""


class Unreachable(OssToolsError):
    """A server that does not answer, refuses to go on, or breaks off again and again. Exit status 3."""

    exit_status = 3


class Busy(OssToolsError):
    """More is asked for at once than is taken on; later it will be. Exit status 3.

    Attributes:
        retry_after: seconds after which another try makes sense.
    """

    exit_status = 3

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after
