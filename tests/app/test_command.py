"""`spotedit app` from the command line."""

import sys

import pytest

from spotedit.cli import main


def test_a_missing_gradio_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 1
    error = capsys.readouterr().err
    assert 'pip install "spotedit[app]"' in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("options", [["--threshold", "-1"], ["--model", "no/such/folder"]])
def test_a_bad_option_is_one_line(options, capsys):
    pytest.importorskip("gradio")
    assert main(["app", *options]) == 2
    assert capsys.readouterr().err.startswith("spotedit app: ")
