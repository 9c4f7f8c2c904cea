"""What is read from JSON, how names are shown, and how a shell is given them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conformer.text import from_json, printable, quoted


def test_json_is_read_as_it_is():
    assert from_json('{"a": [1, -2.5, 1e-3, null, true, "NaN"]}') == {"a": [1, -2.5, 1e-3, None, True, "NaN"]}
    assert from_json(b'"gr\xc3\xb6\xc3\x9fer"') == "größer"
    assert type(from_json("7")) is int and type(from_json("7.0")) is float and from_json(str(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e301", str(10**400), "-" + str(10**400), "9" * 5000])
def test_numbers_without_end_are_refused(text: str):
    with pytest.raises(ValueError) as caught:
        from_json(f'{{"a": [{text}]}}')
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["", "{", b"\xff", b'"\xe9"', "[" * 100_000, '{"a":' * 100_000])
def test_what_is_no_json_is_refused(text: str | bytes):
    with pytest.raises(ValueError):
        from_json(text)


def test_what_no_terminal_shows_is_escaped():
    assert printable("größer, 猫") == "größer, 猫"
    assert printable("a\nb\t\x1b]0;c\x07\x9b" + os.fsdecode(b"\xe9") + "\u202e") == r"a\nb\t\x1b]0;c\x07\x9b\udce9\u202e"


def test_pieces_of_commands_as_each_shell_reads_them(monkeypatch: pytest.MonkeyPatch):
    assert [quoted(word) for word in ("runs/a", "my runs/a", Path("it's"))] == ["runs/a", "'my runs/a'", "'it'\"'\"'s'"]
    assert [quoted(Path(word)) for word in ("./-run", "./~", "a/~b")] == ["./-run", "'./~'", "'a/~b'"] and quoted("-run") == "-run"
    monkeypatch.setattr(os, "name", "nt")
    assert [quoted(word) for word in ("runs\\a", "my runs\\a")] == ["runs\\a", '"my runs\\a"']
