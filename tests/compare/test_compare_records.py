"""What the record of a comparison says of the machine that it was made on."""

from pathlib import Path

import pytest

from oss_tools.compare.record import without_home


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/home/me/.cache/huggingface/hub/models--a--b", "~/.cache/huggingface/hub/models--a--b"),
        ("/home/me", "~"),
        ("/home/me2/model", "/home/me2/model"),
        ("/data/home/me/model", "/data/home/me/model"),
        ("model.gguf", "model.gguf"),
    ],
)
def test_paths_name_no_user(path: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert without_home(Path(path)) == said
    monkeypatch.setenv("HOME", "/")
    assert without_home(Path(path)) == path
