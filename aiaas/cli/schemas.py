"""Check patched and extra objects against the API server's schemas, if the package with them is installed.

The schemas are too large (60 MB) to be a dependency of a gateway: `pip install 'aiaas[schemas]'`. aiaas's own objects
are checked against them in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiaas.cli.outcome import note
from aiaas.config import codes
from aiaas.config.problem import Finding
from aiaas.manifests.patches import Patched


def schema_faults(made: Patched) -> Iterator[Finding]:
    """The objects that the newest known Kubernetes refuses, at the fields of the config that made or changed them."""
    if not made.touched:
        return
    try:
        import kubernetes_validate
    except ImportError:
        note(
            "note: patches and extra objects are not checked against Kubernetes' schemas: pip install 'aiaas[schemas]'"
        )
        return
    version = kubernetes_validate.latest_version()
    for index, at in made.touched.items():
        each = made.objects[index]
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            continue  # an object of an operator, whose schema is in the cluster
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(part) for part in error.path) or "the object"
            reason = error.message if len(error.message) <= 200 else error.message[:197] + "..."
            message = f"{each['kind']}/{each['metadata']['name']}: Kubernetes {version} refuses {where}: {reason}"
            yield codes.PATCH, "error", at, message
