"""vggres: why very deep plain convolutional networks do not train, and what fixes them.

Training turns a `Run` (what a report did) into a record (what was measured), and every table, figure and
chapter is made from the records.
"""

from vggres.models import build
from vggres.runs import RUNS, Run
from vggres.weights import load

__all__ = ["RUNS", "Run", "build", "load"]
