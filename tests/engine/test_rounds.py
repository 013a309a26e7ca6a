"""Rounds: calls of a session equal calls of their own, and encode the source once."""

import copy
import functools
import threading

import numpy as np
import pytest
import small_kontext
import torch
from diffusers import FluxKontextPipeline
from families import FAMILIES, each_family, each_family_that
from families.offload import OFFLOAD, each_vae_and_way_to_offload
from live_tensors import held_bytes
from small_kontext import STOCK_SIZE, guidance, random_kontext
from torch import nn
from traces import traces

import spotedit
from spotedit.editor.editor import Editor
from spotedit.editor.settings import EditorSettings
from spotedit.models.flux import DecoderPrefix
from spotedit.tiny.scenes import make_scene

SEEDS = (0, 1, 2)  # of three rounds: the instruction and the noise differ


call_arguments = functools.partial(small_kontext.call_arguments, num_inference_steps=4)


def arguments(family, seed=0, **extra):
    return family.arguments(seed, num_inference_steps=4, **extra)


def calls(family, seeds=SEEDS, **extra):
    """Return the arguments of calls that edit the pictures of the first one."""
    first = arguments(family, seeds[0], **extra)
    pictures = {key: first[key] for key in ("image", "mask_image") if key in first}
    return [{**arguments(family, seed, **extra), **pictures} for seed in seeds]


class Work:
    """Counts the encodings and the copies of the decoder's layers since the last `read`."""

    def __init__(self, pipe, monkeypatch):
        self.encodings = self.copies = 0
        pipe.vae.encoder.register_forward_hook(self._encoded)
        init = DecoderPrefix.__init__

        def counted(*args, **kwargs):
            self.copies += 1
            init(*args, **kwargs)

        monkeypatch.setattr(DecoderPrefix, "__init__", counted)

    def _encoded(self, *args):
        self.encodings += 1

    def read(self):
        found = self.encodings, self.copies
        self.encodings = self.copies = 0
        return found


def state(arguments):
    generator = arguments.get("generator")
    return None if generator is None else generator.get_state()


def assert_same_rounds(pipe, handle, make_calls, monkeypatch):
    """Make the calls each by itself, then in a session; return the work of each of these."""
    expected = [(pipe(**call).images, state(call)) for call in make_calls()]
    assert not torch.equal(expected[0][0], expected[1][0])
    work, found = Work(pipe, monkeypatch), []
    with handle.session(make_calls()[0]["image"]) as session:
        for call, (images, generator_state) in zip(make_calls(), expected, strict=True):
            assert torch.equal(pipe(**call).images, images)
            assert generator_state is None or torch.equal(state(call), generator_state)
            found.append(work.read())
            assert session.nbytes > 0
    assert session.nbytes == 0
    return found


@each_family
def test_three_rounds_equal_three_calls_and_encode_once(name, monkeypatch):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    handle = spotedit.enable(pipe)
    first, *later = assert_same_rounds(pipe, handle, lambda: calls(family), monkeypatch)
    assert first >= (1, 1)
    assert later == [(0, 0), (0, 0)]
    assert handle.report.reason is None


@pytest.mark.full
@each_family_that(lambda family: family.guided)
def test_rounds_with_guidance_equal_calls_of_their_own(name, monkeypatch):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    handle = spotedit.enable(pipe, cache_dtype="int8")
    found = assert_same_rounds(
        pipe, handle, lambda: calls(family, SEEDS[:2], **family.guided), monkeypatch
    )
    assert found[1] == (0, 0)


@pytest.mark.full
@each_family_that(lambda family: family.batches)
def test_rounds_of_a_batch_equal_calls_of_their_own(name, monkeypatch):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    handle = spotedit.enable(pipe)
    found = assert_same_rounds(pipe, handle, lambda: calls(family, SEEDS[:2], batch=2), monkeypatch)
    assert found[1] == (0, 0)


@each_vae_and_way_to_offload
def test_rounds_of_an_offloaded_pipeline_encode_once(name, how, monkeypatch):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    OFFLOAD[how](pipe)
    handle = spotedit.enable(pipe)
    found = assert_same_rounds(pipe, handle, lambda: calls(family), monkeypatch)
    assert found[1:] == [(0, 0), (0, 0)]


