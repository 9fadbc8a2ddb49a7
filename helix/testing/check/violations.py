"""What the judge hands out: the places in which a log breaks the grammar. Below the log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Violation:
    """One place in which a log breaks the grammar.

    Attributes:
        rule: the number of the rule in PROTOCOL §3; 0 for a field that breaks §1 or §2.
        name: the sub-rule, a key of `GRAMMAR[rule]`.
        sequence: the number of the chunk that breaks it; for what is missing at the end, of the last chunk.
        message: one sentence that says what is wrong.
    """

    rule: int
    name: str
    sequence: int
    message: str

    def __str__(self) -> str:
        return f"chunk {self.sequence}: {self.message} (rule {self.rule}, {self.name})"


class GrammarError(AssertionError):
    """A log breaks the grammar.

    Attributes:
        violations: all of them; the message shows the first 20.
    """

    def __init__(self, violations: Iterable[Violation]) -> None:
        self.violations = list(violations)
        lines = [f"the log breaks the chunk grammar ({len(self.violations)} violations)"]
        lines += [f"  {violation}" for violation in self.violations[:_SHOWN]]
        if len(self.violations) > _SHOWN:
            lines.append(f"  … and {len(self.violations) - _SHOWN} more")
        super().__init__("\n".join(lines))
