"""Steps without a forward: TeaCache, TaylorSeer, and what spot steps leave out of the prompt."""

import itertools
import math

import pytest
import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks.taylorseer_cache import TaylorSeerState
from families import FAMILIES, each_family
from families.offload import OFFLOAD
from small_kontext import call_arguments, random_kontext

import spotedit
from spotedit import TaylorSeer, TeaCache
from spotedit.engine.temporal import TeaState, VelocityHistory
from spotedit.evaluation.calibrate import calibrate, fit

LINEAR = (1.0, 0.0)  # the polynomial x
CORNER = torch.zeros(48, 64)
CORNER[8:24, 16:40] = 1  # 2 x 3 tokens
GUIDED = FAMILIES["FluxKontextPipeline"].guided
STOCK = {"height": 48, "width": 64, "max_area": 48 * 64}
PLAIN = {"judge": "l2", "threshold": 1.0}


def edit(pipe, options, **extra):
    """Latents and kinds of the steps, of a call with the corner as mask."""
    with spotedit.enable(pipe, **PLAIN | options) as handle:
        handle.set_mask(CORNER, mode="replace")
        images = pipe(**call_arguments(**extra)).images
    return images, [step["kind"] for step in handle.report.steps], handle.report


def close(images, expected, bound=1e-5):
    return (images - expected).norm() <= bound * expected.norm()


# -- the histories


def test_permuting_the_tokens_permutes_the_prediction():
    order = torch.randperm(9)
    plain, permuted = (VelocityHistory(2, torch.empty(2, 9, 4)) for _ in range(2))
    for step in (0, 1, 3, 4):
        velocity = torch.randn(2, 9, 4)
        index = None if step < 3 else torch.tensor([1, 4, 7])
        rows = velocity if index is None else velocity[:, index]
        plain.update(step, rows, index)
        where = None if index is None else order.argsort()[index]
        permuted.update(step, velocity[:, order] if index is None else rows, where)
    assert torch.equal(plain.predict(6)[:, order], permuted.predict(6))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_token_predicts_as_if_the_others_were_never_dropped(order):
    """A set that changes mid-run equals a run that kept full state, read where it was computed."""
    partial = VelocityHistory(order, torch.empty(1, 6, 2))
    whole = [VelocityHistory(order, torch.empty(1, 1, 2)) for _ in range(6)]
    computed = [None, None, [0, 2, 3], [0, 3], None, [1, 5]]
    for step, tokens in enumerate(computed):
        velocity = torch.randn(1, 6, 2)
        index = None if tokens is None else torch.tensor(tokens)
        partial.update(step, velocity if index is None else velocity[:, index], index)
        for token in range(6) if tokens is None else tokens:
            whole[token].update(step, velocity[:, token : token + 1])
    expected = torch.cat([history.predict(8) for history in whole], dim=1)
    assert torch.equal(partial.predict(8), expected)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_uneven_steps_agree_with_diffusers(order):
    ours = VelocityHistory(order, torch.empty(2, 5, 3))
    theirs = TaylorSeerState(torch.float32, order)
    for step in (0, 1, 4, 6, 11):
        velocity = torch.randn(2, 5, 3)
        theirs.current_step = step
        theirs.update((velocity,))
        ours.update(step, velocity)
    theirs.current_step = 13
    assert torch.allclose(ours.predict(13), theirs.predict()[0], rtol=1e-5, atol=1e-5)


def test_padded_indices_of_a_batch_leave_other_tokens_alone():
    history = VelocityHistory(1, torch.empty(2, 4, 1))
    history.update(0, torch.zeros(2, 4, 1))
    velocity, index = [[[1.0], [2.0]], [[3.0], [9.0]]], [[0, 2], [3, -1]]
    history.update(1, torch.tensor(velocity), torch.tensor(index))
    assert history.predict(2)[..., 0].tolist() == [[2, 0, 4, 0], [0, 0, 0, 6]]


# -- whole calls


@pytest.mark.parametrize("order", [0, 1, 2])
def test_dense_taylorseer_is_that_of_diffusers(order):
    family = FAMILIES["QwenImageEditPipeline"]
    pipe = family.make(0)
    call = family.arguments(**family.guided, num_inference_steps=12)
    theirs = TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=3, max_order=order,
        taylor_factors_dtype=torch.float32, use_lite_mode=True,
    )  # fmt: skip
    pipe.transformer.enable_cache(theirs)
    expected = pipe(**call).images
    pipe.transformer.disable_cache()
    method = TaylorSeer(interval=2, order=order, warm_up=3)
    handle = spotedit.enable(pipe, spatial=False, temporal=method)
    images = pipe(**family.arguments(**family.guided, num_inference_steps=12)).images
    kinds = [step["kind"] for step in handle.report.steps]
    assert kinds == ["dense"] * 3 + ["skip", "dense"] * 4 + ["skip"]
    assert close(images, expected, 1e-4)
    assert handle.report.flops_saved == pytest.approx(5 / 12)