@pytest.mark.full
def test_every_reference_is_kept_by_itself(monkeypatch):
    """A new second reference is encoded, and the source is not."""
    family = FAMILIES["QwenImageEditPlusPipeline"]
    pipe = family.make(0)
    source, *others = (arguments(family, seed)["image"][0] for seed in (0, 1, 2))

    def rounds():
        return [
            {**arguments(family, seed), "image": [other, source]}
            for seed, other in ((0, others[0]), (1, others[0]), (2, others[1]))
        ]

    handle = spotedit.enable(pipe)
    expected = [pipe(**call).images for call in rounds()]
    work = Work(pipe, monkeypatch)
    with handle.session(source):
        for call, images, encodings in zip(rounds(), expected, (2, 0, 1), strict=True):
            assert torch.equal(pipe(**call).images, images)
            assert work.read()[0] == encodings


@pytest.mark.full
def test_a_new_mask_of_an_inpainting_pipeline_is_not_taken_for_the_old_one():
    family = FAMILIES["Flux2KleinInpaintPipeline"]
    pipe = family.make(0)
    handle = spotedit.enable(pipe)
    mask = arguments(family)["mask_image"]

    def rounds():
        first, second = calls(family, (0, 1))
        return [first, second, {**second, "mask_image": mask.transpose(0)}]

    expected = [pipe(**call).images for call in rounds()]
    with handle.session(rounds()[0]["image"]):
        for call, images in zip(rounds(), expected, strict=True):
            assert torch.equal(pipe(**call).images, images)
    assert not torch.equal(expected[1], expected[2])


# -- what belongs to a session


def test_another_picture_is_a_fresh_call_and_displaces_nothing(pipe, monkeypatch):
    handle = spotedit.enable(pipe)
    source, other = call_arguments(0)["image"], call_arguments(5)["image"]
    expected = [pipe(**call_arguments(1, image=image)).images for image in (source, other)]
    work = Work(pipe, monkeypatch)
    with handle.session(source) as session:
        for image, number, is_fresh in ((source, 0, 1), (other, 1, 1), (source, 0, 0)):
            kept = session.nbytes
            assert torch.equal(pipe(**call_arguments(1, image=image)).images, expected[number])
            assert work.read() == (is_fresh, is_fresh)
            if number:
                assert session.nbytes == kept
                assert handle.report.seconds_saved is None


def test_a_source_that_was_painted_over_is_encoded_again(pipe):
    handle = spotedit.enable(pipe)
    source = call_arguments(0)["image"].clone()
    with handle.session(source) as session:
        pipe(**call_arguments(1, image=source))
        kept = session.nbytes
        source[..., :16] = 0
        images = pipe(**call_arguments(1, image=source)).images
        assert session.nbytes == kept  # the old one is gone
    assert torch.equal(images, pipe(**call_arguments(1, image=source)).images)


def test_an_equal_copy_of_the_source_is_the_source(monkeypatch):
    family = FAMILIES["QwenImageEditPipeline"]
    pipe = family.make(0)
    handle, (picture,) = spotedit.enable(pipe), arguments(family)["image"]
    work = Work(pipe, monkeypatch)
    with handle.session(np.asarray(picture)):
        pipe(**arguments(family, image=picture))
        pipe(**arguments(family, image=picture.copy()))
    assert work.read() == (2, 2)  # an array is no PIL image
    with handle.session(picture):
        pipe(**arguments(family, image=picture))
        pipe(**arguments(family, image=picture.copy()))
    assert work.read() == (1, 1)


CHANGES = {
    "written": lambda pipe: pipe.vae.encoder.conv_in.weight.mul_(2),
    "loaded": lambda pipe: pipe.vae.load_state_dict(random_kontext(7).vae.state_dict()),
    "replaced": lambda pipe: setattr(pipe, "vae", random_kontext(7).vae),
    "assigned": lambda pipe: assign(pipe.vae, random_kontext(7).vae),
    "tiled": lambda pipe: pipe.vae.enable_tiling(),
    "tiled under a compiled one": lambda pipe: pipe.vae._orig_mod.enable_tiling(),
    "encodes differently": lambda pipe: darken(pipe.vae),
}


def assign(vae, other):
    """Replace all parameters by new ones, which were written as often."""
    for name, parameter in other.named_parameters():
        module = vae.get_submodule(name.rpartition(".")[0])
        copied = nn.Parameter(parameter.detach().clone(), False)
        while copied._version < vae.get_parameter(name)._version:
            copied.add_(0)
        setattr(module, name.rpartition(".")[2], copied)


