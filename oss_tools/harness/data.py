"""Where a task's documents come from: files beside the task, the user's folder, a public data set by its hub name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, SupportsIndex, overload

from oss_tools.errors import BadSource
from oss_tools.harness.documents import EXTENSIONS, Document, Located, extension_of, read_documents
from oss_tools.harness.fields import Fields
from oss_tools.harness.hub import hub_mode, why_not

SHARD = re.compile(r"-\d{5}-of-\d{5}$")
MOST_NAMES = 8  # of a folder's files in a message


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
        data: the user's folder: data/TASK/SPLIT.jsonl, or a file under a published name, goes before the hub.
        published: names under which the set is published, without extensions, with * and ?; all that match are read.
        hub, config: a data set's name on the Hugging Face hub, and its configuration.
        rename: split → its name on the hub, where that differs.
        columns: of a CSV file without a header.
        fields: what is read of a document.
    """

    def __init__(
        self,
        task: str,
        *,
        folder: Path,
        files: Mapping[str, str] | None = None,
        data: str | Path | None = None,
        published: Sequence[str] = (),
        hub: str | None = None,
        config: str | None = None,
        rename: Mapping[str, str] | None = None,
        columns: Sequence[str] = (),
        fields: Fields | None = None,
    ) -> None:
        self.task, self.folder, self.files = task, folder, dict(files or {})
        self.data, self.hub, self.config = Path(data) if data else None, hub, config
        self.rename, self.published, self.columns = dict(rename or {}), published, columns
        self.fields = fields or Fields()
        self._read: dict[str, Documents] = {}

    def __getitem__(self, split: str) -> Documents:
        """Raises BadSource, which says which file or data set is wanted, or which field of which line."""
        if split not in self._read:
            self._read[split] = self._find(split)
        return self._read[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def _find(self, split: str) -> Documents:
        return Documents(self.fields.read(self._located(split)))

    def _located(self, split: str) -> list[Located]:
        if split in self.files:
            return read_documents(self.folder / self.files[split])
        if files := self.data_files(split):
            return [row for file in files for row in read_documents(file, self.columns, self.fields.names)]
        if self.hub is None:
            raise BadSource(f"{self.task}: no data; {self._wanted(split)}")
        name = self.rename.get(split, split)
        documents = from_hub(self.hub, self.config, name, f"{self.task}: {{}}; {self._wanted(split)}")
        return [(f"{self.hub}, {name}, row {number}", document) for number, document in enumerate(documents, 1)]

    def data_files(self, split: str) -> list[Path]:
        """The files of a split in the user's folder; none if it has none. Raises BadSource if there is no such folder."""
        if self.data is None:
            return []
        if not self.data.is_dir():
            raise BadSource(f"--data {self.data}: there is no such folder")
        own = self.data / self.task
        for name in dict.fromkeys((split, self.rename.get(split, split))):
            if (file := own / f"{name}.jsonl").exists():
                return [file]
            if found := _matching(own, name) or _matching(own / "data", name):
                return found
        for folder in (own, own / "data", self.data):
            if found := [file for pattern in self.published for file in _matching(folder, pattern)]:
                return sorted(dict.fromkeys(found))
        return []

    def _wanted(self, split: str) -> str:
        name = f"{self.task}/{split}.jsonl"
        published = f" or {' or '.join(self.published)}" if self.published else ""
        where = f" (looked for {self.data / name}{published}{_held(self.data / self.task)})" if self.data is not None else ""
        original = f", the split {self.rename.get(split, split)!r} of {self.hub}{f' ({self.config})' if self.config else ''}"
        return f"give a folder with {name}{original if self.hub else ''} with --data{where}"


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Files of documents in a folder, or in the one that the pattern names, whose names without extension match.

    They are of one extension, the first in the order of EXTENSIONS.
    """
    *inner, name = pattern.split("/")
    folder = folder.joinpath(*inner)
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        extension = extension_of(file)
        stem = SHARD.sub("", file.name[: len(file.name) - len(extension)]).lower()
        if extension and fnmatchcase(stem, name.lower()) and file.is_file():
            found.setdefault(extension, []).append(file)
    return next((found[extension] for extension in EXTENSIONS if extension in found), [])


def _held(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    names = sorted(file.name for file in folder.iterdir())
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"; {folder} holds {', '.join(names[:MOST_NAMES]) or 'nothing'}{more}"


def splits(*, config_source: str, **where: Any) -> Splits:
    """A task's documents; in its YAML:

        custom_dataset: !function oss_tools.harness.data.splits
        dataset_kwargs:
          hub: openai/gsm8k                       # or {files: {test: smoke.jsonl}}
          config: main
          published: [gsm8k_test]                 # further names of files under --data
          fields: {question: [question, problem]} # our names, and those of copies (see `fields`)
        test_split: test

    The task's name is that of its YAML file, or `name`, where two tasks read the same documents. lm-eval passes on the task's
    metadata, of which `data` is taken.
    """
    known = ("files", "data", "published", "hub", "config", "rename", "columns")
    source = Path(config_source)
    given = {name: where[name] for name in known if name in where}
    return Splits(where.get("name") or source.stem, folder=source.parent, fields=fields_of(where), **given)


def fields_of(where: Mapping[str, Any]) -> Fields:
    """What a task's YAML says of its fields."""
    given = {"spellings": where.get("fields"), "from_one": where.get("from_one"), "check": where.get("check")}
    return Fields(**{name: value for name, value in given.items() if value})


def read_jsonl(file: Path) -> Documents:
    """The documents of a file, one JSON object a line. Raises BadSource naming the line that is none."""
    return Documents(document for _, document in read_documents(file))


def from_hub(hub: str, config: str | None, split: str, message: str) -> Documents:
    """A split from the Hugging Face hub, or its cache. `message` is the error's, with {} for what went wrong."""
    import datasets

    with hub_mode() as online:
        try:
            return Documents(dict(row) for row in datasets.load_dataset(hub, config, split=split))
        except (OSError, ValueError, RuntimeError) as error:
            raise BadSource(message.format(f"{hub} cannot be had ({why_not(error, online)})")) from None
