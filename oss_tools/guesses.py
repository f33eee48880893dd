"""What a user may have meant by a name that nothing has."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near_names(name: str, known: Iterable[str], most: int = 3, likeness: float = 0.75) -> list[str]:
    """The known names that are spelt like this one, whatever the case, the likeliest first: those with the same letters in
    another order, then by difflib's ratio.

    Args:
        most: how many at most.
        likeness: from 0 to 1, the ratio from which on two names are alike.
    """
    folded = {entry.lower(): entry for entry in known}
    letters = sorted(name.lower())
    near = [entry for entry in folded if sorted(entry) == letters] + get_close_matches(name.lower(), folded, most, likeness)
    return [folded[entry] for entry in dict.fromkeys(near)][:most]


def none_named(kind: str, name: str, known: Iterable[str]) -> str:
    """The beginning of a message: that there is no KIND of this name, which it may have been, or which there are."""
    names = list(known)
    near = near_names(name, names, likeness=0.6)
    guess = f"did you mean {' or '.join(near)}? There are" if near else "there are"
    return f"no {kind} named {name[:80]!r}; {guess} {', '.join(names)}"
