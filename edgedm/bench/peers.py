"""The engines that a step is compared with: what each needs, where it gets its model, and how it is kept to an ISA."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from edgedm.bench.twin import FP32, INT8
from edgedm.errors import ToolchainError, UnsupportedError
from edgedm.targets import x86

OURS = "edgedm"
_EXTRA_OF = {
    **dict.fromkeys(("onnxruntime", "onnx", "tvm"), "compile"),
    **dict.fromkeys(("torch", "diffusers"), "train"),
    **dict.fromkeys(("openvino", "ncnn", "pnnx"), "peers"),
}


@dataclass(frozen=True)
class Peer:
    """An engine that runs the full-precision twin (or its int8 form) in a process of its own.

    `limits` says by which variables it can be kept from instructions that our target doesn't have: "onednn",
    "aten", or "target" where it is compiled for the target itself; nothing: it cannot.
    """

    name: str
    modules: tuple[str, ...]
    files: tuple[str, ...] = (FP32,)
    limits: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Python modules that it needs and that are not installed."""
        return [name for name in self.modules if find_spec(name) is None]

    @property
    def install(self) -> str:
        """How to get what is missing of it, or all of it if nothing is."""
        extras = dict.fromkeys(_EXTRA_OF[name] for name in self.missing() or self.modules)
        compiler = ", and a C++ compiler" if self.name == "torch_compile" else ""
        return f"pip install 'edgedm[{','.join(extras)}]'{compiler}"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("onnxruntime_fp32", ("onnxruntime", "torch")),
        Peer("onnxruntime_int8", ("onnxruntime", "torch"), (FP32, INT8)),
        Peer("openvino_fp32", ("openvino", "torch"), limits=("onednn",)),
        Peer("openvino_int8", ("openvino", "onnxruntime", "torch"), (FP32, INT8), ("onednn",)),
        Peer("torch_eager", ("torch", "diffusers"), (), ("onednn", "aten")),
        Peer("torch_compile", ("torch", "diffusers"), (), ("onednn", "aten")),
        Peer("ncnn_fp32", ("ncnn", "pnnx", "torch")),
        Peer("tvm_default", ("tvm", "onnx", "torch"), limits=("target",)),
    )
}
ALIASES = {"onnxruntime": "onnxruntime_fp32", "openvino": "openvino_fp32", "torch": "torch_eager", "ncnn": "ncnn_fp32"}
ALL, NONE = "all", "none"

_LEVEL_VARIABLES: Mapping[str, tuple[str, str, str]] = {
    # level and extension -> ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS, ATEN_CPU_CAPABILITY
    "x86-64": ("SSE41", "SSE4_2", "default"),  # the least that they know
    "x86-64-v2": ("SSE41", "SSE4_2", "default"),
    "x86-64-v3": ("AVX2", "AVX2", "avx2"),
    "x86-64-v3+avxvnni": ("AVX2_VNNI", "AVX2", "avx2"),
    "x86-64-v4": ("AVX512_CORE", "AVX512", "avx512"),
    "x86-64-v4+vnni": ("AVX512_CORE_VNNI", "AVX512", "avx512"),
}


def resolve_peers(names: Sequence[str], known: Mapping[str, Peer] = PEERS) -> tuple[list[Peer], list[dict[str, str]]]:
    """Return the engines of `known` that `names` ask for, and {engine, why, install} of those that `all` lacks here.

    Raises UnsupportedError for an unknown name, ToolchainError for a missing engine that was asked for by name.
    """
    wanted = [name if name in known else ALIASES.get(name, name) for name in names if name not in ("", NONE)]
    unknown = [name for name in wanted if name != ALL and name not in known]
    if unknown:
        raise UnsupportedError(
            f"bench: unknown engine {', '.join(unknown)}; known are {', '.join(known)}, all and none"
        )
    chosen = [peer for name, peer in known.items() if name in wanted or ALL in wanted]
    absent: list[dict[str, str]] = []
    for peer in chosen:
        missing = peer.missing()
        if missing and peer.name in wanted:
            raise ToolchainError(f"bench: {peer.name} needs {' and '.join(missing)}: {peer.install}")
        if missing:
            why = f"{' and '.join(missing)} not installed"
            absent.append({"engine": peer.name, "why": why, "install": peer.install})
    gone = {row["engine"] for row in absent}
    return [peer for peer in chosen if peer.name not in gone], absent


def environment(peer: str, threads: int, target: str, features: Sequence[str]) -> dict[str, str]:
    """Variables of an engine's process: its threads, and no more instructions than `target` has where that goes.

    An engine is limited only where this machine has more than `features`, those of the target.
    """
    count = str(threads)
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TVM_NUM_THREADS"), count)
    variables["TVM_BIND_THREADS"] = "0"
    how = PEERS[peer].limits if peer in PEERS and is_lesser(features) else ()
    onednn, mkl, aten = _LEVEL_VARIABLES[_known_level(target)]
    if "onednn" in how:
        variables |= {"ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}
    if "aten" in how:
        variables["ATEN_CPU_CAPABILITY"] = aten
    return {**os.environ, **variables}


def is_lesser(features: Sequence[str]) -> bool:
    """Whether this machine has instructions that a target with `features` does without."""
    return bool(x86.detect() - set(features))


def unlimited(peers: Sequence[Peer], features: Sequence[str]) -> list[str]:
    """Names of engines that use instructions which our target lacks, because nothing keeps them from it."""
    return [peer.name for peer in peers if not peer.limits] if is_lesser(features) else []


def _known_level(target: str) -> str:
    """The entry of the table that is nearest below `target`."""
    level, *extras = target.split("+")
    return next((name for extra in extras if (name := f"{level}+{extra}") in _LEVEL_VARIABLES), level)
