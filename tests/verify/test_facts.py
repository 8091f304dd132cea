"""What a report says of a bundle besides parity."""

from types import SimpleNamespace

import pytest

from edgedm.bundle.store import IN_WEBASSEMBLY, LIBRARY, MANIFEST, WEIGHTS
from edgedm.verify.facts import bundle_facts


@pytest.mark.parametrize("library", [LIBRARY, IN_WEBASSEMBLY[LIBRARY]])
def test_the_library_is_named_by_its_hash_whatever_it_is_called(tmp_path, library: str) -> None:
    (tmp_path / MANIFEST).write_bytes(b"{}")
    files = {WEIGHTS: SimpleNamespace(sha256="1" * 64), library: SimpleNamespace(sha256="2" * 64)}
    target = SimpleNamespace(name="any", triple="any-none")
    manifest = SimpleNamespace(files=files, target=target, toolchain={"cc": "1"}, config={"method": "bidm"})
    facts = bundle_facts(SimpleNamespace(path=tmp_path, manifest=manifest), "zoo:none")
    assert facts["library"] == f"sha256 {'2' * 64}"