@each_family
@pytest.mark.parametrize("guided", [False, True])
def test_every_step_computed_is_the_plain_call(name, guided):
    family = FAMILIES[name]
    if guided and not family.guided:
        pytest.skip(f"{name} has no guidance in its call")
    extra = family.guided if guided else {}
    pipe = family.make(0)
    for options in (PLAIN, {"spatial": False}):
        spotedit.enable(pipe, **options)
        expected = pipe(**family.arguments(**extra)).images
        for method in (TeaCache(0, LINEAR), TaylorSeer(interval=1)):
            handle = spotedit.enable(pipe, **options, temporal=method)
            assert torch.equal(pipe(**family.arguments(**extra)).images, expected)
            assert "skip" not in {step["kind"] for step in handle.report.steps}
            assert f"{type(method).__name__} ran all 8 steps" in handle.report.summary()


@each_family
def test_every_family_leaves_steps_out(name):
    family = FAMILIES[name]
    pipe = family.make(0)
    spot = ["full", "skip", "skip", "full", "skip", "full", "skip", "spot"]
    dense = ["dense", *["skip"] * 6, "dense"]
    for options, expected in ((PLAIN, spot), ({"spatial": False}, dense)):
        handle = spotedit.enable(pipe, **options, temporal=TeaCache(1e9, LINEAR))
        assert torch.isfinite(pipe(**family.arguments(**family.guided)).images).all()
        assert [step["kind"] for step in handle.report.steps] == expected


def test_of_initial_full_steps_the_last_always_runs(pipe):
    """Its keys and values are kept; those before it are kept by nobody."""
    method = TeaCache(1e9, LINEAR)
    _, kinds, _ = edit(pipe, {"temporal": method, "initial_steps": 4, "reset_steps": ()})
    assert kinds == ["full", "skip", "skip", "full", "skip", "skip", "skip", "spot"]


def test_a_step_left_out_runs_nothing_and_is_counted(pipe):
    rows = []
    pipe.transformer.proj_out.register_forward_hook(lambda m, a, out: rows.append(out.shape[1]))
    _, kinds, report = edit(pipe, {"temporal": TaylorSeer(interval=2, warm_up=1)})
    assert kinds == ["full", "skip", "spot", "full", "skip", "full", "skip", "spot"]
    assert rows == [96, 6, 96, 96, 6]
    assert [s["active"] for s in report.steps] == [48, 0, 6, 48, 0, 48, 0, 6]
    assert report.flops_saved == pytest.approx(1 - (3 * 101 + 2 * 11) / (8 * 101))
    assert "TaylorSeer ran 5 of 8 steps" in report.summary()
    assert report.to_dict()["temporal"] == "TaylorSeer"


def test_reused_tokens_end_at_the_source_whatever_is_left_out(pipe):
    sources = []
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, kw: sources.append(kw["hidden_states"][:, 48:]), with_kwargs=True
    )
    for method in (TaylorSeer(interval=9, warm_up=1), TeaCache(1e9, LINEAR)):
        images, _, report = edit(pipe, {"temporal": method}, batch=2)
        reused = ~report._record.region
        assert torch.equal(images[reused], sources[0][reused])


def test_the_last_velocity_serves_again(pipe):
    """A dense call of three steps, of which one is left out, by hand."""
    seen = []
    hook = pipe.transformer.register_forward_hook(lambda m, a, out: seen.append(out[0][:, :48]))
    with spotedit.enable(pipe, spatial=False, temporal=TeaCache(1e9, LINEAR)) as handle:
        latents = pipe(**call_arguments(num_inference_steps=3)).images
    hook.remove()
    sigmas = [step["sigma"] for step in handle.report.steps] + [0.0]
    first, last = seen
    noise = latents - (sigmas[2] - sigmas[0]) * first - (sigmas[3] - sigmas[2]) * last
    with spotedit.enable(pipe, spatial=False, temporal=TaylorSeer(9, 0, 1)):
        alone = pipe(**call_arguments(num_inference_steps=3)).images
    assert close(alone, noise + (sigmas[3] - sigmas[0]) * first)


