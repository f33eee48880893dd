"""How much each tensor's rounding moves the output, measured: the divergence from the base with that tensor alone rounded.

A tensor is measured in one format, its probe; `losses.noise` scales that to the others. The sum over tensors is not the
divergence of the whole: large errors add up otherwise. So the best mixtures at some sizes are measured whole, and between
them a sum is translated along a straight line of logarithms.

All of it is kept in a file as it is found, so that an interrupted run goes on, and another budget costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import oss_tools
from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.calibration.squares import Squares
from oss_tools.checkpoints.files import replace_file
from oss_tools.convert.importance import Importance
from oss_tools.errors import BadRequest
from oss_tools.escapes import json_text
from oss_tools.formats import Format, QTensor, get_format
from oss_tools.measure.divergence import HEAD, Base, Passages, Predictions, head_of, predict
from oss_tools.measure.overlay import Change, Overlay
from oss_tools.models import Checkpoint
from oss_tools.planning.choice import Option, best_under, frontier
from oss_tools.planning.graph import Graph
from oss_tools.planning.losses import noise
from oss_tools.planning.units import Unit

KEPT_LOGITS = 1 << 30  # bytes of the base's
WHOLE = (0.0, 0.08, 0.2, 0.35, 0.6)  # sizes whose best mixtures are measured whole: from the smallest (0) to the largest (1)
SCHEMA = 1

Progress = Callable[[str, int, int], None]  # what, how many are done, of how many


class Sensitivities:
    """What was measured of a model: see above.

    Attributes:
        units: in the model's order.
        measured: unit's name -> nats, with it alone rounded to its probe.
        power: unit's name -> format -> noise.
        whole: (sum of losses, divergence measured) of mixtures.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        units: Sequence[Unit],
        passages: Passages,
        importance: Importance | None,
        file: Path | None,
        every: int = 1,
    ) -> None:
        """
        Args:
            file: where what was found is kept, and found again if it is of this model, text and importance.
            every: measure the first two and the last two layers, and each so many-th; what one of the others loses for its
                noise is taken from its neighbours of the same role.
        """
        self.checkpoint, self.units, self.passages, self.importance = checkpoint, units, passages, importance
        self._file = file
        layers = 1 + max((unit.layer for unit in units if unit.layer is not None), default=0)
        self._layers = {*range(0, layers, every), 0, 1, layers - 2, layers - 1}
        self._graph = Graph(checkpoint.architecture)
        self._inputs = Squares(checkpoint)
        self._base: Base | None = None
        self._facts = self._about()
        found = self._read()
        self.measured: dict[str, dict[str, float]] = found.get("measured", {})
        self.power: dict[str, dict[str, float]] = found.get("power", {})
        self.whole: dict[str, list[float]] = found.get("whole", {})

    def run(self, progress: Progress = lambda what, done, total: None) -> None:
        """Measures what is not known yet."""
        wanted = [u for u in self.units if u.layer is None or u.layer in self._layers]
        missing = [u for u in wanted if u.probe not in self.measured.get(u.name, {})]
        unweighed = [u for u in self.units if not set(u.formats) <= set(self.power.get(u.name, {}))]
        for done, unit in enumerate(unweighed):
            self.power[unit.name] = self._noise(unit)
            progress("rounding", done + 1, len(unweighed))
        if unweighed:
            self._write()
        for done, unit in enumerate(missing, len(wanted) - len(missing)):
            kld = self.divergence(dict.fromkeys(unit.names, unit.probe))
            self.measured.setdefault(unit.name, {})[unit.probe] = kld
            self._write()
            progress("tensors", done + 1, len(wanted))
        whole = self._wholes()
        for done, (name, mixture) in enumerate(whole.items()):
            if name not in self.whole:
                total = sum(self.losses(unit)[mixture[unit.name]] for unit in self.units)
                self.whole[name] = [total, self.divergence(self.by_tensor(mixture))]
                self._write()
            progress("mixtures", done + 1, len(whole))

    def _wholes(self) -> dict[str, dict[str, str]]:
        """Mixtures that are measured whole, by a hash: the best at some sizes from the smallest to the largest."""
        options = [self.options(unit) for unit in self.units]
        fronts = [frontier(of) for of in options]
        least, most = (sum(front[at].nbytes for front in fronts) for at in (0, -1))
        found = {}
        for share in WHOLE:
            chosen = best_under(options, int(least + share * (most - least)))
            mixture = {unit.name: option.format for unit, option in zip(self.units, chosen, strict=True)}
            found[hashlib.sha256(json.dumps(sorted(mixture.items())).encode()).hexdigest()[:16]] = mixture
        return found

    def by_tensor(self, mixture: Mapping[str, str]) -> dict[str, str]:
        """Formats by tensor, of formats by unit; `keep` is left out."""
        return {name: mixture[u.name] for u in self.units for name in u.names if mixture[u.name] != "keep"}

    # ---- what was found ---------------------------------------------------------------------------------------------

    def losses(self, unit: Unit) -> dict[str, float]:
        """What each format of a unit adds to the sum, in nats; nothing if it is kept."""
        power, scale = self.power[unit.name], self._scale(unit)
        return {name: scale * power[name] for name in unit.formats} | {"keep": 0.0}

    def _scale(self, unit: Unit) -> float:
        """Nats for one of the noise's power: measured, or between the nearest measured layers on a line of logarithms."""
        if (found := self._measured_scale(unit)) is not None:
            return found
        own = [u for u in self.units if u.role == unit.role and u.layer is not None and u.formats == unit.formats]
        known = [(u.layer, scale) for u in own if (scale := self._measured_scale(u))]
        if not known or unit.layer is None:
            return 0.0
        layers, scales = zip(*known, strict=True)
        return float(np.exp(np.interp(unit.layer, layers, np.log(scales))))

    def _measured_scale(self, unit: Unit) -> float | None:
        measured, power = self.measured.get(unit.name, {}).get(unit.probe), self.power[unit.name].get(unit.probe, 0.0)
        return None if measured is None else measured / power if power else 0.0

    def options(self, unit: Unit) -> list[Option]:
        losses = self.losses(unit)
        return [
            *(Option(name, unit.nbytes[name], losses[name]) for name in unit.formats),
            Option("keep", unit.kept_bytes, 0.0),
        ]

    def predicted(self, total: float) -> float:
        """The divergence of a mixture, of the sum of its losses."""
        if total <= 0:
            return 0.0
        points = sorted((s, m) for s, m in self.whole.values() if s > 0 and m > 0)
        sums, measured = np.log([s for s, _ in points]), np.maximum.accumulate(np.log([m for _, m in points]))
        at = float(np.log(total))
        if at <= sums[0]:
            return float(np.exp(measured[0] + at - sums[0]))
        if at >= sums[-1]:
            return float(np.exp(measured[-1] + at - sums[-1]))
        return float(np.exp(np.interp(at, sums, measured)))

    def sum_for(self, divergence: float) -> float:
        """The largest sum of losses whose predicted divergence is at most this."""
        low, high = 1e-12, 1e3
        for _ in range(100):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self.predicted(middle) <= divergence else (low, middle)
        return low

    # ---- measuring --------------------------------------------------------------------------------------------------

    @property
    def base(self) -> Base:
        if self._base is None:
            with BreadthFirst(self.checkpoint, self.passages.sequences, self._inputs) as ops:
                hidden = self._graph.run(ops)
                ops.visit_output(hidden[self.passages.rows])
            predictions = Predictions(np.ascontiguousarray(hidden[self.passages.rows]), head_of(self.checkpoint))
            self._base = Base(predictions, self.passages.came, KEPT_LOGITS)
        return self._base

    def divergence(self, formats: Mapping[str, str]) -> float:
        """The mean divergence from the base with these tensors rounded to these formats, in nats."""
        base, rounded = self.base, Overlay(self.checkpoint, changes(self.checkpoint, formats, self.importance))
        head = HEAD if HEAD in self.checkpoint.entries else None
        inner = frozenset(name for name in formats if name != head)
        hidden = base.predictions.hidden
        if inner:
            with BreadthFirst(rounded, self.passages.sequences) as ops:
                hidden = np.ascontiguousarray(self._graph.run(ops, inner)[self.passages.rows])
        same = not any(self.checkpoint.entries[name].spec.role in ("embedding", "output") for name in formats)
        other = Predictions(hidden, base.predictions.head if same else head_of(rounded))
        return float(base.compare(other).kld.mean())

    def _noise(self, unit: Unit) -> dict[str, float]:
        formats = [get_format(name) for name in unit.formats]
        total = dict.fromkeys(unit.formats, 0.0)
        assert self.base  # whose computation finds the inputs
        for name in unit.names:
            weights = self.importance.get(name) if self.importance else None
            for format, power in noise(
                self.checkpoint, self.checkpoint.entries[name], formats, self._inputs.sums, weights
            ).items():
                total[format] += power
        return total

    # ---- keeping ----------------------------------------------------------------------------------------------------

    def _about(self) -> dict[str, Any]:
        tokens = hashlib.sha256(np.concatenate(self.passages.sequences).astype("<i8").tobytes()).hexdigest()
        weights = hashlib.sha256()
        for name, values in sorted((self.importance or {}).items()):
            weights.update(name.encode() + values.tobytes())
        files = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in self.checkpoint.reader.files()]
        return {
            "schema": SCHEMA,
            "program": oss_tools.__version__,
            "files": files,
            "tokens": tokens,
            "scored": len(self.passages),
            "importance": weights.hexdigest() if self.importance else None,
        }

    def _read(self) -> dict[str, Any]:
        if self._file is None or not self._file.exists():
            return {}
        try:
            found = json.loads(self._file.read_text())
        except (OSError, ValueError, RecursionError):
            raise BadRequest(f"{self._file}: no file of measured tensors; remove it, or name another") from None
        if not isinstance(found, dict) or found.get("about") != self._facts:
            raise BadRequest(f"{self._file}: measured on another model, text or importance; remove it, or name another")
        return found

    def _write(self) -> None:
        if self._file is not None:
            found = {"about": self._facts, "measured": self.measured, "power": self.power, "whole": self.whole}
            replace_file(self._file, json_text(found, indent=1) + "\n")


def changes(checkpoint: Checkpoint, formats: Mapping[str, str], importance: Importance | None) -> dict[str, Change]:
    """How `requantize` rounds these tensors to these formats, matrix by matrix."""

    def change(name: str, format: Format) -> Change:
        weights = importance.get(name) if importance else None
        amax = checkpoint.largest_magnitude(name) if format.needs_amax else None

        def rounded(values: np.ndarray, matrix: int) -> QTensor:
            own = None if weights is None else weights[matrix] if weights.ndim > 1 else weights
            return format.quantize(values, importance=own, amax=amax)

        return rounded

    return {name: change(name, get_format(format)) for name, format in formats.items()}


def measure_whole(
    checkpoint: Checkpoint, formats: Mapping[str, str], importance: Importance | None, passages: Passages
) -> float:
    """The mean divergence of a mixture from its base on passages, in nats."""
    base = Base(predict(checkpoint, passages), passages.came)
    return float(base.compare(predict(Overlay(checkpoint, changes(checkpoint, formats, importance)), passages)).kld.mean())
