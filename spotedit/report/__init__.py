"""What people get to know about a call: `EditReport`, and the log record of a surprise."""

from .figures import Step as Step
from .figures import StepKind as StepKind
from .report import EditReport as EditReport
from .words import announce as announce
