"""Documents made of the tests' own outcomes: running pytest, reading its XML, writing tables."""

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import environment

WORST = ("yes", "skipped", "fails")  # a later one wins where several tests stand for one cell


@dataclass(frozen=True)
class Case:
    """One test of a run.

    Attributes:
        test: name of its function; `parameters`: what follows in brackets, or "".
        result: one of `WORST`.
        message: why it was skipped or failed, or "".
        properties: what it recorded with pytest's `record_property`.
    """

    module: str
    test: str
    parameters: str
    result: str
    message: str
    properties: Mapping[str, str]


def run(tests: Sequence[str], marked: str = "not gpu") -> tuple[int, str]:
    """Run tests in one process, so that they keep their order; return its status and XML."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-q", "-p", "no:xdist", "-m", marked, f"--junitxml={report}"]
        options += ["-o", "junit_family=xunit1"]  # has what tests record
        status = subprocess.run([sys.executable, "-m", "pytest", *options, *tests]).returncode
        return status, report.read_text()


def cases(junit: str) -> Iterator[Case]:
    """The tests of a run's XML."""
    for case in ET.fromstring(junit).iter("testcase"):
        test, _, parameters = case.get("name", "").partition("[")
        children = {child.tag: child.get("message", "") for child in case}
        failed = children.get("failure", children.get("error"))
        message = children.get("skipped", "") if failed is None else failed
        result = "yes" if failed is None else "fails"
        if failed is None and "skipped" in children:
            result = "skipped"
        properties = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
        module = case.get("classname", "").rpartition(".")[2]
        yield Case(module, test, parameters.removesuffix("]"), result, message, properties)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Markdown of rows, the first of which is the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write(
    module: str,
    tests: Sequence[str],
    out: str,
    text: Callable[[str], str],
    argv: list[str] | None,
    marked: str = "not gpu",
) -> int:
    """Run tests, or read the XML of a run, and write the document.

    Args:
        module: of `bench`, for the command line's help and the line below the text.
        out: path of the document.
        text: makes it of the XML.
        marked: which tests run, as pytest's `-m`.

    Returns:
        The tests' exit status, 0 with `--junit`.
    """
    command = f"python -m bench.{module}"
    parser = argparse.ArgumentParser(prog=command, description=f"Write {out} from the tests.")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--junit", type=Path, help="the XML of a run that has been made")
    args = parser.parse_args(argv)
    status, junit = run(tests, marked) if args.junit is None else (0, args.junit.read_text())
    known = environment.describe()
    versions = ", ".join(f"{name} {known[name]}" for name in ("torch", "diffusers", "commit"))
    args.out.write_text(f"{text(junit)}\n`{command}`, {versions}.\n")
    return status
