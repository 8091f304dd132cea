"""The browser: a bundle for WebAssembly as one page that shows the denoising live."""

from edgedm.callable_module import make_callable
from edgedm.web.page import TARGET, web

__all__ = ["TARGET", "web"]

make_callable(__name__)
