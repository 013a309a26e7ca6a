"""`spotedit serve --ray`: replicas of Ray Serve on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import PATH, encoded, error, form, pictures, same

from spotedit.cli import main
from spotedit.editor.editor import Editor
from spotedit.editor.settings import EditorSettings
from spotedit.tiny.scenes import make_scene

httpx = pytest.importorskip("httpx", reason="httpx is not installed")

START_SECONDS, STOP_SECONDS, ANSWER_SECONDS = 240, 120, 120
NUM_STEPS = 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "--devices", "cpu"], "exclude each other"),
        (["--ray", "--port", "0"], "name one"),
        (["--ray", "nowhere"], "--ray nowhere: expected an address"),
        (["--ray", "--device", "nonsense"], "--device nonsense"),
    ],
)
def test_options_that_ray_serve_does_not_take(arguments, message, capsys):
    assert main(["serve", "--model", "tiny", *arguments]) == 2
    assert message in capsys.readouterr().err


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def server():
    """Start two replicas; yield the address and the process."""
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
    port = free_port()
    options = ["--port", str(port), "--device", "cpu", "--steps", str(NUM_STEPS)]
    options += ["--ray", "--replicas", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spotedit.cli", "serve", "--model", "tiny", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
        start_new_session=True,  # Ray's processes end with it
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    try:
        while not is_ready(address):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield address, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.full
def test_two_replicas_answer_like_one_editor(server):
    address, process = server
    scenes = [make_scene(number) for number in range(6)]

    def post(number: int):
        scene = scenes[number]
        fields = form(image=encoded(scene.source_image), prompt=scene.instruction, seed=number)
        return httpx.post(address + PATH, **fields, timeout=ANSWER_SECONDS)

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(post, range(6)))
    with pytest.raises(httpx.TimeoutException):
        httpx.post(address + PATH, **form(n=10), timeout=0.3)  # a client that leaves
    answers.append(post(0))
    error(httpx.post(address + PATH, **form(prompt=" ")), 400)
    settings = EditorSettings(
        model="tiny", device="cpu", arguments={"num_inference_steps": NUM_STEPS}
    )
    with Editor(settings) as editor:
        for number, answer in zip([*range(6), 0], answers, strict=True):
            scene = scenes[number]
            expected = editor.edit(scene.source_image, scene.instruction, seed=number)
            assert same(pictures(answer)[0], expected.picture), number
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_SECONDS) == 0
    assert not is_ready(address)
