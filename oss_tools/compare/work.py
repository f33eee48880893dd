"""A comparison at work: which parts are wanted, in which order, and the record of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oss_tools.compare.dependencies import pair_of
from oss_tools.compare.drift import Drifting
from oss_tools.compare.measuring import Measuring
from oss_tools.compare.models import Member
from oss_tools.compare.pairing import Pairing
from oss_tools.compare.record import RECORD, add_scores, add_times, candidate_of, environment
from oss_tools.compare.remote import Remote, over_the_wire
from oss_tools.report.comparison import Candidate, Comparison


class Work(Measuring):
    """A comparison at work."""

    def expect(self, members: int, remotes: int = 0) -> None:
        answers = (members + remotes) * len(self.tasks)
        margined = members + remotes if self.tasks and members + remotes > 1 else 0
        for kind, count in (("weights", members - 1), ("predict", members), ("answer", answers), ("margins", margined)):
            self.schedule.expect(kind, count)
        self.schedule.expect("drift", members * len(self.settings.drift))
        self.schedule.expect("time", 1 if self.settings.timing.repeat else 0)

    def compare(
        self, model: str, members: list[Member], pairings: Sequence[Pairing], remotes: Sequence[Remote] = (), base: str = ""
    ) -> Comparison:
        """The record of these checkpoints and models behind addresses.

        The first checkpoint is what weights, predictions and times are held against; `pairings` are those of the others. Answers
        are held against those of `base`, a name among all, or the first checkpoint's.
        """
        first, others = members[0], members[1:]
        self._expect_missing(members, remotes)
        found = {m.name: candidate_of(m) for m in members}
        for m, pairing in zip(others, pairings, strict=True):
            for line in pairing.remarks:
                self.say(line)
            error, findings = self._weights(first, m)
            found[m.name] = replace(
                found[m.name],
                weight_error=error,
                findings=[*pairing.findings(), *findings],
                differences=pairing.record(),
                remarks=list(pairing.remarks),
            )
        for name, fidelity in self._predictions(members).items():
            found[name] = replace(found[name], fidelity=fidelity)
        everyone: list[Member | Remote] = [*members, *remotes]
        said = {m.name: self._answers(m) for m in everyone}
        found |= {r.name: Candidate(**r.about(), wire=over_the_wire(said[r.name])) for r in remotes}
        add_scores(found, self.tasks, base or first.name, said, self.settings.seed)
        if not base or base in (m.name for m in members):
            for name, figures in self._margins([*members, *remotes], said).items():
                found[name] = replace(found[name], margins=figures)
        for name, drifts in Drifting(self.settings, self.parts, self.schedule, self._load, self.say).of(members).items():
            found[name] = replace(found[name], drift=drifts)
        return self._record(model, base or first.name, found, members)

    def _expect_missing(self, members: list[Member], remotes: Sequence[Remote]) -> None:
        """Now that the models are known: which steps are really to be done."""
        base = members[0]
        everyone: list[Member | Remote] = [*members, *remotes]
        wanted = {
            "weights": [pair_of(base, m) for m in members[1:]],
            "predict": [self.depends.predictions(base, m) for m in members],
            "answer": [self.depends.answers(m, task) for m in everyone for _, task in self.tasks],
            "margins": [self.depends.margins(base, m) for m in everyone] if self.tasks else [],
            "time": [self.depends.times(base, m) for m in members] if self.settings.timing.repeat else [],
        }
        for kind, parts in wanted.items():
            missing = sum(not self.parts.has(kind, part) for part in parts)
            self.schedule.expect(kind, min(missing, 1) if kind == "time" else missing)  # all times are one step

    def _record(self, model: str, base: str, found: dict[str, Candidate], members: list[Member]) -> Comparison:
        """Adds times to what was found, and writes all of it."""
        reference = None
        if self.settings.timing.repeat:
            times = self._times(members)
            add_times(found, times, members[0].name, self.settings.timing)
            reference = times[members[0].name]["own"]["reference"]
        about = environment(self.settings, self.parts.seconds, reference)
        record = Comparison(model, base, about, list(found.values()))
        record.write(self.output / RECORD)
        return record
