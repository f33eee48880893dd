"""What is compared: checkpoints that are made of one model, or those that are there; models behind addresses beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from oss_tools.cluster.nodes import Cluster
from oss_tools.compare.checks import require_room
from oss_tools.compare.models import Member, make, member, recipe_called
from oss_tools.compare.pack_work import PackWork
from oss_tools.compare.packs import read_pack, vocabulary_hash, write_pack
from oss_tools.compare.pairing import pair
from oss_tools.compare.parts import Parts
from oss_tools.compare.record import RECORD as RECORD
from oss_tools.compare.record import plain
from oss_tools.compare.remote import remotes
from oss_tools.compare.schedule import Now
from oss_tools.compare.settings import Settings as Settings
from oss_tools.compare.work import Work
from oss_tools.download.layout import name_of
from oss_tools.endpoints.endpoint import Endpoint
from oss_tools.endpoints.wire import Price
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest
from oss_tools.harness.run import fingerprint
from oss_tools.models import open_checkpoint
from oss_tools.report.comparison import Comparison
from oss_tools.resources import resource

FORMATS = ("bf16", "int8", "q8_0", "mxfp4", "q4_0")


def compare_formats(
    source: Path,
    formats: Sequence[str],
    settings: Settings,
    output: Path,
    *,
    fresh: bool = False,
    cluster: Cluster | None = None,
    report: Callable[[Now], None] = lambda now: None,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Makes a checkpoint of `source` by each recipe (a name, a YAML file or a format; the first is the base), and compares them.

    The record is then output/comparison.json as well. `cluster`: whose nodes do the rest. Raises OssToolsError.
    """
    recipes = [recipe_called(name) for name in formats]
    if len({recipe.name for recipe in recipes}) != len(recipes):
        raise BadRequest(f"formats share a name: {', '.join(recipe.name for recipe in recipes)}")
    work = _work(cluster, settings, [source], output, fresh, report, say)
    require_room(source, recipes, output / "models")
    with open_checkpoint(source) as checkpoint:
        origin = str(fingerprint(checkpoint.reader.files())["sha256"])
    work.schedule.expect("convert", len(recipes))
    work.expect(len(recipes))
    members = []
    for recipe in recipes:
        with work.schedule.step("convert", f"making {recipe.name}") as advance:
            about = {"source": origin, "recipe": plain(asdict(recipe)), "name": recipe.name}

            def convert(recipe: Any = recipe, advance: Any = advance) -> dict[str, str]:
                path = make(source, recipe, output / "models", advance)
                return {"path": path.name, "sha256": member(recipe.name, path).sha256}

            members.append(_made(work.parts, about, convert, output / "models", recipe.name))
    return work.compare(_name(source), members, [pair(members[0].path, m.path) for m in members[1:]])


def _made(parts: Parts, about: dict[str, Any], convert: Callable[[], dict[str, str]], folder: Path, name: str) -> Member:
    """The checkpoint that a conversion made, if it still lies there as it was made, else made again."""
    if parts.has("convert", about):
        made = parts.get("convert", about, convert)
        path = folder / made["path"]
        if path.exists() and (found := member(name, path, name)).sha256 == made["sha256"]:
            return found
        parts.drop("convert", about)
    return member(name, folder / parts.get("convert", about, convert)["path"], name)


def compare_checkpoints(
    paths: Sequence[Path],
    settings: Settings,
    output: Path,
    *,
    base: Path | None = None,
    endpoints: Sequence[Endpoint] = (),
    base_endpoint: Endpoint | None = None,
    price: Price | None = None,
    fresh: bool = False,
    cluster: Cluster | None = None,
    report: Callable[[Now], None] = lambda now: None,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compares finished checkpoints in any containers, and the answers of models behind addresses. The base is the first
    checkpoint unless it is named; `base_endpoint` is what answers are held against then.

    price: of all endpoints; cluster: whose nodes do the work. Raises OssToolsError; BadRequest if the checkpoints are not one
    model.
    """
    every = [base, *(path for path in paths if path.resolve() != base.resolve())] if base else list(paths)
    if len(every) + len(endpoints) < 2:
        raise BadRequest(
            "a comparison needs two models at least, or one checkpoint and the formats to make of it (--formats)"
        )
    if not every:
        raise BadRequest("a comparison needs one checkpoint at least; `eval` scores a model behind an address by itself")
    pairings = [pair(every[0], path) for path in every[1:]]
    names = _names(every)
    away = remotes(endpoints, price, names)
    work = _work(cluster, settings, every, output, fresh, report, say)
    if away and not work.tasks:
        raise BadRequest("models behind addresses are compared by their answers; name --suites")
    work.expect(len(every), len(away))
    members = [member(name, path) for name, path in zip(names, every, strict=True)]
    held_against = next((r.name for r in away if r.endpoint is base_endpoint), "")
    return work.compare(_name(every[0]), members, pairings, away, held_against)


def _work(cluster: Cluster | None, *how: Any) -> Work:
    """A comparison at work, here or on a cluster."""
    if cluster is None:
        return Work(*how)
    from oss_tools.compare.spread import SpreadWork

    return SpreadWork(cluster, *how)


def make_pack(
    source: Path,
    file: Path,
    settings: Settings,
    output: Path,
    *,
    fresh: bool = False,
    report: Callable[[Now], None] = lambda now: None,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Keeps what a model says on the texts and to the suites' questions in a file; returns its bytes. Raises OssToolsError."""
    work = PackWork(settings, [source], output, fresh, report, say)
    work.expect(1)
    return write_pack(work.pack(_name(source), member(_name(source), source)), file)


def compare_with_pack(
    paths: Sequence[Path],
    file: Path,
    settings: Settings,
    output: Path,
    *,
    fresh: bool = False,
    report: Callable[[Now], None] = lambda now: None,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compares checkpoints with what a pack keeps of their base. Limits that are not given are those of the pack.

    Raises OssToolsError; BadRequest for another model's pack.
    """
    pack = read_pack(file)
    theirs = pack.about["settings"]
    numbers = ("limit", "max_tokens", "repeats")
    settings = replace(settings, **{name: getattr(settings, name) or theirs.get(name) for name in numbers})
    for path in paths:
        with open_checkpoint(path) as checkpoint:
            if vocabulary_hash(Text(checkpoint.metadata()).numbers()) != pack.about["tokens"]:
                raise BadRequest(
                    f"{path} has another tokenizer than the base of {file}; only quantizations of one model compare"
                )
    work = PackWork(settings, paths, output, fresh, report, say)
    work.require_same_questions(pack, file)
    work.expect(len(paths))
    names = [name if name != pack.name else str(path) for name, path in zip(_names(paths), paths, strict=True)]
    return work.compare_with(pack, [member(name, path) for name, path in zip(names, paths, strict=True)])


def _name(path: Path) -> str:
    """A path's last part; the embedded model's own name."""
    return "tiny" if path == resource("tiny/checkpoint") else name_of(path)


def _names(paths: Sequence[Path]) -> list[str]:
    """Their names; whole paths where two are the same."""
    short = [_name(path) for path in paths]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
