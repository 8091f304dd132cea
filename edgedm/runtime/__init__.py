"""Running a bundle from Python: numpy and ctypes, neither torch nor tvm.

The C that runs is in `templates/`; the compiler copies it into every bundle beside the generated tables.
"""

from edgedm.runtime.exec_runner import ExecRunner
from edgedm.runtime.local import LocalRunner
from edgedm.runtime.opening import open_runner
from edgedm.runtime.runner import Runner
from edgedm.runtime.sample import sample_bundle

__all__ = ["ExecRunner", "LocalRunner", "Runner", "open_runner", "sample_bundle"]
