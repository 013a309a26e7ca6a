"""MkDocs hooks: pages of files outside docs/, and the links between them.

Links are written as GitHub reads them, relative to the file in the repository. On the site, the
files of docs/ lie one level higher, so links between them and the other files are rewritten.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "kernels/README.md",
    "bench/**/*.md",
    "bench/**/*.png",
)
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_files(files, config):
    """Add the changelog and its like, and the results of the benchmarks."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite the links of a page to the places that the files have on the site."""
    source = page.file.src_uri
    in_docs = (ROOT / "docs" / source).is_file()
    folder = posixpath.dirname(f"docs/{source}" if in_docs else source)
    if source.startswith("bench/"):
        page.meta["search"] = {"exclude": True}  # tables of figures would hide every other hit

    def rewritten(match):
        text, link, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, link))
        target = path.removeprefix("docs/")
        if files.get_file_from_path(target) is not None:
            relative = posixpath.relpath(target, posixpath.dirname(source) or ".")
            return f"[{text}]({relative}{anchor or ''})"
        # the site has neither code nor folders; MkDocs warns of a link that leads nowhere
        return text if (ROOT / path).exists() else match[0]

    return LINK.sub(rewritten, markdown)
