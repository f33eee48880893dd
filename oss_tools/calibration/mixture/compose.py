"""Composes mathematics.txt, health.txt and chats.jsonl beside it: `python -m oss_tools.calibration.mixture.compose`.

Facts, phrases and tools are in `facts.yaml`; numbers and choices are drawn, the same at every run.
"""

from __future__ import annotations

import random
from pathlib import Path

from oss_tools.calibration.mixture.conversations import chats
from oss_tools.calibration.mixture.health import health
from oss_tools.calibration.mixture.mathematics import mathematics
from oss_tools.checkpoints.yaml_files import read_yaml

HERE = Path(__file__).parent
BYTES = {"mathematics.txt": 80_000, "health.txt": 80_000, "chats.jsonl": 110_000}
SEED = 20250101


def main() -> None:
    facts = read_yaml(HERE / "facts.yaml")
    for name, pieces in (("mathematics.txt", mathematics), ("health.txt", health), ("chats.jsonl", chats)):
        rng, text = random.Random(SEED), ""
        for piece in pieces(rng, facts):
            if len((text + piece).encode()) > BYTES[name]:
                break
            text += piece
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
