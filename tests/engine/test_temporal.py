"""Skipped steps (TeaCache, TaylorSeer), their calibration, and the cached prompt."""

import itertools
import math

import pytest
import torch
from compare import relative_error
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks.taylorseer_cache import TaylorSeerState
from families import FAMILIES, each_family
from families.offload import OFFLOAD
from small_kontext import (
    CORNER,
    GRID,
    NUM_CORNER_TOKENS,
    NUM_PROMPT_TOKENS,
    NUM_TOKENS,
    STOCK_SIZE,
    call_arguments,
    guidance,
    random_kontext,
)
from synchronisations import CountSynchronisations

import spotedit
from spotedit import TaylorSeer, TeaCache
from spotedit.engine.temporal import TeaState, VelocityHistory
from spotedit.evaluation.calibrate import calibrate, fit

LINEAR = (1.0, 0.0)  # coefficients of the polynomial x
ALWAYS_SKIP = TeaCache(1e9, LINEAR)  # skips every step that may be skipped
L2_JUDGE = {"judge": "l2", "threshold": 1.0}


def kinds_of(report):
    return [step["kind"] for step in report.steps]


def edit(pipe, options, **extra):
    """Return the latents and the report of a call with the corner as its mask."""
    with spotedit.enable(pipe, **L2_JUDGE | options) as handle:
        handle.set_mask(CORNER, mode="replace")
        images = pipe(**call_arguments(**extra)).images
    return images, handle.report


# -- the histories


def test_permuting_the_tokens_permutes_the_prediction():
    order = torch.randperm(9)
    history, permuted_history = (VelocityHistory(2, torch.empty(2, 9, 4)) for _ in range(2))
    some = torch.tensor([1, 4, 7])
    for step, index in ((0, None), (1, None), (3, some), (4, some)):
        velocity = torch.randn(2, 9, 4)
        if index is None:
            history.update(step, velocity, None)
            permuted_history.update(step, velocity[:, order], None)
        else:
            position_in_order = order.argsort()[index]
            history.update(step, velocity[:, index], index)
            permuted_history.update(step, velocity[:, index], position_in_order)
    assert torch.equal(history.predict(6)[:, order], permuted_history.predict(6))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_token_is_predicted_from_the_steps_that_computed_it(order):
    """The prediction equals that of one history for each token, kept on its own."""
    num_tokens = 6
    everything = list(range(num_tokens))
    computed = [everything, everything, [0, 2, 3], [0, 3], everything, [1, 5]]  # in each step
    shared = VelocityHistory(order, torch.empty(1, num_tokens, 2))
    separate = [VelocityHistory(order, torch.empty(1, 1, 2)) for _ in everything]
    for step, tokens in enumerate(computed):
        velocity = torch.randn(1, num_tokens, 2)
        index = None if tokens == everything else torch.tensor(tokens)
        shared.update(step, velocity[:, tokens], index)
        for token in tokens:
            separate[token].update(step, velocity[:, token : token + 1])
    expected = torch.cat([history.predict(8) for history in separate], dim=1)
    assert torch.equal(shared.predict(8), expected)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_predictions_from_unevenly_spaced_steps_agree_with_diffusers(order):
    ours = VelocityHistory(order, torch.empty(2, 5, 3))
    diffusers_state = TaylorSeerState(torch.float32, order)
    for step in (0, 1, 4, 6, 11):
        velocity = torch.randn(2, 5, 3)
        diffusers_state.current_step = step
        diffusers_state.update((velocity,))
        ours.update(step, velocity)
    diffusers_state.current_step = 13
    (expected,) = diffusers_state.predict()
    assert torch.allclose(ours.predict(13), expected, rtol=1e-5, atol=1e-5)


