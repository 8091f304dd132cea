"""A bundle is held against no checkpoint but its own, and says so before it works."""

import pytest
import tiny

from edgedm.errors import InvalidModelError
from edgedm.verify import main, verify


@pytest.mark.slow
def test_a_checkpoint_of_another_config_is_refused_before_the_first_level(bundle, monkeypatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(main.Examination, "level", lambda _self, name: ran.append(name))
    with pytest.raises(InvalidModelError, match=r"was not made from this checkpoint: .*method.* differ"):
        verify(bundle("bidm"), tiny.checkpoint("binarydm"), levels=("op", "pass", "layer"), steps=4)
    assert ran == []
