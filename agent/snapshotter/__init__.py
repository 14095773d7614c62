"""The snapshotter that containerd calls: containerd.services.snapshots.v1 over layers and plain directories."""
