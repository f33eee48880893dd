"""Documents as files hold them: JSON lines, JSON, CSV, Parquet, each also with .gz; with the place of every one, for messages."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from oss_tools.errors import BadSource

Document = dict[str, Any]
Located = tuple[str, Document]  # where it stands (file and line or row), and the document

MAX_LINE = 64 << 20  # bytes of one document
MAX_FILE = 1 << 30  # bytes of a file that is read whole, unpacked
FORMS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
WRAPPERS = ("data", "rows", "examples", "questions", "items")  # under which a JSON file may hold its list
EXTENSIONS = (*FORMS, *(f"{form}.gz" for form in FORMS if form != ".parquet"))


def extension_of(file: Path) -> str:
    """`.jsonl`, `.csv.gz`, …; "" of a file that is none of documents."""
    name = file.name.lower()
    return next((extension for extension in EXTENSIONS if name.endswith(extension)), "")


def read_documents(file: Path, columns: Sequence[str] = (), known: Container[str] = ()) -> list[Located]:
    """All documents of a file.

    Args:
        columns: names of a CSV file's columns, if its first row has none of the names in `known`.

    Raises BadSource, naming file and line.
    """
    form = extension_of(file).removesuffix(".gz")
    try:
        if form == ".parquet":
            found = list(_rows(_parquet(file), file))
        elif form in (".csv", ".tsv"):
            found = list(_csv(file, "\t" if form == ".tsv" else ",", columns, known))
        elif form == ".json":
            found = list(_json(file))
        else:
            found = list(_lines(file))
    except OSError as error:
        raise BadSource(f"{file}: {error.strerror or error}") from None
    except (EOFError, zlib.error):
        raise BadSource(f"{file}: damaged, or no gzip file") from None
    if not found:
        raise BadSource(f"{file} holds no documents")
    return found


def _open(file: Path) -> Any:
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb")


def _lines(file: Path) -> Iterator[Located]:
    with _open(file) as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE), b""), 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                where = f"{file}, line {number}"
                yield where, _document(_parsed(text, where), where)


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadSource(f"{where}: no JSON, or longer than {MAX_LINE >> 20} MiB") from None


def _document(value: Any, where: str) -> Document:
    if not isinstance(value, dict):
        raise BadSource(f"{where}: a JSON object is wanted, not {type(value).__name__}")
    return value


def _rows(values: Sequence[Any], file: Path) -> Iterator[Located]:
    for number, value in enumerate(values, 1):
        where = f"{file}, row {number}"
        document = _document(value, where)
        inner = document.get("row")  # as the hub's viewer gives them
        yield where, inner if isinstance(inner, dict) else document


def _json(file: Path) -> Iterator[Located]:
    """A list, an object of objects (their names become `id`), an object around a list, or lines that are objects."""
    try:
        content = json.loads(_whole(file))
    except (ValueError, RecursionError):
        yield from _lines(file)
        return
    if isinstance(content, list):
        yield from _rows(content, file)
        return
    document = _document(content, str(file))
    lists = [document[name] for name in WRAPPERS if isinstance(document.get(name), list)]
    if document and all(isinstance(value, dict) for value in document.values()):
        for name, value in document.items():
            yield f"{file}, {name!r}", {"id": name, **value}
    elif lists and all(isinstance(value, dict) for value in lists[0]):
        yield from _rows(lists[0], file)
    else:
        yield f"{file}, line 1", document


def _whole(file: Path) -> bytes:
    with _open(file) as stream:
        content: bytes = stream.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise BadSource(f"{file}: more than {MAX_FILE >> 30} GiB, unpacked; JSON lines may be larger")
    return content


def _csv(file: Path, delimiter: str, columns: Sequence[str], known: Container[str]) -> Iterator[Located]:
    csv.field_size_limit(MAX_LINE)
    try:
        text = _whole(file).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadSource(f"{file}: no CSV in UTF-8 ({error})") from None
    headed = bool(rows) and (not columns or any(len(name) > 1 and name in known for name in rows[0]))  # a letter is a key
    names = list(rows[0]) if headed else list(columns)
    for number, row in enumerate(rows[headed:], 1 + headed):
        if row:
            if len(row) != len(names):
                raise BadSource(f"{file}, row {number}: {len(row)} columns, not the {len(names)} of {', '.join(names)}")
            yield f"{file}, row {number}", dict(zip(names, row, strict=True))


def _parquet(file: Path) -> list[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        if parquet.read_metadata(file).serialized_size > MAX_FILE:
            raise BadSource(f"{file}: its header is larger than {MAX_FILE >> 30} GiB")
        rows: list[Any] = parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise BadSource(f"{file}: no Parquet file that can be read ({str(error).splitlines()[0]})") from None
    return rows
