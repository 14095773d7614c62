"""OCI and Docker schema-2 images: references, manifests, and the registry client."""
