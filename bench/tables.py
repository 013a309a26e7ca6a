"""Tables of README.md and docs/ that are made of committed rows. ``python -m bench.tables``.

A file marks the place of a table by its name: ``<!-- rows:NAME:begin -->`` and
``<!-- rows:NAME:end -->``. The command rewrites what stands between the marks. It measures nothing.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .quality.results import Results, read, table
from .rows import RESULTS

ROOT = Path(__file__).parents[1]
FILES = ("README.md", "docs/*.md")
MARKED = re.compile(r"(<!-- rows:([\w-]+):begin -->\n).*?(<!-- rows:\2:end -->)", re.S)
GPU = RESULTS / "gpu"
EDIT = "whole edit"
RATIO, FASTER = f"{EDIT}, baseline / this", f"{EDIT}, dense / spot"
EDIT_HEAD = ["", EDIT, "speed-up over stock", "over compiled stock"]
MASK, MASK_AND_JUDGE = "with a mask", "with a mask, judge running"
TRUTH, DENSE = "edited region against the truth", "edited region against dense"
EDITORS = {"tiny Kontext": "", "tiny Qwen": "-qwen", "tiny drawn": "-world"}  # suffixes of the runs
METHODS = {
    "spot": "spotedit", "tea": "TeaCache alone", "spot+tea": "spotedit + TeaCache",
    "seer": "TaylorSeer alone", "spot+seer": "spotedit + TaylorSeer",
}  # fmt: skip


def run(name: str, folder: Path = RESULTS) -> Results:
    """Read the committed rows of a run.

    Raises:
        FileNotFoundError: there are none.
    """
    results = read(name, folder)
    if results is None:
        raise FileNotFoundError(f"{folder / name}.json does not exist; run the benchmark first")
    return results


def row(results: Results, name: str, **parameters: str | int) -> dict[str, Any]:
    """Return the first row of this name that has these parameters.

    Raises:
        LookupError: there is none.
    """
    for candidate in results.rows:
        if candidate["name"] == name and parameters.items() <= candidate["parameters"].items():
            return candidate
    raise LookupError(f"{results.name} has no row {name!r} with {parameters}")


def percent(text: str) -> str:
    """Round a percentage of the rows."""
    return f"{float(text.removesuffix('%')):.0f}%"


def value(results: Results, name: str, unit: str, digits: int = 2, **parameters: Any) -> str:
    """Format a row's value with its unit."""
    return f"{row(results, name, **parameters)['value']:.{digits}f}{unit}"


def origin(results: Results, command: str, folder: str = "") -> list[str]:
    """Say where rows come from: device, versions, commit and command, with a link for docs/."""
    e = results.environment
    device = e["cpu"] if e["device"] == "cpu" else e["device"]
    dtype = f"{e['dtype']}, " if "dtype" in e else ""
    return [
        f"{device}; {dtype}PyTorch {e['torch']}, diffusers {e['diffusers']}; commit {e['commit']}; "
        f"`{command}`; [all results](../bench/results/{folder}{results.name}.md)."
    ]


def speed() -> list[str]:
    """Whole edits of the tiny editor on a CPU."""
    modes = {"default": "spotedit", "mask + judge": MASK_AND_JUDGE, "mask": MASK}
    return _speed((128, 256), modes)


def speed_short() -> list[str]:
    """The part of `speed` that the README shows."""
    return _speed((128,), {"default": "spotedit", "mask": MASK})


def _speed(sizes: Sequence[int], modes: Mapping[str, str]) -> list[str]:
    """A line for each size and number of steps, a column for each mode with its title."""
    results = run("speed")
    lines = []
    for px, steps in itertools.product(sizes, (28, 50)):
        line = [f"{px} x {px} pixels, {steps} steps"]
        line.append(value(results, EDIT, " s", px=px, mode="dense", steps=steps))
        for mode in modes:
            chosen = {"px": px, "mode": mode, "steps": steps}
            r = percent(row(results, EDIT, **chosen)["parameters"]["r"])
            seconds = value(results, EDIT, " s", **chosen)
            ratio = value(results, FASTER, "x", **chosen)
            line.append(f"{seconds}, {ratio} (r = {r})")
        lines.append(line)
    return table(["", "stock", *modes.values()], lines)