def test_tokens_dropped_while_steps_are_left_out_are_blended_later(pipe, monkeypatch):
    """Where the set shrinks before steps that are left out, it has shrunk after them too."""
    from spotedit.engine import forwards

    seen = []
    blend = forwards.blend
    monkeypatch.setattr(forwards, "blend", lambda *a: seen.append(a[2].tolist()) or blend(*a))
    shrinking = iter([0.0, 0.5, 0.9])

    def judge(y, grid, features, impl):
        return lambda x0: (torch.arange(48)[None] / 48 > next(shrinking)).float()

    method = TaylorSeer(interval=3, warm_up=2)
    handle = spotedit.enable(
        pipe, preset="paper", judge=judge, threshold=0.5, initial_steps=1, reset_steps=(),
        temporal=method,
    )  # fmt: skip
    pipe(**call_arguments(num_inference_steps=6))
    kinds = [step["kind"] for step in handle.report.steps]
    assert kinds == ["full", "spot", "skip", "skip", "spot", "skip"]
    layers = len(pipe.transformer.attn_processors)
    assert seen[::layers] == [[], list(range(1, 25))]


def test_guidance_branches_keep_their_own(pipe):
    """With a scale of 1 + 0 the negative branch does not count, whatever it remembers."""
    method = {"temporal": TaylorSeer(interval=2, warm_up=1)}
    plain, _, _ = edit(pipe, method)
    negative = {**GUIDED, "true_cfg_scale": 1.0 + 1e-9}
    guided, kinds, _ = edit(pipe, method, **negative)
    assert kinds.count("skip") == 3
    assert close(guided, plain, 1e-4)


def test_the_decision_is_one_synchronisation(pipe):
    from test_method import CountSynchronisations

    counts = []
    options = {"spatial": False, "temporal": TeaCache(1e9, LINEAR)}
    with spotedit.enable(pipe, **options), CountSynchronisations() as mode:
        keep = lambda *a: counts.append(mode.count) or {}  # noqa: E731
        pipe(**call_arguments(callback_on_step_end=keep))
    assert {b - a for a, b in itertools.pairwise(counts[:-1])} == {1}


def test_the_change_is_added_up_until_a_step_is_computed():
    state = TeaState(TeaCache(0.25, LINEAR))
    inputs = [torch.full((1, 2, 2), value) for value in (1.0, 1.1, 1.21, 1.331, 1.4641)]
    state.note_computed_step(0, lambda: inputs[0])
    found = []
    for step in range(1, 5):
        found.append(state.decide_to_skip(step, False, lambda step=step: inputs[step]))
        if not found[-1]:
            state.note_computed_step(step, lambda: pytest.fail("seen already"))
    assert found == [True, True, False, True]
    assert not state.decide_to_skip(5, True, lambda: pytest.fail("the last step is computed"))


@pytest.mark.parametrize("method", [TeaCache(1e9, LINEAR), TaylorSeer(interval=3)])
def test_nothing_is_left_behind(pipe, method):
    block = pipe.transformer.transformer_blocks[0]
    classes = type(pipe.transformer), type(block)
    stock = pipe(**call_arguments(**STOCK)).images

    def fail(*args):
        raise KeyboardInterrupt

    handle = spotedit.enable(pipe, **PLAIN, temporal=method)
    with pytest.raises(KeyboardInterrupt):
        pipe(**call_arguments(callback_on_step_end=fail))
    assert (type(pipe.transformer), type(block)) == classes
    first = pipe(**call_arguments()).images
    assert torch.equal(pipe(**call_arguments()).images, first)
    handle.disable()
    assert torch.equal(pipe(**call_arguments(**STOCK)).images, stock)


def test_with_both_axes_off_the_call_is_dense(pipe):
    expected = pipe(**call_arguments(**STOCK)).images
    handle = spotedit.enable(pipe, spatial=False)
    assert torch.equal(pipe(**call_arguments()).images, expected)
    assert "spatial=False" in handle.report.reason
    assert "nothing was skipped: no token may be reused" in handle.report.summary()


def test_where_the_grids_differ_steps_are_still_left_out(pipe):
    handle = spotedit.enable(pipe, match_size=False, temporal=TaylorSeer(interval=2))
    pipe(**call_arguments(height=64, width=64, max_area=4096))
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
def test_a_cache_of_diffusers_is_refused_with_what_to_use_instead(pipe, config, instead):
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
    """It marks the transformer, and the pipeline's class beside the instance's manager."""

    def cache():
        if mark == "transformer":
            pipe.transformer._is_cached = True
        else:
            type(pipe)._is_cached, pipe._context_manager = True, object()

    spotedit.enable(pipe)
    cache()
    with pytest.raises(ValueError, match=r"cache_dit\.disable_cache"):
        pipe(**call_arguments())
    spotedit.disable(pipe)
    try:
        cache()
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
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- text and source


