"""What every format returns."""

from dataclasses import dataclass, field

NEEDS_PHOTOS = 'to keep more, pip install "spotedit[photos]"'


@dataclass
class Rewritten:
    """A file with an edit in it.

    Attributes:
        data: the whole file.
        notes: sentences about what could not be kept.
    """

    data: bytes
    notes: list[str] = field(default_factory=list)
