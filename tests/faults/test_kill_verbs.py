"""The script that kills every verb fails where it could not."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import kill_verbs


class Idle:
    """A server that is never asked."""

    def __init__(self, _room):
        self.process = self

    def communicate(self):
        pass


@pytest.mark.parametrize(("lucky", "code"), [(0, 1), (4, 1), (5, 0)])
def test_fewer_kills_than_asked_for_are_a_failure(monkeypatch, capsys, lucky, code):
    hits = [True] * lucky
    monkeypatch.setattr(kill_verbs, "Server", Idle)
    monkeypatch.setattr(kill_verbs, "every_point", lambda *_: (3, 0))
    monkeypatch.setattr(kill_verbs, "target", lambda *_: {"seconds": 1.0})
    monkeypatch.setattr(kill_verbs.faults, "kill", lambda *_: bool(hits) and hits.pop())
    monkeypatch.setattr(sys, "argv", ["kill_verbs.py", "--kills", "5", "--verb", "sign"])
    with pytest.raises(SystemExit) as ended:
        kill_verbs.main()
    assert ended.value.code == code
    assert (f"sign: hit in {lucky} of 5" in capsys.readouterr().err) == bool(code)
