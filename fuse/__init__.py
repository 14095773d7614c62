"""The view: a read-only FUSE file system that shows layer images, filled or not."""