def darken(vae):
    stock = vae.encode
    vae.encode = lambda pixels, **options: stock(pixels / 2, **options)


@pytest.mark.parametrize(
    "change",
    [pytest.param(c, marks=[pytest.mark.full] if "compiled" in c else []) for c in CHANGES],
)
@torch.no_grad()
def test_a_changed_vae_is_noticed(pipe, change, monkeypatch):
    handle, call = spotedit.enable(pipe), call_arguments
    if "compiled" in change:
        pipe.vae = torch.compile(pipe.vae, backend="eager")
    with handle.session(call()["image"]):
        pipe(**call())
        CHANGES[change](pipe)
        work = Work(pipe, monkeypatch)
        images = pipe(**call()).images
        assert work.read()[0] >= 1
    assert torch.equal(images, pipe(**call()).images)


def test_what_was_made_with_autocast_is_not_used_without(pipe):
    handle, call = spotedit.enable(pipe), call_arguments

    def edit(is_enabled):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_enabled):
            return pipe(**call()).images

    expected = [edit(False), edit(True)]
    with handle.session(call()["image"]):
        for is_enabled in (False, True, False):
            assert torch.equal(edit(is_enabled), expected[is_enabled])


class HasVaeAsProperty(FluxKontextPipeline):
    @property
    def vae(self):
        return vars(self)["autoencoder"]


def test_a_pipeline_class_may_have_a_property_for_its_vae(pipe, monkeypatch):
    """It encodes anew in every round; the judge's layers are kept."""
    expected = pipe(**call_arguments(**STOCK_SIZE)).images
    pipe.__class__ = HasVaeAsProperty
    vars(pipe)["autoencoder"] = vars(pipe).pop("vae")
    assert torch.equal(pipe(**call_arguments(**STOCK_SIZE)).images, expected)
    handle, call = spotedit.enable(pipe), call_arguments
    found = assert_same_rounds(
        pipe, handle, lambda: [call(0), call(1, image=call(0)["image"])], monkeypatch
    )
    assert found == [(1, 1), (1, 0)]
    vars(pipe)["autoencoder"] = random_kontext(7).vae
    with handle.session(call()["image"]):
        images = pipe(**call()).images
    assert torch.equal(images, pipe(**call()).images)


def test_the_innermost_session_counts_and_the_outer_one_comes_back(pipe, monkeypatch):
    handle = spotedit.enable(pipe)
    first, second = call_arguments(0)["image"], call_arguments(5)["image"]
    work = Work(pipe, monkeypatch)

    def edit(image):
        pipe(**call_arguments(1, image=image))
        return work.read()[0]

    with handle.session(first):
        assert edit(first) == 1
        with handle.session(second):
            assert [edit(second), edit(second), edit(first), edit(first)] == [1, 0, 1, 1]
        assert edit(first) == 0
    assert edit(first) == 1
    with handle.session(first):
        assert [edit(first), edit(first)] == [1, 0]


def test_a_session_is_used_once_and_by_its_own_handle(pipe):
    handle = spotedit.enable(pipe)
    session = handle.session(call_arguments()["image"])
    with session, pytest.raises(RuntimeError, match=r"handle\.session"), session:
        pass
    with pytest.raises(RuntimeError, match=r"handle\.session"), session:
        pass
    other = spotedit.enable(random_kontext())
    with pytest.raises(ValueError, match="another handle"), other.call(session=session):
        pass


def test_a_session_of_something_else_than_pictures_is_refused(pipe):
    handle = spotedit.enable(pipe)
    for image in (None, [], "dog.png", [torch.zeros(1, 3, 8, 8), "dog.png"]):
        with pytest.raises(TypeError, match="expected a PIL image"):
            handle.session(image)


def test_a_session_without_a_block_serves_calls_of_any_thread(pipe, monkeypatch):
    handle = spotedit.enable(pipe)
    expected, found = pipe(**call_arguments(1)).images, []
    work, session = Work(pipe, monkeypatch), handle.session(call_arguments(1)["image"])

    def edit():
        with handle.call(session=session):
            found.append(pipe(**call_arguments(1)).images)

    for _ in range(2):
        thread = threading.Thread(target=edit)
        thread.start()
        thread.join()
    assert work.read() == (1, 1)
    assert all(torch.equal(images, expected) for images in found)
    assert len(found) == 2
    session.close()
    edit()
    assert work.read() == (1, 1)
    assert session.nbytes == 0


