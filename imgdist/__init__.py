"""The shared core of imgdist: image formats, registry client and wire. It imports no daemon."""

__version__ = "0.1.0"
