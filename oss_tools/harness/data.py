"""Where a task's documents come from: files beside the task, the user's folder, a public data set by its hub name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsIndex, overload

from oss_tools.errors import BadSource

Document = dict[str, Any]
MAX_LINE = 64 << 20  # bytes of one document


class Documents(list[Document]):
    """Documents as lm-eval wants a split: a list with `features`, `map`, `filter` and `select`, whose fields keep their types."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0]) if self else {}

    def map(self, function: Callable[[Document], Document], **_: Any) -> Documents:
        """As in `datasets`: what the function returns is added to the document."""
        return Documents({**doc, **function(doc)} for doc in self)

    def filter(self, function: Callable[[Document], bool], **_: Any) -> Documents:
        return Documents(doc for doc in self if function(doc))

    def select(self, indices: Iterable[int]) -> Documents:
        return Documents(self[i] for i in indices)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> Documents: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Document | Documents:
        found = super().__getitem__(index)
        return Documents(found) if isinstance(found, list) else found


class Splits(Mapping[str, Documents]):
    """The splits of one task, each read when it is first asked for.

    Attributes:
        task: its name.
        files: split → file beside the task's YAML.
        data: the user's folder: data/TASK/SPLIT.jsonl goes before the hub.
        hub, config: a data set's name on the Hugging Face hub, and its configuration.
        rename: split → its name on the hub, where that differs.
        load: reads (hub, config, split) from the hub.
    """

    def __init__(
        self,
        task: str,
        *,
        folder: Path,
        files: Mapping[str, str] | None = None,
        data: str | Path | None = None,
        hub: str | None = None,
        config: str | None = None,
        rename: Mapping[str, str] | None = None,
    ) -> None:
        self.task, self.folder, self.files = task, folder, dict(files or {})
        self.data, self.hub, self.config = Path(data) if data else None, hub, config
        self.rename = dict(rename or {})
        self._read: dict[str, Documents] = {}

    def __getitem__(self, split: str) -> Documents:
        """Raises BadSource, which says which file or data set is wanted."""
        if split not in self._read:
            self._read[split] = self._find(split)
        return self._read[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def _find(self, split: str) -> Documents:
        if split in self.files:
            return read_jsonl(self.folder / self.files[split])
        if self.data is not None and (file := self.data / self.task / f"{split}.jsonl").exists():
            return read_jsonl(file)
        if self.hub is None:
            raise BadSource(f"{self.task}: no data; {self._wanted(split)}")
        return from_hub(self.hub, self.config, self.rename.get(split, split), f"{self.task}: {{}}; {self._wanted(split)}")

    def _wanted(self, split: str) -> str:
        name = f"{self.task}/{split}.jsonl"
        where = f" (looked for {self.data / name})" if self.data is not None else ""
        original = f", the split {self.rename.get(split, split)!r} of {self.hub}{f' ({self.config})' if self.config else ''}"
        return f"give a folder with {name}{original if self.hub else ''} with --data{where}"


def splits(*, config_source: str, **where: Any) -> Splits:
    """A task's documents; in its YAML:

        custom_dataset: !function oss_tools.harness.data.splits
        dataset_kwargs: {hub: openai/gsm8k, config: main}     # or {files: {test: smoke.jsonl}}
        test_split: test

    The task's name is that of its YAML file, or `name`, where two tasks read the same documents. lm-eval passes on the task's
    metadata, of which `data` is taken.
    """
    known = ("files", "data", "hub", "config", "rename")
    source = Path(config_source)
    given = {name: where[name] for name in known if name in where}
    return Splits(where.get("name") or source.stem, folder=source.parent, **given)


def read_jsonl(file: Path) -> Documents:
    """The documents of a file, one JSON object a line. Raises BadSource naming the line that is none."""
    documents = Documents()
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE), b""), 1):
                if line.strip():
                    documents.append(_document(line, f"{file}, line {number}"))
    except OSError as error:
        raise BadSource(f"{file}: {error.strerror or error}") from None
    if not documents:
        raise BadSource(f"{file} holds no documents")
    return documents


def _document(line: bytes, where: str) -> Document:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise BadSource(f"{where}: no JSON, or longer than {MAX_LINE >> 20} MiB") from None
    if not isinstance(value, dict):
        raise BadSource(f"{where}: a JSON object is wanted, not {type(value).__name__}")
    return value


def from_hub(hub: str, config: str | None, split: str, message: str) -> Documents:
    """A split from the Hugging Face hub (or its cache). `message` is the error's, with {} for what went wrong."""
    import datasets

    try:
        return Documents(dict(row) for row in datasets.load_dataset(hub, config, split=split))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadSource(message.format(f"{hub} cannot be had ({reason})")) from None
