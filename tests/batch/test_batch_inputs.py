"""Which pictures a command means, and where their outputs go."""

import errno
import json
import os
import sys
from pathlib import Path

import pytest
from batch_files import INSTRUCTION, NAMES, pictures, save_picture

from spotedit.batch.inputs import find_pictures
from spotedit.batch.jobs import Job, check_outputs, jobs_of_list, jobs_of_pictures, mask_for
from spotedit.batch.lists import read_list
from spotedit.editor.errors import BadInput


def found(inputs, out):
    return [
        picture.name.as_posix() for picture in find_pictures(list(map(str, inputs)), out).pictures
    ]


# -- folders, patterns and files


def test_a_folder_is_searched_in_natural_order(photos, out):
    assert found([photos], out) == [
        "beach/b & <c>.png",
        "beach/ünï 1.jpg",
        "IMG_2.png",
        "IMG_10.png",
    ]


def test_what_a_folder_is_searched_for(photos):
    for name in (".hidden.png", ".trash/a.png", "out/old.png", "raw.cr2", "notes.txt"):
        save_picture(photos / "x.png", 0)
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / "x.png").rename(photos / name)
    result = find_pictures([str(photos)], photos / "out")
    assert {picture.name.as_posix() for picture in result.pictures} == set(NAMES)
    assert result.ignored == {".cr2": 1, ".txt": 1}


def test_a_pattern_keeps_the_folders_after_its_fixed_part(photos, out):
    pattern = f"{photos}/**/*.png"
    assert found([pattern], out) == ["beach/b & <c>.png", "IMG_2.png", "IMG_10.png"]
    assert found([f"{photos}/beach/*"], out) == ["b & <c>.png", "ünï 1.jpg"]


def test_a_pattern_does_not_find_outputs(photos):
    save_picture(photos / "out" / "old.png", 0)
    assert "out/old.png" not in found([f"{photos}/**/*.png"], photos / "out")


def test_several_folders_keep_their_names(photos, out, tmp_path):
    save_picture(tmp_path / "more" / "IMG_2.png", 9)
    names = found([photos, tmp_path / "more", photos / "IMG_10.png"], out)
    assert {"photos/IMG_2.png", "more/IMG_2.png", "IMG_10.png"} <= set(names)


def test_a_picture_that_is_named_twice_is_edited_once(photos, out):
    assert found([photos / "IMG_2.png", photos / "IMG_2.png"], out) == ["IMG_2.png"]


def test_a_folder_that_cannot_be_read_is_reported(photos, out, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("beach"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BadInput, match=r"beach: cannot be read \(Permission denied\)"):
        find_pictures([str(photos)], out)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["nowhere"], "no such file or folder"),
        (["nowhere/*.png"], "matches no picture"),
        (["empty"], "no pictures there"),
        (["out"], "is the folder of the outputs"),
        (["notes.txt"], "expected one of .png"),
    ],
)
def test_inputs_that_name_nothing(tmp_path, monkeypatch, inputs, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadInput, match=message):
        find_pictures(inputs, tmp_path / "out")


# -- outputs


def jobs_for(photos, out, suffix=None):
    return jobs_of_pictures(
        find_pictures([str(photos)], out).pictures, INSTRUCTION, 0, None, suffix
    )


@pytest.mark.parametrize("other", ["IMG_2.jpg", "img_2.PNG", "IMG_2.tif"])
def test_two_pictures_with_the_same_output_are_refused(photos, out, other):
    save_picture(photos / "a.jpg", 1)
    (photos / "a.jpg").rename(photos / other)
    with pytest.raises(BadInput, match=r"IMG_2.* would both become"):
        check_outputs(jobs_for(photos, out, ".png"), out)


def test_names_in_two_unicode_forms_are_one_name(photos, out):
    for name in ("\u00e9.png", "e\u0301.png"):
        save_picture(photos / name, 1)
    if len(list(photos.glob("*.png"))) < 4:
        pytest.skip("this file system takes both names for one")
    with pytest.raises(BadInput, match="would both become"):
        check_outputs(jobs_for(photos, out), out)


def test_an_output_on_an_input_is_refused(photos):
    jobs = jobs_of_pictures(
        find_pictures([str(photos / "IMG_2.png")], photos).pictures, INSTRUCTION, 0
    )
    with pytest.raises(BadInput, match="is a picture to be edited"):
        check_outputs(jobs, photos)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_out_of_the_folder_is_refused(photos, out, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    out.mkdir()
    (out / "beach").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="a link leads out"):
        check_outputs(jobs_for(photos, out), out)


def test_an_output_on_a_mask_is_refused(photos):
    mask = photos / "mask.png"
    job = Job(photos / "IMG_2.png", "mask.png", INSTRUCTION, 0, mask)
    with pytest.raises(BadInput, match="is a picture to be edited, or a mask"):
        check_outputs([job], photos)


@pytest.mark.parametrize("length", [123, 124])
def test_a_name_that_is_too_long_for_a_report(tmp_path, length):
    name = f"{'ü' * length}.png"
    job = Job(tmp_path / name, name, INSTRUCTION, 0)
    if length == 123:
        check_outputs([job], tmp_path / "out")
        return
    with pytest.raises(BadInput, match="a name of more than 250 bytes"):
        check_outputs([job], tmp_path / "out")


