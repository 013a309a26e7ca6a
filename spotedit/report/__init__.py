"""What people are told about a call: `EditReport`, and a log record of what they may not expect."""

from .figures import Step as Step
from .figures import StepKind as StepKind
from .report import EditReport as EditReport
from .words import announce as announce