def caption() -> list[str]:
    """The seconds under the README's first picture."""
    results = run("speed")
    chosen = {"px": 128, "steps": 28}
    dense = value(results, EDIT, " s", mode="dense", **chosen)
    spot = value(results, EDIT, " s", mode="default", **chosen)
    takes = f"{dense} on two CPU cores, and {spot} with `spotedit`"
    return [f"*A 128 x 128 edit like these takes {takes}.*"]


def speed_origin() -> list[str]:
    return origin(run("speed"), "python -m bench.speed")


def steps() -> list[str]:
    """Steps of the tiny editor on a CPU."""
    results = run("speed")
    titles = {"default": "spotedit", "mask + judge": MASK_AND_JUDGE, "mask": MASK}
    spot = "transformer, spot step"
    lines = []
    for px, mode in itertools.product((128, 256), titles):
        chosen = {"px": px, "mode": mode}
        lines.append([
            f"{px} x {px}", titles[mode],
            percent(row(results, spot, **chosen)["parameters"]["r"]),
            value(results, "transformer, dense step", " ms", 0, px=px, mode="dense"),
            value(results, "transformer, full step", " ms", 0, **chosen),
            value(results, spot, " ms", 0, **chosen),
            value(results, "share of S/M", "", **chosen),
        ])  # fmt: skip
    head = ["pixels", "mode", "r", "stock step", "full step", "spot step", "speed-up / ideal"]
    return table(head, lines)


