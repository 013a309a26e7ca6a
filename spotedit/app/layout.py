"""The parts of the page and where they stand. Nothing here reacts to the user."""

from collections.abc import Sequence
from typing import Any, get_args

import gradio as gr

from ..options.presets import PresetName
from . import words
from .handlers import REGION_TAB, RESULT_TAB, SCORES_TAB
from .painting import BRUSH, BRUSH_OPACITY

Parts = dict[str, Any]
SampleRow = tuple[str, str]

_MAX_STEPS = 100  # unless the app is started with more
_MAX_INSTRUCTION = 2000  # characters
_CANVAS = (1024, 1024)  # pixels, as large as a picture of the page
_CANVAS_HEIGHT = 460  # on the screen

_MASK_MODES = [
    ("What changes inside the paint", "intersect"),
    ("The paint, and what changes elsewhere", "union"),
    ("Exactly the paint", "replace"),
]


def lay_out(samples: Sequence[SampleRow], preset: PresetName, steps: int, seed: int) -> Parts:
    """Make the parts of the page inside a `gr.Blocks`, and return them by name.

    Args:
        samples: for each sample the file of its picture, and its instruction.
        preset, steps, seed: the settings that the page starts with.
    """
    parts: Parts = {"session": gr.State(None)}
    gr.Markdown("# spotedit\nEdit a photograph by saying what to change.")
    if samples:
        gr.Markdown(words.TINY_NOTICE, elem_id="notice")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            parts |= _source(samples)
            parts |= _request(preset, steps, seed)
        with gr.Column(min_width=320):
            parts |= _result()
    return parts


def _source(samples: Sequence[SampleRow]) -> Parts:
    red, green, blue = BRUSH
    brush = gr.Brush(
        default_size=32,
        colors=[(f"rgb({red}, {green}, {blue})", BRUSH_OPACITY)],
        color_mode="fixed",
    )
    parts: Parts = {
        "upload": gr.File(
            label="Your photograph",
            file_types=["image"],
            height=170,
            visible=False,  # until the page has a session
            elem_id="upload",
        ),
        "painting": gr.ImageEditor(
            label="Paint where it may change (optional)",
            height=_CANVAS_HEIGHT,
            type="pil",
            image_mode="RGBA",
            sources=(),
            transforms=(),
            layers=False,
            brush=brush,
            canvas_size=_CANVAS,
            buttons=["fullscreen"],
            visible=False,
            interactive=True,
            elem_id="painting",
        ),
    }
    parts["other_picture"] = gr.UploadButton(
        "Another photograph",
        file_types=["image"],
        size="sm",
        visible=False,
        elem_id="other_picture",
    )
    with gr.Column(visible=False) as parts["samples_box"]:
        parts["samples"] = gr.Dataset(
            label="Or a sample: press one",
            components=[gr.Image(render=False), gr.Textbox(render=False)],
            samples=[list(row) for row in samples],
            headers=["picture", "what to change"],
            type="index",
            elem_id="samples",
        )
    return parts


def _request(preset: PresetName, steps: int, seed: int) -> Parts:
    parts: Parts = {
        "instruction": gr.Textbox(
            label="What to change",
            placeholder="add a scarf to the dog",
            lines=2,
            max_length=_MAX_INSTRUCTION,
            elem_id="instruction",
        )
    }
    with gr.Row():
        parts["preview"] = gr.Button(
            "Preview region", min_width=84, size="md", interactive=False, elem_id="preview"
        )
        parts["edit"] = gr.Button(
            "Edit", variant="primary", min_width=84, size="md", interactive=False, elem_id="edit"
        )
        parts["cancel"] = gr.Button(
            "Cancel", min_width=84, size="md", interactive=False, elem_id="cancel"
        )
    parts["status"] = gr.HTML(words.status(words.IDLE), elem_id="status")
    with gr.Accordion("Settings", open=False):
        parts["mask_mode"] = gr.Radio(
            _MASK_MODES,
            value="intersect",
            label="If you have painted, recompute",
        )
        parts["preset"] = gr.Radio(
            [(name.capitalize(), name) for name in get_args(PresetName)],
            value=preset,
            label="Speed",
            info="Fast also skips whole steps. Paper has the settings of the article.",
        )
        parts["steps"] = gr.Slider(1, max(steps, _MAX_STEPS), value=steps, step=1, label="Steps")
        parts["seed"] = gr.Number(
            value=seed,
            precision=0,
            label="Seed",
            info="The same seed gives the same picture again.",
        )
        parts["new_seed"] = gr.Button("Another seed", size="sm")
        parts["in_crops"] = gr.Checkbox(
            value=False,
            visible=False,
            label="Sharper detail in large photographs",
            info="Edits each changed part again, enlarged. Every part takes as long as an edit.",
        )
        parts["with_pictures"] = gr.Checkbox(value=True, label="Show the picture while it is made")
    return parts


def _result() -> Parts:
    parts: Parts = {}
    with gr.Tabs(elem_id="tabs") as parts["tabs"]:
        with gr.Tab("Result", id=RESULT_TAB):
            parts["running"] = _picture("The result", "running")
            parts["comparison"] = gr.ImageSlider(
                label="Before and after: drag the line",
                type="pil",
                interactive=False,
                visible=False,
                buttons=["fullscreen"],
                elem_id="comparison",
            )
        with gr.Tab("Region", id=REGION_TAB):
            parts["region"] = _picture("What was recomputed last, in blue", "region")
        with gr.Tab("Preview", id=SCORES_TAB):
            parts["scores"] = _picture("What would change, in warm colours", "scores")
    with gr.Row():
        parts["download"] = gr.DownloadButton(
            "Download", min_width=84, size="md", interactive=False, elem_id="download"
        )
        parts["use_result"] = gr.Button(
            "Use as source", min_width=84, size="md", interactive=False, elem_id="use_result"
        )
        parts["undo"] = gr.Button(
            "Undo", min_width=84, size="md", interactive=False, elem_id="undo"
        )
    parts["report"] = gr.Markdown(elem_id="report")
    with gr.Accordion("More figures", open=False, visible=False) as parts["details_box"]:
        parts["details"] = gr.Textbox(
            show_label=False, lines=6, interactive=False, container=False, elem_id="details"
        )
    parts["history"] = gr.Gallery(
        label="Your edits: press one to return to it",
        columns=3,
        height="auto",
        fit_columns=False,
        allow_preview=False,
        visible=False,
        interactive=False,
        object_fit="contain",
        buttons=[],
        elem_id="history",
    )
    return parts


def _picture(label: str, name: str) -> gr.Image:
    return gr.Image(
        label=label,
        alt_text=label,
        type="pil",
        interactive=False,
        buttons=["fullscreen"],
        elem_id=name,
    )
