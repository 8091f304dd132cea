"""Android's binary interfaces: which instruction set each is, under the names that its tools use."""

from dataclasses import dataclass

from edgedm.errors import UnsupportedError
from edgedm.targets import Target
from edgedm.targets.android import API_LEVEL, SOFT_FLOAT


@dataclass(frozen=True)
class Abi:
    """One of Android's binary interfaces."""

    name: str  # as in an AAR's or APK's folders
    isa: str  # edgedm's name
    architecture: str  # LLVM's, in triples
    environment: str  # likewise
    kernel_headers: str  # the folder of the Linux kernel's headers in zig's
    emulation: str  # the linker's name
    machine: str  # in an ELF header
    bits: int
    c_flags: tuple[str, ...] = ()

    @property
    def zig_triple(self) -> str:
        """Zig's triple of the library."""
        return f"{self.architecture}-linux-{self.environment}.{API_LEVEL}"

    @property
    def ndk_triple(self) -> str:
        """The triple that the NDK's clang takes."""
        ndk = {"arm": "armv7a"}.get(self.architecture, self.architecture)
        return f"{ndk}-linux-{self.environment}{API_LEVEL}"


ABIS = (
    Abi("arm64-v8a", "aarch64", "aarch64", "android", "aarch64-linux-any", "aarch64linux", "EM_AARCH64", 64),
    Abi(
        "armeabi-v7a",
        "arm",
        "arm",
        "androideabi",
        "arm-linux-any",
        "armelf_linux_eabi",
        "EM_ARM",
        32,
        SOFT_FLOAT,
    ),
    Abi("x86_64", "x86", "x86_64", "android", "x86-linux-any", "elf_x86_64", "EM_X86_64", 64),
)


def abi_of(target: Target) -> Abi:
    """The binary interface of a target for Android; UnsupportedError for another."""
    if target.base.system != "android":
        raise UnsupportedError(f"target {target.name}: is not one for Android; compile for android-arm64, for example")
    return next(abi for abi in ABIS if abi.isa == target.isa)