def test_the_block_of_another_thread_has_no_effect(pipe, monkeypatch):
    handle, work = spotedit.enable(pipe), Work(pipe, monkeypatch)
    with handle.session(call_arguments()["image"]):
        for _ in range(2):
            thread = threading.Thread(target=lambda: pipe(**call_arguments()))
            thread.start()
            thread.join()
    assert work.read() == (2, 2)


# -- what remains


def hold(pipe):
    return set(vars(pipe)), type(pipe), traces(pipe.transformer, pipe.vae, pipe.scheduler)


def test_after_the_block_nothing_remains(pipe):
    pipe(**call_arguments(**STOCK_SIZE))
    before = hold(pipe)
    handle = spotedit.enable(pipe)
    sibling = copy.copy(pipe)
    with handle.session(call_arguments()["image"]):
        vae = pipe.vae
        pipe(**call_arguments())
        pipe(**call_arguments(1, image=call_arguments()["image"]))
        assert pipe.vae is vae
        assert "_spotedit_encode" not in dir(vae)
        assert sibling.vae is vae
    handle.disable()
    assert hold(pipe) == before


def test_other_pipelines_that_share_the_vae_see_nothing(pipe, monkeypatch):
    handle, sibling = spotedit.enable(pipe), copy.copy(pipe)
    sibling.set_progress_bar_config(disable=True)
    expected = sibling(**call_arguments(**STOCK_SIZE)).images
    work, found = Work(pipe, monkeypatch), []

    def call_the_sibling(step):
        assert type(sibling.vae).encode is type(vae).encode
        if step.index == 1:
            work.read()
            found.append(sibling(**call_arguments(**STOCK_SIZE)).images)
            found.append(work.read()[0])

    vae = pipe.vae
    with handle.session(call_arguments()["image"]) as session:
        pipe(**call_arguments())
        with handle.call(on_step=call_the_sibling):
            pipe(**call_arguments())
        kept = session.nbytes
    assert torch.equal(found[0], expected)
    assert found[1] == 1
    assert kept > 0


def test_an_exception_in_a_round_leaves_the_encoding_for_the_next(pipe, monkeypatch):
    handle = spotedit.enable(pipe)
    expected = pipe(**call_arguments()).images
    work = Work(pipe, monkeypatch)

    def stop(step):
        raise KeyboardInterrupt

    with handle.session(call_arguments()["image"]):
        with handle.call(on_step=stop), pytest.raises(KeyboardInterrupt):
            pipe(**call_arguments())
        assert work.read() == (1, 1)
        assert torch.equal(pipe(**call_arguments()).images, expected)
        assert work.read() == (0, 0)


def test_an_exception_before_the_loop_keeps_what_was_kept(pipe, monkeypatch):
    handle, encode = spotedit.enable(pipe), type(pipe.vae).encode
    work = Work(pipe, monkeypatch)

    def fail(*args, **kwargs):
        encode(*args, **kwargs)
        raise torch.OutOfMemoryError

    with handle.session(call_arguments()["image"]) as session:
        pipe(**call_arguments())
        kept = session.nbytes
        work.read()
        pipe.vae.enable_tiling()
        with monkeypatch.context() as patch:
            patch.setattr(type(pipe.vae), "encode", fail)
            with pytest.raises(torch.OutOfMemoryError):
                pipe(**call_arguments())
        pipe.vae.disable_tiling()
        assert session.nbytes == kept
        work.read()
        pipe(**call_arguments())
        assert work.read() == (0, 0)


def test_disable_in_the_block_frees_what_is_kept(pipe):
    stock = pipe(**call_arguments(**STOCK_SIZE)).images
    handle = spotedit.enable(pipe)
    with handle.session(call_arguments()["image"]) as session:
        pipe(**call_arguments())
        assert session.nbytes > 0
        spotedit.disable(pipe)
        assert session.nbytes == 0
        assert torch.equal(pipe(**call_arguments(**STOCK_SIZE)).images, stock)
        assert session.nbytes == 0


