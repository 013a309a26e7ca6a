"""Tests of the toy world: its pictures, its instructions, and the nearest valid picture."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from spotedit.tiny.world import (
    CASES,
    KINDS,
    LOCAL_KINDS,
    Fit,
    Scene,
    make_scene,
    render,
    vocabulary,
)
from spotedit.tiny.world.fit import nearest_valid
from spotedit.tiny.world.palette import COLOURS
from spotedit.tiny.world.things import KINDS as THINGS
from spotedit.tiny.world.things import Thing
from spotedit.tiny.world.words import SYNONYMS, names

SIZE = 128


def noisy(picture: np.ndarray, spread: float = 5.0) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, spread, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def another_answer(scene: Scene, seed: int) -> np.ndarray:
    """Return another picture that obeys the scene's instruction, with other open numbers."""
    rng, world = np.random.default_rng(seed), scene.after
    for number in scene.opens:
        if number.field not in ("x", "y", "flip"):  # these could make it hide another object
            value = float(rng.uniform(number.low, number.high))
            thing = replace(world.things[number.index], **{number.field: value})
            world = world.having(number.index, thing)
    return render(world, SIZE)


@pytest.mark.parametrize("split", ["train", "easy", "hard"])
def test_scenes_are_deterministic_and_the_mask_is_what_changes(split):
    kinds = set()
    for seed in range(40):
        scene, again = (make_scene(seed, size=64, split=split) for _ in range(2))
        assert np.array_equal(scene.source, again.source)
        assert np.array_equal(scene.target, again.target)
        assert scene.instruction == again.instruction
        assert scene.source.shape == (64, 64, 3)
        assert scene.source.dtype == np.uint8
        assert np.array_equal(scene.mask, (scene.source != scene.target).any(axis=-1))
        assert scene.mask.any()
        assert scene.case in (
            ("", *CASES) if split == "train" else CASES if split == "hard" else ""
        )
        kinds.add(scene.kind)
    assert len(kinds) >= 5
    other = make_scene(0, size=64, split="hard" if split == "easy" else "easy")
    assert not np.array_equal(other.source, make_scene(0, size=64, split=split).source)


@pytest.mark.parametrize("kind", KINDS)
def test_instructions_use_known_words_only(kind):
    known = set(vocabulary())
    for seed in range(40):
        words = make_scene(seed, kind, size=32).instruction.split()
        assert set(words) <= known
        assert len(words) < 16  # leaves room for the token that ends the sentence
        assert all(a != "a" or b[0] not in "aeiou" for a, b in pairwise(words))


def things_meant_by(name: str, things: tuple[Thing, ...]) -> list[Thing]:
    """Return the objects that a name of one or two words can mean."""
    *adjectives, kind = name.split()
    of_kind = sorted((thing for thing in things if thing.kind == kind), key=lambda thing: thing.x)
    if not adjectives:
        return of_kind
    by_height = sorted(of_kind, key=lambda thing: thing.height)
    by_adjective = {
        "left": of_kind[:1], "right": of_kind[-1:], "middle": of_kind[1:-1],
        "small": by_height[:1], "big": by_height[-1:],
    }  # fmt: skip
    (adjective,) = adjectives
    return by_adjective.get(adjective, [t for t in of_kind if t.colour == adjective])


def test_a_name_means_one_object():
    num_with_equal_kinds = 0
    for seed in range(150):
        things = make_scene(seed, size=32, split="train").before.things
        num_with_equal_kinds += len({thing.kind for thing in things}) < len(things)
        for index, thing in enumerate(things):
            for name in names(things, index):
                assert things_meant_by(name, things) == [thing]
    assert num_with_equal_kinds >= 20


def test_a_larger_picture_shows_the_same():
    for seed in range(6):
        scene, large = (make_scene(seed, size=size) for size in (64, 256))
        means = large.source.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(means - scene.source).mean() < 3
        assert large.instruction == scene.instruction


