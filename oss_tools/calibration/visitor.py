"""Who looks at the inputs of a model's matrices, and may change the matrices, while a text goes through the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Visitor:
    """Is told of every matrix before it is used. This one looks at nothing and changes nothing.

    For each set of matrices that are multiplied with the same input (q, k and v; gate and up), `multiplies` comes first, once,
    then `linear` for each of them, in order. Only then are the products taken. A matrix of which one of the two has been told is
    not told of again in the same pass.
    """

    def multiplies(self, names: tuple[str, ...], matrix: int | None, x: np.ndarray) -> None:
        """Called with the inputs that matrices meet.

        Args:
            names: canonical names of tensors.
            matrix: the expert's number; None for dense layers, and once before the experts of a layer, with the inputs of all
                tokens, each once, of the matrices that come before their gate (no `linear` follows then).
            x: float32 [n, K], of an expert the rows that were routed to it; n may be 0. Not to be changed or kept.
        """

    def linear(self, name: str, matrix: int | None, x: np.ndarray, read: Callable[[], np.ndarray]) -> np.ndarray | None:
        """Called for each of these matrices.

        Args:
            name, matrix, x: as in `multiplies`; matrix is None for dense layers only.
            read: gives the weight, float32 [out, K], rows in canonical order.

        Returns the weight to go on with, float32 [out, K], or None for the source's own.
        """
        return None