def test_a_cleared_or_closed_session_takes_nothing_from_a_call_that_still_runs(pipe):
    handle = spotedit.enable(pipe)
    session = handle.session(call_arguments()["image"])
    for free in (session.clear, session.close):
        with handle.call(session=session):
            pipe(**call_arguments())
        assert session.nbytes > 0
        with handle.call(session=session, on_step=lambda step, free=free: free()):
            pipe(**call_arguments())
        assert session.nbytes == 0


@pytest.mark.full
def test_the_bytes_are_those_that_are_held_and_do_not_grow(pipe, only_new_tensors):
    handle, source = spotedit.enable(pipe), call_arguments()["image"]
    pipe(**call_arguments())
    handle.report = None
    before, sizes = held_bytes(), set()
    with handle.session(source) as session:
        for seed in range(3):
            pipe(**call_arguments(seed, image=source))
            handle.report = None
            sizes.add(session.nbytes)
        assert held_bytes() - before == pytest.approx(session.nbytes, rel=0.01)
        assert len(sizes) == 1
    assert held_bytes() == before


# -- what is reported


def test_the_report_says_how_long_the_work_that_was_spared_had_taken(pipe, monkeypatch):
    handle, clock = spotedit.enable(pipe), [0.0]
    encode, init = type(pipe.vae).encode, DecoderPrefix.__init__

    def slow(function, seconds):
        def wrapper(*args, **kwargs):
            clock[0] += seconds
            return function(*args, **kwargs)

        return wrapper

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(type(pipe.vae), "encode", slow(encode, 10.0))
    monkeypatch.setattr(DecoderPrefix, "__init__", slow(init, 1.0))
    pipe(**call_arguments())
    assert handle.report.seconds_saved is None
    saved = []
    with handle.session(call_arguments()["image"]):
        for _ in range(2):
            pipe(**call_arguments())
            saved.append(handle.report.seconds_saved)
        assert handle.report.to_dict()["seconds_saved"] == saved[-1]
        handle.set_mask(torch.ones(6, 8), mode="replace")  # nothing is judged
        pipe(**call_arguments())
        saved.append(handle.report.seconds_saved)
        handle.set_mask(None)
        pipe(**call_arguments())
        saved.append(handle.report.seconds_saved)
    assert saved == [0.0, 11.0, 10.0, 11.0]


def test_a_preview_makes_the_encoding_of_the_edit_that_follows(monkeypatch):
    family = FAMILIES["FluxKontextPipeline"]
    pipe = family.make(0)
    handle, work = spotedit.enable(pipe), Work(pipe, monkeypatch)
    expected = pipe(**arguments(family)).images
    preview = handle.preview(**arguments(family))
    work.read()
    with handle.session(arguments(family)["image"]):
        again = handle.preview(**arguments(family))
        assert work.read() == (1, 1)
        assert torch.equal(pipe(**arguments(family)).images, expected)
        assert work.read() == (0, 0)
    assert (again.scores == preview.scores).all()


def test_under_inference_mode_and_with_guidance(pipe, monkeypatch):
    handle, work = spotedit.enable(pipe), Work(pipe, monkeypatch)
    expected = pipe(**call_arguments(**guidance(2.0))).images
    work.read()
    with handle.session(call_arguments()["image"]):
        with torch.inference_mode():
            pipe(**call_arguments(**guidance(2.0)))
            images = pipe(**call_arguments(**guidance(2.0))).images
        assert torch.equal(images, expected)
        assert work.read()[0] == 1
        assert torch.equal(pipe(**call_arguments(**guidance(2.0))).images, expected)


@pytest.mark.full
def test_an_editor_has_sessions(monkeypatch):
    settings = EditorSettings(model="tiny", arguments={"num_inference_steps": 3})
    scene = make_scene(0, kind="recolour")
    with Editor(settings) as editor:
        work = Work(editor.pipe, monkeypatch)
        expected = editor.edit(scene.source_image, scene.instruction).picture
        work.read()
        session = editor.session(scene.source_image)
        for given in ({"session": session}, {"session": session}):
            found = editor.edit(scene.source_image.copy(), scene.instruction, **given)
            assert found.picture == expected
        assert work.read() == (1, 1)
        with editor.session(scene.source_image):
            for _ in range(2):
                editor.edit(scene.source_image, scene.instruction)
        assert work.read() == (1, 1)
