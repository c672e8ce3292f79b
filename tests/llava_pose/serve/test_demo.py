"""llava-pose demo: the real server on a real checkpoint, asked over HTTP by the real client, and in a real browser."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from llava_pose.data.poses.formats import read_poses
from llava_pose.data.records import Pose
from llava_pose.pose.metrics import pose_error
from llava_pose.serve.demo import main
from llava_pose.serve.examples import prepare_pictures, title_of
from tests.browser import Page
from tests.llava_pose.demo_server import Answer, Server, ask, free_port, start

pytest.importorskip("gradio", reason="the demo needs gradio: pip install 'llava-pose[demo]'")
gradio_client = pytest.importorskip("gradio_client", reason="the tests of the demo need gradio_client")

REPOSITORY = Path(__file__).resolve().parents[3]
ANGLES = re.compile(r"\(azimuth (\d+)°, elevation (-?\d+)°, in-plane (-?\d+)°\)")
TAUGHT_WITHIN = 5.0  # degrees: what the head learnt its lessons to, and whole degrees shown
CAR_QUESTION, CUP_FOLLOW_UP = "What is the pose of the car?", "And the cup?"


@pytest.fixture(scope="module")
def server(taught, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start(taught, tmp_path_factory.mktemp("demo"))
    yield running
    running.process.kill()
    running.process.wait()


def assert_is(degrees: Any, pose: Pose) -> None:
    error = pose_error(np.radians([float(angle) for angle in degrees]), np.array(pose.angles))
    assert math.degrees(float(error)) < TAUGHT_WITHIN, f"{degrees} is not {pose}"


@pytest.fixture
def client(server: Server) -> Any:
    """A visitor who has just come."""
    return server.client()


# Answers


def test_a_picture_and_a_question_give_angles_and_axes(client, taught):
    answer = ask(client, taught.picture, CAR_QUESTION)
    (asked, question), (answered, text) = answer.turns
    assert (asked, question, answered) == ("user", CAR_QUESTION, "assistant")
    assert re.fullmatch(rf"The car is at {ANGLES.pattern}\.", text)
    assert_is(ANGLES.search(text).groups(), taught.car)
    [row] = answer.angles
    assert_is(row[:3], taught.car)
    assert row[3] == pytest.approx(taught.car.distance, rel=0.15)
    assert 0 <= row[4] <= 100


def test_the_axes_are_drawn_on_the_whole_picture(client, taught, tmp_path):
    large = tmp_path / "large.png"
    Image.open(taught.picture).convert("RGB").resize((800, 800), Image.Resampling.BICUBIC).save(large)
    drawn = Image.open(ask(client, large, CAR_QUESTION).axes).convert("RGB")
    given = Image.open(large)
    assert drawn.size == given.size
    moved = np.abs(np.asarray(drawn, dtype=int) - np.asarray(given, dtype=int)).max(-1) > 40
    assert 0.01 < moved.mean() < 0.4  # arrows, and the picture beneath them
    rows, columns = np.nonzero(moved)
    assert np.hypot(columns / 5 - taught.car.px, rows / 5 - taught.car.py).min() < 10  # they start at the object


@pytest.mark.parametrize(("size", "shown"), [((160, 90), (720, 405)), ((3200, 1800), (1600, 900))])
def test_small_pictures_are_enlarged_and_large_ones_shrunk(client, taught, tmp_path, size, shown):
    other = tmp_path / "other.jpg"
    Image.open(taught.picture).convert("RGB").resize(size).save(other)
    assert Image.open(ask(client, other, CAR_QUESTION).axes).size == shown


def test_a_follow_up(client, taught):
    ask(client, taught.picture, CAR_QUESTION)
    answer = ask(client, taught.picture, CUP_FOLLOW_UP)
    assert [role for role, _ in answer.turns] == ["user", "assistant"] * 2
    text = answer.turns[-1][1]
    assert re.fullmatch(rf"The cup is at {ANGLES.pattern}\.", text)
    assert_is(ANGLES.search(text).groups(), taught.cup)
    assert len(answer.angles) == 1
    assert_is(answer.angles[0][:3], taught.cup)


def test_every_pose_of_an_answer_has_its_row(client, taught):
    answer = ask(client, taught.picture, "Describe the picture.")
    assert len(answer.angles) == 2
    for row, pose in zip(answer.angles, (taught.car, taught.cup), strict=True):
        assert_is(row[:3], pose)


def test_another_picture_begins_another_chat(client, taught, tmp_path):
    other = tmp_path / "other.png"
    Image.open(taught.picture).convert("RGB").rotate(90).save(other)
    ask(client, taught.picture, CAR_QUESTION)
    answer = ask(client, other, CUP_FOLLOW_UP)
    assert [text for role, text in answer.turns if role == "user"] == [CUP_FOLLOW_UP]


def test_a_new_chat_forgets(client, taught):
    ask(client, taught.picture, CAR_QUESTION)
    conversation, axes, angles, *_ = client.predict(api_name="/new_chat")
    assert (conversation, axes, angles["data"]) == ([], None, [])
    assert len(ask(client, taught.picture, CAR_QUESTION).turns) == 2


def test_visitors_at_the_same_time_do_not_see_each_other(server, taught):
    """Two visitors with one picture, so with one file: each has the questions that it asked, and no other's."""
    visitors = [server.client(), server.client()]
    questions = [[CAR_QUESTION, CUP_FOLLOW_UP], ["Describe the picture.", "What is this and what is its pose?"]]

    def visit(client: Any, asked: list[str]) -> Answer:
        for question in asked:
            answer = ask(client, taught.picture, question)
        return answer

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(visit, visitors, questions))
    for answer, asked in zip(answers, questions, strict=True):
        assert [text for role, text in answer.turns if role == "user"] == asked
    assert_is(answers[0].angles[0][:3], taught.cup)


