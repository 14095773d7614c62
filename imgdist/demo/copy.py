"""An image of somebody else's registry, copied by skopeo for `imgdist demo --image`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from imgdist.demo.image import Image, load_image
from imgdist.demo.processes import command
from imgdist.oci.reference import parse

# Given no terminal these wait for input and print nothing: what they are told to do instead.
_INTERPRETERS = {
    **dict.fromkeys(("sh", "ash", "bash", "dash", "zsh"), ("-c", "echo started")),
    **dict.fromkeys(("python", "python3"), ("-c", "print('started')")),
}
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


def program(image: Image) -> tuple[str, ...]:
    """What to start: () for the image's own command; one that prints a line where that command waits for input."""
    config = json.loads(image.path(image.config).read_bytes()).get("config") or {}
    argv = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
    if len(argv) == 1 and (arguments := _INTERPRETERS.get(argv[0].rpartition("/")[2])):
        return (argv[0], *arguments)
    return ()
