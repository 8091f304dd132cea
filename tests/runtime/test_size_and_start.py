"""What the digits' native program weighs, and how soon its first step begins."""

import subprocess

import elsewhere

MOST_MILLISECONDS = 5.0  # of processor time, from the start of the process to the first of 50 steps
RUNS = 7  # the quickest counts: others may have waited for caches that a neighbour emptied


def test_the_program_is_small_and_starts_at_once(digits_bundle, tmp_path):
    program = digits_bundle / "bin/edgedm-sample"
    assert program.stat().st_size <= elsewhere.MOST_BYTES
    assert program.stat().st_size < (digits_bundle / "weights.bin").stat().st_size  # weights are mapped, not linked in
    times = []
    for _ in range(RUNS):
        command = [program, "-n", "1", "--steps", "50", "--times", "-o", tmp_path / "a.npy"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        times.append(float(said.splitlines()[0].split()[1]))
    assert min(times) < MOST_MILLISECONDS, times