def test_every_object_changes_with_each_of_its_numbers():
    landscape = make_scene(0, "remove", size=64).before.landscape
    landscape = replace(landscape, shore=0.8)
    world = make_scene(0, "remove", size=64).before
    for kind, spec in THINGS.items():
        y = {"sky": 0.45, "water": 0.7, "ground": 0.95}[spec.place]
        thing = Thing(kind, "red", 0.5, y, spec.heights[1])
        bare = replace(world, landscape=landscape, things=(thing,))
        plain = render(bare, SIZE).astype(int)
        changes = {"colour": "blue", "light": 1.0, "form": 1.0, "striped": True}
        for name, value in changes.items():
            if (kind, name) in (("lamp", "striped"), ("bird", "striped")):
                continue  # too thin for stripes
            changed = render(bare.having(0, replace(thing, **{name: value})), SIZE)
            assert np.abs(plain - changed).max() > 8, (kind, name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_accepts_every_answer_and_no_source(kind):
    for seed in range(2 if kind == "add" else 6):  # "add" has the most open numbers and is slow
        scene = make_scene(seed, kind, size=SIZE)
        fit = scene.fit(noisy(another_answer(scene, seed)))
        assert fit.right, (seed, scene.instruction, fit.distance, fit.source_distance)
        assert fit.psnr > 20
        assert not scene.fit(noisy(scene.source)).right


def test_a_mirrored_object_elsewhere_in_its_column_is_found():
    scene = make_scene(7, "add", size=SIZE)
    thing = scene.after.things[0]
    moved = replace(thing, x=thing.x + 0.03, flip=-thing.flip)
    fit = scene.fit(noisy(render(scene.after.having(0, moved), SIZE)))
    assert fit.right
    assert abs(fit.world.things[0].x - moved.x) < 0.01


def test_the_fit_refuses_other_edits():
    num_refused = 0
    for seed in range(12):
        scene = make_scene(seed, "recolour", size=SIZE)
        thing = scene.after.things[0]
        distances = {
            word: np.linalg.norm(np.subtract(colour, COLOURS[thing.colour]))
            for word, colour in COLOURS.items()
        }
        wrong = replace(thing, colour=max(distances, key=lambda word: distances[word]))
        assert not scene.fit(render(scene.after.having(0, wrong), SIZE)).right
        too_much = scene.after  # other large objects are recoloured, too
        for index, other in enumerate(too_much.things[1:], start=1):
            if other.box[2] - other.box[0] > 0.2:
                too_much = too_much.having(index, replace(other, colour=thing.colour))
        if too_much != scene.after and not scene.fit(render(too_much, SIZE)).right:
            num_refused += 1
    assert num_refused >= 5


def test_figures_of_a_fit():
    scene = make_scene(3, "recolour", size=SIZE)
    exact: Fit = nearest_valid(scene.target, scene.source, scene.after, scene.opens)
    assert exact.distance < 2
    assert exact.elsewhere == 0
    assert np.array_equal(exact.region, exact.region & scene.mask)
    assert exact.psnr == pytest.approx(20 * np.log10(255 / max(exact.distance, 1e-3)))


def test_hard_cases_are_what_they_say():
    shares: dict[str, list[float]] = {case: [] for case in CASES}
    for seed in range(120):
        scene = make_scene(seed, size=SIZE, split="hard")
        assert scene.kind in LOCAL_KINDS
        shares[scene.case].append(scene.mask.mean())
        thing = scene.before.things[0] if scene.before.things else None
        if scene.case == "near colour":
            old, new = (COLOURS[w.things[0].colour] for w in (scene.before, scene.after))
            assert np.linalg.norm(np.subtract(old, new)) < 190
        if scene.case == "busy":
            assert scene.before.landscape.ground in ("field", "paving", "flowers")
        if scene.case == "shadow" and scene.kind == "remove":
            assert thing is not None
            below = round(thing.y * SIZE) + 1
            assert scene.mask[below:].any()  # its shadow or reflection goes too
    assert all(len(shares_of_case) >= 8 for shares_of_case in shares.values())
    assert np.median(shares["small"]) < 0.02


def test_whole_frame_edits_change_the_whole_frame():
    for kind in ("night", "sepia", "zoom"):
        assert np.mean([make_scene(seed, kind, size=64).mask.mean() for seed in range(8)]) > 0.7


def test_synonyms_do_not_clash():
    assert not set(SYNONYMS.values()) & {*THINGS, *COLOURS}


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="unknown kind 'blur'"):
        make_scene(0, "blur")
    with pytest.raises(ValueError, match="unknown split 'test'"):
        make_scene(0, split="test")
    with pytest.raises(ValueError, match="the hard split has no 'night'"):
        make_scene(0, "night", split="hard")
    for size in (0, 100):
        with pytest.raises(ValueError, match="multiple of 16"):
            make_scene(0, size=size)
    scene = make_scene(0, size=32)
    for picture in (scene.source[:16], scene.source / 255):
        with pytest.raises(ValueError, match=r"expected uint8 \(32, 32, 3\)"):
            scene.fit(picture)
