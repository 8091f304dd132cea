"""Text of graphs with quantisers as the exporter writes them, and the constants that they read."""

import ml_dtypes
import numpy as np

STORED = {4: ml_dtypes.uint4, 6: np.uint8, 8: np.uint8, 2: np.uint8}


def quantised(name: str, x: str, step: str, zero: str, bits: int, axis: int | None = None) -> str:
    """Lines that put `x` on a grid as `name`; of 2 and 6 bits with limits low and top`bits`."""
    along = "" if axis is None else f"<axis={axis}>"
    codes, clip = f"{name}_q", ""
    if bits in (2, 6):
        codes, clip = f"{name}_c", f"{name}_c = Clip({name}_q, low, top{bits})"
    return f"""{name}_q = QuantizeLinear{along}({x}, {step}, {zero}) {clip}
        {name} = DequantizeLinear{along}({codes}, {step}, {zero})"""


def limits(*widths: int) -> dict[str, np.ndarray]:
    """The constants that `quantised` reads."""
    clipped = {f"top{bits}": np.array(2**bits - 1, np.uint8) for bits in widths if bits in (2, 6)}
    return clipped | ({"low": np.array(0, np.uint8)} if clipped else {})


def looked_up(name: str, bits: int, heads: int = 0) -> str:
    """Lines that cut {name}_step and {name}_zero, [] or [heads], out of the row of {name}_table, as exports do."""
    cast = f"{name}_byte = Cast<to=2>({name}_zf)"
    cast += f" {name}_zero = Cast<to=21>({name}_byte)" if bits == 4 else f" {name}_zero = Identity({name}_byte)"
    return f"""{name}_row = edgedm.TimestepLookup({name}_table, edges, timestep)
        {name}_s1 = Slice({name}_row, at0, at{heads or 1}, at0)
        {name}_z1 = Slice({name}_row, at{heads or 1}, end, at0)
        {name}_step = Reshape({name}_s1, to{heads})
        {name}_zf = Reshape({name}_z1, to{heads})
        {cast}"""


def table(rng: np.random.Generator, bits: int, heads: int = 0) -> np.ndarray:
    """Three rows of steps and zero points, which lie at both ends too."""
    steps = rng.uniform(0.02, 0.4, (3, heads or 1))
    zeros = rng.choice([0, 2**bits // 2, 2**bits - 1], (3, heads or 1))
    return np.concatenate([steps, zeros], 1).astype(np.float32)


def lookup_constants(*heads: int) -> dict[str, np.ndarray]:
    """What `looked_up` reads."""
    constants = {"edges": np.array([0, 30, 90]), "end": np.array([2**63 - 1]), "at0": np.array([0])}
    for count in heads:
        constants[f"at{count or 1}"] = np.array([count or 1])
        constants[f"to{count}"] = np.array([count] if count else [], np.int64)
    return constants


def weight(rng: np.random.Generator, bits: int, *shape: int) -> dict[str, np.ndarray]:
    """Codes w, steps ws and zero points wz of an output channel each."""
    kind = ml_dtypes.uint4 if bits <= 4 else np.uint8
    return {
        "w": rng.integers(0, 2**bits, shape).astype(kind),
        "ws": rng.uniform(0.01, 0.1, shape[0]).astype(np.float32),
        "wz": rng.choice([0, 2**bits // 2, 2**bits - 1], shape[0]).astype(kind),
    }
