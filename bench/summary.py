"""From the records of `bench.editor` to rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .metrics import bootstrap
from .rows import Row

Record = dict[str, Any]
# what the project promises; see the README's table
EDIT_DB = {"recolour": 18.0, "remove": 16.0, "replace": 18.0, "add": 18.0}
RIGHT_SHARE = 0.8
DIFFERENCE_DB = {"cosine": -0.8}
BACKGROUND_DB, BACKGROUND_TAIL_DB = -0.1, -0.5  # below the VAE's round trip
RECALL = 0.95
ACTIVE_PER_TOUCHED = 2.5


def summarise(
    records: Sequence[Record], variants: Sequence[str], targets: Mapping[str, float] = EDIT_DB
) -> list[Row]:
    """The rows of the floor, of dense, and of every variant beside dense.

    `targets` are for the edited region against the truth, in dB by kind of instruction or "all".
    """
    by_method = {
        method: sorted((r for r in records if r["method"] == method), key=lambda r: r["seed"])
        for method in ("floor", "dense", *variants)
    }
    floors = [r["floor_db"] for r in by_method["floor"]]
    rows = [Row.median("VAE round trip of the source", floors, "dB")]
    for method in ("dense", *variants):
        rows += _edits(method, by_method[method], targets)
    for method in variants:
        rows += _against_dense(method, by_method[method], by_method["dense"])
    return rows


def _edits(method: str, records: Sequence[Record], targets: Mapping[str, float]) -> Iterator[Row]:
    """Of all scenes and, for dense, of every kind of instruction."""
    kinds = ("all", *EDIT_DB) if method == "dense" else ("all",)
    for kind in kinds:
        ours = [r for r in records if kind in ("all", r["kind"])]
        if not ours:
            continue
        where, target = {"method": method, "kind": kind}, targets.get(kind)
        yield Row.median(
            "edited region against the truth", [r["edit_db"] for r in ours], "dB",
            at_least=target, parameters=where,
        )  # fmt: skip
        right = [r["to_truth"] <= 0.5 * r["source_to_truth"] for r in ours]
        yield Row(
            "error to the truth at most half the source's", float(np.mean(right)), "share",
            samples=len(ours), at_least=RIGHT_SHARE if target else None, parameters=where,
        )  # fmt: skip
    yield Row.median("seconds", [r["seconds"] for r in records], "s", parameters={"method": method})


def _against_dense(
    method: str, records: Sequence[Record], dense: Sequence[Record]
) -> Iterator[Row]:
    where = {"method": method}
    pairs = list(zip(records, dense, strict=True))
    mean, low, high = bootstrap([a["edit_db"] - b["edit_db"] for a, b in pairs])
    yield Row(
        "edited region, difference to dense", mean, "dB", low, high, len(pairs),
        at_least=DIFFERENCE_DB.get(method), parameters=where,
    )  # fmt: skip
    ratios = [b["seconds"] / a["seconds"] for a, b in pairs]
    yield Row.median("seconds, dense / this", ratios, "x", parameters=where)
    spots = [r for r in records if "exact" in r]
    if not spots:
        return
    exact = float(np.mean([r["exact"] for r in spots]))
    yield Row(
        "reused latents equal the source's bit for bit", exact, "share",
        samples=len(spots), at_least=1.0, parameters=where,
    )  # fmt: skip
    yield Row.median("r, spot steps", [r["r"] for r in spots], "share", parameters=where)
    yield from _background(spots, where)
    yield from _selection(spots, where)


def _background(records: Sequence[Record], where: dict[str, str]) -> Iterator[Row]:
    far = [r for r in records if np.isfinite(r["background_db"])]
    if not far:
        return
    values = [r["background_db"] for r in far]
    above = [r["background_db"] - r["floor_db"] for r in far]
    yield Row.median("background against the source", values, "dB", parameters=where)
    yield Row.median(
        "background, above the floor", above, "dB", at_least=BACKGROUND_DB, parameters=where
    )
    yield Row(
        "background, above the floor, 5th percentile", float(np.percentile(above, 5)), "dB",
        samples=len(far), at_least=BACKGROUND_TAIL_DB, parameters=where,
    )  # fmt: skip


def _selection(records: Sequence[Record], where: dict[str, str]) -> Iterator[Row]:
    """Tokens of the last judgement; an edited token has at least a tenth of its pixels changed."""
    recalls = [r["found"] / r["edited"] for r in records if r["edited"]]
    mean, low, high = bootstrap(recalls)
    yield Row(
        "edited tokens that are active at the end", mean, "share", low, high, len(recalls),
        at_least=RECALL, parameters=where,
    )  # fmt: skip
    for kind, target in (("touched", ACTIVE_PER_TOUCHED), ("edited", None)):
        ratios = [r["active"] / r[kind] for r in records if r[kind]]
        yield Row.median(
            f"active tokens at the end / {kind} tokens", ratios, "x",
            at_most=target, parameters=where,
        )  # fmt: skip
