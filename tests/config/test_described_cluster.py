"""A cluster described by hand, in every form that `cluster` takes."""

from __future__ import annotations

import pytest

from local_vllm.config.described import each_node

DRY = "+dry_run=true"


def nodes(config) -> list[tuple[str, int]]:
    return [(address, group.gpus) for address, group in each_node(config.settings.cluster)]


@pytest.mark.parametrize(
    ("text", "gpus"),
    {
        "4x8": [8] * 4,
        "1X2": [2],
        "2x8+1x0": [8, 8, 0],
        "1x0+2x4": [0, 4, 4],
        "[1x0,2x4]": [0, 4, 4],
        "{gpus:4,count:2}": [4, 4],
        "[{gpus:4},1x8]": [4, 8],
        "{nodes:[{gpus:1},{gpus:2}]}": [1, 2],
    }.items(),
)
def test_nodes_are_numbered_by_their_place(load, text, gpus):
    expected = [(f"node{i}", size) for i, size in enumerate(gpus, start=1)]
    assert nodes(load(DRY, f"+cluster={text}")) == expected


@pytest.mark.parametrize("key", ["name", "address"])
def test_a_name_stands_for_the_address_and_is_numbered_where_there_are_several(load, key):
    config = load(DRY, f"+cluster=[{{{key}:head,gpus:0}},{{{key}:gpu-,gpus:8,count:2}}]")

    assert nodes(config) == [("head", 0), ("gpu-1", 8), ("gpu-2", 8)]


FILE = """
    - {name: 10.0.0.1, gpus: 0, cpus: 16}
    - {count: 2, gpus: 8, gpus_free: 6, cpus: 64, cpus_free: 10.5, accelerator: H100, labels: {rack: a}}
"""


@pytest.mark.parametrize("top", ["", "nodes:"])
def test_a_file_holds_the_list_of_nodes(load, write, top):
    write("clusters/two.yaml", top + FILE)
    head, rest = load(DRY, "+cluster=clusters/two.yaml").settings.cluster

    assert (head.address, head.gpus, head.cpus) == ("10.0.0.1", 0, 16)
    assert (rest.count, rest.gpus, rest.gpus_free, rest.cpus_free) == (2, 8, 6, 10.5)
    assert (rest.accelerator, rest.labels) == ("H100", {"rack": "a"})


FORMS = "write nodes x GPUs, as 4x8 or 1x0+4x8, a list of nodes, or the path of a YAML file with such a list"
WRONG = {
    "4y8": [f"cluster: `4y8` is not a cluster, and there is no such file; {FORMS}"],
    "4": [f"cluster: `4` is not a cluster; {FORMS}"],
    "nowhere.yaml": [f"cluster: `nowhere.yaml` is not a cluster, and there is no such file; {FORMS}"],
    "[]": [f"cluster: has no nodes; {FORMS}"],
    "0x8": ["cluster.0.count: must be at least 1, not 0"],
    "10001x8": ["cluster.0.count: must be at most 10000, not 10001"],
    "9999x8+2x8": ["cluster: has 10001 nodes; 10000 is the most that can be described"],
    "1x1001": ["cluster.0.gpus: must be at most 1000, not 1001"],
    "[{gpus:8,cont:2},{gpu:8}]": [
        "cluster.0.cont: unknown key; did you mean `count`?",
        "cluster.1.gpus: is required: GPUs that it has.",
        "cluster.1.gpu: unknown key; did you mean `gpus`?",
    ],
    "{gpus:true}": ["cluster.0.gpus: must be a number, not true"],
    "{gpus:8,gpus_free:9}": ["cluster.0: gpus_free is 9, and gpus is 8"],
    "{gpus:8,cpus:4,cpus_free:5}": ["cluster.0: cpus_free is 5, and cpus is 4"],
    "{gpus:8,cpus_free:5}": ["cluster.0: has cpus_free without cpus: give both, or neither for CPUs enough"],
    "{gpus:8,name:a,address:b}": ["cluster.0: has a name and an address, which are the same key: keep one"],
    "[{gpus:8,name:a},{gpus:8,name:a}]": [
        "cluster: two nodes have the address a: vLLM could not tell them apart"
    ],
}


@pytest.mark.parametrize(("text", "lines"), WRONG.items(), ids=WRONG)
def test_a_wrong_description_is_answered_with_a_line_for_each_mistake(problems, text, lines):
    assert problems(DRY, f"+cluster={text}") == lines


def test_a_file_that_is_no_yaml_is_named_with_line_and_column(problems, write):
    file = write("bad.yaml", "- {gpus: 8\n")

    assert problems(DRY, "+cluster=bad.yaml")[0].startswith(f"{file}:2:1: is not YAML")


@pytest.mark.parametrize(("key", "value"), [("ray_address", "a:1"), ("logical_gpus", "2")])
def test_a_plan_is_drawn_on_one_cluster(problems, key, value):
    assert problems(DRY, "+cluster=4x8", f"+{key}={value}") == [
        f"cluster: is given beside {key}: a plan is drawn on one cluster, so keep one of the two"
    ]