def test_a_program_gets_every_number_of_a_pose(client, taught):
    [pose] = ask(client, taught.picture, CAR_QUESTION).poses
    assert pose["category"] == "car"
    assert pose["words"].startswith("seen from its ")
    assert np.linalg.det(np.array(pose["matrix"])[:3, :3]) == pytest.approx(1.0)
    assert_is(pose["degrees"].values(), taught.car)


def test_a_box_is_asked_about_and_its_pose_is_in_the_pixels_of_the_picture(client, taught, tmp_path):
    """The taught picture, with room round it that the box takes off again."""
    wide = tmp_path / "wide.png"
    room = Image.new("RGB", (400, 200), "black")
    room.paste(Image.open(taught.picture).convert("RGB"), (200, 20))
    room.save(wide)
    side = 160 / 1.1  # a box is cut out with 5% at each side
    left, top = 200 + (160 - side) / 2, 20 + (160 - side) / 2
    box = f"{left / 4} {top / 2}, {side / 4}% {side / 2}"
    answer = ask(client, wide, CAR_QUESTION, box)
    assert_is(answer.angles[0][:3], taught.car)
    [pose] = answer.poses
    assert (pose["pose"]["px"], pose["pose"]["py"]) == pytest.approx((200 + taught.car.px, 20 + taught.car.py), abs=12)
    assert len(ask(client, wide, CUP_FOLLOW_UP, box).turns) == 4, "the same box is the same chat"
    assert len(ask(client, wide, CAR_QUESTION).turns) == 2, "without the box it is another"


@pytest.mark.parametrize("box", ["1 2 3", "a b c d", "nan nan nan nan", "200 10 20 20", "10 10 0 10", "1 2 3 4 5"])
def test_a_box_that_is_none_is_a_sentence(client, taught, box):
    assert_sentence(ask(client, taught.picture, CAR_QUESTION, box), "left, top, width and height in percent")


# Mistakes: each is a sentence in the conversation, and the server lives on


