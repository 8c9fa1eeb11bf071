"""The KubeRay manifests against KubeRay's fields, against each other, and against the product."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kuberay_schema import SCHEMAS

from local_vllm.cluster import serve_settings
from local_vllm.config.schema import GlobalSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts/cluster/kuberay"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


(CLUSTER,) = documents("raycluster.yaml")
(JOB,) = documents("rayjob.yaml")
SHARED = {document["kind"]: document for document in documents("shared.yaml")}
SPEC = CLUSTER["spec"]
HEAD = SPEC["headGroupSpec"]["template"]
(WORKERS,) = SPEC["workerGroupSpecs"]
TEMPLATES = {"head": HEAD, "worker": WORKERS["template"]}


def container(template: dict[str, Any]) -> dict[str, Any]:
    (only,) = template["spec"]["containers"]
    return only


@pytest.mark.parametrize("manifest", [CLUSTER, JOB], ids=["RayCluster", "RayJob"])
def test_a_manifest_has_kuberays_fields_and_no_others(manifest: dict[str, Any]):
    jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])


def test_a_field_that_kuberay_does_not_know_is_noticed():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(CLUSTER | {"spec": SPEC | {"headGroupSpecs": {}}}, SCHEMAS["RayCluster"])


def test_the_job_brings_the_cluster_that_the_other_manifest_keeps():
    assert JOB["spec"]["rayClusterSpec"] == SPEC


def test_the_jobs_cluster_goes_when_the_job_has_ended():
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True


def test_ray_has_one_version_in_manifest_image_and_project():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (pinned,) = [word.rpartition("==")[2] for word in needed if word.startswith("ray[")]
    image = re.search(r"^ARG RAY_VERSION=(.*)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert image and {image[1], SPEC["rayVersion"]} == {pinned}


def test_what_the_dockerfile_copies_is_there():
    copied = re.findall(r"^COPY --chown=ray (.*) \S+$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert copied and all((ROOT / word).exists() for line in copied for word in line.split())


def test_serve_has_the_settings_of_a_private_cluster_in_every_pod():
    """Those that are neither a folder nor a port: they are what stays when these change."""
    ours = [
        serve_settings.serve_environment(Path(folder), range(first, first + 4), range(first + 4, first + 9), 8, 1 << 20)
        for folder, first in (("/a", 1000), ("/b", 2000))
    ]
    fixed = {name: value for name, value in ours[0].items() if value == ours[1][name]}
    in_pods = SHARED["ConfigMap"]["data"]
    assert fixed and fixed.items() <= in_pods.items()
    assert not (set(in_pods) & set(ours[0])) - set(fixed)
    for template in TEMPLATES.values():
        assert container(template)["envFrom"] == [
            {"configMapRef": {"name": SHARED["ConfigMap"]["metadata"]["name"]}}
        ]


def test_ray_asks_for_a_token():
    assert SPEC["authOptions"] == {"mode": "token"}


def test_the_head_has_no_gpu_and_a_worker_has_a_whole_node():
    assert SPEC["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    assert "nvidia.com/gpu" not in container(HEAD)["resources"]["limits"]
    assert container(WORKERS["template"])["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_nodes_do_not_come_and_go_under_a_plan():
    assert WORKERS["replicas"] == WORKERS["minReplicas"] == WORKERS["maxReplicas"]


@pytest.mark.parametrize("role", TEMPLATES)
def test_a_pod_mounts_volumes_that_it_has_and_its_shared_memory_is_memory(role: str):
    pod = TEMPLATES[role]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(TEMPLATES[role])["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    claim = volumes[mounts[SHARED["ConfigMap"]["data"]["HF_HOME"]]]["persistentVolumeClaim"]["claimName"]
    assert claim == SHARED["PersistentVolumeClaim"]["metadata"]["name"]


def test_the_service_leads_to_the_gateway_on_the_head():
    service = SHARED["Service"]["spec"]
    (port,) = service["ports"]
    assert service["selector"].items() <= HEAD["metadata"]["labels"].items()
    assert not service["selector"].items() <= WORKERS["template"]["metadata"]["labels"].items()
    assert port["targetPort"] == GlobalSettings().http_port
    assert port["targetPort"] in [entry["containerPort"] for entry in container(HEAD)["ports"]]


def test_the_jobs_command_fits_its_cluster_and_listens_for_other_pods():
    words = shlex.split(JOB["spec"]["entrypoint"])
    gpus = container(WORKERS["template"])["resources"]["limits"]["nvidia.com/gpu"]
    plan = [f"+cluster={WORKERS['replicas']}x{gpus}", "+dry_run=true"]
    done = subprocess.run(
        [Path(sys.executable).with_name(words[0]), *words[1:], *plan],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "16 GPUs on 2 nodes" in done.stdout
    assert "++http_host=0.0.0.0" in words


def test_the_jobs_command_means_the_same_to_one_shell_and_to_two():
    entrypoint = JOB["spec"]["entrypoint"]
    assert re.fullmatch(r"[\w+./=: -]+", entrypoint)
