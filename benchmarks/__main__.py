"""`python -m benchmarks [CASE…] [--repeats N] [--profile]`: runs the cases and prints what they cost."""

from __future__ import annotations

import argparse
import cProfile
import platform
import pstats
import sys
from collections.abc import Callable

from benchmarks import adapters, core, memory, recovery, stores, streams
from benchmarks.server import serving
from benchmarks.table import Table

Case = Callable[[str, int], Table]
CASES: dict[str, Case] = {
    "server": streams.server,
    "deltas": streams.deltas,
    "tree": streams.tree,
    "rounds": streams.rounds,
    "first": streams.first,
    "memory": memory.memory,
    "adapters": adapters.adapters,
    "log": core.log,
    "state": core.state,
    "fold": core.folding,
    "append": stores.append,
    "tail": stores.tail,
    "latency": stores.latency,
    "recovery": recovery.recovery,
}


def main() -> int:
    """Runs them; 1 if a bound was not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What helix costs.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all of them if none is named")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contender (7)")
    parser.add_argument("--profile", action="store_true", help="print where the time of the cases goes instead")
    options = parser.parse_args()
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}\n")
    kept = True
    with serving() as url:
        for name in options.cases or CASES:
            if options.profile:
                _profile(CASES[name], url)
                continue
            table = CASES[name](url, options.repeats)
            print("\n".join(table.lines()), end="\n\n", flush=True)
            kept = kept and all(found.kept for found in table.ratios)
    return 0 if kept else 1


def _profile(case: Case, url: str) -> None:
    profile = cProfile.Profile()
    profile.runcall(case, url, 1)
    pstats.Stats(profile, stream=sys.stdout).strip_dirs().sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    sys.exit(main())