def test_a_padded_index_changes_no_token():
    """The second image of the batch computes one token; -1 pads its index."""
    history = VelocityHistory(1, torch.empty(2, 4, 1))
    history.update(0, torch.zeros(2, 4, 1))
    index = torch.tensor([[0, 2], [3, -1]])
    velocity = torch.tensor([[[1.0], [2.0]], [[3.0], [9.0]]])
    history.update(1, velocity, index)
    assert history.predict(2)[..., 0].tolist() == [[2, 0, 4, 0], [0, 0, 0, 6]]


# -- whole calls


@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylorseer_without_reused_tokens_equals_that_of_diffusers(order):
    family = FAMILIES["QwenImageEditPipeline"]
    pipe = family.make(0)

    def twelve_steps():
        return family.arguments(**family.guided, num_inference_steps=12)

    diffusers_config = TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=3, max_order=order,
        taylor_factors_dtype=torch.float32, use_lite_mode=True,
    )  # fmt: skip
    pipe.transformer.enable_cache(diffusers_config)
    expected = pipe(**twelve_steps()).images
    pipe.transformer.disable_cache()
    method = TaylorSeer(interval=2, order=order, warm_up=3)
    handle = spotedit.enable(pipe, spatial=False, temporal=method)
    images = pipe(**twelve_steps()).images
    assert kinds_of(handle.report) == ["dense"] * 3 + ["skip", "dense"] * 4 + ["skip"]
    assert relative_error(images, expected) <= 1e-4
    assert handle.report.flops_saved == pytest.approx(5 / 12)


@each_family
@pytest.mark.parametrize("guided", [False, True])
def test_a_method_that_skips_no_step_changes_nothing(name, guided):
    family = FAMILIES[name]
    if guided and not family.guided:
        pytest.skip(f"{name} has no guidance in its call")
    extra = family.guided if guided else {}
    pipe = family.make(0)
    for options in (L2_JUDGE, {"spatial": False}):
        spotedit.enable(pipe, **options)
        expected = pipe(**family.arguments(**extra)).images
        for method in (TeaCache(0, LINEAR), TaylorSeer(interval=1)):
            handle = spotedit.enable(pipe, **options, temporal=method)
            assert torch.equal(pipe(**family.arguments(**extra)).images, expected)
            assert "skip" not in kinds_of(handle.report)
            assert f"{type(method).__name__} ran all 8 steps" in handle.report.summary()


@each_family
def test_every_family_skips_steps(name):
    """The first and the last step always run, and so does every reset."""
    family = FAMILIES[name]
    pipe = family.make(0)
    with_reuse = ["full", "skip", "skip", "full", "skip", "full", "skip", "spot"]
    without_reuse = ["dense", *["skip"] * 6, "dense"]
    for options, expected in ((L2_JUDGE, with_reuse), ({"spatial": False}, without_reuse)):
        handle = spotedit.enable(pipe, **options, temporal=ALWAYS_SKIP)
        assert torch.isfinite(pipe(**family.arguments(**family.guided)).images).all()
        assert kinds_of(handle.report) == expected


def test_the_last_of_several_initial_steps_always_runs(pipe):
    """Spot steps use its keys and values, and no others."""
    _, report = edit(pipe, {"temporal": ALWAYS_SKIP, "initial_steps": 4, "reset_steps": ()})
    expected = ["full", "skip", "skip", "full", "skip", "skip", "skip", "spot"]
    assert kinds_of(report) == expected


def test_a_skipped_step_runs_nothing_and_is_counted(pipe):
    rows = []

    def count_rows(module, args, output):
        rows.append(output.shape[1])

    pipe.transformer.proj_out.register_forward_hook(count_rows)
    _, report = edit(pipe, {"temporal": TaylorSeer(interval=2, warm_up=1)})
    kinds = ["full", "skip", "spot", "full", "skip", "full", "skip", "spot"]
    assert kinds_of(report) == kinds
    image_rows = {"full": 2 * NUM_TOKENS, "spot": NUM_CORNER_TOKENS}
    assert rows == [image_rows[kind] for kind in kinds if kind != "skip"]
    active = {"full": NUM_TOKENS, "skip": 0, "spot": NUM_CORNER_TOKENS}
    assert [step["active"] for step in report.steps] == [active[kind] for kind in kinds]
    full, spot = NUM_PROMPT_TOKENS + 2 * NUM_TOKENS, NUM_PROMPT_TOKENS + NUM_CORNER_TOKENS
    assert report.flops_saved == pytest.approx(1 - (3 * full + 2 * spot) / (8 * full))
    assert "TaylorSeer ran 5 of 8 steps" in report.summary()
    assert report.to_dict()["temporal"] == "TaylorSeer"


