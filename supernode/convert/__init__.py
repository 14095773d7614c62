"""Layers to packs: gunzip or unzstd, tar to EROFS, chunks hashed and encoded, all while the layer downloads.

Nothing is imported here: the worker lives in this package, too, and must not pay for asyncio (measured: 75 instead of
115 ms of CPU a worker, and there is one for each layer).
"""
