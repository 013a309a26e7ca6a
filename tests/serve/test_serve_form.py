"""`POST /v1/images/edits`: the form, the answer, and what is refused."""

import struct
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from serving import (
    PATH,
    SETTINGS,
    client_of,
    encoded,
    error,
    form,
    picture,
    pictures,
    random_editor,
    same,
)
from small_kontext import HEIGHT, WIDTH

from spotedit.editor.errors import BadInput
from spotedit.serve.fields import EditForm
from spotedit.serve.pictures import encode, read_mask, size_arguments

MAX_PIXELS = 100 * 100
LIMITS = replace(SETTINGS, max_bytes=200_000, max_pixels=MAX_PIXELS, max_prompt=50, max_pictures=3)


@pytest.fixture(scope="module")
def editor():
    with pytest.MonkeyPatch.context() as monkeypatch:
        return random_editor(monkeypatch)


@pytest.fixture(scope="module")
def client(editor):
    with client_of(editor, LIMITS) as client:
        yield client


@pytest.fixture(scope="module")
def edited(editor):
    """Return the edit of the usual form."""
    return editor.edit(picture(), "add a hat")


@pytest.fixture
def post(client):
    """Return a function that posts a form; see `serving.form`."""
    return lambda **arguments: client.post(PATH, **form(**arguments))


# -- what the answer holds


def test_the_picture_is_the_editors_own(post, editor, monkeypatch):
    encoded_prompts = []
    encode_prompt = editor.pipe.encode_prompt

    def noting_encode_prompt(**arguments):
        encoded_prompts.append(arguments["prompt"])
        return encode_prompt(**arguments)

    monkeypatch.setattr(editor.pipe, "encode_prompt", noting_encode_prompt)
    (answered,) = pictures(post(prompt="füge\0 einen Schal hinzu", seed=3))
    assert encoded_prompts == ["füge\0 einen Schal hinzu"]
    assert answered.format == "PNG"
    assert same(answered, editor.edit(picture(), "add a scarf", seed=3).picture)


def test_n_pictures_have_successive_seeds_and_share_a_session(post, editor, monkeypatch):
    sessions = []
    session = editor.session
    monkeypatch.setattr(
        editor, "session", lambda image: sessions.append(session(image)) or sessions[-1]
    )
    answer = post(n=3, seed=5)
    assert len(sessions) == 1
    expected = [editor.edit(picture(), "add a hat", seed=seed).picture for seed in (5, 6, 7)]
    assert all(map(same, pictures(answer), expected))
    assert not same(expected[0], expected[1])
    assert [item["seed"] for item in answer.json()["spotedit"]["images"]] == [5, 6, 7]


def test_without_a_seed_it_is_random_and_said(post, editor):
    answers = [post(seed=None) for _ in range(2)]
    seeds = [answer.json()["spotedit"]["images"][0]["seed"] for answer in answers]
    assert seeds[0] != seeds[1]
    (answered,) = pictures(answers[0])
    assert same(answered, editor.edit(picture(), "add a hat", seed=seeds[0]).picture)


def test_the_answer_has_the_figures_of_the_report(post, edited):
    answer = post().json()
    report = edited.report
    (figures,) = answer["spotedit"]["images"]
    assert figures["r"] == report.mean_ratio
    assert figures["work_saved"] == report.flops_saved
    assert sum(figures["steps"].values()) == len(report.steps)
    assert figures["doubts"] == report.doubts
    assert figures["seconds"] > 0
    assert answer["spotedit"]["model"] == "random"
    assert answer["size"] == f"{WIDTH}x{HEIGHT}"
    assert answer["created"] > 1_700_000_000


@pytest.mark.parametrize(
    ("fields", "image_format", "lossless"),
    [
        ({"output_format": "png"}, "PNG", True),
        ({"output_format": "webp"}, "WEBP", True),
        ({"output_format": "webp", "output_compression": 50}, "WEBP", False),
        ({"output_format": "jpeg"}, "JPEG", False),
    ],
)
def test_output_formats(fields, image_format, lossless):
    sent = Image.open(BytesIO(encode(picture(), EditForm(prompt="-", **fields))))
    assert sent.format == image_format
    assert same(sent, picture()) == lossless


def test_output_compression_is_the_quality_of_a_jpeg():
    fields = {"prompt": "-", "output_format": "jpeg"}
    low, high, default = (
        encode(picture(), EditForm(**fields, output_compression=quality))
        for quality in (5, 95, None)
    )
    assert len(low) < len(high) == len(default)


