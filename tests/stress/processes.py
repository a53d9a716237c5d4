"""Children, signals and ends of interpreters, at random moments.

Forked and spawned children compute what their parent computes, while the parent's threads compute
too; interpreters end while daemon threads are in native calls; sub-interpreters are refused;
Ctrl-C reaches native calls, the trainer and the command line, and what it leaves goes on.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import tbptt_fast as tf
from tbptt_fast import checkpoint

from .work import Failures, Job, digests, environment, make_jobs, start

LIMIT = 120.0  # seconds after which something hangs


@contextmanager
def busy(jobs: Sequence[Job], threads: int) -> Iterator[None]:
    """Other threads of this process that compute all the time."""
    ended = threading.Event()

    def work(index: int) -> None:
        rng = random.Random(index)
        while not ended.is_set():
            rng.choice(jobs).run()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        ended.set()
        for worker in workers:
            worker.join()


def forks(count: int, failures: Failures) -> None:
    """Children by fork, half of them while three other threads compute."""
    jobs = make_jobs()
    expected = digests(jobs)  # the parent's pool is running from here on

    def fork() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12, of every such fork
            child = os.fork()
        if not child:
            os._exit(0 if digests(jobs) == expected else 3)
        wait(child, failures)

    for _ in range(count // 2):
        fork()
    with busy(jobs, 3):
        for _ in range(count - count // 2):
            fork()
    if digests(jobs) != expected:
        failures.add("other bits in the parent after its forks")


def wait(child: int, failures: Failures) -> None:
    """Wait for a forked child; kill it when it hangs."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code:
                failures.add(f"forked child: exit status {code}")
            return
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    failures.add("forked child: no answer")


def spawns(count: int, failures: Failures) -> None:
    """Fresh interpreters, which compute with their own pool."""
    jobs = make_jobs()
    expected = digests(jobs)
    code = (
        "from tests.stress.work import digests, make_jobs\n"
        "print(sorted(digests(make_jobs()).items()))"
    )
    for _ in range(count):
        finish(start(code), failures, "spawned child", out=f"{sorted(expected.items())}\n")


def finish(
    child: subprocess.Popen[str],
    failures: Failures,
    name: str,
    *,
    status: int = 0,
    out: str | None = None,
    errors: str | None = "",
) -> str:
    """Wait for an interpreter and compare its exit status, output and errors; returns errors."""
    try:
        found, written = child.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        failures.add(f"{name}: no end")
        return ""
    if child.returncode != status:
        failures.add(f"{name}: exit status {child.returncode}, not {status}: {written[-500:]}")
    elif out is not None and found != out:
        failures.add(f"{name}: output {found[-200:]!r}, not {out[-200:]!r}")
    elif (errors is not None and errors not in written) or (errors == "" and written):
        failures.add(f"{name}: errors {written[-500:]!r}")
    return written


EXIT = """
import random, sys, threading, time
from tests.stress.work import make_jobs
jobs = make_jobs(scale=4)
def work(index):
    rng = random.Random(index)
    while True:
        rng.choice(jobs).run()
for i in range(4):
    threading.Thread(target=work, args=(i,), daemon=True).start()
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


def exits(count: int, rng: random.Random, failures: Failures) -> None:
    """Interpreters that end while daemon threads are in native calls."""
    for _ in range(count):
        status = rng.choice((0, 7))
        child = start(EXIT, str(rng.random() * 0.2), str(status))
        finish(child, failures, "exit beside daemon threads", status=status)


SUB_INTERPRETER = """
import sys, warnings
warnings.simplefilter("ignore")
try:
    import _interpreters as interpreters
    create, run = interpreters.create, interpreters.run_string
except ImportError:
    import _xxsubinterpreters as interpreters
    create, run = interpreters.create, interpreters.run_string
if sys.argv[1] == "first":
    from tests.stress.work import digests, make_jobs
    expected = digests(make_jobs())
