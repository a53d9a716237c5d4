"""valgrind's memcheck on small trainings: no access outside of blocks, no use of what was not set.

    python -m tests.stress.memcheck

The interpreter and NumPy have reports of their own; those with a frame of the module count. A use
of values that nobody set, on purpose, must be among them; all others are failures, and so are
blocks that the module lost. valgrind knows no AVX-512: the kernels for AVX2 and the baseline run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

MODULE = "_native."
UNSET = """
import numpy, tbptt_fast
grad = numpy.empty(1 << 16, "f4")
tbptt_fast.sgd_step([numpy.zeros(1 << 16, "f4")], [grad], None, lr=0.1, non_finite="skip")
"""
TRAINING = """
import sys
import tbptt_fast
from tests.stress.soak import pairs
from tests.stress.work import digests, make_jobs
updates = 0
for isa in tbptt_fast.available_isas():
    with tbptt_fast.isa(isa):
        for pair in pairs():
            for trainer, threads in zip(pair.trainers, (1, 2)):
                with tbptt_fast.num_threads(threads):
                    for _, window in zip(range(3), pair.windows(1)):
                        updates += 1
                        trainer.step(*window)
        digests(make_jobs())
print(f"{updates} updates, {len(make_jobs())} calls, {' and '.join(tbptt_fast.available_isas())}")
"""


def reports(code: str) -> Counter[str]:
    """What memcheck says of the module while `code` runs, by kind."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.xml"
        command = [
            *("valgrind", "--tool=memcheck", "--leak-check=full", "--show-leak-kinds=definite"),
            *("--num-callers=30", "--xml=yes", f"--xml-file={found}", sys.executable, "-c", code),
        ]
        subprocess.run(command, env=os.environ | {"PYTHONMALLOC": "malloc"}, check=True)
        kinds: Counter[str] = Counter()
        for error in ET.parse(found).getroot().iter("error"):
            if any(MODULE in (obj.text or "") for obj in error.iter("obj")):
                kinds[error.findtext("kind") or ""] += 1
                if code is not UNSET:
                    print(ET.tostring(error, encoding="unicode"))
        return kinds


def main(arguments: Sequence[str] | None = None) -> int:
    """The long form; there is no short one, as it needs valgrind."""
    parser = argparse.ArgumentParser(description="Train under valgrind's memcheck.")
    parser.parse_args(arguments)
    planned = reports(UNSET)
    assert planned["UninitCondition"] > 0, f"the use of unset values was not reported: {planned}"
    found = reports(TRAINING)
    print(f"memcheck: {planned.total()} reports on purpose, {found.total()} of the trainings")
    return int(found.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
