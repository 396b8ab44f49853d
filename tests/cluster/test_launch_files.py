# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that launch Coremesh elsewhere, and the guide: each checked by what would read it, or run."""

import json
import os
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from coremesh.cluster import api
from coremesh.cluster.experiments.journal import SUFFIX
from coremesh.cluster.experiments.sweep_file import read_sweep

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[2] / "deploy"
POD = {"containers", "volumes", "securityContext"}


def loaded(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.mark.parametrize("name", ["ray/local.yaml", "ray/aws.yaml"])
def test_given_a_file_for_ray_up_when_rays_own_validator_reads_it_then_it_is_right(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(loaded(name))
    validate_config(config)
    broken = {**config, "max_wokers": 1}
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(broken)


@pytest.mark.parametrize("name", ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml"])
def test_given_a_file_for_kuberay_when_read_then_its_pods_are_those_of_the_other_files(name: str) -> None:
    file = loaded(name)
    spec = file["spec"] if file["kind"] == "RayCluster" else file["spec"]["rayClusterSpec"]
    assert file["apiVersion"] == "ray.io/v1"
    assert spec == (loaded("kuberay/raycluster.yaml")["spec"]), "the job's cluster is the cluster"
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        assert set(pod) == POD
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "Localhost"
        (container,) = pod["containers"]
        assert container["image"].split(":")[0] == loaded("compose/compose.yaml")["services"]["head"]["image"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"shm": "/dev/shm"} and [volume["name"] for volume in pod["volumes"]] == ["shm"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        # Else Ray takes 30 % of the memory, finds /dev/shm too small for it, and uses a slow disk.
        assert 0 < int(group["rayStartParams"]["object-store-memory"]) < 1 << 30
        assert [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]] == ["1Gi"]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert spec["authOptions"] == {"mode": "token"}


CRDS = "COREMESH_KUBERAY_CRDS"  # a folder of KubeRay's ray.io_rayclusters.yaml and ray.io_rayjobs.yaml


def strict(schema: Any) -> Any:
    """A CRD's openAPIV3Schema for JSON Schema; what it does not name is an error here, not dropped."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    # "properties" holds names, of which one may be called like a keyword.
    made = {
        key: {name: strict(one) for name, one in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def objections(name: str, file: Any) -> list[str]:
    """What KubeRay's own definition of a kind says against a file of that kind."""
    validator = pytest.importorskip("jsonschema").Draft7Validator
    definition = yaml.safe_load((Path(os.environ[CRDS]) / f"ray.io_{name}.yaml").read_text())
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"].pop("additionalProperties", None)
    return [error.message for error in validator(schema).iter_errors(file)]


@pytest.mark.skipif(not os.environ.get(CRDS), reason=f"{CRDS} names no folder with KubeRay's definitions")
@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_given_kuberays_own_definitions_when_they_read_a_file_then_it_is_right(kind: str) -> None:
    file = loaded(f"kuberay/{kind}.yaml")
    assert objections(f"{kind}s", file) == []
    broken = json.loads(json.dumps(file).replace('"workerGroupSpecs"', '"workerGroupSpec"'))
    assert any("workerGroupSpec" in text for text in objections(f"{kind}s", broken))
    broken = json.loads(json.dumps(file).replace('"runAsUser": 1000', '"runAsUser": "coremesh"'))
    assert objections(f"{kind}s", broken)


def test_given_the_compose_file_when_read_then_its_paths_exist_and_it_asks_for_a_token() -> None:
    folder = DEPLOY / "compose"
    file = loaded("compose/compose.yaml")
    for service in file["services"].values():
        build = service["build"]
        assert (folder / build["context"] / build["dockerfile"]).is_file()
        profiles = [word.split("=")[1] for word in service["security_opt"] if word.startswith("seccomp=")]
        assert [(folder / profile).is_file() for profile in profiles] == [True]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["cap_drop"] == ["ALL"]
        store = re.search(r"--object-store-memory=(\d+)", service["command"])
        assert store is not None and int(store[1]) < 1 << 30 and service["shm_size"] == "1g"
    assert (folder / "token").exists() is False, "a token is no part of a repository"


def test_given_the_seccomp_profile_when_read_then_userfaultfd_is_allowed_and_the_kernel_is_out_of_reach() -> (
    None
):
    rules = json.loads((DEPLOY / "container" / "seccomp.json").read_text())["syscalls"]
    actions = {name: rule["action"] for rule in rules for name in rule["names"]}
    assert actions["userfaultfd"] == "SCMP_ACT_ALLOW"
    for name in ("mount", "ptrace", "bpf", "kexec_load", "init_module", "io_uring_setup", "setns", "keyctl"):
        assert actions[name] == "SCMP_ACT_ERRNO"


def test_given_the_container_file_when_read_then_it_does_not_run_as_root() -> None:
    lines = (DEPLOY / "container" / "Containerfile").read_text().splitlines()
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER coremesh"]
    assert lines.index("USER coremesh") < lines.index("RUN coremesh fetch debian")
    copied = [line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert copied == ["."]


def test_given_what_git_ignores_when_the_image_is_built_then_it_does_not_go_in() -> None:
    """A stale build of this computer would be shipped, and a token or a virtual environment with it."""
    ignored = {line.removeprefix("**/") for line in (DEPLOY.parent / ".dockerignore").read_text().split()}
    wanted = {line.rstrip("/") for line in (DEPLOY.parent / ".gitignore").read_text().split()}
    assert wanted | {".git"} <= ignored


def test_given_the_guide_when_its_links_are_followed_then_they_lead_somewhere() -> None:
    for page in sorted((DEPLOY / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert len(read_sweep(DEPLOY / "docs" / "hashing.toml").trials) == 9


def test_given_the_code_when_the_reference_is_written_then_it_has_each_command_option_name_and_load() -> None:
    loader = SourceFileLoader("write_reference", str(DEPLOY / "docs" / "write_reference"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    page = module.reference()
    for word in ("### coremesh sweep", "`--resume`", "### coremesh boot", "`--hosts`", "`lock@1`"):
        assert word in page
    assert [name for name in api.__all__ if f"### coremesh.{name}\n" not in page] == ["loads"]
    assert "- `plot()`: Plot the mean" in page


def test_given_the_page_of_security_when_read_then_each_claim_names_a_test_that_there_is() -> None:
    tests = Path(__file__).parents[1]
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (DEPLOY / "SECURITY.md").read_text())
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (tests / file).read_text(), f"{file} has no {test}"


def test_given_a_message_of_the_troubleshooting_page_when_looked_for_then_the_code_says_it() -> None:
    """A message that was reworded would no longer be found by the person who got it."""
    page = (DEPLOY / "docs" / "troubleshooting.md").read_text()
    files = [file for room in ("cluster", "hw", "core") for file in (DEPLOY.parent / room).rglob("*.py")]
    code = " ".join(" ".join(file.read_text().split()) for file in sorted(files))
    code = re.sub(r'" f?"', "", code)
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    for row in rows:
        # A name that the code puts in is written out on the page: two words in a row tell, or all.
        words = [message.split() for message in re.findall(r"`([^`]+)`", row)]
        runs = [" ".join(part[at : at + 2]) for part in words for at in range(max(1, len(part) - 1))]
        assert any(run in code for run in runs), row
    assert "three words that nobody says" not in code


# `srun` and `scontrol` as a job of two nodes meets them, played by this computer.
SLURM = r"""
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ip link set lo up
ip link add v0 type veth peer name v1 && ip address add 10.9.8.7/24 dev v0
ip link set v0 up; ip link set v1 up; ip route add default via 10.9.8.1
unset $(env | grep -o '^RAY_[A-Za-z_]*')
export HOME=$FOLDER PATH=$FOLDER:$PATH TMPDIR=$FOLDER SLURM_JOB_ID=7 SLURM_JOB_NODELIST='node[1-2]'
cat >$FOLDER/scontrol <<'X'
#!/bin/bash
printf 'node1\nnode2\n'
X
cat >$FOLDER/srun <<'X'
#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done
[[ $1 == hostname ]] && { echo 10.9.8.7; exit; }
exec "$@" --num-cpus=1 --object-store-memory=80000000
X
for name in coremesh ray; do
  module=coremesh.cluster.cli; [[ $name == ray ]] && module=ray.scripts.scripts
  printf '#!/bin/bash\nexec %s -m %s "$@"\n' $PYTHON $module >$FOLDER/$name
done
chmod +x $FOLDER/*
"$SCRIPT" sweep.toml
echo "status $?"
ls -A $FOLDER/.coremesh-token-7 2>/dev/null
"""


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.timeout(400)
@pytest.mark.skipif(os.getuid() != 0, reason="only root can make namespaces")
def test_given_a_slurm_job_of_two_nodes_when_its_script_runs_then_the_sweep_is_done_and_nothing_is_left() -> (
    None
):
    folder = Path(f"/var/tmp/slurm-{os.getpid()}")  # short: Ray's sockets lie below it
    folder.mkdir()
    try:
        (folder / "sweep.toml").write_text(
            'out = "out.csv"\n[trial]\ncommand = "echo cores=$(nproc)"\n[parameters]\nvcpus = [1]\n'
            '[machine]\nmemory = "256M"\nappend = "quiet"\n'
        )
        script = DEPLOY / "slurm" / "sweep.sbatch"
        given = {
            "COREMESH_CACHE": os.environ.get("COREMESH_CACHE", str(Path.home() / ".cache" / "coremesh")),
            "FOLDER": str(folder),
            "PYTHON": sys.executable,
            "SCRIPT": str(script),
        }
        done = subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "bash", "-c", SLURM],
            env={**os.environ, **given},
            cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=390,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == "status 0", done.stdout + done.stderr
        assert len((folder / f"out.csv{SUFFIX}").read_text().splitlines()) == 2
        assert (folder / "out.csv").exists()
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
