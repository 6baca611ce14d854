"""Each Greeting has a ConfigMap with its words: the reconciler of the README, in Python."""

from nagaya import controller, meta


@controller("examples.nagaya.dev/v1/Greeting", owns=["v1/ConfigMap"])
def Guest(greeting, cx):
    words = f"Hello, {greeting['spec']['name']}!"
    cx.apply_child({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(greeting), "data": {"words": words}})
