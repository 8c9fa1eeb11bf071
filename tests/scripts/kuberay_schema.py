"""The fields of KubeRay's resources that the manifests may use, as JSON schemas (its own are far larger).

Names and types are those of ray.io/v1 in KubeRay 1.5. Unknown fields are errors; Kubernetes drops them.
"""

from __future__ import annotations

from typing import Any

STRING, INTEGER, BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": STRING}
# Kubernetes' number with a unit.
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}


def fields(required: str = "", **known: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": known,
        "required": required.split(),
        "additionalProperties": False,
    }


def several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


REFERENCE = fields("name", name=NAME, key=STRING, optional=BOOLEAN)
CONTAINER = fields(
    "name image resources",
    name=NAME,
    image=STRING,
    envFrom=several(fields(configMapRef=REFERENCE, secretRef=REFERENCE)),
    env=several(
        fields(
            "name",
            name=STRING,
            value=STRING,
            valueFrom=fields(fieldRef=fields("fieldPath", fieldPath=STRING), secretKeyRef=REFERENCE),
        )
    ),
    ports=several(fields("containerPort", name=NAME, containerPort=INTEGER)),
    resources=fields("requests limits", requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=several(fields("name mountPath", name=NAME, mountPath=STRING, readOnly=BOOLEAN)),
)
POD = fields(
    "containers",
    containers=several(CONTAINER),
    volumes=several(
        fields(
            "name",
            name=NAME,
            emptyDir=fields(medium={"const": "Memory"}, sizeLimit=QUANTITY),
            persistentVolumeClaim=fields("claimName", claimName=NAME),
        )
    ),
    securityContext=fields(fsGroup=INTEGER, fsGroupChangePolicy={"enum": ["OnRootMismatch", "Always"]}),
    terminationGracePeriodSeconds=INTEGER,
    nodeSelector=STRINGS,
    tolerations=several({"type": "object"}),
)
TEMPLATE = fields("spec", metadata=fields(labels=STRINGS, annotations=STRINGS), spec=POD)
RAY_CLUSTER_SPEC = fields(
    "headGroupSpec workerGroupSpecs rayVersion",
    rayVersion=STRING,
    authOptions=fields(mode={"enum": ["disabled", "token"]}, secretName=NAME),
    enableInTreeAutoscaling=BOOLEAN,
    headGroupSpec=fields(
        "template", serviceType=STRING, enableIngress=BOOLEAN, rayStartParams=STRINGS, template=TEMPLATE
    ),
    workerGroupSpecs=several(
        fields(
            "groupName template minReplicas maxReplicas",
            groupName=NAME,
            replicas=INTEGER,
            minReplicas=INTEGER,
            maxReplicas=INTEGER,
            numOfHosts=INTEGER,
            rayStartParams=STRINGS,
            template=TEMPLATE,
        )
    ),
)
RAY_JOB_SPEC = fields(
    "entrypoint rayClusterSpec",
    entrypoint=STRING,
    shutdownAfterJobFinishes=BOOLEAN,
    ttlSecondsAfterFinished=INTEGER,
    backoffLimit=INTEGER,
    activeDeadlineSeconds=INTEGER,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    suspend=BOOLEAN,
    rayClusterSpec=RAY_CLUSTER_SPEC,
)


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=fields("name", name=NAME, labels=STRINGS),
        spec=spec,
    )


SCHEMAS = {
    "RayCluster": resource("RayCluster", RAY_CLUSTER_SPEC),
    "RayJob": resource("RayJob", RAY_JOB_SPEC),
}