def assert_sentence(answer: Answer, *parts: str) -> None:
    role, text = answer.turns[-1]
    assert role == "assistant"
    for part in parts:
        assert part in text
    assert "Traceback" not in text
    assert str(REPOSITORY) not in text
    assert "/uploads/" not in text  # the server's own path tells a visitor nothing
    assert answer.angles == []


def test_a_bad_picture_is_a_sentence(client, taught, tmp_path):
    text, cut = tmp_path / "notes.png", tmp_path / "cut.jpg"
    text.write_text("this is no picture")
    Image.open(taught.picture).convert("RGB").save(cut, quality=95)
    cut.write_bytes(cut.read_bytes()[:1500])
    for path in (text, cut):
        answer = ask(client, path, CAR_QUESTION)
        assert answer.turns[0] == ("user", CAR_QUESTION)
        assert answer.axes is None
        assert_sentence(answer, path.name, "give a JPEG, PNG or WebP file")
    assert_is(ask(client, taught.picture, CAR_QUESTION).angles[0][:3], taught.car)


def test_no_picture_and_no_question_are_sentences(client, taught):
    assert_sentence(ask(client, None, CAR_QUESTION), "Give me a picture first")
    assert_sentence(ask(client, taught.picture, "  "), "Type a question")
    assert_sentence(ask(client, taught.picture, "What is at <pose6D>?"), "ask in plain words")
    assert_sentence(ask(client, taught.picture, "What is it? " * 300), "start a new chat")
    assert_sentence(ask(client, taught.picture, "What is it? " * 1000), "11999 characters", "in fewer words")
    assert len(ask(client, taught.picture, CAR_QUESTION).turns) == 2


def test_a_failed_question_keeps_the_chat(client, taught):
    ask(client, taught.picture, CAR_QUESTION)
    failed = ask(client, taught.picture, "What is at <pose6D>?")
    assert len(failed.turns) == 4
    assert_is(failed.angles[0][:3], taught.car)
    assert len(ask(client, taught.picture, CUP_FOLLOW_UP).turns) == 4


# The process


def test_nothing_is_asked_of_another_machine(server, client, taught):
    """After a visit; the page and the server's start are in the note, too."""
    ask(client, taught.picture, CAR_QUESTION)
    page = httpx.get(server.url).text
    assert "LLaVA-pose" in page
    assert server.asked_for.read_text() == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "203.0.113.1"])
def test_where_one_cannot_listen_is_one_sentence(capsys, host):
    """Said before the checkpoint is loaded, which takes long: this one is not even there."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["--checkpoint", "nowhere", "--host", host, "--port", str(port)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: --host {host} --port {port}: cannot listen there (")
    assert errors.endswith("; choose another\n")
    assert errors.count("\n") == 1


def test_a_folder_without_pictures_is_refused_before_the_checkpoint_is_loaded(capsys, tmp_path):
    assert main(["--checkpoint", "nowhere", "--examples", str(tmp_path), "--port", str(free_port())]) == 2
    assert "there is no picture in this folder" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["pose", "/", "/a b", "javascript:x"])
def test_a_root_path_that_is_none_is_one_sentence(capsys, path):
    assert main(["--checkpoint", "nowhere", "--root-path", path]) == 2
    assert f"--root-path '{path}': must be a path such as /pose" in capsys.readouterr().err


def test_pictures_to_try_that_a_camera_has_named_are_told_apart(tmp_path):
    for name in ("IMG_0042.jpg", "IMG_0043.jpg", "red_car_7.png"):
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    (tmp_path / "prepared").mkdir()
    shown = prepare_pictures(str(tmp_path), tmp_path / "prepared")
    assert [title_of(path) for path in shown] == ["IMG 0042", "IMG 0043", "red car"]


def _proxy(target: str, prefix: str) -> tuple[str, Any]:
    """A web server that puts the demo below a prefix, and takes the prefix off what it passes on."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    client = httpx.AsyncClient(base_url=target, timeout=120)

    async def pass_on(request: Request) -> Response:
        path = "/" + request.path_params["path"]
        headers = [(k, v) for k, v in request.headers.items() if k not in ("host", "connection")]
        sent = client.build_request(
            request.method, path, params=request.query_params, headers=headers, content=await request.body()
        )
        got = await client.send(sent, stream=True)
        kept = {k: v for k, v in got.headers.items() if k in ("content-type", "content-encoding")}
        return StreamingResponse(got.aiter_raw(), got.status_code, kept)

    routes = [Route(f"{prefix}/{{path:path}}", pass_on, methods=["GET", "POST"])]
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=port, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    return f"http://127.0.0.1:{port}{prefix}/", server


