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
    "test_a_part_is_edited_as_with_rounded_weights": "quantised layers (int8 stand-in)",
    "test_layerwise_casting_that_computes_in_bfloat16": "layerwise casting, fp8 to bfloat16",
    "test_the_judge_moves_no_component": "the judge moves no offloaded component",
    "test_a_copy_has_the_weights_of_the_offloaded": "offloaded weights are found",
    "test_a_layer_that_is_not_called_has_its_weight": "offloaded weights are found",
    "test_siblings_stay_stock": "from_pipe siblings stay stock",
    "test_a_saved_pipeline_is_loaded_as_a_stock_one": "save_pretrained and reload",
}
# row -> why it is not tested with every pipeline
CALLBACK = "LongCat's pipeline and the modular ones take no callback."
ONCE_FOR_A_VAE = "this is tested once for each class of VAE."
WHY = {
    "classifier-free guidance": "`Flux2Pipeline` and the modular Kontext pipelines have none; in "
    "the modular Qwen pipelines it is on in every row.",
    "Triton kernels, interpreted": "a modular pipeline uses the same kernels as the pipeline it is "
    "made from.",
    "batches": "the pipeline takes none; of modular pipelines only two images per prompt are "
    "tested.",
    "UniPC, flow sigmas": "the inpainting pipelines call `scheduler.scale_noise`, which this "
    "scheduler lacks.",
    "model offload": "modular pipelines use a `ComponentsManager` instead.",
    "layerwise casting, fp8 to bfloat16": "this is tested on two architectures.",
    "the judge moves no offloaded component": ONCE_FOR_A_VAE,
    "offloaded weights are found": ONCE_FOR_A_VAE,
    "callback changes latents": CALLBACK,
    "callback changes prompt": CALLBACK,
    "interrupt": CALLBACK,
    "from_pipe siblings stay stock": "modular pipelines have no `from_pipe`.",
    "save_pretrained and reload": "modular pipelines are saved as blocks.",
    "sequential offload": "without an accelerator the stock pipelines fail with it too (diffusers "
    "0.42.1, in accelerate's `post_forward`). The row *offloaded weights are found* tests a part "
    "of it. Whole edits are tested by `pytest -m gpu`, which passed on an H200.",
    "offload on a GPU, with streams": "this needs a GPU; `pytest -m gpu` passed on an H200.",
}
# rows of the table although no test of them runs here
NOT_HERE = ("sequential offload", "offload on a GPU, with streams")
GUIDED = "classifier-free guidance"
HEADER = """# What works with what

This table is written from the outcomes of tests, which run the real classes with random weights on
a CPU. *yes* means: with all tokens active, the enabled pipeline equals the stock one within 1e-4
(8-bit pictures within one level), and after `disable` bit for bit. Other rows say what they check.

- Stochastic samplers draw from PyTorch's global generator; both pipelines start from the same state
  of it.
- Offloading is from the CPU to the CPU or to files, before and after `enable`. Only the transformer
  is offloaded to files if the stock pipeline reads wrong weights of an offloaded VAE (FLUX.2's, and
  Qwen's offloaded by blocks).
- `torch.compile` is tested on Kontext, also with LoRA, and on Qwen-Image-Edit with guidance
  (tests/engine/test_compile.py).

The reasons for *not tested* are below the table.
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
