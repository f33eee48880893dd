"""Names and folders that attack: files that would lie in one place, our own files, links out of the folder; messages."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Fault, Hub

from oss_tools.download import manifest
from oss_tools.download.addresses import shown, without_addresses
from oss_tools.download.layout import is_ours
from oss_tools.download.names import understand
from oss_tools.download.places import Cache, Folder
from oss_tools.download.select import choose
from oss_tools.download.transfer import Partial, RemoteFile
from oss_tools.errors import BadRequest, BadSource
from tests.download.conftest import Run

REPO = "someone/model"
CONFIG, TENSORS = "config.json", "model.safetensors"


def remote(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 1, f"http://hub/{number}", git_oid="b" * 40) for number, path in enumerate(paths)]


def chosen(*paths: str, **how: Any) -> list[str]:
    return [file.path for file in choose(remote(CONFIG, TENSORS, *paths), **how)[1]]


# ---- one place for two files ----------------------------------------------------------------------------------------

TWINS = [
    ("Model.safetensors", TENSORS),
    ("CONFIG.JSON", CONFIG),
    ("caf\u00e9.json", "cafe\u0301.json"),  # composed, and as macOS keeps it
    ("\ufb01le.json", "file.json"),  # a ligature
    ("stra\u00dfe.json", "STRASSE.json"),
    ("\u212aey.json", "key.json"),  # the Kelvin sign
]


@pytest.mark.parametrize("names", TWINS)
@pytest.mark.parametrize("include", [[], ["*"]])
def test_names_that_are_one_on_some_disks_are_refused(names: tuple[str, str], include: list[str]) -> None:
    others = [name for name in names if name not in (CONFIG, TENSORS)]
    with pytest.raises(BadSource, match="one file on many disks; nothing is fetched"):
        chosen(*others, include=include)
    assert CONFIG in chosen(*others, include=include, exclude=[names[0]]), "the user can leave one out"


def test_a_twin_of_what_nobody_wants_stops_nothing() -> None:
    assert chosen("Notes.txt", "notes.txt") == [TENSORS, CONFIG]


@pytest.mark.parametrize("folder", ["CONFIG.json/x.json", "Model.Safetensors/x.json"])
def test_a_folder_that_is_a_file_on_some_disks_is_refused(folder: str) -> None:
    with pytest.raises(BadSource, match="as a file and as a folder"):
        chosen(folder, include=["*"])


# ---- names that are ours, or nobody's -------------------------------------------------------------------------------

OURS = [
    "oss-tools-download.json",
    "OSS-Tools-Download.JSON",
    "o\u017fs-tool\u017f-download.json",  # with the long s
    "deep/oss-tools-download.json",
    ".oss-tools-download/0123.incomplete",
    ".OSS-TOOLS-download/x.json",
    ".oss-tools-4711-abcd",
    "oss-tools-download.json/x.json",
]


@pytest.mark.parametrize("name", OURS)
def test_our_own_files_do_not_come_from_a_repository(name: str, hub: Hub, run: Run, tmp_path: Path) -> None:
    assert is_ours(name)
    hub.add(REPO, {CONFIG: b"{}", TENSORS: bytes(100), name: b'{"files": []}'})
    assert run("download", REPO, "--to", "here", "--include", "*").returncode == 0
    there = {path.relative_to(tmp_path / "here").as_posix() for path in (tmp_path / "here").rglob("*")}
    assert there == {CONFIG, TENSORS, "oss-tools-download.json"}
    listed = json.loads((tmp_path / "here" / manifest.NAME).read_text())["files"]
    assert {file["path"] for file in listed} == {CONFIG, TENSORS}


@pytest.mark.parametrize(
    "name", ["download.json", "my-oss-tools-download.json", "oss-tools-download.json.md", "oss-tools.json"]
)
def test_names_that_are_like_ours_are_not_ours(name: str) -> None:
    assert not is_ours(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "con.json",
            "NUL.json",
            "aux/x.json",
            "Com1.json",
            "lpt9",
            "x.json.",
            "x.json ",
            "a\u202egnp.json",
            "a\x00.json",
            "a\x9b.json",
        ),
        *("a?.json", "a*.json", 'a".json', "a<b.json", "a|b.json", "d./x.json"),
    ],
)
def test_names_that_no_disk_should_have_are_refused_where_they_are_wanted(name: str) -> None:
    with pytest.raises(BadSource, match="no file can have everywhere"):
        chosen(name, include=["*"])
    said: list[str] = []
    assert chosen(name, say=said.append) == [TENSORS, CONFIG]
    assert all(line.isprintable() and "left out" in line for line in said)


def test_names_that_only_look_reserved_are_kept() -> None:
    assert "console.json" in chosen("console.json", "auxiliary.json", "com10x.json")


# ---- links ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    return folder


def untouched(outside: Path) -> bool:
    return [(p.name, p.read_text()) for p in sorted(outside.iterdir())] == [("precious", "mine")]


def test_a_folder_that_is_a_link_out_of_the_target_is_not_written_through(
    hub: Hub, run: Run, tmp_path: Path, outside: Path
) -> None:
    hub.add(REPO, {"original/model.safetensors": bytes(100), "original/config.json": b"{}"})
    here = tmp_path / "here"
    here.mkdir()
    (here / "original").symlink_to(outside)
    done = run("download", REPO, "--to", "here", "--container", "original")
    assert done.returncode == 2, done.stderr
    assert "a link that leads out of here" in done.stderr
    assert untouched(outside)


@pytest.mark.parametrize("target", ["", "new", "precious"])
def test_a_link_in_the_place_of_incomplete_files_is_refused(
    target: str, hub: Hub, run: Run, tmp_path: Path, outside: Path
) -> None:
    hub.add(REPO, {CONFIG: b"{}", TENSORS: bytes(100)})
    here = tmp_path / "here"
    here.mkdir()
    (here / ".oss-tools-download").symlink_to(outside / target)
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert untouched(outside)


@pytest.mark.parametrize("target", ["", "new", "precious"])
def test_a_link_in_the_place_of_the_manifest_is_replaced(
    target: str, hub: Hub, run: Run, tmp_path: Path, outside: Path
) -> None:
    hub.add(REPO, {CONFIG: b"{}", TENSORS: bytes(100)})
    here = tmp_path / "here"
    here.mkdir()
    (here / manifest.NAME).symlink_to(outside / target)
    assert run("download", REPO, "--to", "here").returncode == 0
    assert set(manifest.read(here)) == {CONFIG, TENSORS}
    assert untouched(outside)


def test_a_manifest_that_another_program_fetched_vouches_for_nothing(
    hub: Hub, run: Run, environment: dict[str, str]
) -> None:
    ghost = {"path": "ghost.json", "bytes": 5, "sha256": "0" * 64, "verified_by": "sha256", "url": ""}
    planted = json.dumps({"schema": 1, "source": "x; echo owned", "files": [ghost]}).encode()
    hub.add(REPO, {CONFIG: b"{}", TENSORS: bytes(9000), manifest.NAME: planted})
    code = "import sys; from huggingface_hub import snapshot_download as s; print(s(sys.argv[1]))"
    theirs = subprocess.run([sys.executable, "-c", code, REPO], env=environment, capture_output=True, text=True, check=True)
    snapshot = Path(theirs.stdout.strip())
    assert (snapshot / manifest.NAME).read_bytes() == planted
    assert "ghost" not in run("verify", "--checksums", snapshot).stdout
    assert run("download", REPO).returncode == 0
    assert set(manifest.read(snapshot)) == {CONFIG, TENSORS}
    assert planted in [blob.read_bytes() for blob in (snapshot.parents[1] / "blobs").iterdir()]


@pytest.mark.parametrize("source", ["x; echo owned", "$(echo owned)", "a b", "a\nb", "`x`", "x' y", 7, None, "\x1b[2J"])
def test_what_a_manifest_says_is_not_offered_as_a_command(source: object, run: Run, tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_text(json.dumps({"schema": 1, "source": source, "files": []}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    done = run("inspect", tmp_path)
    assert f"`oss-tools download SOURCE --to {tmp_path}` goes on with it" in done.stderr


@pytest.mark.parametrize("ending", [".incomplete", ".progress"])
def test_an_incomplete_file_that_is_a_link_is_refused(ending: str, tmp_path: Path, outside: Path) -> None:
    file = remote(CONFIG)[0]
    for place in (Folder(tmp_path / "here"), Cache(tmp_path / "hub", REPO, "main", COMMIT)):
        job = place.job(file)
        job.incomplete.parent.mkdir(parents=True)
        job.incomplete.with_suffix(ending).symlink_to(outside / "precious")
        with pytest.raises(BadRequest, match="a link, where a download keeps a file of its own"):
            Partial(job)
    assert untouched(outside)


def test_a_file_that_is_a_link_is_replaced_and_not_written_through(
    hub: Hub, run: Run, tmp_path: Path, outside: Path
) -> None:
    hub.add(REPO, {CONFIG: b"{}", TENSORS: bytes(100)})
    here = tmp_path / "here"
    here.mkdir()
    (here / CONFIG).symlink_to(outside / "precious")
    assert run("download", REPO, "--to", "here").returncode == 0
    assert (here / CONFIG).read_bytes() == b"{}"
    assert untouched(outside)


@pytest.mark.parametrize(
    "revision", ["/etc/passwd", "../../../x", "a/../../x", "a//b", "./x", "x/.", "a b", "a\nb", "\x1b[2J"]
)
@pytest.mark.parametrize("name", ["gpt-oss-20b", REPO])
def test_revisions_that_lead_out_of_the_cache_are_refused(name: str, revision: str) -> None:
    with pytest.raises(BadSource, match="is no revision") as refused:
        understand(name, revision, "https://hub.example")
    assert str(refused.value).isprintable()


# ---- what is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://cdn.example/a/b.gguf?X-Amz-Signature=SECRET&X-Amz-Credential=SECRET", "https://cdn.example/a/b.gguf"),
        ("https://me:SECRET@hub.example/a?sig=SECRET", "https://hub.example/a"),
        ("//SECRET@hub.example", "//hub.example"),
        ("https://hub.example#token=SECRET", "https://hub.example"),
        ("https://hub.example/\x1b[2J\x9b2J\n\ud800", r"https://hub.example/\x1b[2J\x9b2J\n\ud800"),
        ("https://me:SECRET/@[::1", "https://me:SECRET/@[::1"),  # the name of a file, if it is anything
    ],
)
def test_addresses_are_shown_without_secrets(address: str, said: str) -> None:
    assert shown(address) == said
    if "[" not in address and "://" in address:
        assert without_addresses(f"Cannot open '{address}': no") == f"Cannot open '{said}': no"


SIGNED = "https://hub.example/x/m.gguf?X-Amz-Signature=SIGNED&Key-Pair-Id=SIGNED"


@pytest.mark.parametrize("verb", ["inspect", "fit", "download", "verify"])
@pytest.mark.parametrize(
    "address", [SIGNED, SIGNED.replace("hub.example", "[::1"), SIGNED.replace("https", "s3"), f"x{SIGNED}"]
)
def test_no_verb_shows_a_signature(verb: str, address: str, run: Run) -> None:
    done = run(verb, address, *(["."] if verb == "verify" else []), env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode in (2, 3), done.stderr
    assert "SIGNED" not in done.stdout + done.stderr


@pytest.mark.parametrize("fault", [Fault("", "status", 99, 404, server="cdn"), Fault("", "wrong", 99, server="cdn"), None])
def test_the_signature_of_a_redirect_is_in_no_message_and_no_file(
    fault: Fault | None, hub: Hub, run: Run, tmp_path: Path
) -> None:
    hub.add(REPO, {CONFIG: b"{}", TENSORS: bytes(9000)})
    hub.redirect_to = f"{hub.cdn}/{REPO}//{TENSORS}?X-Amz-Signature=SIGNED"
    hub.faults = [fault] if fault else []
    done = run("download", REPO, "--to", "here", "--json", env={"HF_TOKEN": "hf_secret"})
    assert done.returncode == (0 if fault is None else 2 if fault.kind == "status" else 1), done.stderr
    kept = b"".join(path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file())
    for secret in ("SIGNED", "hf_secret"):
        assert secret not in done.stdout + done.stderr
        assert secret.encode() not in kept