def test_reused_tokens_end_at_the_source_even_if_steps_are_skipped(pipe):
    inputs = []

    def record_input(module, args, kwargs):
        inputs.append(kwargs["hidden_states"])

    pipe.transformer.register_forward_pre_hook(record_input, with_kwargs=True)
    for method in (TaylorSeer(interval=9, warm_up=1), ALWAYS_SKIP):
        images, report = edit(pipe, {"temporal": method}, batch=2)
        source = inputs[0][:, NUM_TOKENS:]
        reused = ~report._record.region
        assert torch.equal(images[reused], source[reused])


def test_a_skipped_step_takes_the_last_velocity_again(pipe):
    """Of three steps, TeaCache skips the second. TaylorSeer of order 0 skips the last two."""
    velocities = []

    def record_velocity(module, args, output):
        velocities.append(output[0][:, :NUM_TOKENS])

    hook = pipe.transformer.register_forward_hook(record_velocity)
    with spotedit.enable(pipe, spatial=False, temporal=ALWAYS_SKIP) as handle:
        latents = pipe(**call_arguments(num_inference_steps=3)).images
    hook.remove()
    first, last = velocities
    sigmas = [step["sigma"] for step in handle.report.steps] + [0.0]
    noise = latents - (sigmas[2] - sigmas[0]) * first - (sigmas[3] - sigmas[2]) * last
    with spotedit.enable(pipe, spatial=False, temporal=TaylorSeer(9, 0, 1)):
        latents = pipe(**call_arguments(num_inference_steps=3)).images
    assert relative_error(latents, noise + (sigmas[3] - sigmas[0]) * first) <= 1e-5


