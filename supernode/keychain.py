"""The credentials that a supernode has of its own: files, helpers, Kubernetes."""

from __future__ import annotations

import aiohttp

from imgdist.config import RegistryConfig
from imgdist.oci.credentials import CredentialSource, Keychain
from imgdist.oci.credhelper import CredentialHelper
from imgdist.oci.dockerconfig import DockerConfigFile
from imgdist.oci.kubernetes import ApiServer, KubernetesSecret


def keychain(config: RegistryConfig, http: aiohttp.ClientSession) -> Keychain:
    """Every source that [registry] names, in its order. Raises ConfigError for Kubernetes' outside a pod."""
    helper = CredentialHelper()
    files = [path for path in (config.docker_config, *config.pull_secrets) if path]
    sources: list[CredentialSource] = [DockerConfigFile(path, helper) for path in files]
    if config.kubernetes_secrets:
        server = ApiServer.of_this_pod()
        sources += [KubernetesSecret(name, server, http) for name in config.kubernetes_secrets]
    return Keychain(sources)
