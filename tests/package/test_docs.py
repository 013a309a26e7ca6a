"""README.md and docs/: their code runs, and their links, options and figures are right."""

import inspect
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

import spotedit
from bench import tables
from spotedit import tiny
from spotedit.cli import commands as cli_commands
from spotedit.cli import main
from spotedit.evaluation.variants import read_variants
from spotedit.tiny.scenes import make_scene

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
LINKED = [README, *DOCS, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md"))]
LINKED += [ROOT / "bench" / "README.md", ROOT / "kernels" / "README.md"]
COMMANDS = ("demo", "edit", "batch", "preview", "verify", "eval", "calibrate", "serve", "env")
NUM_STEPS = 8  # of the edits of the pages, in place of the pipeline's 28
MAX_README_LINES = 150
OPTION = re.compile(r"--[a-z][\w-]+")
BENCH = re.compile(r"python -m (bench[\w.]*)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """Return the page's fenced blocks in a language; "" stands for blocks that name none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub and the site give to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def test_the_readme_is_short():
    assert len(README.read_text("utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_relative_links_lead_somewhere(page):
    without_code = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        # `mkdocs --strict` checks the anchors of the API.
        if anchor and not anchor.startswith("spotedit."):
            assert anchor in anchors(target), link


# -- Python


@pytest.fixture(scope="module")
def editor():
    pipe = tiny.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def names(editor, monkeypatch, tmp_path):
    """Yield what a page may use without defining it.

    The tiny editor stands in for every checkpoint that a page loads.
    """
    scene = make_scene(0, kind="recolour")
    scene.source_image.save(tmp_path / "dog.png")
    scene.source_image.point(lambda value: 255 * (value > 128)).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    call = inspect.unwrap(type(editor).__call__)
    defaults = tuple(NUM_STEPS if value == 28 else value for value in call.__defaults__)
    monkeypatch.setattr(call, "__defaults__", defaults)

    def from_pretrained(cls, *args, **options):
        return editor

    def stay_on_cpu(pipe, device):
        return pipe

    kontext = type(editor).__mro__[1]  # the stock class
    monkeypatch.setattr(kontext, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(kontext, "to", stay_on_cpu)
    yield {
        "spotedit": spotedit,
        "pipe": editor,
        "source": scene.source_image,
        "handle": spotedit.enable(editor),
    }
    spotedit.disable(editor)


# Another test runs the code of docs/new_pipeline.md.
WITH_CODE = [
    page for page in [README, *DOCS] if blocks(page, "python") and page.stem != "new_pipeline"
]


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_the_python_of_a_page_runs(page, names, tmp_path):
    for block in blocks(page, "python"):
        exec(compile(block, name(page), "exec"), names)


# -- settings files


@pytest.mark.parametrize("language", ["toml", "yaml"])
@pytest.mark.parametrize("page", DOCS, ids=name)
def test_the_settings_files_of_a_page_can_be_read(page, language, tmp_path):
    for block in blocks(page, language):
        path = tmp_path / f"settings.{language}"
        path.write_text(block)
        if page.stem == "evaluation":
            read_variants(path, spotedit.SpotEditConfig())
        else:
            cli_commands.parse(
                "edit", ["in.png", "add a hat", "-o", "o.png", "--config", str(path)]
            )
            spotedit.load_config(path)


# -- commands


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Return the options of every command of `spotedit`."""
    options_of = {}
    for command in COMMANDS:
        with redirect_stdout(StringIO()) as help_text, pytest.raises(SystemExit):
            main([command, "--help"])
        options_of[command] = set(OPTION.findall(help_text.getvalue()))
    return options_of


def bench_options(module: str) -> set[str]:
    """Return the options that the source of a benchmark defines."""
    path = ROOT / module.replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return set(re.findall(r'"(--[a-z][\w-]+)"', path.read_text("utf-8")))


def commands(page: Path) -> list[str]:
    """Return the page's commands: lines of blocks without a language, and inline code."""
    text = page.read_text("utf-8")
    lines = [line for block in blocks(page, "") for line in block.splitlines()]
    return lines + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_commands_have_the_options_that_a_page_names(page, options):
    for line in commands(page):
        if match := re.match(r"(?:torchrun .* -m spotedit\.cli|spotedit) (\w+)(.*)", line):
            command, rest = match.groups()
            assert set(OPTION.findall(rest)) <= options[command], line
        if match := re.match(r"python -m (bench[\w.]*)(.*)", line):
            module, rest = match.groups()
            assert set(OPTION.findall(rest)) <= bench_options(module), line


@pytest.mark.parametrize("page", [README, *DOCS], ids=name)
def test_options_that_stand_alone_exist(page, options):
    benches = (bench_options(module) for module in BENCH.findall(page.read_text("utf-8")))
    known = set().union(*options.values(), *benches)
    for line in commands(page):
        if line.startswith("--"):
            assert set(OPTION.findall(line)) <= known, line


# -- figures


@pytest.mark.parametrize("page", [README, *DOCS], ids=name)
def test_tables_say_what_the_rows_say(page):
    text = page.read_text("utf-8")
    assert tables.filled(text) == text, "run python -m bench.tables"
    assert len(re.findall(r"not yet measured|nothing is measured", text)) <= 1
