"""Arrays that people give as .npy files: of the shape and dtype that is wanted and of finite numbers, or refused."""

import os
import tokenize
import zipfile

import numpy as np
from numpy.typing import NDArray

from edgedm.errors import InvalidModelError
from edgedm.files import check_regular

# what numpy lets escape for a file that is no .npy array or has a hostile header; the rest are ValueErrors
_BROKEN = (
    ValueError,
    TypeError,
    EOFError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
    zipfile.BadZipFile,
)


def read_array(path: str | os.PathLike[str], what: str, *shapes: tuple[int | None, ...]) -> NDArray[np.float32]:
    """Read `what`, a float32 array of one of `shapes` (None: any length but 0), from a .npy file.

    Raises `InvalidModelError` for a file that is none, of another dtype or shape, or holds values that are not finite.
    """
    try:
        check_regular(path)
        # mapped, so that a header which claims more than the file holds allocates nothing
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except InvalidModelError as error:
        raise InvalidModelError(f"{what}: {error}") from error
    except OSError as error:
        raise InvalidModelError(f"{what}: {path}: {error.strerror or error}; expected a .npy array") from error
    except _BROKEN as error:
        raise InvalidModelError(f"{what}: {path}: expected a whole .npy array of numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InvalidModelError(f"{what}: {path}: expected one array (.npy), got an archive of several")
    if array.dtype != np.dtype("<f4") or not any(_fits(array.shape, shape) for shape in shapes):
        wanted = ", ".join("N" if length is None else str(length) for length in shapes[0])
        raise InvalidModelError(f"{what}: {path}: expected float32[{wanted}], got {array.dtype}{list(array.shape)}")
    if isinstance(array, np.memmap) and array.offset + array.nbytes != os.path.getsize(path):
        raise InvalidModelError(f"{what}: {path}: holds more bytes than its shape says")
    values = np.array(array, np.float32)
    if not np.isfinite(values).all():
        raise InvalidModelError(f"{what}: {path}: holds NaN or infinity; expected finite numbers")
    return values


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        length > 0 if want is None else length == want for length, want in zip(shape, wanted, strict=True)
    )
