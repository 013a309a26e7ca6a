"""Tests of `--config` and `load_config`: files of options, and what is wrong with them."""

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import spotedit
from spotedit.cli import commands, main, options
from spotedit.editor.errors import BadInput
from spotedit.options.file import MAX_BYTES

TOML = """
preset = "fast"
reset-steps = [3, 9]
condition_cache = false
threshold = 0.5
steps = 20
negative_prompt = "fog"
model = "some/model"

[temporal]
method = "TaylorSeer"
warm-up = 3

[edit]
mask-mode = "union"
threshold = 0.25
"""
YAML = """
preset: fast
reset-steps: [3, 9]
condition_cache: no
threshold: 0.5
steps: 20
negative_prompt: fog
model: some/model
temporal: {method: TaylorSeer, warm-up: 3}
edit: {mask-mode: union, threshold: 0.25}
"""
CONFIG = spotedit.SpotEditConfig(
    "fast",
    threshold=0.5,
    reset_steps=[3, 9],
    condition_cache=False,
    temporal=spotedit.TaylorSeer(warm_up=3),
)
EDIT = ("edit", "in.png", "add a hat", "-o", "out.png")
PREVIEW = ("preview", "in.png", "add a hat", "-o", "out.png")


@pytest.fixture(params=["a.toml", "a.yaml"])
def file(request, tmp_path) -> Path:
    path = tmp_path / request.param
    path.write_text(TOML if path.suffix == ".toml" else YAML)
    return path


def parse(command: tuple[str, ...], *further: object):
    name, *arguments = command
    return commands.parse(name, [*arguments, *map(str, further)])


def config_of(parsed) -> spotedit.SpotEditConfig:
    return options.spotedit_config(parsed.config)


# -- what a file does


def test_the_top_of_a_file_holds_for_every_command(file):
    preview = parse(PREVIEW, "--config", file)
    assert config_of(preview) == CONFIG
    assert (preview.pipeline.steps, preview.pipeline.negative_prompt) == (20, "fog")
    assert preview.model == "some/model"
    demo = parse(("demo",), f"--config={file}")
    assert config_of(demo) == CONFIG
    assert demo.steps == 20


def test_the_table_of_a_command_overrides_the_top(file):
    edit = parse(EDIT, "--config", file)
    assert edit.mask_mode == "union"
    assert config_of(edit).threshold == 0.25
    assert config_of(parse(PREVIEW, "--config", file)).threshold == 0.5


def test_the_command_line_overrides_the_file(file):
    given = ("--threshold", 1, "--steps", 9, "--condition-cache", "--reset-steps", 5)
    edit = parse(EDIT, "--config", file, *given, "--temporal", "None", "--mask-mode", "replace")
    assert edit.pipeline.steps == 9
    assert edit.mask_mode == "replace"
    config = config_of(edit)
    assert (config.threshold, config.condition_cache, config.reset_steps) == (1, True, (5,))
    assert config.temporal is None


def test_arguments_without_dashes_stay_on_the_command_line(file):
    verify = parse(("verify", "tiny", "dog.png", "add a hat"), "--config", file)
    assert verify.model == "tiny"  # there, the file's model would be a positional argument
    assert verify.pairs == ("dog.png", "add a hat")


