"""`spotedit serve`: its options, and a real server on loopback under load."""

import asyncio
import base64
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import NUM_STEPS, PATH, encoded, error, form, picture, pictures, random_editor, same

from spotedit.cli import commands, main
from spotedit.cli import serve as serve_command

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

START_SECONDS, STOP_SECONDS, LOAD_SECONDS = 120, 60, 300
NUM_REQUESTS, NUM_AT_A_TIME, LEAVE_EVERY = 200, 16, 5
MAX_GROWTH = 64 * 2**20  # bytes, over the whole load


# -- options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--devices", "cpu"], "exclude each other"),
        (["--devices", "cpu,nonsense"], "--device nonsense"),
        (["--replicas", "2"], "--replicas needs --ray"),
        (["--api-key-file", "missing"], "--api-key-file missing"),
        (["--host", "256.0.0.1"], "--host 256.0.0.1"),
        (["--port", "70000"], "--port 70000"),
        (["--threshold", "-1"], "threshold"),
    ],
)
def test_bad_options_are_found_before_the_model_is_loaded(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(serve_command, "Editor", None)
    assert main(["serve", "--model", "random", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_taken_port_is_found_before_the_model_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr(serve_command, "Editor", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", "--model", "random", "--port", port]) == 2
    assert "choose another" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "two words", "schlüssel"])
def test_a_file_without_a_key_is_refused(text, tmp_path, capsys):
    (tmp_path / "key").write_text(text)
    assert main(["serve", "--model", "random", "--api-key-file", str(tmp_path / "key")]) == 2
    assert "expected one word" in capsys.readouterr().err


def test_a_model_is_required(capsys):
    assert main(["serve"]) == 2
    assert "name a model with --model" in capsys.readouterr().err


def test_missing_packages_are_named(capsys, monkeypatch):
    monkeypatch.setattr(serve_command, "_PACKAGES", ("no_such_package",))
    assert main(["serve", "--model", "random"]) == 2
    assert 'no-such-package; install them: pip install "spotedit[serve]"' in capsys.readouterr().err


def test_options_become_the_limits_and_the_editors(monkeypatch, tmp_path):
    (tmp_path / "key").write_text("secret\n")
    loaded, served = [], []
    monkeypatch.setattr(
        serve_command, "Editor", lambda settings: loaded.append(settings) or random_editor(patch)
    )
    monkeypatch.setattr("spotedit.serve.server.serve", lambda *given: served.append(given))
    options = ["--port", "0", "--devices", "cpu,cpu", "--queue", "3", "--max-pixels", "99"]
    options += ["--steps", "2", "--api-key-file", str(tmp_path / "key")]
    with pytest.MonkeyPatch.context() as patch:
        assert main(["serve", "--model", str(tmp_path), *options]) == 0
    ((editors, limits, _, _),) = served
    assert len(editors) == 2
    assert [settings.device for settings in loaded] == ["cpu", "cpu"]
    assert loaded[0].arguments == {"num_inference_steps": 2}
    assert (limits.queue, limits.max_pixels, limits.api_key) == (3, 99, "secret")
    assert limits.model == tmp_path.name  # clients do not see the folder


def test_options_may_stand_in_a_file(tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text(
        'model = "tiny"\npreset = "fast"\n[serve]\nport = 9000\nqueue = 2\ntransfer_seconds = 2.5\n'
    )
    parsed = commands.parse("serve", ["--config", str(path), "--queue", "3"])
    assert (parsed.port, parsed.queue, parsed.transfer_seconds) == (9000, 3, 2.5)
    assert (parsed.model, parsed.config.preset) == ("tiny", "fast")


def test_the_default_address_is_this_machine_only():
    assert commands.parse("serve", []).host == "127.0.0.1"


# -- a real server


@contextmanager
def running_server(*arguments: str):
    """Start `spotedit serve` with a random pipeline; yield its address and its process."""
    program = (
        "import sys; from spotedit.cli import main; from small_kontext import prompted_kontext\n"
        "import spotedit.editor.editor as module; module.load = lambda *args: prompted_kontext()\n"
        "options = ['--model', 'random', '--device', 'cpu', '--port', '0', *sys.argv[1:]]\n"
        "sys.exit(main(['serve', *options]))"
    )
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    steps = () if "--steps" in arguments else ("--steps", str(NUM_STEPS))
    process = subprocess.Popen(
        [sys.executable, "-c", program, *steps, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(address):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield address, process
    finally:
        process.kill()
        process.communicate()


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready").status_code == 200
    except httpx.TransportError:
        return False


def resident_bytes(address: str) -> float:
    text = httpx.get(f"{address}/metrics").text
    return float(re.search(r"^process_resident_memory_bytes (\S+)", text, re.M)[1])


def request_of(number: int) -> dict:
    """Return the form of one of twenty different edits."""
    seed = number % 20
    image = encoded(picture(seed, width=64 + 16 * (seed % 2)))
    return form(image=image, prompt=f"edit {seed}", seed=seed)


async def under_load(address: str) -> list:
    """Send many requests, of which every few are given up; return the answers, None for those."""
    at_a_time = asyncio.Semaphore(NUM_AT_A_TIME)
    async with httpx.AsyncClient(base_url=address, timeout=LOAD_SECONDS) as client:

        async def send(number: int):
            async with at_a_time:
                if number % LEAVE_EVERY == 0:
                    patience = 0.001 + 0.1 * (number % 7)  # leaves while it waits or runs
                    try:
                        await client.post(PATH, **request_of(number), timeout=patience)
                    except httpx.TimeoutException:
                        return None
                return await client.post(PATH, **request_of(number))

        async with asyncio.timeout(LOAD_SECONDS):
            return await asyncio.gather(*map(send, range(NUM_REQUESTS)))


@pytest.mark.full
def test_a_server_under_load_answers_rightly_and_keeps_its_memory(monkeypatch):
    editor = random_editor(monkeypatch)
    expected = {}
    with running_server("--queue", "64", "--max-pixels", "10000") as (address, process):
        asyncio.run(under_load(address))  # warms up
        before = resident_bytes(address)
        answers = asyncio.run(under_load(address))
        growth = resident_bytes(address) - before
        left = [answer for answer in answers if answer is None]
        assert len(left) > NUM_REQUESTS / LEAVE_EVERY / 2
        for number, answer in enumerate(answers):
            if answer is None:
                continue
            seed = number % 20
            if seed not in expected:
                image = picture(seed, width=64 + 16 * (seed % 2))
                expected[seed] = editor.edit(image, f"edit {seed}", seed=seed).picture
            assert same(pictures(answer)[0], expected[seed]), number
        assert growth < MAX_GROWTH
        error(httpx.post(f"{address}{PATH}", **form(image=b"no picture")), 400)
        assert is_ready(address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0


@pytest.mark.full
def test_sigterm_finishes_the_running_edit_and_refuses_the_waiting_ones(monkeypatch):
    editor = random_editor(monkeypatch, num_inference_steps=100)

    async def scenario(address, process):
        async with httpx.AsyncClient(base_url=address, timeout=STOP_SECONDS) as client:
            running = asyncio.create_task(client.post(PATH, **form(seed=0)))
            while "spotedit_running 1.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(client.post(PATH, **form(seed=1)))
            while "spotedit_queue_length 1.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            return await running, await waiting

    with running_server("--steps", "100") as (address, process):
        finished, refused = asyncio.run(scenario(address, process))
        assert process.wait(STOP_SECONDS) == 0
    assert same(pictures(finished)[0], editor.edit(picture(), "add a hat").picture)
    assert error(refused, 503)["code"] == "shutting_down"


@pytest.mark.full
def test_the_official_client_of_the_hosted_form(monkeypatch):
    openai = pytest.importorskip("openai", reason="openai is not installed")
    editor = random_editor(monkeypatch)
    with running_server() as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        answer = client.images.edit(
            image=("a.png", encoded(picture())),
            prompt="add a hat",
            n=2,
            response_format="b64_json",
            extra_body={"seed": 4, "keep": "model"},
        )
        expected = editor.edit(picture(), "add a hat", seed=4).picture
        assert len(answer.data) == 2
        assert base64.b64decode(answer.data[0].b64_json) == encoded(expected)
        draft, completed = client.images.edit(
            image=("a.png", encoded(picture())),
            prompt="add a hat",
            stream=True,
            partial_images=1,
            extra_body={"seed": 4, "keep": "model"},
        )
        assert draft.type == "image_edit.partial_image"
        assert completed.type == "image_edit.completed"
        assert completed.b64_json == answer.data[0].b64_json
        assert [model.id for model in client.models.list()] == ["random"]
        with pytest.raises(openai.BadRequestError, match="prompt is empty") as refused:
            client.images.edit(image=("a.png", encoded(picture())), prompt=" ")
        assert refused.value.param == "prompt"
