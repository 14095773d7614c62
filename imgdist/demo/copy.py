"""An image of somebody else's registry, copied by skopeo for `imgdist demo --image`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imgdist.demo.image import Image, load_image
from imgdist.demo.processes import command
from imgdist.oci.reference import parse

_LOOPBACK = ("localhost", "127.", "[::1]")


def copied_image(reference: str, directory: Path, progress: Callable[[str], None]) -> Image:
    """Copy `reference` (this machine's platform) below `directory`. Registries on loopback may lack TLS.

    Raises UsageError for a malformed reference, ImgdistError with skopeo's reason.
    """
    name = parse(reference)
    progress(f"copying {name}")
    flags = ["--src-tls-verify=false"] if name.host.startswith(_LOOPBACK) else []
    target = directory / "image"
    # skopeo takes a tag or a digest; the digest rules.
    source = f"{name.name}@{name.digest}" if name.digest else str(name)
    command("skopeo", "copy", "--quiet", "--insecure-policy", *flags, f"docker://{source}", f"oci:{target}:copy")
    return load_image(target)
