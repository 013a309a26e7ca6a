"""Write docs/support.md, which says what works with which pipeline.

``python -m bench.support_matrix`` runs the tests of pipeline families and combinations, slow ones
too, and reads their outcomes.
"""

import re
import sys
from collections.abc import Mapping

from .junit import WORST, cases, write
from .rows import table as markdown_table

TESTS = (
    "tests/models/test_families.py",
    "tests/engine/test_combinations.py",
    "tests/engine/test_offload.py",
    "tests/engine/test_quantised.py",
)
# test -> its row; the row of any other test is what follows the pipeline's name in the test's id
ROWS = {
    "test_all_tokens_active_equals_stock": "all tokens active equals stock; disabled is stock",
    "test_one_forward_with_unchanged_tokens_equals_the_full_one": "unchanged tokens",
    "test_reused_tokens_end_at_the_source": "reused tokens end at the source",
    "test_after_an_exception_the_next_call_is_right": "a call after an exception",
    "test_every_image_of_a_batch_is_edited_as_if_alone": "batches",
    "test_the_triton_kernels_equal_the_references": "Triton kernels, interpreted",
    "test_all_tokens_active_equals_the_same_quantised_pipeline": "quantised layers (int8 stand-in)",
    "test_a_part_of_a_quantised_pipeline": "quantised layers (int8 stand-in)",
    "test_layerwise_casting_that_computes_in_bfloat16": "layerwise casting, fp8 to bfloat16",
    "test_the_judge_moves_no_component": "the judge moves no offloaded component",
    "test_a_copy_has_the_weights_of_the_offloaded": "offloaded weights are found",
    "test_a_layer_that_is_not_called_has_its_weight": "offloaded weights are found",
    "test_siblings_stay_stock": "from_pipe siblings stay stock",
    "test_saved_and_loaded_again": "save_pretrained and reload",
}
# row -> why it is not tested with every pipeline
CALLBACK = "LongCat's pipeline and the modular ones take no callback."
ONE_A_VAE = "tested once for each class of VAE."
WHY = {
    "classifier-free guidance": "`Flux2Pipeline` and the modular Kontext have none; the guider of "
    "the modular Qwen pipelines is on in all of their rows.",
    "Triton kernels, interpreted": "a modular pipeline has the kernels of its stock one.",
    "batches": "not taken by the pipeline, or (modular) only tested as two images a prompt.",
    "UniPC, flow sigmas": "the inpainting pipelines call `scheduler.scale_noise`, which it lacks.",
    "model offload": "a modular pipeline has a `ComponentsManager` in its place.",
    "layerwise casting, fp8 to bfloat16": "tested on two architectures.",
    "the judge moves no offloaded component": ONE_A_VAE,
    "offloaded weights are found": ONE_A_VAE,
    "callback changes latents": CALLBACK,
    "callback changes prompt": CALLBACK,
    "interrupt": CALLBACK,
    "from_pipe siblings stay stock": "modular pipelines have no `from_pipe`.",
    "save_pretrained and reload": "modular pipelines are saved as blocks.",
    "sequential offload": "on a machine without an accelerator the stock pipelines themselves fail "
    "with it (diffusers 0.42.1, accelerate's `post_forward`). Tested here: *offloaded weights are "
    "found*. The whole edits of `pytest -m gpu` passed on an H200.",
    "offload on a GPU, with streams": "no GPU here; `pytest -m gpu` passed on an H200.",
}
# rows of the table although no test of them runs here
NOT_HERE = ("sequential offload", "offload on a GPU, with streams")
GUIDED = "classifier-free guidance"
HEADER = """# What works with what

From the outcomes of the tests, with random weights of the real classes on a CPU. *yes*: with all
tokens active the enabled pipeline equals the stock one within 1e-4 (pictures of 8 bits within one
level), and after `disable` bit for bit; other rows say what they assert. Stochastic samplers are
compared from the same state of PyTorch's own generator, which is what they draw from. Offloading is
from the CPU to the CPU or to files, before and after `enable`; to files it is of the transformer
alone where the stock pipeline reads wrong weights of such a VAE (FLUX.2's; Qwen's by blocks).
`torch.compile` is tested on Kontext, also with LoRA, and on Qwen-Image-Edit with guidance
(tests/engine/test_compile.py). What is *not tested* has its reason below the table.
"""


def outcomes(junit: str) -> dict[tuple[str, str], str]:
    """Return the result, one of `junit.WORST`, of each (row, pipeline); the worst test counts."""
    results: dict[tuple[str, str], str] = {}
    for case in cases(junit):
        name = re.fullmatch(r"(\w*Pipeline(?: \w+)?)(?:-(.+))?", case.parameters)
        if name is None:
            continue
        pipeline, rest = name.groups()
        row = GUIDED if rest == "CFG" else ROWS.get(case.test, rest or case.test)
        previous = results.get((row, pipeline), "yes")
        results[row, pipeline] = max(case.result, previous, key=WORST.index)
    return results


def table(results: Mapping[tuple[str, str], str]) -> str:
    """Return a table with a row for each combination and a column for each pipeline.

    Both keep the order in which they first appear. Below the table stands why a row has gaps.
    """
    rows, pipelines = (list(dict.fromkeys(keys)) for keys in zip(*results, strict=True))
    rows += [row for row in NOT_HERE if row not in rows]
    header = ["", *(f"`{name}`" for name in pipelines)]
    lines = [[row, *(results.get((row, name), "not tested") for name in pipelines)] for row in rows]
    gaps = [row for row, *cells in lines if "not tested" in cells]
    reasons = "".join(f"- *{row}*: {WHY.get(row, 'no reason is known.')}\n" for row in gaps)
    return f"{markdown_table(header, lines)}\n\n{reasons}"


def document(junit: str) -> str:
    """Return the document's text, without its last line."""
    return f"{HEADER}\n{table(outcomes(junit))}"


def main(argv: list[str] | None = None) -> int:
    return write("support_matrix", TESTS, "docs/support.md", document, argv)


if __name__ == "__main__":
    sys.exit(main())