def test_a_size_is_given_to_the_pipeline(post, editor):
    answer = post(size="64x32", keep=None)
    (answered,) = pictures(answer)
    assert answered.size == (64, 32)
    assert answer.json()["size"] == "64x32"
    size = {"height": 32, "width": 64, "max_area": 32 * 64}
    assert same(answered, editor.edit(picture(), "add a hat", arguments=size).picture)


def test_a_size_that_the_pipeline_does_not_take_is_refused():
    class Pipeline:
        def __call__(self, image, prompt): ...

    assert size_arguments(Pipeline(), None) == {}
    with pytest.raises(BadInput, match="size is 64x32, but this model chooses the size itself"):
        size_arguments(Pipeline(), (32, 64))


def test_the_original_comes_back_at_its_own_size_outside_the_region(post, editor):
    original = picture(width=WIDTH + 5, height=HEIGHT + 3)
    mask = Image.new("L", original.size)
    mask.paste(255, (16, 16, 32, 32))
    files = {"image": encoded(original), "mask": encoded(mask)}
    answer = post(**files, mask_mode="replace", keep=None)
    (answered,) = pictures(answer)
    edited = editor.edit(original, "add a hat", mask=mask, mask_mode="replace")
    assert same(answered, edited.report.composite(original, edited.picture))
    assert answered.size == original.size
    differs = np.any(np.asarray(answered) != np.asarray(original), axis=-1)
    assert differs[20:28, 20:28].any()
    assert not differs[:, 48:].any()
    assert answer.json()["spotedit"]["images"][0]["kept"] == "original"


def test_an_edit_without_a_place_in_the_original_comes_back_as_the_model_made_it(
    post, edited, monkeypatch
):
    def composite(report, original, edited):
        raise ValueError("the output cannot be placed on the source picture")

    monkeypatch.setattr("spotedit.report.EditReport.composite", composite)
    answer = post(keep="original")
    assert same(pictures(answer)[0], edited.picture)
    (figures,) = answer.json()["spotedit"]["images"]
    assert figures["kept"] == "model"
    assert "cannot be placed" in figures["kept_note"]


def test_a_narrow_picture_is_edited(post):
    assert pictures(post(image=encoded(picture(width=16, height=256))))[0].size == (16, 256)


def test_empty_fields_count_as_absent(post):
    answer = post(size="", n="", output_format="", user="", model="random")
    assert pictures(answer)[0].size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "MPO"])  # MPO: several JPEGs in a file
def test_input_formats_and_names_of_files_do_not_matter(client, image_format):
    arguments = form()
    data = encoded(picture(), image_format)
    arguments["files"] = {"image": ("../../etc/passwd", data, "application/octet-stream")}
    assert pictures(client.post(PATH, **arguments))


def test_the_array_form_of_one_image_is_taken(client):
    arguments = form()
    arguments["files"] = [("image[]", ("a.png", encoded(picture()), "image/png"))]
    assert pictures(client.post(PATH, **arguments))


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_photograph_is_turned_and_its_metadata_is_not_sent_back(post, output_format):
    exif = Image.Exif()
    exif[0x010E] = "at home"
    exif[0x0112] = 6  # a quarter turn
    data = encoded(picture(), "JPEG", exif=exif.tobytes())
    (answered,) = pictures(post(image=data, output_format=output_format, keep=None))
    assert answered.format == output_format.upper()
    assert answered.size == (HEIGHT, WIDTH)
    assert not answered.getexif()


# -- masks