code = '''
import warnings
warnings.simplefilter("ignore")
try:
    import MODULE
except ImportError as error:
    refused = str(error)
else:
    refused = "no"
assert "interpreter" in refused, refused
'''
for name in ("tbptt_fast", "tbptt_fast._native", "tbptt_fast"):
    interpreter = create()
    failed = run(interpreter, code.replace("MODULE", name))
    assert failed is None, failed
    interpreters.destroy(interpreter)
if sys.argv[1] == "last":
    from tests.stress.work import digests, make_jobs
    digests(make_jobs())
else:
    assert digests(make_jobs()) == expected
"""


def sub_interpreters(count: int, failures: Failures) -> None:
    """The package refuses them, before and after its import into the main interpreter."""
    for i in range(count):
        order = ("first", "last")[i % 2]
        finish(start(SUB_INTERPRETER, order), failures, f"sub-interpreter, main one {order}")


INTERRUPTED_CALL = """
import numpy as np, tbptt_fast as tf, time
from tests.stress.work import digests, make_jobs
expected = digests(make_jobs())
x, w = np.ones((2000, 16, 64), np.float32), np.full((256, 64), 0.01, np.float32)
caught = False
try:
    print("ready", flush=True)
    while True:
        out, _, tape = tf.lstm_forward(x, None, w, w)
        tf.lstm_backward(tape, out)
except KeyboardInterrupt:
    caught = True
assert caught and digests(make_jobs()) == expected
print("done")
"""

INTERRUPTED_TRAINING = """
import numpy as np, sys
from tbptt_fast import checkpoint, nn, optim
from tbptt_fast.tbptt import TBPTT
from tests.stress.work import Job

def loss(y, target):
    return float(((y - target) ** 2).sum()), 2 * (y - target), y.size

def windows():
    rng = np.random.default_rng(0)
    while True:
        x = rng.standard_normal((21, 4, 3)).astype(np.float32)
        yield x[:-1], x[1:]

def make():
    model = nn.Sequential(nn.LSTM(3, 24, seed=1), nn.Linear(24, 3, seed=2))
    return TBPTT(model, loss, optim.Adam(model.parameters(), lr=0.01), k1=10, k2=15)

def bits(trainer):
    return Job("", trainer.model.state_dict, False).digest()

trainer = make()
try:
    print("ready", flush=True)
    trainer.run(windows())
except KeyboardInterrupt:
    pass
interrupted, updates = bits(trainer), trainer.updates
twin, known = make(), set()
def observed(stream):
    for x, y in stream:
        for part in (slice(0, 10), slice(10, 20)):
            twin.step(x[part], y[part])
            if twin.updates >= updates:
                yield bits(twin)
known = {bits(twin)} if not updates else set()
for found in observed(windows()):
    known.add(found)
    if twin.updates > updates:
        break
assert interrupted in known, "weights of half an update"
checkpoint.save(sys.argv[1], {"model": trainer.model.state_dict(), "run": trainer.state_dict(),
                              "optimizer": trainer.optimizer.state_dict()})
tree, taken = checkpoint.load(sys.argv[1]), make()
taken.model.load_state_dict(tree["model"])
taken.optimizer.load_state_dict(tree["optimizer"])
taken.load_state_dict(tree["run"])
for x, y in windows():
    for part in (slice(0, 10), slice(10, 20)):
        report = taken.step(x[part], y[part]), trainer.step(x[part], y[part])
        assert report[0] == report[1] and report[0].applied
    break
