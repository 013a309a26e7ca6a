"""The queue of `spotedit.serve`: its limit, clients that leave, several devices, shutdown."""

import asyncio
import gc
import threading
import weakref
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from serving import (
    DEADLINE,
    PATH,
    SETTINGS,
    Call,
    application,
    encoded,
    error,
    form,
    picture,
    pictures,
    random_editor,
    same,
)

from spotedit.serve.pictures import decode

httpx = pytest.importorskip("httpx", reason="httpx is not installed")


class Gate:
    """Holds edits after their first step until it is opened."""

    def __init__(self, editor, monkeypatch):
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.num_steps = 0
        self._edit = editor.edit
        monkeypatch.setattr(editor, "edit", self._held_edit)

    def _held_edit(self, *args, on_step=None, **options):
        def hold(progress):
            self.num_steps += 1
            if progress.index == 0:
                self.entered.release()
                assert self.opened.wait(DEADLINE)
            if on_step is not None:
                on_step(progress)

        return self._edit(*args, on_step=hold, **options)

    async def wait_for_an_edit(self):
        assert await asyncio.to_thread(self.entered.acquire, timeout=DEADLINE)


@pytest.fixture(scope="module")
def editor():
    with pytest.MonkeyPatch.context() as monkeypatch:
        return random_editor(monkeypatch)


@pytest.fixture
def gate(editor, monkeypatch):
    gate = Gate(editor, monkeypatch)
    yield gate
    gate.opened.set()


@asynccontextmanager
async def running(editors, settings=SETTINGS):
    """Yield a client of an application, and the application."""
    app = application(editors, settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=DEADLINE) as client,
    ):
        yield client, app


def metric(text: str, name: str) -> float:
    """Return the value of a line of `GET /metrics`."""
    values = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")]
    assert len(values) == 1, name
    return float(values[0])


