#!/bin/sh
# Makes snapshots_pb2.py and mount_pb2.py from the .proto files beside this script.
# grpcio-tools 1.62.3 (protoc 25.1) on purpose: the last line whose output runs, without a version check at
# import, with every protobuf runtime from 4.25 on; newer output refuses older runtimes and warns on newer ones.
set -eu
cd "$(dirname "$0")/../../.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet 'grpcio-tools==1.62.3' 'setuptools<81'
"$venv/bin/python" -m grpc_tools.protoc -I . --python_out=. \
  agent/snapshotter/proto/mount.proto agent/snapshotter/proto/snapshots.proto