assert bits(taken) == bits(trainer)
print("done")
"""


def interrupt(code: str, argument: str, delay: float, failures: Failures, name: str) -> None:
    """SIGINT some time after a child said that it is ready; it must say that it is done."""
    child = start(code, argument, preexec_fn=allow_interrupts)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    finish(child, failures, name, out="done\n")


def allow_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupts(count: int, rng: random.Random, folder: Path, failures: Failures) -> None:
    """Ctrl-C in native calls and in the trainer."""
    for _ in range(count):
        path = str(folder / "interrupted.ckpt")
        interrupt(INTERRUPTED_CALL, "", rng.random(), failures, "Ctrl-C in a call")
        interrupt(INTERRUPTED_TRAINING, path, 0.5 * rng.random(), failures, "Ctrl-C in a training")


TRAINING = (
    *("--hidden", "12", "--batch", "4", "--k1", "10", "--k2", "13", "--embedding", "6"),
    *("--dropout", "0.2", "--layers", "2", "--epochs", "6", "--patience", "0"),
)
OUTPUT = ("--sample", "0", "--plot", "none")


def command_line(count: int, rng: random.Random, folder: Path, failures: Failures) -> None:
    """Ctrl-C at random moments of `train`, resumed until it ends: equal to the run without."""
    text, whole, saved = folder / "text", folder / "whole.ckpt", folder / "run.ckpt"
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(40)]
    text.write_text(" ".join(rng.choices(words, k=2000)))
    begin = ["--text", str(text), *TRAINING]
    finish(train(*begin, "--save", str(whole)), failures, "train", errors=None)
    left = count
    while left:
        saved.unlink(missing_ok=True)
        options = begin
        while True:
            child = train(*options, "--save", str(saved))
            seconds = 0.6 * rng.random() if left else LIMIT
            if not interrupted(child, seconds, saved, failures):
                break
            left -= 1
            options = ["--resume", str(saved), "--patience", "0"]
        if not same_training(saved, whole):
            failures.add("train: an interrupted and resumed training ends elsewhere")


def interrupted(
    child: subprocess.Popen[str], delay: float, saved: Path, failures: Failures
) -> bool:
    """Whether a training that got SIGINT after `delay` seconds was still at work."""
    assert child.stdout is not None
    while "parameters" not in (line := child.stdout.readline()) and line:
        pass
    try:
        child.wait(0.02 + delay)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=LIMIT)
    # An interpreter that ends gives its signals back: from there on one kills it. The training has
    # ended then, which is looked at where its weights are compared.
    if child.returncode == 0 or (child.returncode == -signal.SIGINT and "Traceback" not in errors):
        return False
    if child.returncode != 130 or "Traceback" in errors or not saved.exists():
        failures.add(f"train: exit status {child.returncode}: {errors[-500:]}")
        return False
    checkpoint.load(saved)
    return f"saved in {saved}" in errors


def train(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tbptt_fast", "train", *options, *OUTPUT],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=allow_interrupts,
    )


def same_training(one: Path, other: Path) -> bool:
    """The same number of updates and the same bits of the weights."""
    ours, theirs = (checkpoint.load(path)["session"] for path in (one, other))
    names = ours["weights"].keys()
    return bool(
        ours["trainer"]["updates"] == theirs["trainer"]["updates"]
        and all(np.array_equal(ours["weights"][n], theirs["weights"][n]) for n in names)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("forks", 700), ("spawns", 300), ("exits", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("sub-interpreters", 20), ("interrupts", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    rng, failures = random.Random(o.seed), Failures("processes")
    with tempfile.TemporaryDirectory() as name:
        parts: list[Callable[[], None]] = [
            lambda: forks(o.forks, failures),
            lambda: spawns(o.spawns, failures),
            lambda: exits(o.exits, rng, failures),
            lambda: sub_interpreters(o.sub_interpreters, failures),
            lambda: interrupts(o.interrupts, rng, Path(name), failures),
            lambda: command_line(o.interrupts, rng, Path(name), failures),
        ]
        with tf.num_threads(2):
            for part in parts:
                part()
    print(
        f"processes: {o.forks} forks, {o.spawns} spawns, {o.exits} exits beside daemon threads, "
        f"{o.sub_interpreters} sub-interpreter runs, {3 * o.interrupts} interrupts, "
        f"{failures.count} failures"
    )
    return 1 if failures.count else 0


if __name__ == "__main__":
    sys.exit(main())