def temporal() -> list[str]:
    """Work and quality of temporal methods on the tiny editor."""
    results = run("temporal")
    lines = []
    for method, title in METHODS.items():
        line = [title]
        for count in (28, 50):
            chosen = {"steps": count, "method": method}
            line.append(value(results, "work, dense / this", "x", **chosen))
            found = row(results, "edited region, difference to dense", **chosen)
            line.append("{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**found))
        lines.append(line)
    columns = ("work, stock / this", "quality, dB")
    head = ["method", *(f"{count} steps: {column}" for count in (28, 50) for column in columns)]
    return table(head, lines)


def temporal_origin() -> list[str]:
    return origin(run("temporal"), "python -m bench.temporal --scenes 16")


def temporal_time() -> list[str]:
    """Seconds of temporal methods on the tiny editor."""
    results = run("temporal-time")
    lines = []
    for method, title in {"dense": "stock", **METHODS}.items():
        line = [title]
        for count in (28, 50):
            chosen = {"steps": count, "method": method}
            line.append(value(results, EDIT, " s", **chosen))
            ratio = "1.00x"
            if method != "dense":
                ratio = value(results, "whole edit, dense / this", "x", **chosen)
            line.append(ratio)
        lines.append(line)
    columns = ("whole edit", "speed-up")
    head = ["method", *(f"{count} steps: {column}" for count in (28, 50) for column in columns)]
    return table(head, lines)


def temporal_time_origin() -> list[str]:
    command = "python -m bench.temporal --time --repeats 1 --steps 8 28 50"
    return origin(run("temporal-time"), command)


def pipeline() -> list[str]:
    """Whole edits at FLUX.1-Kontext's shapes on a GPU."""
    modes = {
        "stock": ("dense eager", None),
        "stock, blocks compiled": ("dense compiled", None),
        "spotedit, r = 5%": ("spot", "4.8%"),
        "spotedit, r = 10%": ("spot", "9.8%"),
        "spotedit, r = 20%": ("spot", "20.5%"),
        "spotedit, r = 20%, judge running": ("spot + judge", "20.5%"),
        "spotedit, r = 100%: reuses the source only": (
            "condition-cached only",
            "100.0%",
        ),
        "the same method in plain PyTorch, r = 10%": ("eager-unfused", "9.8%"),
    }
    lines = []
    for title, (mode, r) in modes.items():
        memory = value(run("pipeline", GPU), "peak memory", " GB", 1, **_chosen(mode, r))
        lines.append([title, *_edit(mode, r), memory])
    return table([*EDIT_HEAD, "peak memory"], lines)


def pipeline_short() -> list[str]:
    """The part of `pipeline` that the README shows."""
    return table(EDIT_HEAD, [
        ["stock", *_edit("dense eager", None)],
        ["stock, blocks compiled", *_edit("dense compiled", None)],
        ["spotedit, r = 20%", *_edit("spot", "20.5%")],
        ["spotedit, r = 20%, judge running", *_edit("spot + judge", "20.5%")],
    ])  # fmt: skip


def _chosen(mode: str, r: str | None) -> dict[str, str]:
    return {"mode": mode} if r is None else {"mode": mode, "r": r}


def _edit(mode: str, r: str | None) -> list[str]:
    """Seconds of a whole edit, and how much faster it is than the stock and the compiled one."""
    results = run("pipeline", GPU)
    seconds = row(results, EDIT, **_chosen(mode, r))["value"]
    cells = [f"{seconds:.1f} s"]
    for baseline in ("dense eager", "dense compiled"):
        if mode.startswith("dense"):  # the rows compare only our modes with these
            cells.append(f"{row(results, EDIT, mode=baseline)['value'] / seconds:.2f}x")
        else:
            cells.append(value(results, RATIO, "x", **_chosen(mode, r), baseline=baseline))
    return cells


def pipeline_origin() -> list[str]:
    return origin(run("pipeline", GPU), "bench/gpu.sh --parts pipeline", "gpu/")


def profile() -> list[str]:
    """Return the table of where the time of a spot step goes on a GPU."""
    results = run("pipeline-profile", GPU)
    lines = []
    for mode, share in (("spot", "4.8%"), ("spot", "20.5%"), ("spot, compiled blocks", "4.8%")):
        chosen = {"mode": mode, "r": share}
        lines.append([
            f"{mode}, r = {share}",
            value(results, "profile: step", " ms", 0, **chosen),
            value(results, "profile: host", " ms", 0, **chosen),
            f"{row(results, 'profile: busy', **chosen)['value']:.0%}",
            value(results, "profile: launches", "", 0, **chosen),
        ])  # fmt: skip
    return table(["", "step", "CPU's time", "GPU busy", "launches"], lines)


def kernels() -> list[str]:
    """The operations at FLUX.1-Kontext's shapes on a GPU, beside their baselines."""
    lines = []
    for measured in run("kernels", GPU).rows:
        parameters = measured["parameters"]
        name, _, compared = measured["name"].partition(", ")
        if compared != "baseline / ours" or parameters["shape"] != "kontext":
            continue
        baseline = parameters["baseline"]
        one_of_many = name == "gathered_attention" and not baseline.startswith("best SDPA")
        if parameters["impl"] != "triton" or one_of_many:
            continue
        title = name if name.startswith("layer") else f"`{name}`"
        title += f", {parameters['rule']}" if "rule" in parameters else ""
        faster = f"{measured['value']:.2f}x"
        lines.append([title, str(parameters.get("M", "")), baseline, faster])
    head = ["operation", "M (tokens computed)", "baseline", "speed-up of the Triton kernel"]
    return table(head, lines)


def kernels_origin() -> list[str]:
    return origin(run("kernels", GPU), "bench/gpu.sh --parts kernels", "gpu/")


def tiny_on_gpu() -> list[str]:
    """Whole edits of the tiny editor on a GPU."""
    results = run("speed", GPU)
    lines = [["stock", "", value(results, EDIT, " s", mode="dense", steps=28), "1.00x"]]
    titles = {"default": "spotedit", "mask + judge": MASK_AND_JUDGE, "mask": MASK}
    for mode, title in titles.items():
        chosen = {"mode": mode, "steps": 28}
        r = percent(row(results, EDIT, **chosen)["parameters"]["r"])
        seconds = value(results, EDIT, " s", **chosen)
        lines.append([title, r, seconds, value(results, FASTER, "x", **chosen)])
    return table(["256 x 256 pixels, 28 steps", "r", "whole edit", "speed-up over stock"], lines)


def resets() -> list[str]:
    """Schedules of full steps on the three tiny editors."""
    titles = {
        "default": "default", "resets published": "as published", "resets every 4": "every 4 steps",
        "last quarter full": "all steps of the last quarter", "resets none": "none",
    }  # fmt: skip
    return _sweep("resets", "resets", titles)


def blends() -> list[str]:
    """Blends of keys and values on the three tiny editors."""
    titles = {
        "default": "cosine (default)", "anchored": "`anchored`", "static": "`static`",
        "condition": "the condition alone",
    }  # fmt: skip
    return _sweep("fusion", "blend", titles)


def _sweep(sweep: str, setting: str, titles: Mapping[str, str]) -> list[str]:
    """Return a line for each method of a sweep, with its differences to the default.

    Each editor has two columns: PSNR against the truth, and against the stock picture. The line of
    the default also gives its own PSNR against the stock picture.
    """
    lines = [[title] for title in titles.values()]
    for suffix in EDITORS.values():
        results = run(f"quality-{sweep}{suffix}")
        for line, method in zip(lines, titles, strict=True):
            for name in (TRUTH, DENSE):
                if method == "default":
                    own = value(results, DENSE, " dB", 1, method=method)
                    line.append("0" if name == TRUTH else f"0 (its PSNR: {own})")
                    continue
                found = row(results, f"{name}, difference to default", method=method)
                digits = 2 if name == TRUTH else 1
                ends = (f"{found[end]:+.{digits}f}" for end in ("low", "high"))
                line.append(f"{found['value']:+.{digits}f} [{', '.join(ends)}]")
    head = [setting, *(f"{editor}: {to}" for editor in EDITORS for to in ("to truth", "to stock"))]
    return table(head, lines)


def detail() -> list[str]:
    """What crops gain on large photographs, by the sort of scenes."""
    results = run("detail")
    lines = []
    for scene in _detail_scenes(results):
        count = {"scenes": "", "scenes whose first edit was made": ""}
        for name in count:
            count[name] = value(results, name, "", digits=0, **scene)
        gained = row(results, "PSNR gained", edit="crop", **scene)
        worst = value(results, "PSNR gained, worst scene", " dB", edit="crop", **scene)
        line = [
            _scene_in_words(scene),
            f"{count['scenes whose first edit was made']} of {count['scenes']}",
            f"{gained['value']:+.1f} dB [{gained['low']:+.1f}, {gained['high']:+.1f}]",
            worst,
        ]
        for edit in ("model size", "crop"):
            line.append(value(results, "sharpness", "", edit=edit, **scene))
        forwards = (
            value(results, f"forwards of the transformer, {which}", "", digits=0, **scene)
            for which in ("first edit", "in all")
        )
        lines.append([*line, " / ".join(forwards)])
    head = [
        "edited object", "edits made", "PSNR gained by crops", "worst scene",
        "sharpness at model size", "with crops", "forwards without / with crops",
    ]  # fmt: skip
    return table(head, lines)


def detail_comparison() -> list[str]:
    """How often the comparison with the first edit was right about a crop."""
    results = run("detail")
    outcomes = {
        "better, and used": "crops that were better, and accepted",
        "worse, and refused": "crops that were worse, and refused",
        "better, but refused": "crops that were better, but refused",
        "worse, but used": "crops that were worse, but accepted",
        "nothing edited": "crops in which nothing was edited, or that failed",
    }
    lines = [
        [
            _scene_in_words(scene),
            value(results, "crops", "", digits=0, **scene),
            *(value(results, name, "", digits=0, **scene) for name in outcomes.values()),
        ]
        for scene in _detail_scenes(results)
    ]
    return table(["edited object", "crops", *outcomes], lines)


def detail_origin() -> list[str]:
    """Say where the rows of `detail` come from."""
    return origin(run("detail"), "python -m bench.detail")


def _detail_scenes(results: Results) -> list[dict[str, Any]]:
    """Return the parameters of every sort of scenes, in the order of the rows."""
    return [row["parameters"] for row in results.rows if row["name"] == "scenes"]


def _scene_in_words(scene: Mapping[str, Any]) -> str:
    side = f"{scene['photograph']} x {scene['photograph']}"
    if scene["scene"] == "add":
        return f"added, size named, {side}"
    place = "alone" if scene["scene"] == "one object" else "one of several"
    return f"{scene['object']} pixels wide, {place}, {side}"


TABLES: Mapping[str, Callable[[], Sequence[str]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        caption, speed, speed_short, speed_origin, steps, temporal, temporal_origin, temporal_time,
        temporal_time_origin, pipeline, pipeline_short, pipeline_origin, profile, kernels,
        kernels_origin, tiny_on_gpu, resets, blends, detail, detail_comparison, detail_origin,
    )
}  # fmt: skip


def filled(text: str) -> str:
    """Return `text` with every marked table made anew.

    Raises:
        KeyError: a mark names no table.
    """
    return MARKED.sub(lambda m: m[1] + "\n".join(TABLES[m[2]]()) + f"\n{m[3]}", text)


def marked_files() -> Iterable[Path]:
    """Files that may have marks."""
    return (path for pattern in FILES for path in sorted(ROOT.glob(pattern)))


def main() -> None:
    """Rewrite the files, and print the names of those that changed."""
    for path in marked_files():
        text = path.read_text(encoding="utf-8")
        if filled(text) != text:
            path.write_text(filled(text), encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
