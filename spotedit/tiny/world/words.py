"""Make instructions: phrases for each kind of edit, and names that tell objects apart."""

from collections.abc import Sequence

import numpy as np

from .palette import COLOURS
from .things import KINDS, Thing

PHRASES: dict[str, tuple[str, ...]] = {
    "recolour": (
        "make the {name} {colour}", "paint the {name} {colour}", "colour the {name} {colour}",
        "turn the {name} {colour}", "change the colour of the {name} to {colour}",
    ),
    "texture": (
        "make the {name} striped", "put stripes on the {name}", "add stripes to the {name}",
        "give the {name} stripes",
    ),
    "remove": (
        "remove the {name}", "delete the {name}", "erase the {name}", "take away the {name}",
        "get rid of the {name}",
    ),
    "replace": (
        "replace the {name} with a {new}", "swap the {name} for a {new}",
        "exchange the {name} for a {new}", "turn the {name} into a {new}",
    ),
    "add": (
        "add a {new} {place}", "put a {new} {place}", "draw a {new} {place}",
        "insert a {new} {place}",
    ),
    "move": (
        "move the {name} to the {side}", "shift the {name} to the {side}",
        "push the {name} to the {side}",
    ),
    "night": ("make it night", "turn day into night", "change the time to night"),
    "winter": ("make it winter", "cover everything with snow", "change the season to winter"),
    "autumn": ("make it autumn", "turn it into autumn", "change the season to autumn"),
    "sepia": ("make it sepia", "turn it into an old photo", "give it a sepia tone"),
    "zoom": ("zoom in", "move closer", "come nearer"),
}  # fmt: skip
PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
SYNONYMS = {
    "house": "cottage", "fir": "pine", "boat": "ship", "bush": "shrub", "person": "figure",
    "lamp": "lantern", "car": "automobile", "purple": "violet", "bird": "gull",
}  # fmt: skip
_SYNONYM_SHARE = 0.15
_CLEARLY_LARGER = 1.3


def vocabulary() -> list[str]:
    """Return every word that an instruction can contain, sorted."""
    sentences = " ".join(phrase for phrases in PHRASES.values() for phrase in phrases)
    words = {word for word in sentences.split() if not word.startswith("{")}
    words |= {word for place in PLACES.values() for word in place.split()}
    return sorted(words | {*KINDS, *COLOURS, *SYNONYMS.values(), "an", "big", "small"})


def names(things: Sequence[Thing], index: int) -> list[str]:
    """Return the names that mean object `index` alone, by its kind, colour, place or size."""
    thing = things[index]
    same_kind = [other for i, other in enumerate(things) if other.kind == thing.kind and i != index]
    if not same_kind:
        return [thing.kind, f"{thing.colour} {thing.kind}"]
    adjectives = []
    if all(other.colour != thing.colour for other in same_kind):
        adjectives.append(thing.colour)
    if all(thing.x < other.x - 0.1 for other in same_kind):
        adjectives.append("left")
    if all(thing.x > other.x + 0.1 for other in same_kind):
        adjectives.append("right")
    left, right = min(other.x for other in same_kind), max(other.x for other in same_kind)
    if len(same_kind) == 2 and left < thing.x < right:
        adjectives.append("middle")
    if all(thing.height > _CLEARLY_LARGER * other.height for other in same_kind):
        adjectives.append("big")
    if all(other.height > _CLEARLY_LARGER * thing.height for other in same_kind):
        adjectives.append("small")
    return [f"{adjective} {thing.kind}" for adjective in adjectives]


def say(rng: np.random.Generator, kind: str, **parts: str) -> str:
    """Return an instruction of this kind, in a random phrase and now and then with synonyms."""
    phrases = PHRASES[kind]
    sentence = phrases[int(rng.integers(len(phrases)))].format(**parts)
    words = [
        SYNONYMS[word] if word in SYNONYMS and rng.random() < _SYNONYM_SHARE else word
        for word in sentence.split()
    ]
    for i, word in enumerate(words[:-1]):
        if word == "a" and words[i + 1][0] in "aeiou":
            words[i] = "an"
    return " ".join(words)