def half_mask(mode: str, left: tuple, right: tuple) -> Image.Image:
    """Return a mask with one value in its left half and another in its right half."""
    mask = Image.new(mode, (WIDTH, HEIGHT), right)
    mask.paste(left, (0, 0, WIDTH // 2, HEIGHT))
    return mask


LEFT = np.arange(WIDTH) < WIDTH // 2 * np.ones((HEIGHT, 1))
TRANSPARENT_LEFT = half_mask("RGBA", (0, 0, 0, 0), (0, 0, 0, 255))
OPAQUE_LEFT = half_mask("RGBA", (9, 9, 9, 255), (0, 0, 0, 0))
WHITE_LEFT = half_mask("RGB", (255, 255, 255), (0, 0, 0))
OPAQUE_WHITE_LEFT = half_mask("RGBA", (255, 255, 255, 255), (0, 0, 0, 255))


@pytest.mark.parametrize(
    ("mask", "mask_alpha", "expected"),
    [
        (TRANSPARENT_LEFT, "transparent", LEFT),
        (OPAQUE_LEFT, "transparent", ~LEFT),
        (OPAQUE_LEFT, "opaque", LEFT),
        (WHITE_LEFT, "transparent", LEFT),
        (OPAQUE_WHITE_LEFT, "transparent", LEFT),
        (OPAQUE_WHITE_LEFT, "opaque", LEFT),
    ],
    ids=["hosted", "hosted, inverse", "painted", "white", "opaque and white", "painted in white"],
)
def test_which_pixels_of_a_mask_may_change(mask, mask_alpha, expected):
    assert np.array_equal(read_mask(mask, mask_alpha)[0].numpy(), expected)


def test_a_palette_with_a_transparent_entry_is_a_mask_with_transparency():
    palette = half_mask("P", 0, 1)
    palette.info["transparency"] = 0
    assert np.array_equal(read_mask(palette, "transparent")[0].numpy(), LEFT)


def test_the_mask_and_its_mode_reach_the_editor(post, editor):
    mask = encoded(TRANSPARENT_LEFT)
    answered = pictures(post(mask=mask, mask_mode="replace", seed=2))[0]
    expected = editor.edit(picture(), "add a hat", seed=2, mask=LEFT, mask_mode="replace")
    assert same(answered, expected.picture)
    assert not same(answered, pictures(post(seed=2))[0])


def test_a_mask_that_keeps_everything_is_noted(post):
    answer = post(mask=encoded(Image.new("L", (WIDTH, HEIGHT))))
    assert "keeps every token" in answer.json()["spotedit"]["images"][0]["mask_note"]


# -- what is refused


def header_of_png(width: int, height: int) -> bytes:
    """Return the start of a PNG file of this size, without pixels."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(content))
    pixels = struct.pack(">I", 0) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + content + checksum + pixels


def jpeg_of_many_scans() -> bytes:
    """Return a progressive JPEG of 64 x 48 pixels whose last scan is repeated a hundred times."""
    data = encoded(picture().convert("L"), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + 100 * last_scan + data[-2:]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": " \n"}, "prompt", "empty"),
        ({"prompt": "x" * 51}, "prompt", "51 characters; expected at most 50"),
        ({"n": 0}, "n", "'0'; input should be greater"),
        ({"n": 4}, "n", "4; expected 1 to 3"),
        ({"n": "many"}, "n", "integer"),
        ({"size": "big"}, "size", "expected auto, or width x height"),
        ({"size": "64"}, "size", "expected auto, or width x height"),
        ({"size": "-64x64"}, "size", "expected auto, or width x height"),
        ({"size": "9" * 5000 + "x16"}, "size", "..."),
        ({"size": "0x64"}, "size", "multiples of 16"),
        ({"size": "100x64"}, "size", "multiples of 16"),
        ({"size": "16x64"}, "size", "factor of 3"),
        ({"size": "4096x4096"}, "size", "expected at most 4194304 pixels"),
        ({"size": "64x64", "keep": "original"}, "size", "keep=model"),
        ({"seed": -1}, "seed", "greater"),
        ({"seed": 2**53}, "seed", "less"),
        ({"response_format": "url"}, "response_format", "keeps no pictures"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"output_compression": 101}, "output_compression", "less"),
        ({"background": "transparent"}, "background", "'auto' or 'opaque'"),
        ({"quality": "high"}, "quality", "'auto'"),
        ({"partial_images": 1}, "partial_images", "stream=true"),
        ({"keep": "all"}, "keep", "'original' or 'model'"),
        ({"mask_mode": "xor"}, "mask_mode", "'intersect'"),
        ({"model_path": "/etc"}, "model_path", "unknown"),
        ({"image_url": "http://example.org/a.png"}, "image_url", "unknown"),
    ],
)
def test_fields_that_are_refused(post, fields, param, message):
    content = error(post(**fields), 400)
    assert content["param"] == param
    assert message in content["message"]
    assert len(content["message"]) < 1000
    assert content["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no picture", "not a picture that Pillow can read (10 bytes); convert it to PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "convert it to PNG"),
        (encoded(picture(), "TIFF"), "convert it to PNG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "convert it to PNG"),
        (encoded(picture())[:300], "damaged or cut short"),
        (encoded(picture(width=101, height=100)), "101 x 100 pixels; expected at most 10000"),
        (header_of_png(12000, 12000), "12000 x 12000 pixels"),
        (header_of_png(60000, 60000), "too many pixels"),
        (jpeg_of_many_scans(), "scans; expected at most 100"),
    ],
    ids=["text", "eps", "tiff", "heic", "cut short", "too large", "bomb", "huge bomb", "scans"],
)
@pytest.mark.parametrize("name", ["image", "mask"])
def test_files_that_are_refused(post, name, data, message):
    content = error(post(**{name: data}), 400)
    assert content["param"] == name
    assert message in content["message"]


def test_a_bomb_is_refused_before_a_pixel_is_decoded(post, monkeypatch):
    def load(picture):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    error(post(image=header_of_png(12000, 12000)), 400)


def test_a_mask_of_another_aspect_is_refused(post):
    content = error(post(mask=encoded(Image.new("L", (WIDTH, WIDTH)))), 400)
    assert content["param"] == "mask"
    assert f"expected the aspect ratio of the image, {WIDTH} x {HEIGHT}" in content["message"]


@pytest.mark.parametrize("size", [(1, 1), (15, 64), (16, 257)])
def test_a_picture_without_room_for_a_token_is_refused(post, size):
    width, height = size
    content = error(post(image=encoded(picture(width=width, height=height))), 400)
    assert f"image is {width} x {height} pixels; expected sides" in content["message"]


@pytest.mark.parametrize("count", [0, 2, 16])
@pytest.mark.parametrize("name", ["image", "image[]"])
def test_one_image_is_expected(client, count, name):
    arguments = form()
    files = [(name, ("a.png", encoded(picture()), "image/png"))] * count
    arguments["files"] = files or {"mask": ("a.png", encoded(picture()), "image/png")}
    content = error(client.post(PATH, **arguments), 400)
    assert f"{count} images; expected one" in content["message"]


@pytest.mark.parametrize("text", ["/etc/passwd", "http://127.0.0.1:9/a.png", "data:image/png,"])
@pytest.mark.parametrize("name", ["image", "mask"])
def test_paths_and_addresses_are_not_opened(client, name, text):
    arguments = form()
    arguments["data"][name] = text
    content = error(client.post(PATH, **arguments), 400)
    assert content["code"] == "invalid_file"
    assert content["param"] == name


def test_an_unknown_file_is_refused(client):
    arguments = form()
    arguments["files"]["markup"] = ("a.png", encoded(picture()), "image/png")
    assert error(client.post(PATH, **arguments), 400)["param"] == "markup"


def test_a_repeated_field_is_refused(client):
    arguments = form()
    arguments["data"]["prompt"] = ["add a hat", "add a scarf"]
    assert "2 times" in error(client.post(PATH, **arguments), 400)["message"]


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "", "multipart/form-data; boundary=x; charset=punycode"],
)
def test_other_content_types_are_refused(client, content_type):
    answer = client.post(PATH, content=b"x", headers={"Content-Type": content_type})
    assert f"{content_type!r}; expected multipart/form-data" in error(answer, 415)["message"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"nonsense"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nno name\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b""),
    ],
)
def test_malformed_forms(client, content_type, body):
    error(client.post(PATH, content=body, headers={"Content-Type": content_type}), 400)


def test_a_request_with_too_many_fields_is_refused(client):
    arguments = form()
    arguments["data"] |= {f"x{number}": "1" for number in range(100)}
    assert "Too many fields" in error(client.post(PATH, **arguments), 400)["message"]


def test_a_body_that_announces_too_many_bytes_is_refused(post):
    content = error(post(image=bytes(LIMITS.max_bytes)), 413)
    assert f"more than {LIMITS.max_bytes} bytes" in content["message"]


def test_a_body_that_grows_too_large_is_refused_while_it_comes(client):
    request = client.build_request("POST", PATH, **form(image=bytes(LIMITS.max_bytes)))
    sent = 0

    def chunks():
        nonlocal sent
        for chunk in [request.read()[:5000]] * 1000:
            sent += len(chunk)
            yield chunk

    headers = {"Content-Type": request.headers["content-type"]}
    error(client.post(PATH, content=chunks(), headers=headers), 413)


def test_another_model_is_refused(post):
    content = error(post(model="gpt-image-1"), 404)
    assert content["code"] == "model_not_found"
    assert "this server has random" in content["message"]