@each_family
@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
def test_cached_text_runs_the_active_rows_alone(name, cache_dtype):
    """Where nothing changes from the full step on, a cached prompt changes nothing."""
    family = FAMILIES[name]
    pipe = family.make(0)
    options = {**PLAIN, "reset_steps": (), "initial_steps": 1, "cache_dtype": cache_dtype}
    rows = {}
    for cached in (False, True):
        handle = spotedit.enable(pipe, **options, cache_text=cached)
        handle.set_mask(torch.ones(*family.grid), mode="replace")
        images = pipe(**family.arguments(**family.guided)).images
        assert torch.isfinite(images).all()
        spots = [record for record in handle.report._record.records if record.kind == "spot"]
        rows[cached] = {record.rows for record in spots}
    assert rows[True] == {math.prod(family.grid)}
    assert min(rows[False]) > math.prod(family.grid)


def test_a_cached_prompt_is_the_prompt_where_time_stands_still(pipe):
    """The same step twice: its second, a spot step, has the full one's prompt."""
    given = call_arguments(num_inference_steps=2, sigmas=[0.7, 0.7])
    outputs = []
    pipe.transformer.proj_out.register_forward_hook(lambda m, a, out: outputs.append(out))
    for cached in (False, True):
        spotedit.enable(pipe, **PLAIN, cache_text=cached).set_mask(
            torch.ones(48, 64), mode="replace"
        )
        pipe.scheduler.register_to_config(use_dynamic_shifting=False, shift=1.0)
        pipe(**{**given, "generator": torch.Generator().manual_seed(1)})
    (full, plain), (_, cached) = outputs[:2], outputs[2:]
    assert close(plain, full[:, :48])
    assert close(cached, full[:, :48])


# -- calibration


def test_calibration_watches_the_stock_steps(pipe):
    stock = pipe(**call_arguments(**STOCK)).images
    found = calibrate(pipe, [call_arguments(seed) for seed in (0, 1)])
    assert len(found.inputs) == len(found.outputs) == 14
    assert len(found.coefficients) == 5
    assert min(found.coefficients) >= 0
    assert torch.equal(pipe(**call_arguments(**STOCK)).images, stock)
    guided = calibrate(pipe, [call_arguments(**GUIDED | {"true_cfg_scale": 1 + 1e-9})])
    assert guided.inputs == pytest.approx(found.inputs[:7], rel=1e-4)  # the first branch's
    with pytest.raises(ValueError, match="1 pairs of steps; expected more than 5"):
        calibrate(pipe, [call_arguments(num_inference_steps=2)])


def test_a_fit_never_predicts_less_from_more():
    x = torch.linspace(0.01, 0.1, 20)
    exact = fit([(v, 3 * v**2 + 0.01) for v in x.tolist()])
    assert exact.coefficients == pytest.approx((0, 0, 3, 0, 0.01), abs=1e-6)
    assert exact.r2 == pytest.approx(1)
    falling = fit([(v, 1 - v) for v in x.tolist()])
    assert min(falling.coefficients) >= 0


def test_the_random_pipelines_of_kontext_take_the_published_coefficients():
    handle = spotedit.enable(random_kontext(), temporal=TeaCache())
    assert handle._spec.tea.coefficients[-1] == 0.0374537863


# -- what else touches the transformer


@pytest.mark.parametrize("how", OFFLOAD)
def test_teacache_finds_offloaded_weights(how):
    options = {**PLAIN, "temporal": TeaCache(0.3, LINEAR), "initial_steps": 1, "reset_steps": ()}
    expected, kinds, _ = edit(random_kontext(), options)
    assert {"spot", "skip"} <= set(kinds)
    pipe = random_kontext()
    OFFLOAD[how](pipe)
    for _ in range(2):
        images, found, _ = edit(pipe, options)
        assert found == kinds
        assert close(images, expected)


@pytest.mark.parametrize(
    "how",
    [
        "transformer",
        pytest.param("blocks", marks=pytest.mark.full),
        pytest.param("wrapped", marks=pytest.mark.full),
    ],
)
def test_teacache_makes_no_graph_of_its_own(pipe, how):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def count(**options):
        torch._dynamo.reset()
        graphs.clear()
        _, kinds, _ = edit(pipe, {"reset_steps": (), "initial_steps": 1, **options})
        return kinds, len(graphs)

    torch._dynamo.reset()
    if how == "blocks":
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    elif how == "transformer":
        pipe.transformer.compile(fullgraph=True, backend=backend)
    else:
        pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend=backend)
    kinds, made = count(temporal=TeaCache(0.3, LINEAR))
    assert {"spot", "skip"} <= set(kinds)
    assert made == count()[1] > 0
    torch._dynamo.reset()