async def until(condition):
    """Wait until a function returns something true."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def post(client, **fields):
    return asyncio.create_task(client.post(PATH, **form(**fields)))


def value(app, name: str) -> float:
    """Return the value of a gauge or counter of an application."""
    return app.state.metrics.registry.get_sample_value(f"spotedit_{name}")


def test_requests_beyond_the_limit_are_refused_at_once(editor, gate):
    async def scenario():
        async with running([editor], replace(SETTINGS, queue=2)) as (client, app):
            accepted = [post(client, seed=0)]
            await gate.wait_for_an_edit()
            accepted += [post(client, seed=seed) for seed in (1, 2)]
            await until(lambda: value(app, "queue_length") == 2)
            refused = await client.post(PATH, **form(seed=3))
            gate.opened.set()
            return refused, await asyncio.gather(*accepted), await client.post(PATH, **form(seed=3))

    refused, accepted, later = asyncio.run(scenario())
    content = error(refused, 429)
    assert content["type"] == "rate_limit_error"
    assert content["code"] == "queue_full"
    assert "3 places" in content["message"]
    assert int(refused.headers["Retry-After"]) >= 1
    for seed, answer in enumerate([*accepted, later]):
        assert same(pictures(answer)[0], editor.edit(picture(), "add a hat", seed=seed).picture)


def test_a_client_that_leaves_the_queue_is_dropped_with_its_picture(editor, gate, monkeypatch):
    decoded = []

    def noting_decode(*args):
        edit = decode(*args)
        decoded.append(weakref.ref(edit.image))
        return edit

    monkeypatch.setattr("spotedit.serve.edits.decode", noting_decode)

    async def scenario():
        async with running([editor], replace(SETTINGS, queue=1)) as (client, app):
            first = post(client, seed=0)
            await gate.wait_for_an_edit()
            waiting = Call(app, seed=1)
            await until(lambda: value(app, "queue_length") == 1)
            await waiting.leave()
            assert waiting.status == 499
            assert value(app, "queue_length") == 0
            gc.collect()
            assert [image() is None for image in decoded] == [False, True]
            second = post(client, seed=2)  # takes the free place
            await until(lambda: value(app, "queue_length") == 1)
            gate.opened.set()
            answers = await asyncio.gather(first, second)
            assert value(app, "cancelled_requests_total") == 1
            assert value(app, "edit_seconds_count") == 2  # the dropped one was not edited
            return answers

    answers = asyncio.run(scenario())
    for seed, answer in zip((0, 2), answers, strict=True):
        assert same(pictures(answer)[0], editor.edit(picture(), "add a hat", seed=seed).picture)


def test_a_client_that_does_not_read_the_answer_loses_its_place_in_time(editor):
    async def scenario():
        settings = replace(SETTINGS, queue=0, transfer_seconds=1)
        async with running([editor], settings) as (client, app):
            call = Call(app, num_read=0)
            await until(lambda: call.status == 200)
            assert (await client.post(PATH, **form())).status_code == 429
            await asyncio.wait_for(call.task, DEADLINE)
            assert value(app, "cancelled_requests_total") == 1
            assert (await client.post(PATH, **form())).status_code == 200

    asyncio.run(scenario())


def test_a_client_that_leaves_ends_its_edit_after_the_step(editor, gate):
    async def scenario():
        async with running([editor]) as (client, app):
            call = Call(app, n=3)
            await gate.wait_for_an_edit()
            await call.leave()
            assert call.status == 499
            gate.opened.set()
            await until(lambda: value(app, "running") == 0)
            assert gate.num_steps == 1
            assert value(app, "edit_seconds_count") == 0
            return await client.post(PATH, **form(seed=7))

    answer = asyncio.run(scenario())
    assert same(pictures(answer)[0], editor.edit(picture(), "add a hat", seed=7).picture)


def test_a_client_that_leaves_during_the_upload(editor):
    async def scenario():
        async with running([editor], replace(SETTINGS, queue=0)) as (client, app):
            call = Call(app, is_cut_short=True)
            await call.leave()
            assert call.status == 499
            assert (await client.post(PATH, **form())).status_code == 200  # its place is free

    asyncio.run(scenario())


def test_a_slow_upload_is_refused(editor):
    async def slow_body():
        yield b"--x\r\n"
        await asyncio.sleep(DEADLINE)

    async def scenario():
        async with running([editor], replace(SETTINGS, transfer_seconds=0.05)) as (client, _):
            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            return await client.post(PATH, content=slow_body(), headers=headers)

    assert error(asyncio.run(scenario()), 408)["code"] == "upload_timeout"


def test_a_request_that_takes_too_long_ends_its_edit(editor, gate):
    async def scenario():
        async with running([editor], replace(SETTINGS, request_seconds=0.2)) as (client, app):
            answer = await client.post(PATH, **form())
            gate.opened.set()
            await until(lambda: value(app, "running") == 0)
            assert gate.num_steps == 1
            return answer

    answer = asyncio.run(scenario())
    assert error(answer, 504)["code"] == "timeout"
    assert "Retry-After" in answer.headers


def test_two_devices_edit_at_the_same_time(editor, monkeypatch):
    editors = [editor, random_editor(monkeypatch)]
    serial = [editors[0].edit(picture(seed), f"edit {seed}", seed=seed) for seed in range(4)]
    gates = [Gate(editor, monkeypatch) for editor in editors]

    async def scenario():
        async with running(editors, replace(SETTINGS, queue=8)) as (client, app):
            tasks = [
                post(client, image=encoded(picture(seed)), prompt=f"edit {seed}", seed=seed)
                for seed in range(4)
            ]
            for gate in gates:  # both hold an edit, so both are running
                await gate.wait_for_an_edit()
            assert value(app, "running") == 2
            for gate in gates:
                gate.opened.set()
            return await asyncio.gather(*tasks)

    for expected, answer in zip(serial, asyncio.run(scenario()), strict=True):
        assert same(pictures(answer)[0], expected.picture)


def test_shutdown_finishes_the_running_edit_and_refuses_the_others(editor, gate):
    async def scenario():
        async with running([editor]) as (client, app):
            first = post(client, seed=0)
            await gate.wait_for_an_edit()
            waiting = post(client, seed=1)
            await until(lambda: value(app, "queue_length") == 1)
            app.state.workers.drain()
            refused = [await waiting, await client.post(PATH, **form())]
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/health")).status_code == 200
            gate.opened.set()
            return await first, refused

    first, refused = asyncio.run(scenario())
    assert same(pictures(first)[0], editor.edit(picture(), "add a hat").picture)
    for answer in refused:
        assert error(answer, 503)["code"] == "shutting_down"
        assert "Retry-After" in answer.headers


def test_the_application_stops_with_a_running_edit(editor, gate):
    async def scenario():
        async with running([editor]) as (_, app):
            call = Call(app)
            await gate.wait_for_an_edit()
            call.task.cancel()  # as uvicorn does when its patience ends
            gate.opened.set()
        assert gate.num_steps == 1

    asyncio.run(scenario())


def failing(problem):
    def edit(*args, **options):
        raise problem

    return edit


@pytest.mark.parametrize(
    ("problem", "status", "code"),
    [
        ("BadInput", 400, "invalid_edit"),
        ("Failure", 503, "out_of_memory"),
        ("RuntimeError", 500, "internal_error"),
    ],
)
def test_an_edit_that_fails_is_answered_and_the_next_one_is_right(
    editor, monkeypatch, problem, status, code
):
    from spotedit.editor import errors

    kind = getattr(errors, problem, RuntimeError)

    async def scenario():
        app = application([editor], SETTINGS)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            with monkeypatch.context() as patch:
                patch.setattr(editor, "edit", failing(kind("what went wrong")))
                failed = await client.post(PATH, **form())
            return failed, await client.post(PATH, **form())

    failed, later = asyncio.run(scenario())
    content = error(failed, status)
    assert content["code"] == code
    assert ("what went wrong" in content["message"]) == (status == 400)
    assert same(pictures(later)[0], editor.edit(picture(), "add a hat").picture)
