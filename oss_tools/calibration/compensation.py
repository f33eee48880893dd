"""GPTQ of a whole model: a pass over a text that rounds every matrix on the inputs that the rounded matrices before it give.

The pass goes breadth first, so it holds one matrix and its inputs' second moments at a time. What it rounds waits on the disk;
then the plan is carried out as ever, and takes these matrices instead of rounding by itself (`convert.options.Rounding`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numba_kernels.parallel import cores
from oss_tools.calibration.boundaries import Steps, boundaries
from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.calibration.calibrate import PAUSE, cost_of
from oss_tools.calibration.gptq import DAMPING, Factor, factored, gptq
from oss_tools.calibration.kept import Kept, Position
from oss_tools.calibration.moments import of_equal_length, second_moments
from oss_tools.calibration.rounded import Facts, Rounded
from oss_tools.calibration.texts import Sample
from oss_tools.calibration.visitor import Visitor
from oss_tools.convert.manifest import OutputError
from oss_tools.convert.options import Options, Progress
from oss_tools.convert.plan import Plan
from oss_tools.convert.rounding import finite_values
from oss_tools.convert.steps import Step
from oss_tools.errors import BadRecipe
from oss_tools.formats import Format, QTensor
from oss_tools.machine.products import multiplications_per_second
from oss_tools.models import Checkpoint

LEFT_ALONE = ("embedding", "positions")  # tables, of which rows are looked up
SAMPLED = 256  # rows of a matrix whose outputs are compared
PRIOR = 256  # inputs of an expert's layer that join the expert's own


@dataclass(frozen=True)
class Cost:
    """What the pass takes beside writing.

    Attributes:
        multiplications: of products, of second moments, their factors, and of making up for errors.
        memory: bytes, at most.
        matrices: that are rounded.
    """

    multiplications: int
    memory: int
    matrices: int


class Compensation:
    """`convert.options.Rounding` by GPTQ."""

    def __init__(self, sample: Sample, damping: float = DAMPING, pause: float = PAUSE) -> None:
        """pause: seconds between two times that the state of the pass is written."""
        self._sample, self._damping, self._pause = sample, damping, pause
        self._rounded: Rounded | None = None
        self._numbers: dict[str, int] = {}
        self._steps: dict[str, Step] = {}

    @property
    def facts(self) -> Mapping[str, str]:
        return {"--method": "gptq", "--damping": str(self._damping), "the text that is calibrated on": self._sample.digest}

    def scratch_bytes(self, plan: Plan) -> int:
        return sum(step.target.nbytes for step in rounded_steps(plan)) + 2 * cost_of(plan.source, self._sample.tokens).disk

    def cost(self, plan: Plan) -> Cost:
        """What `prepare` takes."""
        base, work, memory = cost_of(plan.source, self._sample.tokens), 0, 0
        steps = rounded_steps(plan)
        for step in steps:
            count, rows, columns = step.source.spec.matrices
            factor = columns**3 // 3 + columns**2 * rows // 2
            work += count * factor + self._sample.tokens * columns**2 // 2
            memory = max(memory, 4 * (4 * min(rows, 8192) * columns + 2 * rows * columns + 8 * columns**2))
        matrices = sum(step.source.spec.matrices[0] for step in steps)
        return Cost(base.multiplications + work, base.memory + memory, matrices)

    def takes(self, plan: Plan) -> dict[str, Any]:
        cost = self.cost(plan)
        return {
            "method": "gptq",
            "tokens": self._sample.tokens,
            "matrices": cost.matrices,
            "seconds": round(cost.multiplications / multiplications_per_second(), 1),
            "memory_bytes": cost.memory,
            "scratch_bytes": self.scratch_bytes(plan),
        }

    def prepare(self, plan: Plan, folder: Path, done: Collection[str], options: Options, progress: Progress) -> None:
        steps = {step.name: step for step in rounded_steps(plan)}
        self._numbers = {step.name: number for number, step in enumerate(plan.steps)}
        self._steps, self._rounded = steps, None
        if all(name in done for name in steps):
            return
        self._rounded = Rounded(folder)
        self._check(plan, self._rounded)
        if self._rounded.is_complete:
            return
        rounder = _Rounder(plan.source, steps, self._numbers, self._rounded, self._damping, options, progress)
        kept = Kept(folder / "pass", self.facts)
        position = kept.read() if kept.exists else None
        written = time.monotonic()

        def reached(number: int, hidden: np.ndarray) -> None:
            nonlocal written
            if time.monotonic() - written >= self._pause:
                kept.write(Position(number, hidden, {}, 0))
                written = time.monotonic()

        with BreadthFirst(plan.source, self._sample.sequences, rounder, threads=options.jobs) as operations:
            start = (position.number, position.hidden) if position else None
            architecture = plan.source.architecture
            hidden = Steps(operations, boundaries(architecture), reached, start).forward(architecture)
            if any(step.source.spec.role == "output" for step in steps.values()):
                operations.visit_output(hidden)
        self._rounded.complete()

    def _check(self, plan: Plan, rounded: Rounded) -> None:
        """Raises BadRecipe if the source of a matrix that an interrupted run has rounded is another one now."""
        for name, step in self._steps.items():
            count, rows, _ = step.source.spec.matrices
            for matrix in range(count):
                if rounded.has(self._numbers[name], matrix):
                    found = weights_hash(plan.source.read(name, matrix, 0, rows).dequantize())
                    if found != rounded.facts(self._numbers[name], matrix).source:
                        raise BadRecipe(
                            f"{rounded.folder.parent}: {plan.source.path} has changed since: {name} holds other values; "
                            "--overwrite starts anew"
                        )

    def rows(self, name: str, matrix: int, start: int, stop: int) -> QTensor | None:
        if self._rounded is None or name not in self._steps or not self._rounded.has(self._numbers[name], matrix):
            return None
        target = self._steps[name].target
        return self._rounded.read(self._numbers[name], matrix, target.format, target.spec.shape[-1], start, stop)

    def output_error(self, name: str) -> OutputError | None:
        if self._rounded is None or name not in self._steps:
            return None
        number, (count, _, _) = self._numbers[name], self._steps[name].source.spec.matrices
        found = [self._rounded.facts(number, m) for m in range(count) if self._rounded.has(number, m)]
        outputs = sum(facts.outputs for facts in found)
        if not outputs:
            return None
        before, after = (sum(getattr(facts, what) for facts in found) / outputs for what in ("before", "after"))
        tokens = sum(facts.tokens for facts in found) / len(found)
        return OutputError(before**0.5, after**0.5, tokens, sum(facts.alone for facts in found))


def rounded_steps(plan: Plan) -> list[Step]:
    """The steps of matrices that GPTQ can round: of formats with a lattice, and met by inputs."""
    return [
        step
        for step in plan.steps
        if step.rounds
        and step.update is None
        and step.target.format.lattice_block is not None
        and step.source.spec.role not in LEFT_ALONE
    ]


def weights_hash(weight: np.ndarray) -> str:
    """Of float32 weights."""
    return hashlib.sha256(memoryview(np.ascontiguousarray(weight, np.float32)).cast("B")).hexdigest()  # type: ignore[arg-type]


class _Rounder(Visitor):
    """Rounds each matrix that the pass comes to, and lets the pass go on with what it has become."""

    def __init__(
        self,
        source: Checkpoint,
        steps: Mapping[str, Step],
        numbers: Mapping[str, int],
        rounded: Rounded,
        damping: float,
        options: Options,
        progress: Progress,
    ) -> None:
        self._source, self._steps, self._numbers, self._rounded = source, steps, numbers, rounded
        self._amax: tuple[str, float] = ("", 0.0)  # of the tensor that is being rounded
        self._damping, self._options, self._progress = damping, options, progress
        self._threads = options.jobs or cores()
        self._moments: np.ndarray = np.zeros((0, 0), np.float32)
        self._count = 0
        self._factors: dict[tuple[int, int], Factor] = {}
        self._prior: tuple[tuple[str, ...], np.ndarray, int] | None = (
            None  # of names: moments and how many inputs they are of
        )
        self._is_layers = False  # whether these are all inputs of the layer, not those of the experts so far

    def multiplies(self, names: tuple[str, ...], matrix: int | None, x: np.ndarray) -> None:
        self._factors = {}
        wanted = [name for name in names if self._is_missing(name)]
        if not wanted:
            return
        sums, self._count = second_moments(of_equal_length(x)), len(x)
        if matrix is None and any(self._steps[name].source.spec.matrices[0] > 1 for name in wanted):
            self._prior, self._is_layers = (names, sums / np.float32(max(len(x), 1)), len(x)), True
            return
        if matrix is None:
            self._moments = sums / np.float32(max(len(x), 1))
        else:
            self._of_expert(names, sums)

    def _is_missing(self, name: str) -> bool:
        """Whether a tensor has a matrix that is to be rounded yet."""
        if name not in self._steps:
            return False
        count, _, _ = self._steps[name].source.spec.matrices
        return not all(self._rounded.has(self._numbers[name], matrix) for matrix in range(count))

    def _of_expert(self, names: tuple[str, ...], sums: np.ndarray) -> None:
        """An expert's moments: of its own inputs and of some more, which are as its layer's or those of the experts before."""
        told = self._prior if self._prior and self._prior[0] == names else None
        _, mean, others = told or (names, np.zeros_like(sums), 0)
        more = min(others, PRIOR)
        self._moments = (sums + np.float32(more) * mean) / np.float32(max(self._count + more, 1))
        if told is None or not self._is_layers:
            total = others + self._count
            mean = (mean * np.float32(others) + sums) / np.float32(max(total, 1))
            self._prior, self._is_layers = (names, mean, total), False

    def linear(self, name: str, matrix: int | None, x: np.ndarray, read: Callable[[], np.ndarray]) -> np.ndarray | None:
        step = self._steps.get(name)
        if step is None:
            return None
        number, place = self._numbers[name], matrix or 0
        count, _, columns = step.source.spec.matrices
        if self._rounded.has(number, place):
            result = self._rounded.read(number, place, step.target.format, columns, 0, None)
        else:
            weight = read()
            result, facts = self._round(step, finite_values(weight, name, self._options.on_nonfinite), weights_hash(weight))
            self._rounded.write(number, place, result, facts)
        self._progress("round", name, step.source.nbytes // count)
        return None if step.source.spec.role == "output" else result.dequantize()

    def _round(self, step: Step, weight: np.ndarray, source: str) -> tuple[QTensor, Facts]:
        format, rule, moments = step.target.format, step.quantization, self._moments
        amax = self._largest(step.name) if format.needs_amax else None
        factor = self._factor(format)
        result = gptq(weight, factor, format, rule=rule, amax=amax, threads=self._threads)
        some = weight[:SAMPLED]
        plain = format.quantize(some, rule=rule, amax=amax)
        before, after, outputs = (
            output_square(some - plain.dequantize(), moments),
            output_square(some - result.rows(slice(SAMPLED)).dequantize(), moments),
            output_square(some, moments),
        )
        alone = factor.feedback is None
        if not after <= before:  # values near the ends of float32's range
            squares = np.maximum(np.diagonal(moments), 0)
            importance = squares if squares.any() and not alone else None
            result = format.quantize(weight, rule=rule, importance=importance, amax=amax, threads=self._threads)
            after, alone = output_square(some - result.rows(slice(SAMPLED)).dequantize(), moments), True
        return result, Facts(source, before, after, outputs, self._count, alone)

    def _largest(self, name: str) -> float:
        """The largest magnitude of a tensor: of all its experts, which share its scale."""
        if self._amax[0] != name:
            self._amax = name, self._source.largest_magnitude(name)
        return self._amax[1]

    def _factor(self, format: Format) -> Factor:
        """Of the moments, for formats whose blocks are alike."""
        columns = len(self._moments)
        block = format.lattice_block or columns
        width = min(format.block or columns, block)
        if (block, width) not in self._factors:
            self._factors[block, width] = factored(self._moments, block, self._damping, width)
        return self._factors[block, width]


def output_square(weights: np.ndarray, moments: np.ndarray) -> float:
    """The mean squares of the outputs W x, summed over the rows of W, float32 [R, K], for inputs of second moments [K, K]."""
    return float(np.einsum("rk,rk->", weights @ moments, weights, dtype=np.float64))
