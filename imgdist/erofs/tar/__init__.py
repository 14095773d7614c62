"""Reading layer tars as a stream, the way containerd (Go's archive/tar) reads them."""
