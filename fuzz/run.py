"""Run the fuzzers: python fuzz/run.py [--seconds 20] [--corpus FOLDER] [NAME ...]

NAME is a Python loader of `fuzz/loaders.py` or `c`; all by default. The corpus begins with the files of tests/attacks
and sound ones, and grows in FOLDER where that is given. Prints executions, coverage, findings and memory, and ends
with 1 if there is a crash, a hang, or memory that grows; the input that shows it is kept.
"""

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "tests/attacks/files"
SOUND_GATE = ROOT / "docs/ci/gate.toml"
SEEDS = {
    "graph": [("graph", "*.onnx")],
    "config": [("checkpoint", "*config.json")],
    "weights": [("checkpoint", "*model.safetensors")],
    "header": [("checkpoint", "*model.safetensors"), ("golden", "*"), ("authors", "*.safetensors")],
    "manifest": [("bundle", "*manifest.json")],
    "authors": [("authors", "*.pt")],
    "golden": [("golden", "*")],
    "array": [("array", "*")],
    "tuning": [("tuning", "*")],
    "gate": [("gate", "*.toml")],
}
C = "c"
MOST_GROWTH_MB = 256
HANG_SECONDS, MOST_RSS_MB, MOST_INPUT = 20, 3000, 1 << 16
_NOT_LIBRARY = {"main.c"}  # the program's own main


@dataclass(frozen=True)
class Result:
    """What a run of one fuzzer found; `growth` and `peak` in MB, of memory."""

    name: str
    executions: int
    coverage: int
    growth: int
    peak: int
    findings: list[str]
    log: str

    @property
    def ok(self) -> bool:
        """Whether there is nothing to mend."""
        return not self.findings and self.growth <= MOST_GROWTH_MB and self.executions > 0


def fuzz(name: str, seconds: int, corpus: Path) -> Result:
    """Run one fuzzer for so long, with inputs from and to `corpus`."""
    folder, findings = corpus / name, corpus / f"{name}-findings"
    for each in (folder, findings):
        each.mkdir(parents=True, exist_ok=True)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="edgedm-fuzz-", dir=memory) as scratch:
        command = _c_fuzzer(Path(scratch), folder) if name == C else _python_fuzzer(name, folder)
        options = [
            f"-max_total_time={seconds}",
            f"-timeout={HANG_SECONDS}",
            f"-report_slow_units={HANG_SECONDS}",  # on a loaded machine slower ones are no finding
            f"-rss_limit_mb={MOST_RSS_MB}",
            f"-max_len={MOST_INPUT}",
            f"-artifact_prefix={findings}/",
            "-print_final_stats=1",
            "-seed=1",
        ]
        variables = {**os.environ, "EDGEDM_FUZZ_WEIGHTS": f"{scratch}/model.bundle/weights.bin", "OMP_NUM_THREADS": "1"}
        variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path[1:]])
        done = subprocess.run(
            [*command, str(folder), *options],
            env=variables,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    text = done.stdout + done.stderr
    found = sorted(str(path) for path in findings.iterdir())
    if done.returncode and not found:
        found = [f"ended with {done.returncode}"]
    return _result(name, text, found)


def _result(name: str, text: str, findings: list[str]) -> Result:
    def last(pattern: str) -> int:
        found = re.findall(pattern, text)
        return int(found[-1]) if found else 0

    started = re.search(r"INITED.*?rss: (\d+)Mb", text)
    growth = last(r"rss: (\d+)Mb") - int(started[1]) if started else 0
    executions, peak = last(r"stat::number_of_executed_units: +(\d+)"), last(r"stat::peak_rss_mb: +(\d+)")
    return Result(name, executions, last(r"cov: (\d+)"), growth, peak, findings, text)


def _python_fuzzer(name: str, folder: Path) -> list[str]:
    for kind, pattern in SEEDS[name]:
        for path in [*(FILES / kind).glob(pattern), *(FILES / kind / "sound").glob(pattern)]:
            if path.stat().st_size <= MOST_INPUT:
                shutil.copyfile(path, folder / f"{kind}-{path.parent.name}-{path.name}")
    if name == "gate":
        shutil.copyfile(SOUND_GATE, folder / SOUND_GATE.name)
    return [sys.executable, str(ROOT / "fuzz/loaders.py"), name]


def _c_fuzzer(scratch: Path, folder: Path) -> list[str]:
    """Compile the tiny model of the tests into a bundle, its sources and the fuzzer into a program."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny_model

    from edgedm.lower import compile as compile_graph

    bundle = scratch / "model.bundle"
    compile_graph(tiny_model.write_pair(scratch), bundle, target="x86-64-v3", steps=4)
    sources = [str(path) for path in sorted((bundle / "src").glob("*.c")) if path.name not in _NOT_LIBRARY]
    flags = ["-g", "-O1", "-std=c11", "-D_GNU_SOURCE", "-DEDM_PROBE", "-ffp-contract=off", "-fno-sanitize-recover=all"]
    places = ["-I", str(bundle / "src"), "-I", str(bundle / "include")]
    program = scratch / "fuzzer"
    everything = [*sources, str(ROOT / "fuzz/c_loader.c"), str(bundle / "kernels.o"), "-lm", "-lpthread"]
    sanitizers = "-fsanitize=fuzzer,address,undefined"
    subprocess.run(["clang", sanitizers, *flags, *places, *everything, "-o", str(program)], check=True)
    _seed_c(bundle, folder)
    return [str(program)]


def _seed_c(bundle: Path, folder: Path) -> None:
    weights = (bundle / "weights.bin").read_bytes()
    shape = (1, 8, 8)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    seeds = {
        "weights": b"\0" + struct.pack("<QQ", 0, 0) + weights,
        "weights-at": b"\0" + struct.pack("<QQ", 64, len(weights)) + bytes(64) + weights,
        "golden": b"\1" + (bundle / "golden/golden.bin").read_bytes(),
        "layers": b"\2" + (bundle / "golden/layers.bin").read_bytes(),
        "array": b"\3\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(4 * 64),
    }
    for name, data in seeds.items():
        (folder / name).write_bytes(data)


def main() -> None:
    """Parse the command line, run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *SEEDS, C], metavar="NAME", help=", ".join([*SEEDS, C]))
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--corpus", type=Path)
    arguments = parser.parse_args()
    corpus = arguments.corpus or Path(tempfile.mkdtemp(prefix="edgedm-corpus-"))
    ok = True
    print(f"{'fuzzer':<10}{'executions':>12}{'coverage':>10}{'findings':>10}{'growth MB':>11}{'peak MB':>9}")
    for name in arguments.names or [*SEEDS, C]:
        result = fuzz(name, arguments.seconds, corpus)
        numbers = f"{result.executions:>12}{result.coverage:>10}{len(result.findings):>10}"
        print(f"{name:<10}{numbers}{result.growth:>11}{result.peak:>9}", flush=True)
        if not result.ok:
            ok = False
            print("\n".join(result.findings), result.log[-3000:], sep="\n")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
