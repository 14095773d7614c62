"""A client of containerd's CRI service, as kubelet is one: images, pods on the host's network, containers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from proto import cri_pb2 as pb

_CALL_S = 60.0
_PULL_S = 120.0  # what kubelet grants a pull


class Cri:
    """One connection to the CRI socket at `socket`; a context manager."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")

    def __enter__(self) -> Cri:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def _call(self, service: str, method: str, request: Any, timeout_s: float = _CALL_S) -> Any:
        """Every method's messages are named `<method>Request` and `<method>Response`."""
        call = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(pb, f"{method}Response").FromString,
        )
        return call(request, timeout=timeout_s)

    def version(self) -> str:
        """Version of the runtime, as in "1.6.20~ds1"."""
        return str(self._call("RuntimeService", "Version", pb.VersionRequest()).runtime_version)

    def pull(self, reference: str) -> str:
        """Pull; the image's reference in the runtime. Raises grpc.RpcError."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=reference))
        return str(self._call("ImageService", "PullImage", request, _PULL_S).image_ref)

    def remove_image(self, reference: str) -> None:
        self._call("ImageService", "RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=reference)))

    def images(self) -> set[str]:
        """All tags that the runtime lists."""
        listed = self._call("ImageService", "ListImages", pb.ListImagesRequest()).images
        return {tag for image in listed for tag in image.repo_tags}

    def has_image(self, reference: str) -> bool:
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=reference))
        return bool(self._call("ImageService", "ImageStatus", request).HasField("image"))

    def image_file_system(self) -> tuple[str, int]:
        """(mount point, bytes used) of the first image file system, as kubelet sees it."""
        system = self._call("ImageService", "ImageFsInfo", pb.ImageFsInfoRequest()).image_filesystems[0]
        return system.fs_id.mountpoint, system.used_bytes.value

    @contextmanager
    def pod(self, name: str, logs: Path) -> Iterator[Pod]:
        """As `run_pod`; stopped and removed with all its containers at the end."""
        pod = self.run_pod(name, logs)
        try:
            yield pod
        finally:
            pod.remove()

    def run_pod(self, name: str, logs: Path) -> Pod:
        """A pod on the host's network (no CNI needed)."""
        logs.mkdir(parents=True, exist_ok=True)
        host = pb.NamespaceOption(network=pb.NODE)
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=name, namespace="default"),
            log_directory=str(logs),
            linux=pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(namespace_options=host)),
        )
        response = self._call("RuntimeService", "RunPodSandbox", pb.RunPodSandboxRequest(config=config))
        return Pod(self, response.pod_sandbox_id, config)


class Pod:
    """A running sandbox."""

    def __init__(self, cri: Cri, identifier: str, config: Any) -> None:
        self._cri = cri
        self._id = identifier
        self._config = config

    def remove(self) -> None:
        """Stop and remove it with all its containers."""
        self._cri._call("RuntimeService", "StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=self._id))
        self._cri._call("RuntimeService", "RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=self._id))

    def start(self, name: str, image: str, *command: str) -> Container:
        """Create and start a container of `image`; it ends with the pod."""
        host = pb.NamespaceOption(network=pb.NODE)
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=image),
            command=command,
            log_path=f"{name}.log",
            linux=pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(namespace_options=host)),
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=self._id, config=config, sandbox_config=self._config)
        identifier = self._cri._call("RuntimeService", "CreateContainer", request).container_id
        self._cri._call("RuntimeService", "StartContainer", pb.StartContainerRequest(container_id=identifier))
        return Container(self._cri, identifier)


class Container:
    """A container that was started."""

    def __init__(self, cri: Cri, identifier: str) -> None:
        self._cri = cri
        self.id = identifier

    def run(self, *command: str, timeout_s: float = 60.0) -> bytes:
        """Run a command inside; its stdout. Fails the test with its stderr unless it exits 0."""
        request = pb.ExecSyncRequest(container_id=self.id, cmd=command, timeout=int(timeout_s))
        done = self._cri._call("RuntimeService", "ExecSync", request, timeout_s + 5)
        assert done.exit_code == 0, (
            f"{' '.join(command)}: exit {done.exit_code}: {done.stderr.decode(errors='replace')}"
        )
        return bytes(done.stdout)

    def running(self) -> bool:
        status = self._cri._call(
            "RuntimeService", "ContainerStatus", pb.ContainerStatusRequest(container_id=self.id)
        ).status
        return bool(status.state == pb.CONTAINER_RUNNING)

    def stop(self) -> None:
        self._cri._call("RuntimeService", "StopContainer", pb.StopContainerRequest(container_id=self.id, timeout=0))
        self._cri._call("RuntimeService", "RemoveContainer", pb.RemoveContainerRequest(container_id=self.id))
