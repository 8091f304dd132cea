"""What the fuzzers print is read as it is meant."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))

import pytest
import run

from edgedm.verify.gate import load_gate

LOG = """#2	INITED cov: 40 ft: 41 corp: 1/1b exec/s: 0 rss: 60Mb
#1024	pulse  cov: 52 ft: 70 corp: 9/90b lim: 4 exec/s: 512 rss: 80Mb
#2048	DONE   cov: 57 ft: 70 corp: 9/90b lim: 4 exec/s: 512 rss: 82Mb
stat::number_of_executed_units: 2048
stat::peak_rss_mb:              90
"""


def test_executions_coverage_and_growth_are_read_from_the_log():
    result = run._result("graph", LOG, [])
    assert (result.executions, result.coverage, result.growth, result.peak) == (2048, 57, 22, 90)
    assert result.ok


def test_a_finding_growth_or_no_execution_is_no_success():
    assert not run._result("graph", LOG, ["crash-0"]).ok
    assert not run._result("graph", LOG.replace("rss: 82Mb", "rss: 900Mb"), []).ok
    assert not run._result("graph", "", []).ok


@pytest.mark.parametrize("name", run.SEEDS)
def test_every_loader_begins_with_the_hostile_files_of_its_kind(tmp_path, name):
    run._python_fuzzer(name, tmp_path)
    kinds = {kind for kind, _ in run.SEEDS[name]}
    assert kinds and all(any(tmp_path.glob(f"{kind}-*")) for kind in kinds)


def test_the_gates_fuzzer_also_begins_with_a_sound_gate_of_many_keys(tmp_path):
    run._python_fuzzer("gate", tmp_path)
    assert len(load_gate(tmp_path / "gate.toml").model_fields_set) > 3