@pytest.mark.parametrize("command", sorted(commands.COMMANDS.keys() - {"env"}))
def test_every_command_takes_a_file_and_its_help_shows_the_values(command, file, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--config", str(file), "--help"])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "--config FILE" in out
    assert "(default: 20)" in out


def test_what_is_required_may_be_in_the_file(tmp_path):
    (tmp_path / "a.toml").write_text('[edit]\noutput = "x.png"\n')
    edit = parse(("edit", "in.png", "add a hat"), "--config", tmp_path / "a.toml")
    assert edit.output == Path("x.png")


def test_what_is_missing_is_still_reported(file, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(("edit", "in.png", "add a hat"), "--config", file)
    assert stop.value.code == 2
    assert "--output" in capsys.readouterr().err


def test_a_temporal_method_as_text(tmp_path):
    (tmp_path / "a.yml").write_text("temporal: TaylorSeer(interval=3)")
    config = config_of(parse(EDIT, "--config", tmp_path / "a.yml"))
    assert config.temporal == spotedit.TaylorSeer(interval=3)


@pytest.mark.parametrize("name", ["a.yaml", "a.toml"])
def test_an_empty_file_changes_nothing(tmp_path, name):
    (tmp_path / name).touch()
    assert config_of(parse(EDIT, "--config", tmp_path / name)) == spotedit.SpotEditConfig()


def test_null_takes_a_value_back(tmp_path):
    text = "threshold: 0.5\nsteps: 9\nedit: {threshold: null, steps: null}"
    (tmp_path / "a.yaml").write_text(text)
    edit = parse(EDIT, "--config", tmp_path / "a.yaml")
    assert config_of(edit).threshold is None
    assert edit.pipeline.steps is None


def test_every_field_of_the_configuration_can_be_in_a_file(tmp_path):
    defaults = {field.name: field.default for field in fields(spotedit.SpotEditConfig)}
    (tmp_path / "a.yaml").write_text(json.dumps(defaults))  # JSON is YAML
    assert config_of(parse(EDIT, "--config", tmp_path / "a.yaml")) == spotedit.SpotEditConfig()


# -- the library's form


def test_load_config(file):
    assert spotedit.load_config(file) == CONFIG
    assert spotedit.load_config(str(file)) == CONFIG


def test_load_config_refuses_what_the_commands_refuse(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("treshold = 1")
    with pytest.raises(ValueError, match="unknown name treshold; did you mean threshold"):
        spotedit.load_config(path)


def test_load_config_does_not_import_pytorch(file):
    import subprocess

    program = (
        "import sys, spotedit; spotedit.load_config(sys.argv[1]); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treshold = 1", "unknown name treshold; did you mean threshold?"),
        ("[edti]\nforce = true", "unknown name edti; did you mean edit?"),
        ("[edit]\nmaskmode = 'union'", "[edit]: unknown name maskmode; did you mean mask_mode?"),
        ("[edit]\nscenes = 3", "[edit]: unknown name scenes"),
        ("image = 'x.png'", "unknown name image"),
        ("config = 'x.toml'", "unknown name config; expected "),
        ("config_file = 'x.toml'", "unknown name config_file"),
        ("threshold = -1", "SpotEditConfig.threshold is -1; expected a finite number >= 0"),
        ("threshold = '0.5'", "SpotEditConfig.threshold is '0.5'; expected a finite number"),
        ("threshold = [1]", "SpotEditConfig.threshold is [1]"),
        ("dilation = {a = 1}", "SpotEditConfig.dilation is {'a': 1}"),
        ("condition_cache = 'no'", "SpotEditConfig.condition_cache is 'no'; expected True or"),
        ("judge = 'mine.judge'", "(a function of your own needs Python)"),
        ("fusion = 'mine.blend'", "(a function of your own needs Python)"),
        ("reset_every = 3\nreset_steps = [1]", "exclude each other"),
        ("temporal = 'Seer'", "temporal: 'Seer'; expected TeaCache or TaylorSeer"),
        ("temporal = 3", "temporal: 3; expected TeaCache or TaylorSeer"),
        ("[temporal]\nmethod = 'TaylorSeer'\npace = 3", "'pace': 3}; expected TeaCache or"),
        ("[temporal]\ninterval = 3", "expected TeaCache or TaylorSeer"),
        ("[temporal]\nmethod = 'TaylorSeer'\ninterval = 0", "TaylorSeer.interval is 0; expected"),
        ("steps = 0", "steps is 0; expected INT (0 is too small; expected at least 1)"),
        ("steps = 2.5", "steps is 2.5; expected INT"),
        ("steps = true", "steps is True; expected INT"),
        ("steps = [2]", "steps is [2]; expected INT"),
        ("guidance = 'high'", "guidance is 'high'; expected {None}|FLOAT\n"),
        ("negative_prompt = false", "negative_prompt is False; expected {None}|STR"),
        ("mask_mode = 'and'", "mask_mode is 'and'; expected intersect or replace or union"),
        ("force = 'false'", "force is 'false'; expected true or false"),
        ("force = 1", "force is 1; expected true or false"),
        ("seed = 2020-01-01", "seed is a date; expected text, a number"),
        ("reset_steps = [[1]]", "reset_steps is a list; expected text, a number"),
        ("reset-every = 3\nreset_every = 4", "reset_every is given twice"),
        ("reset_every = 3\nreset_every = 4", "not readable (Cannot overwrite a value"),
        ("steps = ", "not readable (Invalid value"),
        ("steps = " + "9" * 5000, "not readable (Exceeds the limit"),
        ("steps = " + "[" * 2_000, "nested too deeply"),
        ("#" * MAX_BYTES + "#", f"too large; expected at most {MAX_BYTES} bytes"),
    ],
)
def test_a_file_with_a_mistake(tmp_path, capsys, text, message):
    path = tmp_path / "a.toml"
    path.write_text(text)
    assert main([*EDIT, "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"spotedit edit: {path}: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "expected names and values, as in threshold: 0.5"),
        ("1: 2", "the name 1 is no text"),
        ("? [a]\n: 1", "unhashable key"),
        ("steps: 3\nsteps: 4", "steps is given twice"),
        ("edit:\n  force: true\n  force: true", "force is given twice"),
        ("threshold: &a 1\ndilation: *a", "anchors and aliases (& and *) are not supported"),
        ("negative_prompt: no", "negative_prompt is False; expected {None}|STR"),
        ("condition_cache: null", "SpotEditConfig.condition_cache is None; expected True or"),
        ("threshold: 1e-2", "SpotEditConfig.threshold is '1e-2'; expected a finite number"),
        ("seed: 2020-13-45", "not readable (month must be in 1..12)"),
        ("seed: !!binary aGVsbG8=", "seed is a bytes; expected text, a number"),
        ("[" * 800, "nested too deeply"),
        ("\x00", "not readable (unacceptable character"),
    ],
)
def test_a_yaml_file_with_a_mistake(tmp_path, capsys, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert main([*EDIT, "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"spotedit edit: {path}: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_yaml_file_makes_no_objects(tmp_path):
    path = tmp_path / "a.yaml"
    made = tmp_path / "made"
    path.write_text(f"seed: !!python/object/apply:os.mkdir ['{made}']")
    with pytest.raises(BadInput, match="could not determine a constructor"):
        parse(EDIT, "--config", path)
    assert not made.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.toml", "cannot be read (No such file or directory)"),
        ("folder.toml", "cannot be read (Is a directory)"),
        ("settings.json", "expected a file whose name ends in .toml, .yaml, .yml"),
        ("latin.toml", "not readable ('utf-8' codec"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, capsys, name, message):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "settings.json").touch()
    (tmp_path / "latin.toml").write_bytes(b"model = '\xe9'")
    assert main([*EDIT, "--config", str(tmp_path / name)]) == 2
    assert f"{tmp_path / name}: {message}" in capsys.readouterr().err


def test_a_path_is_missing(capsys):
    with pytest.raises(SystemExit) as stop:
        main([*EDIT, "--config"])
    assert stop.value.code == 2
    assert "--config" in capsys.readouterr().err
