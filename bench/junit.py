"""Write documents from the outcomes of tests: run pytest and read its XML report."""

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import environment

WORST = ("yes", "skipped", "fails")  # from best to worst; a cell of several tests gets the worst


@dataclass(frozen=True)
class Case:
    """One test of a run.

    Attributes:
        module: name of the test's module.
        test: name of the test function.
        parameters: the text in brackets after that name, or "".
        result: one of `WORST`.
        message: why the test was skipped or failed, or "".
        properties: what the test recorded with pytest's `record_property`.
    """

    module: str
    test: str
    parameters: str
    result: str
    message: str
    properties: Mapping[str, str]


def run(tests: Sequence[str], marked: str = "not gpu") -> tuple[int, str]:
    """Run tests in one process, so that they keep their order; return the exit status and XML."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-q", "-p", "no:xdist", "-m", marked, f"--junitxml={report}"]
        options += ["-o", "junit_family=xunit1"]  # the format that holds recorded properties
        status = subprocess.run([sys.executable, "-m", "pytest", *options, *tests]).returncode
        return status, report.read_text()


def cases(junit: str) -> Iterator[Case]:
    """Yield the tests of a run's XML."""
    for case in ET.fromstring(junit).iter("testcase"):
        test, _, parameters = case.get("name", "").partition("[")
        messages = {child.tag: child.get("message", "") for child in case}
        failure = messages.get("failure", messages.get("error"))
        if failure is not None:
            result, message = "fails", failure
        elif "skipped" in messages:
            result, message = "skipped", messages["skipped"]
        else:
            result, message = "yes", ""
        properties = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
        module = case.get("classname", "").rpartition(".")[2]
        yield Case(module, test, parameters.removesuffix("]"), result, message, properties)


def write(
    module: str,
    tests: Sequence[str],
    out: str,
    text: Callable[[str], str],
    argv: list[str] | None,
    marked: str = "not gpu",
) -> int:
    """Run tests, or read the XML of an earlier run, and write the document.

    Args:
        module: name of the module in `bench` that is run as a command.
        tests: files of the tests.
        out: default path of the document.
        text: makes the document's text from the XML.
        argv: arguments of the command line; None takes those of this process.
        marked: pytest's `-m`, which selects the tests to run.

    Returns:
        The exit status of the tests, or 0 with `--junit`.
    """
    command = f"python -m bench.{module}"
    parser = argparse.ArgumentParser(prog=command, description=f"Write {out} from the tests.")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--junit", type=Path, help="XML report of an earlier run")
    args = parser.parse_args(argv)
    status, junit = run(tests, marked) if args.junit is None else (0, args.junit.read_text())
    machine = environment.describe()
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "diffusers", "commit"))
    args.out.write_text(f"{text(junit)}\n`{command}`, {versions}.\n")
    return status
