"""Many Python threads call at once, and every result has the bits of the one computed alone.

Meanwhile another thread changes the number of threads, which no result may depend on; in a second
part it changes the instruction set, and each single call must then have the bits of one of them.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence

import tbptt_fast as tf

from .work import Failures, Job, digests, make_jobs

THREADS_GIVEN = (1, 2, 3, 8)


def hammer(
    jobs: Sequence[Job],
    allowed: dict[str, set[str]],
    threads: int,
    seconds: float,
    disturb: Callable[[random.Random], None],
    seed: int,
    failures: Failures,
) -> int:
    """Let `threads` threads run jobs for some seconds; returns how many calls were checked."""
    end = time.monotonic() + seconds
    counts = [0] * threads
    begin = threading.Barrier(threads + 1)

    def work(index: int) -> None:
        rng = random.Random(f"{seed} {index}")
        begin.wait()
        while counts[index] == 0 or time.monotonic() < end:
            job = rng.choice(jobs)
            try:
                if job.digest() not in allowed[job.name]:
                    failures.add(f"thread {index}, call {counts[index]}: {job.name}: other bits")
            except Exception as error:
                failures.add(f"thread {index}: {job.name}: {error!r}")
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    begin.wait()
    rng = random.Random(seed)
    while any(worker.is_alive() for worker in workers):
        disturb(rng)
        time.sleep(rng.random() * 0.01)
    for worker in workers:
        worker.join()
    return sum(counts)


def load(threads: int, seconds: float, seed: int) -> tuple[int, int]:
    """Both parts, each half of the time; returns the numbers of calls and of failures."""
    failures = Failures("load")
    jobs = make_jobs(seed)
    before = tf.active_isa(), tf.get_num_threads()
    allowed: dict[str, set[str]] = {job.name: set() for job in jobs}
    try:
        alone = {name: {digest} for name, digest in digests(jobs).items()}
        calls = hammer(
            *(jobs, alone, threads, seconds / 2),
            lambda rng: tf.set_num_threads(rng.choice(THREADS_GIVEN)),
            *(seed, failures),
        )
        single = [job for job in jobs if job.single]
        for name in tf.available_isas():
            with tf.isa(name):
                for key, digest in digests(single).items():
                    allowed[key].add(digest)
        calls += hammer(
            *(single, allowed, threads, seconds / 2),
            lambda rng: tf.set_isa(rng.choice(tf.available_isas())),
            *(seed, failures),
        )
    finally:
        tf.set_isa(before[0])
        tf.set_num_threads(before[1])
    return calls, failures.count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    seconds = 60 * options.minutes
    calls, failed = load(options.threads, seconds, options.seed)
    print(f"load: {options.threads} threads, {seconds:.0f} s, {calls} calls, {failed} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
