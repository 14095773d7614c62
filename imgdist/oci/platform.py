"""Platforms of images: `os/architecture[/variant]`, normalised and matched as containerd does (platforms package)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from imgdist.errors import UsageError

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i686": "386",
    "armhf": "arm",
    "armel": "arm",
    "armv7l": "arm",
    "armv6l": "arm",
}
_LEVEL = re.compile("[0-9]{1,9}")
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and variant; the variant is empty where it is the architecture's usual one."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read "linux/amd64" or "linux/arm/v6". Raises UsageError."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise UsageError(f"platform {text!r}: expected os/architecture or os/architecture/variant")
        return cls.normal(*parts)

    @classmethod
    def normal(cls, os_name: str, architecture: str, variant: str = "") -> Platform:
        """The platform with the names that images use: x86_64 is amd64, arm64's v8 is left out."""
        machine = architecture.lower()
        if not variant and machine in ("armel", "armv6l"):
            variant = "v6"
        machine = _ARCHITECTURES.get(machine, machine)
        variant = variant.lower()
        if machine in ("arm", "arm64") and variant.isdigit():
            variant = f"v{variant}"
        if variant == _DEFAULT_VARIANTS.get(machine):
            variant = ""
        return cls(os_name.lower(), machine, variant)

    @classmethod
    def of_this_machine(cls) -> Platform:
        """The platform whose images run here."""
        return cls.normal("linux", os.uname().machine)

    def accepts(self, other: Platform) -> bool:
        """True if an image for `other` runs on a machine of this platform: an equal or an older variant."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        return _level(other) <= _level(self)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def _level(platform: Platform) -> int:
    variant = platform.variant or _DEFAULT_VARIANTS.get(platform.architecture, "v0")
    digits = variant.removeprefix("v").partition(".")[0]
    return int(digits) if _LEVEL.fullmatch(digits) else 0


def best(wanted: Platform, offered: list[Platform | None]) -> int | None:
    """The number of the entry for `wanted`: the newest accepted variant, the first of equals; None if none fits.

    An entry without a platform stands for any and is taken only if nothing else fits.
    """
    fitting = [(_level(p), -i) for i, p in enumerate(offered) if p is not None and wanted.accepts(p)]
    if fitting:
        return -max(fitting)[1]
    return next((i for i, p in enumerate(offered) if p is None), None)