def test_tokens_that_became_reused_before_skipped_steps_are_blended_after_them(pipe, monkeypatch):
    from spotedit.engine import forwards

    dropped_in_layers = []
    blend = forwards.blend

    def recorded_blend(*args):
        dropped = args[2]  # index of tokens that the step before still computed
        dropped_in_layers.append(dropped.tolist())
        return blend(*args)

    monkeypatch.setattr(forwards, "blend", recorded_blend)

    def shrinking_judge(y, grid, features, impl):
        """Find all tokens but the first changed, then the second half, then the last few."""
        unchanged_shares = iter([0.0, 0.5, 0.9])

        def score(x0):
            changed = torch.arange(NUM_TOKENS)[None] / NUM_TOKENS > next(unchanged_shares)
            return changed.float()

        return score

    handle = spotedit.enable(
        pipe, preset="paper", judge=shrinking_judge, threshold=0.5, initial_steps=1,
        reset_steps=(), temporal=TaylorSeer(interval=3, warm_up=2),
    )  # fmt: skip
    pipe(**call_arguments(num_inference_steps=6))
    kinds = ["full", "spot", "skip", "skip", "spot", "skip"]
    assert kinds_of(handle.report) == kinds
    num_layers = len(pipe.transformer.attn_processors)
    # The judgement after the first spot step drops tokens 1 to 24. The steps that are skipped
    # then must not lose them: the second spot step blends them.
    dropped_in_spot_steps = dropped_in_layers[::num_layers]
    assert dropped_in_spot_steps == [[], list(range(1, NUM_TOKENS // 2 + 1))]


def test_each_guidance_branch_has_a_history_of_its_own(pipe):
    """At a scale of 1 the negative branch has no weight. It must not disturb the other's history.

    The scale is slightly above 1, because at 1 the pipeline runs no negative branch.
    """
    method = {"temporal": TaylorSeer(interval=2, warm_up=1)}
    plain, _ = edit(pipe, method)
    guided, report = edit(pipe, method, **guidance(1.0 + 1e-9))
    assert kinds_of(report).count("skip") == 3
    assert relative_error(guided, plain) <= 1e-4


def test_the_decision_to_skip_a_step_synchronises_once(pipe):
    counts = []

    def record_count(pipe, step, timestep, tensors):
        counts.append(mode.count)
        return {}

    options = {"spatial": False, "temporal": ALWAYS_SKIP}
    with spotedit.enable(pipe, **options), CountSynchronisations() as mode:
        pipe(**call_arguments(callback_on_step_end=record_count))
    all_but_the_last_step = itertools.pairwise(counts[:-1])
    assert {after - before for before, after in all_but_the_last_step} == {1}


def test_teacache_adds_changes_up_until_a_step_runs():
    """Each input is 10% larger than the one before: 0.1 + 0.1 < 0.25 < 0.1 + 0.1 + 0.1."""
    state = TeaState(TeaCache(0.25, LINEAR))
    inputs = [torch.full((1, 2, 2), value) for value in (1.0, 1.1, 1.21, 1.331, 1.4641)]

    def not_again():
        pytest.fail("the input of this step was already computed for the decision")

    state.note_computed_step(0, lambda: inputs[0])
    skips = []
    for step in range(1, 5):
        skips.append(state.decide_to_skip(step, False, lambda step=step: inputs[step]))
        if not skips[-1]:
            state.note_computed_step(step, not_again)
    assert skips == [True, True, False, True]
    is_last = True
    assert not state.decide_to_skip(
        5, is_last, lambda: pytest.fail("the last step runs in any case")
    )


@pytest.mark.parametrize("method", [ALWAYS_SKIP, TaylorSeer(interval=3)])
def test_a_temporal_method_leaves_nothing_behind(pipe, method):
    block = pipe.transformer.transformer_blocks[0]
    classes = type(pipe.transformer), type(block)
    stock = pipe(**call_arguments(**STOCK_SIZE)).images

    def interrupt(pipe, step, timestep, tensors):
        raise KeyboardInterrupt

    handle = spotedit.enable(pipe, **L2_JUDGE, temporal=method)
    with pytest.raises(KeyboardInterrupt):
        pipe(**call_arguments(callback_on_step_end=interrupt))
    assert (type(pipe.transformer), type(block)) == classes
    first = pipe(**call_arguments()).images
    assert torch.equal(pipe(**call_arguments()).images, first)
    handle.disable()
    assert torch.equal(pipe(**call_arguments(**STOCK_SIZE)).images, stock)


def test_a_call_that_may_skip_neither_tokens_nor_steps_is_dense(pipe):
    expected = pipe(**call_arguments(**STOCK_SIZE)).images
    handle = spotedit.enable(pipe, spatial=False)
    assert torch.equal(pipe(**call_arguments()).images, expected)
    assert "spatial=False" in handle.report.reason
    assert "nothing was skipped: no token may be reused" in handle.report.summary()


def test_steps_are_skipped_even_if_no_token_may_be_reused(pipe):
    handle = spotedit.enable(pipe, match_size=False, temporal=TaylorSeer(interval=2))
    pipe(**call_arguments(height=64, width=64, max_area=64 * 64))
    assert "differs" in handle.report.reason
    assert "no token was reused: the output's token grid" in handle.report.summary()
    assert handle.report.flops_saved == pytest.approx(3 / 8)


# -- refusals


@pytest.mark.parametrize(
    ("config", "instead"),
    [
        (FirstBlockCacheConfig(threshold=0.1), r"temporal=spotedit\.TeaCache\(\)"),
        (TaylorSeerCacheConfig(), r"temporal=spotedit\.TaylorSeer\(\)"),
    ],
)
def test_a_cache_of_diffusers_is_refused_and_our_method_recommended(pipe, config, instead):
    pipe.transformer.enable_cache(config)
    with pytest.raises(ValueError, match=instead):
        spotedit.enable(pipe)
    pipe.transformer.disable_cache()
    spotedit.enable(pipe)
    pipe.transformer.enable_cache(config)
    with pytest.raises(ValueError, match=instead):
        pipe(**call_arguments())


@pytest.mark.parametrize("mark", ["transformer", "pipeline"])
def test_a_cache_of_cache_dit_is_refused(pipe, mark):
    """cache-dit marks the transformer or the pipeline's class, and sets a manager on the pipe."""

    def leave_cache_dits_marks():
        if mark == "transformer":
            pipe.transformer._is_cached = True
        else:
            type(pipe)._is_cached, pipe._context_manager = True, object()

    spotedit.enable(pipe)
    leave_cache_dits_marks()
    with pytest.raises(ValueError, match=r"cache_dit\.disable_cache"):
        pipe(**call_arguments())
    spotedit.disable(pipe)
    try:
        leave_cache_dits_marks()
        with pytest.raises(ValueError, match=r"cache_dit\.disable_cache.*TeaCache"):
            spotedit.enable(pipe)
    finally:
        vars(pipe).pop("_context_manager", None)
        if "_is_cached" in vars(type(pipe)):
            del type(pipe)._is_cached


def test_a_model_without_published_coefficients_says_how_to_get_them():
    pipe = FAMILIES["Flux2KleinPipeline"].make(0)
    with pytest.raises(ValueError, match=r"coefficients .* Flux2KleinPipeline.*calibrate"):
        spotedit.enable(pipe, temporal=TeaCache())
    spotedit.enable(pipe, temporal=TeaCache(coefficients=LINEAR))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TeaCache(-1), r"TeaCache\.threshold is -1; expected"),
        (lambda: TeaCache(math.nan), r"TeaCache\.threshold is nan"),
        (lambda: TeaCache(0.1, ()), r"TeaCache\.coefficients is \(\)"),
        (lambda: TeaCache(0.1, "abc"), r"TeaCache\.coefficients"),
        (lambda: TaylorSeer(interval=0), r"TaylorSeer\.interval is 0; expected an integer >= 1"),
        (lambda: TaylorSeer(order=-1), r"TaylorSeer\.order"),
        (lambda: TaylorSeer(warm_up=True), r"TaylorSeer\.warm_up"),
        (lambda: spotedit.SpotEditConfig(temporal="tea"), r"SpotEditConfig\.temporal is 'tea'"),
        (lambda: spotedit.SpotEditConfig(spatial=None), r"SpotEditConfig\.spatial is None"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- the cached prompt


@each_family
@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
def test_with_a_cached_prompt_spot_steps_run_active_rows_only(name, cache_dtype):
    family = FAMILIES[name]
    pipe = family.make(0)
    options = {**L2_JUDGE, "reset_steps": (), "initial_steps": 1, "cache_dtype": cache_dtype}
    rows = {}
    for cache_text in (False, True):
        handle = spotedit.enable(pipe, **options, cache_text=cache_text)
        handle.set_mask(torch.ones(*family.grid), mode="replace")
        images = pipe(**family.arguments(**family.guided)).images
        assert torch.isfinite(images).all()
        spot_steps = [step for step in handle.report._record.records if step.kind == "spot"]
        rows[cache_text] = {step.rows for step in spot_steps}
    assert rows[True] == {math.prod(family.grid)}
    assert min(rows[False]) > math.prod(family.grid)


def test_a_cached_prompt_changes_nothing_if_nothing_else_changes(pipe):
    """Both steps have the same sigma, so the prompt's rows are the same in both."""
    outputs = []
    pipe.transformer.proj_out.register_forward_hook(lambda m, args, out: outputs.append(out))
    pipe.scheduler.register_to_config(use_dynamic_shifting=False, shift=1.0)
    for cache_text in (False, True):
        handle = spotedit.enable(pipe, **L2_JUDGE, cache_text=cache_text)
        handle.set_mask(torch.ones(GRID), mode="replace")
        pipe(**call_arguments(num_inference_steps=2, sigmas=[0.7, 0.7]))
    full, spot_with_prompt, _, spot_with_cached_prompt = outputs
    noise_rows = full[:, :NUM_TOKENS]
    assert relative_error(spot_with_prompt, noise_rows) <= 1e-5
    assert relative_error(spot_with_cached_prompt, noise_rows) <= 1e-5


# -- calibration


def test_calibration_watches_the_steps_of_the_stock_pipeline(pipe):
    stock = pipe(**call_arguments(**STOCK_SIZE)).images
    plain = calibrate(pipe, [call_arguments(seed) for seed in (0, 1)])
    assert len(plain.inputs) == len(plain.outputs) == 2 * 7  # calls, pairs of successive steps
    assert len(plain.coefficients) == 5
    assert min(plain.coefficients) >= 0
    assert torch.equal(pipe(**call_arguments(**STOCK_SIZE)).images, stock)
    guided = calibrate(pipe, [call_arguments(**guidance(1 + 1e-9))])
    # With guidance only the first branch counts, and at this scale it is the first plain call.
    assert guided.inputs == pytest.approx(plain.inputs[:7], rel=1e-4)
    with pytest.raises(ValueError, match="1 pairs of steps; expected more than 5"):
        calibrate(pipe, [call_arguments(num_inference_steps=2)])


def test_a_fitted_polynomial_never_falls():
    inputs = torch.linspace(0.01, 0.1, 20).tolist()
    parabola = fit([(x, 3 * x**2 + 0.01) for x in inputs])
    assert parabola.coefficients == pytest.approx((0, 0, 3, 0, 0.01), abs=1e-6)
    assert parabola.r2 == pytest.approx(1)
    falling_line = fit([(x, 1 - x) for x in inputs])
    assert min(falling_line.coefficients) >= 0


def test_kontext_has_published_coefficients():
    handle = spotedit.enable(random_kontext(), temporal=TeaCache())
    assert handle._spec.tea.coefficients[-1] == 0.0374537863


# -- offloading and compilation


@pytest.mark.parametrize("how", OFFLOAD)
def test_teacache_finds_offloaded_weights(how):
    options = {"temporal": TeaCache(0.3, LINEAR), "initial_steps": 1, "reset_steps": ()}
    expected, expected_report = edit(random_kontext(), options)
    assert {"spot", "skip"} <= set(kinds_of(expected_report))
    pipe = random_kontext()
    OFFLOAD[how](pipe)
    for _ in range(2):
        images, report = edit(pipe, options)
        assert kinds_of(report) == kinds_of(expected_report)
        assert relative_error(images, expected) <= 1e-5


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("transformer", marks=pytest.mark.full),
        pytest.param("blocks", marks=pytest.mark.full),
        pytest.param("wrapped", marks=pytest.mark.full),
    ],
)
def test_teacache_compiles_no_graph_of_its_own(pipe, how):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def edit_and_count_graphs(**options):
        torch._dynamo.reset()
        graphs.clear()
        _, report = edit(pipe, {"reset_steps": (), "initial_steps": 1, **options})
        return kinds_of(report), len(graphs)

    torch._dynamo.reset()
    if how == "blocks":
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    elif how == "transformer":
        pipe.transformer.compile(fullgraph=True, backend=backend)
    else:
        pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend=backend)
    kinds, num_graphs = edit_and_count_graphs(temporal=TeaCache(0.3, LINEAR))
    assert {"spot", "skip"} <= set(kinds)
    _, num_graphs_without = edit_and_count_graphs()
    assert num_graphs == num_graphs_without > 0
    torch._dynamo.reset()