def test_it_works_below_a_path_of_a_proxy_and_with_proxies_in_the_environment(taught, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:1")
    running = start(taught, tmp_path, "--root-path", "/pose")
    monkeypatch.undo()
    url, proxy = _proxy(running.url, "/pose")
    try:
        client = gradio_client.Client(url, verbose=False)
        answer = ask(client, taught.picture, CAR_QUESTION)
        assert_is(answer.angles[0][:3], taught.car)
        assert Image.open(answer.axes).size == (720, 720)
        page = httpx.get(url).text
        assert f"{url.rstrip('/')}" in page or "/pose" in page
    finally:
        proxy.should_exit = True
        running.process.kill()
        running.process.wait()


def test_ctrl_c_ends_it_at_once(taught, tmp_path):
    running = start(taught, tmp_path)
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.process.wait(60) == 0
    assert "Traceback" not in "".join(running.log)


# The browser


@pytest.mark.slow
def test_a_visit_in_a_browser(server, page, taught, tmp_path):
    """A picture is given, questions are asked, answers, axes and angles appear, on a screen and on a telephone."""
    page.go_to(server.url, width=1280, height=900)
    page.wait_until("document.querySelector('#ask') && document.querySelector('#picture input[type=file]')")
    assert "LLaVA-pose" in page.text("h1")

    page.choose_file("#picture input[type=file]", taught.picture)
    page.wait_until("document.querySelector('#picture img')?.naturalWidth == 160")
    page.type("#question textarea", CAR_QUESTION)
    page.click("#ask")
    page.wait_until("document.querySelector('#answers').innerText.includes('azimuth')")
    page.wait_until("document.querySelector('#axes img')?.naturalWidth == 720")
    assert_is(ANGLES.search(page.text("#answers")).groups(), taught.car)

    page.wait_until("document.querySelector('#question textarea').value == ''")
    page.type("#question textarea", CUP_FOLLOW_UP)
    page.press_enter()
    page.wait_until("document.querySelector('#answers').innerText.includes('The cup is at (azimuth')")
    assert_is(ANGLES.findall(page.text("#answers"))[-1], taught.cup)
    page.wait_until(
        f"document.querySelector('#angles').innerText.includes('{math.degrees(taught.cup.azimuth):.0f}'[0])"
    )

    page.wait_until("document.querySelector('#question textarea').value == ''")
    markup = "<img src=nowhere onerror='window.ran = true'><b>bold</b>"
    page.type("#question textarea", markup)
    page.press_enter()
    page.wait_until("document.querySelector('#answers').innerText.includes('bold')")
    assert markup in page.text("#answers"), "markup is shown as the text that it is"
    assert page.evaluate("[...document.querySelectorAll('#answers b, #answers img[src=nowhere]')].length") == 0
    assert page.evaluate("window.ran === undefined")

    for width, height in ((1280, 900), (390, 844)):
        page.resize(width, height)
        page.wait_until(f"window.innerWidth == {width}")
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"at {width} pixels one has to scroll sideways"
        page.screenshot(tmp_path / f"visit_{width}.png")

    drawn = page.evaluate("document.querySelector('#axes img').src")
    page.click("#new-chat")
    page.wait_until("!document.querySelector('#answers').innerText.includes('azimuth')")
    page.wait_until("!document.querySelector('#angles table')")
    page.wait_until(f"document.querySelector('#axes img')?.src != '{drawn}'")

    assert page.errors == []
    elsewhere = [url for url in page.requests if not url.startswith((server.url, "data:", "blob:", "about:"))]
    assert elsewhere == []
    assert len(page.requests) > 5
    assert server.asked_for.read_text() == ""


CONTROLS = {"button", "link", "textbox", "slider", "spinbutton", "radio", "checkbox", "combobox", "switch"}


@pytest.mark.slow
def test_two_checkpoints_examples_a_drawn_box_and_sliders_in_a_browser(page, taught, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.open(taught.picture).convert("RGB").save(pictures / "car_01.png")
    (pictures / "broken.png").write_text("this is no picture")
    (tmp_path / "demo").mkdir()
    running = start(taught, tmp_path / "demo", "--examples", str(pictures), "--compare", str(taught.folder))
    try:
        _visit_two(page, running, taught, tmp_path)
    finally:
        running.process.kill()
        running.process.wait()


BOX = """OFF
8 6 0
-0.2 -0.4 -0.1
0.2 -0.4 -0.1
0.2 0.4 -0.1
-0.2 0.4 -0.1
-0.2 -0.4 0.1
0.2 -0.4 0.1
0.2 0.4 0.1
-0.2 0.4 0.1
4 0 3 2 1
4 4 5 6 7
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7
"""


@pytest.mark.slow
def test_the_wires_of_a_cad_model_are_drawn_in_the_place_of_the_cube_in_a_browser(page, taught, tmp_path):
    """The car has a model, the cup has none and gets its cube."""
    (tmp_path / "CAD" / "car").mkdir(parents=True)
    (tmp_path / "CAD" / "car" / "03.off").write_text(BOX)
    (tmp_path / "demo").mkdir()
    running = start(taught, tmp_path / "demo", "--cad", str(tmp_path / "CAD"))
    try:
        page.go_to(running.url, width=1280, height=900)
        page.wait_until("document.querySelector('#ask') && document.querySelector('#picture input[type=file]')")
        page.choose_file("#picture input[type=file]", taught.picture)
        page.wait_until("document.querySelector('#axes img')?.naturalWidth == 720")
        bare = _drawn(page)
        for question, name, has_wires in ((CAR_QUESTION, "car", True), (CUP_FOLLOW_UP, "cup", False)):
            before = page.evaluate("document.querySelector('#axes img').src")
            page.wait_until("document.querySelector('#question textarea').value == ''")
            page.type("#question textarea", question)
            page.press_enter()
            page.wait_until(f"document.querySelector('#axes img').src != '{before}'")
            page.wait_until(f"document.querySelector('#angles').innerText.includes('{name}')")
            drawn = _drawn(page)
            changed = np.abs(drawn - bare).max(-1) > 40
            yellow = changed & (np.abs(drawn - (255, 214, 0)).max(-1) < 90)
            assert bool(yellow.sum() > 250) is has_wires, name
            page.screenshot(tmp_path / f"{name}.png")
        assert page.errors == []
    finally:
        running.process.kill()
        running.process.wait()


def _drawn(page: Page) -> np.ndarray:
    """The pixels of the drawn picture."""
    content = httpx.get(page.evaluate("document.querySelector('#axes img').src")).content
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=int)


@pytest.mark.parametrize("files", [{}, {"car/01.off": "no model"}])
def test_a_folder_without_a_model_that_can_be_drawn_is_one_sentence(capsys, taught, tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    words = ["--checkpoint", str(taught.folder), "--cad", str(tmp_path), "--port", str(free_port()), "--device", "cpu"]
    assert main(words) == 2
    assert str(tmp_path) in capsys.readouterr().err


def _visit_two(page: Page, running: Server, taught: Any, tmp_path: Path) -> None:
    page.go_to(running.url, width=390, height=844)
    page.wait_until("document.querySelector('#example-0') && document.querySelector('#ask')")
    assert page.text("#example-0") == "car"
    assert page.evaluate("document.querySelector('#example-1')") is None
    page.click("#example-0")
    page.wait_until("document.querySelector('#axes img')?.naturalWidth == 720")
    page.type("#question textarea", "Describe the picture.")
    page.press_enter()
    page.wait_until("document.querySelector('#angles-2 table')")
    page.wait_until("document.querySelector('#angles table')")
    for pane in ("#answers", "#answers-2"):
        assert_is(ANGLES.findall(page.text(pane))[0], taught.car)

    bottom = page.evaluate(
        "[...document.querySelectorAll('#answers .bot')].at(-1).getBoundingClientRect().bottom + window.scrollY"
    )
    assert bottom < 844, "on a telephone the answer is in sight"
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    links = page.evaluate("[...document.querySelectorAll('#angles a')].map(a => [a.download, a.href])")
    for (name, href), pose in zip(links, (taught.car, taught.car), strict=True):
        (tmp_path / name).write_bytes(base64.b64decode(href.partition(",")[2]))
        items, faults = read_poses(tmp_path / name, "llava-pose")
        assert (len(items), faults) == (2, [])
        assert_is(np.degrees(items[0].pose.angles), pose)

    page.resize(1280, 900)
    page.wait_until("window.innerWidth == 1280")
    page.click("#turn button")
    page.wait_until(
        "document.querySelector('#turn input[type=range]') && document.querySelector('#turn input[type=radio]')"
    )
    names = _controls(page)
    assert {"Ask", "New chat", "car", "range slider for Azimuth ° of taught", "1 car", "poses.csv"} <= names
    drawn = page.evaluate("document.querySelector('#axes img').src")
    seen = page.text("#words")
    page.evaluate("document.querySelector('#turn input[type=range]').focus()")
    page.press("Home", 36)
    page.wait_until("document.querySelector('#words').innerText.includes('seen from its front,')")
    page.wait_until(f"document.querySelector('#axes img').src != '{drawn}'")
    assert seen != page.text("#words")
    page.evaluate(
        "[...document.querySelectorAll('#turn button')].find(b => b.innerText == 'Back to the answer').click()"
    )
    page.wait_until(f"document.querySelector('#words').innerText == '{seen}'")

    page.click_at("#axes img", 0.25, 0.25)
    page.wait_until(f"document.querySelector('#axes img').src != '{drawn}'")
    page.click_at("#axes img", 0.75, 0.8)
    page.wait_until("document.querySelector('#box :is(input, textarea)').value == '25 25 50 55'")
    page.wait_until("!document.querySelector('#answers').innerText.includes('azimuth')")
    page.wait_until("document.querySelector('#question textarea').value == ''")
    page.type("#question textarea", CAR_QUESTION)
    page.press_enter()
    page.wait_until("document.querySelector('#answers-2').innerText.includes('The car is at')")

    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.wait_until(f"getComputedStyle(document.body).backgroundColor != '{light}'")
    page.screenshot(tmp_path / "two.png")

    # what was drawn last comes after the words
    page.wait_until("document.querySelector('#angles-2 table')")
    page.wait_until("[...document.images].every(image => image.complete && image.naturalWidth)")
    [visitors] = (tmp_path / "demo" / "uploads").glob("*/visitors")
    shutil.rmtree(visitors)  # as happens to what is older than an hour
    page.go_to(running.url, width=1280, height=900)
    page.wait_until("document.querySelector('#example-0') && document.querySelector('#ask')")
    page.click("#example-0")
    page.wait_until("document.querySelector('#axes img')?.naturalWidth == 720")
    assert page.errors == []
    assert running.asked_for.read_text() == ""
    assert "Traceback" not in "".join(running.log)


def _controls(page: Page) -> set[str]:
    """The names of all controls, as a screen reader says them; none is without one."""
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in CONTROLS
    ]
    assert len(found) > 15
    assert [role for role, name in found if not name.strip()] == []
    return {name for _, name in found}
