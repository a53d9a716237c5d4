"""The emulated device itself: if it let a wrong kernel pass, the tests on it would mean nothing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from .cuda_cases import ROOT, EmulatedDevice, emulated_module

SEEDS = (0, 1, 2, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_and_shared_memory(emulated: EmulatedDevice, seed: int) -> None:
    with emulated.order(seed):
        for blocks, threads in ((1, 32), (3, 96), (2, 256)):
            found = np.reshape(emulated.module.shift_in_block(blocks, threads, True), (blocks, -1))
            np.testing.assert_array_equal(found, [np.roll(np.arange(threads), -1)] * blocks)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_barrier_gives_wrong_values(emulated: EmulatedDevice, seed: int) -> None:
    with emulated.order(seed):
        found = emulated.module.shift_in_block(1, 64, False)
    assert found != np.roll(np.arange(64), -1).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_read_one_another(emulated: EmulatedDevice, seed: int) -> None:
    with emulated.order(seed):
        found = np.reshape(emulated.module.rotate_lanes(2, 64), (-1, 32))
    expected = np.arange(128).reshape(-1, 32)
    np.testing.assert_array_equal(found, np.roll(expected, -5, axis=1))


@pytest.mark.parametrize("passed", [0, 2**32 // 7])  # after so many the counter begins again
@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_wait_for_one_another(emulated: EmulatedDevice, seed: int, passed: int) -> None:
    emulated.resize(multiprocessors=7)
    row = np.array([1, 5, 2, 8, 3, 1, 4])
    with emulated.order(seed):
        found = emulated.module.add_neighbours(row.tolist(), 6, True, passed)
    for _ in range(6):
        row = row + np.roll(row, -1)
    np.testing.assert_array_equal(found, row)


def test_waiting_for_blocks_that_do_not_run_is_an_error(emulated: EmulatedDevice) -> None:
    with pytest.raises(RuntimeError, match="the threads wait for one another"):
        emulated.module.add_neighbours([1, 2, 3], 2, False)


def test_more_blocks_than_are_at_work_together_is_an_error(emulated: EmulatedDevice) -> None:
    emulated.resize(multiprocessors=2)
    with pytest.raises(RuntimeError, match="more blocks together"):
        emulated.module.add_neighbours([1, 2, 3], 2, True)


def test_a_barrier_that_half_the_block_misses_is_an_error(emulated: EmulatedDevice) -> None:
    with pytest.raises(RuntimeError, match="the threads wait for one another"):
        emulated.module.wait_unevenly()


def test_more_shared_memory_than_there_is_is_an_error(emulated: EmulatedDevice) -> None:
    emulated.resize(shared_bytes=1000)
    with pytest.raises(RuntimeError, match="more shared memory than a block may have"):
        emulated.module.shift_in_block(1, 256, True)


def test_a_copy_that_is_not_aligned_is_an_error(emulated: EmulatedDevice) -> None:
    emulated.module.copy_two(2, False)
    with pytest.raises(RuntimeError, match="a copy that is not aligned"):
        emulated.module.copy_two(1, False)


@pytest.mark.parametrize("behind", [1, 2])
def test_an_access_that_is_not_aligned_ends_the_process(behind: int) -> None:
    run = f"from tests.cuda_cases import emulated_module as m; m().copy_two({behind}, True)"
    emulated_module()
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, check=False)
    assert (done.returncode < 0) == (behind == 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_tiles_of_tensor_cores(emulated: EmulatedDevice, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(16, 8)), rng.normal(size=(8, 8))
    with emulated.order(seed):
        double = emulated.module.multiply_tile_float64(a.ravel().tolist(), b.ravel().tolist(), True)
    np.testing.assert_allclose(np.reshape(double, (16, 8)), a @ b, rtol=0, atol=1e-14)

    single_a, single_b = a.astype("float32"), b.astype("float32")
    lists = single_a.ravel().tolist(), single_b.ravel().tolist()
    exact = emulated.module.multiply_tile_float32(*lists, True)
    expected = single_a.astype("float64") @ single_b.astype("float64")
    np.testing.assert_allclose(np.reshape(exact, (16, 8)), expected, rtol=0, atol=2e-6)

    fast = np.reshape(emulated.module.multiply_tile_float32(*lists, False), (16, 8))
    rounded = [
        [rounded_to_tf32(value) for value in array.ravel()] for array in (single_a, single_b)
    ]
    expected = np.reshape(rounded[0], (16, 8)) @ np.reshape(rounded[1], (8, 8))
    np.testing.assert_allclose(fast, expected, rtol=0, atol=2e-6)
    assert np.abs(fast - a @ b).max() > 1e-5  # TF32, not float32


@pytest.mark.parametrize("seed", SEEDS)
def test_tiles_of_bfloat16(emulated: EmulatedDevice, seed: int) -> None:
    """Products of its numbers are exact in float32, and added up there."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(16, 16)), rng.normal(size=(16, 8))
    with emulated.order(seed):
        found = emulated.module.multiply_tile_bfloat16(a.ravel().tolist(), b.ravel().tolist())
    near = [np.vectorize(rounded_to_bfloat16)(array.astype("float32")) for array in (a, b)]
    expected = near[0] @ near[1]
    np.testing.assert_allclose(np.reshape(found, (16, 8)), expected, rtol=0, atol=3e-6)
    assert np.abs(expected - a @ b).max() > 1e-3


def rounded_to_bfloat16(x: float) -> float:
    """To 7 bits behind the point, ties to even."""
    unit = 2.0 ** (np.floor(np.log2(abs(x))) - 7)
    return float(np.round(x / unit) * unit)


def test_rounding_to_bfloat16(emulated: EmulatedDevice) -> None:
    """Every number itself, what lies between it and the next one, and the ends."""
    to_bfloat16 = emulated.module.to_bfloat16
    for bits in range(0, 1 << 16, 7):
        low = np.array(bits << 16, "uint32").view("float32")
        if np.isnan(low):
            assert to_bfloat16(low.item()) == 0x7FFF
            continue
        assert to_bfloat16(low.item()) == bits
        for more, up in ((0x7FFF, 0), (0x8000, bits & 1), (0x8001, 1)):
            value = np.array((bits << 16) + more, "uint32").view("float32")
            if np.isfinite(value):
                assert to_bfloat16(value.item()) == bits + up
    assert to_bfloat16(np.inf) == 0x7F80
    assert to_bfloat16(float(np.finfo("float32").max)) == 0x7F80


def rounded_to_tf32(x: float) -> float:
    """To 10 bits behind the point, ties away from zero."""
    if x == 0 or not np.isfinite(x):
        return x
    unit = 2.0 ** (np.floor(np.log2(abs(x))) - 10)
    return float(np.sign(x) * np.floor(abs(x) / unit + 0.5) * unit)


@pytest.mark.parametrize(
    "x", [0.0, -0.0, 1.0, 1 + 2.0**-11, -(1 + 2.0**-11), 1 / 3, -2e30, np.inf, -np.inf]
)
def test_rounding_to_tf32(emulated: EmulatedDevice, x: float) -> None:
    x = float(np.float32(x))
    assert emulated.module.to_tf32(x) == rounded_to_tf32(x)


def test_tf32_keeps_nan(emulated: EmulatedDevice) -> None:
    assert np.isnan(emulated.module.to_tf32(np.nan))
