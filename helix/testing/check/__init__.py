"""The judge of the chunk grammar (PROTOCOL §3): which rule a log breaks, and where.

Floor 6 by its place, floor 1 by its imports: a second opinion on every log, which shares nothing with the library's own
fold. One pass, linear time. `GRAMMAR` says what is judged, `log` holds what is known of a log so far, one file for each
rule or two has its checks, and `judge`, on top, says which chunk is put to which of them.
"""

from __future__ import annotations

from helix.testing.check.grammar import GRAMMAR
from helix.testing.check.judge import check_stream, find_violations
from helix.testing.check.violations import GrammarError, Violation

__all__ = ["GRAMMAR", "GrammarError", "Violation", "check_stream", "find_violations"]
