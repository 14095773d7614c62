"""The messages of containerd's snapshots service: `.proto` files, and what `generate.sh` makes of them."""