@pytest.mark.parametrize("name", ["IMG_2.png", "IMG_2.JPG", "IMG_2.PNG", "IMG_2.webp"])
def test_the_mask_of_a_picture_in_a_folder(tmp_path, name):
    (tmp_path / name).touch()
    assert mask_for(Path("IMG_2.JPG"), tmp_path) == tmp_path / name


# -- lists


def listed(tmp_path, text, name="list.csv", instruction=None, suffix=None):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    entries, unused = read_list(path)
    return jobs_of_list(entries, tmp_path, instruction, 7, suffix=suffix), unused


CSV = """\
image,instruction,mask,seed,output
a.png,add a hat,m.png,3,hats/first
b.jpg,"one, two",,,
"""


@pytest.mark.parametrize(
    "text",
    [
        CSV,
        CSV.encode("utf-8-sig"),
        CSV.replace("\n", "\r\n"),
        CSV.replace(",", ";").replace("one;", "one,"),
    ],
    ids=["plain", "byte order mark", "Windows", "semicolons"],
)
def test_a_csv_list(tmp_path, text):
    (first, second), unused = listed(tmp_path, text)
    assert first.image == tmp_path / "a.png"
    assert (first.instruction, first.seed, first.mask) == ("add a hat", 3, tmp_path / "m.png")
    assert first.output == "hats/first.png"
    assert first.listed == {"instruction", "mask", "seed"}
    assert (second.instruction, second.seed, second.mask) == ("one, two", 7, None)
    assert second.output == "b.jpg"
    assert unused == []


def test_a_list_of_json_lines(tmp_path):
    lines = [
        {"image": "sub/ü.png", "seed": 5, "note": "x"},
        {"image": "../b.jpg", "instruction": "y"},
    ]
    text = "\n\n".join(map(json.dumps, lines))
    (first, second), unused = listed(tmp_path, text, "list.jsonl", instruction="z", suffix=".webp")
    assert (first.output, first.instruction, first.seed) == ("sub/ü.webp", "z", 5)
    assert (second.output, second.instruction) == ("b.webp", "y")
    assert second.image == tmp_path / "../b.jpg"
    assert unused == ["note"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line names the columns"),
        ("picture\na.png\n", "expected image"),
        ("image\n", "has no rows"),
        ("image,instuction\na.png,x\n", "did you mean 'instruction'"),
        ("image,instruction\n,x\n", "list.csv:2: image is missing"),
        ("image,instruction\na.png,x,y\n", "more fields than the 2 columns"),
        ("image,instruction\n.,x\n", "image is '.'; expected a picture file"),
        ("image,instruction\na/..,x\n", "image is 'a/..'; expected a picture file"),
        ("image,seed\na.png,-1\n", "seed is '-1'"),
        ("image,seed\na.png,1.5\n", "seed is '1.5'"),
        ("image\na.png\n", "list.csv:2: no instruction"),
        ("image,instruction,output\na.png,x,../b.png\n", "stays in the folder"),
        ("image,instruction,output\na.png,x,/b.png\n", "stays in the folder"),
        ("image,instruction,output\na.png,x,C:\\b.png\n", "stays in the folder"),
        ("image,instruction,output\na.png,x,..\\b.png\n", "stays in the folder"),
        (b"image,instruction\na.png,\xff\n", "not in UTF-8"),
        ('image,instruction\n"a.png,x\n', "list.csv:"),
    ],
)
def test_a_csv_list_with_a_mistake(tmp_path, text, message):
    with pytest.raises(BadInput, match=message.replace(".", r"\.")):
        listed(tmp_path, text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "not JSON"),
        ("[1]", "expected an object"),
        ('{"image": 3}', "image is 3; expected a text"),
        ('{"image": "a", "seed": true}', "seed is True"),
        ('{"image": "a\\u0000b"}', "expected a text"),
    ],
)
def test_a_list_of_json_lines_with_a_mistake(tmp_path, line, message):
    with pytest.raises(BadInput, match=message):
        listed(tmp_path, f'{{"image": "x"}}\n{line}\n', "list.jsonl", instruction="x")


def test_all_mistakes_of_a_list_are_shown_at_once(tmp_path):
    with pytest.raises(BadInput) as error:
        listed(tmp_path, "image,seed\n" + "a.png,x\n" * 12, instruction="x")
    lines = str(error.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "... and 2 more lines"


# -- the command


def test_a_long_instruction(run, photos, out):
    instruction = "add a hat " * 30  # longer than the name of a file can be
    assert run(photos / "IMG_2.png", instruction) == 0
    assert set(pictures(out)) == {"IMG_2.png"}


def test_the_command_keeps_sub_folders_and_formats(run, photos, out):
    assert run(photos, INSTRUCTION) == 0
    assert set(pictures(out)) == set(NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "expected the instruction"),
        (["photos/IMG_2.png", "photos/IMG_10.png"], "expected the instruction"),
        (["photos/IMG_2.png", "photos/IMG_99.png"], "expected the instruction"),
        (["photos", " "], "instruction is empty"),
        ([], "name pictures"),
        (["list.csv", "photos", INSTRUCTION], "a list is the only input"),
        (["photos", "list.csv"], "a list is the only input"),
        (["photos", INSTRUCTION, "--mask", "nowhere"], "--mask nowhere"),
        (["photos", INSTRUCTION, "--threshold", "-1"], "threshold"),
    ],
)
def test_bad_input_is_found_before_the_model_is_loaded(
    run, model, photos, out, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert model == []
    assert not out.exists()
