#!/usr/bin/env python3
"""Whether deploy/kubernetes says what Kubernetes understands.

Each document is read into the models of Kubernetes' own Python client: a field that no model has, one that is
missing, or one of another type is a fault. Then what one manifest says is compared with what another needs:
selectors, ports, the Secret's and the ConfigMap's names, the rights that discovery needs, and the times of a pod's end. ServiceMonitor belongs to the
Prometheus operator, and no model of it is at hand: its fields are compared with a list.

    scripts/manifests.py        the packages it needs go into ~/.cache/tokenring-tests/venv (TOKENRING_VENV)
"""

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
# Earlier clients let fields pass that their models do not know.
NEEDS = ["kubernetes>=37", "pyyaml"]
MODELS = {
    ("apps/v1", "Deployment"): "V1Deployment",
    ("v1", "Service"): "V1Service",
    ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
    ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("rbac.authorization.k8s.io/v1", "Role"): "V1Role",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "V1RoleBinding",
}
MONITOR = {"jobLabel", "selector", "matchLabels", "endpoints", "port", "path", "interval", "authorization"}


def inside_venv():
    """Starts this script again in the virtual environment that has what it needs."""
    home = Path(os.environ.get("TOKENRING_VENV", Path.home() / ".cache" / "tokenring-tests" / "venv"))
    python = home / "bin" / "python"
    if Path(sys.prefix).resolve() == home.resolve():
        return
    if not python.exists():
        venv.create(home, with_pip=True)
    try_it = "import yaml; from kubernetes.client.models import V1Pod; V1Pod.model_validate"
    has = subprocess.run([python, "-c", try_it], stderr=subprocess.DEVNULL, check=False)
    if has.returncode != 0:
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
    os.execv(python, [str(python), __file__, *sys.argv[1:]])


def read(value, kind, at, models, faults):
    """Reads `value` into a model, which knows its fields, their types, and which must be there."""
    try:
        getattr(models, kind).model_validate(value)
    except ValueError as why:
        faults.extend(f"{at}.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in why.errors())


def seconds(text):
    """A time of the config: "300s", "5m", "1h30m"."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", text))


def check_together(found, kustomization, config, faults):
    """What one manifest says and another needs."""
    def must(what, holds):
        if not holds:
            faults.append(what)

    pod = found["Deployment", "tokenring"]["spec"]["template"]
    labels, spec = pod["metadata"]["labels"], pod["spec"]
    container = spec["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    chosen = {
        "Deployment": found["Deployment", "tokenring"]["spec"]["selector"]["matchLabels"],
        "Service": found["Service", "tokenring"]["spec"]["selector"],
        "admin Service": found["Service", "tokenring-admin"]["spec"]["selector"],
        "PodDisruptionBudget": found["PodDisruptionBudget", "tokenring"]["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": found["NetworkPolicy", "tokenring"]["spec"]["podSelector"]["matchLabels"],
    }
    for what, selector in chosen.items():
        must(f"{what} selects no pod of the Deployment", selector.items() <= labels.items())
    for name in ("tokenring", "tokenring-admin"):
        for port in found["Service", name]["spec"]["ports"]:
            must(f"Service {name}: no port {port['targetPort']}", port["targetPort"] in ports)
    listening = {int(config["listener"][0]["bind"].rsplit(":")[-1]), int(config["admin"]["bind"].rsplit(":")[-1])}
    must(f"ports {ports} are not those of the config, {listening}", set(ports.values()) == listening)
    monitor = found["ServiceMonitor", "tokenring"]["spec"]
    admin = found["Service", "tokenring-admin"]
    must("ServiceMonitor selects no Service",
         monitor["selector"]["matchLabels"].items() <= admin["metadata"]["labels"].items())
    must("ServiceMonitor names no port", monitor["endpoints"][0]["port"] in {p["name"] for p in admin["spec"]["ports"]})
    given = {env["name"]: env["valueFrom"].get("secretKeyRef") for env in container["env"]}
    asked = set(re.findall(r"\$\{(\w+)", (FOLDER / "tokenring.toml").read_text()))
    must(f"the config asks for {asked}, the Deployment gives {set(given)}", asked == set(given))
    secret = monitor["endpoints"][0]["authorization"]["credentials"]
    must("ServiceMonitor has another token", secret == given["TOKENRING_ADMIN_TOKEN"])
    if any(upstream.get("discover", "").startswith("k8s:") for upstream in config["upstream"]):
        account, rules = spec["serviceAccountName"], found["Role", "tokenring"]["rules"]
        binding = found["RoleBinding", "tokenring"]
        may = [rule for rule in rules if "discovery.k8s.io" in rule["apiGroups"]
               and "endpointslices" in rule["resources"] and {"get", "list", "watch"} <= set(rule["verbs"])]
        must("Role: no get, list and watch on endpointslices", may)
        must("RoleBinding names another Role", binding["roleRef"]["name"] == "tokenring")
        must(f"RoleBinding is not about {account}", account in {subject["name"] for subject in binding["subjects"]})
        must(f"no ServiceAccount {account}", ("ServiceAccount", account) in found)
        must("the pod has no token for the API server", spec["automountServiceAccountToken"])
        egress = found["NetworkPolicy", "tokenring"]["spec"]["egress"]
        open_to_all = {port["port"] for rule in egress if "to" not in rule for port in rule["ports"]}
        must("NetworkPolicy: the API server is not reached", {443, 6443} <= open_to_all)
    generated = {made["name"]: made["files"] for made in kustomization["configMapGenerator"]}
    volume = spec["volumes"][0]["configMap"]["name"]
    must(f"no ConfigMap {volume}", generated.get(volume) == ["tokenring.toml"])
    must("process.cores is not limits.cpu",
         str(config["process"]["cores"]) == container["resources"]["limits"]["cpu"])
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"] + seconds(config["process"]["drain"])
    must(f"grace {spec['terminationGracePeriodSeconds']} s is not beyond preStop and drain, {waits} s",
         spec["terminationGracePeriodSeconds"] >= waits + 10)


def main():
    inside_venv()
    import yaml
    from kubernetes.client import models

    faults, found = [], {}
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    if files != set(kustomization["resources"]):
        faults.append(f"kustomization.yaml: resources differ from {sorted(files)}")
    for name in sorted(files):
        for document in yaml.safe_load_all((FOLDER / name).read_text()):
            kind, at = document["kind"], f"{name}: {document['kind']}"
            found[kind, document["metadata"]["name"]] = document
            if model := MODELS.get((document["apiVersion"], kind)):
                read(document, model, at, models, faults)
            elif kind == "ServiceMonitor":
                read(document["metadata"], "V1ObjectMeta", f"{at}.metadata", models, faults)
                spec = document["spec"]
                keys = {*spec, *spec["selector"], *(key for endpoint in spec["endpoints"] for key in endpoint)}
                faults.extend(f"{at}: {key}: not among the fields that were looked up" for key in keys - MONITOR)
            else:
                faults.append(f"{at}: no model for {document['apiVersion']}")
    if not faults:
        check_together(found, kustomization, tomllib.loads((FOLDER / "tokenring.toml").read_text()), faults)
    for fault in faults:
        print(fault)
    print(f"{len(found)} manifests, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
