"""Write a Kubernetes controller in Python for the Nagaya host.

    from nagaya import controller

    @controller("example.com/v1/Greeting", owns=["v1/ConfigMap"])
    def Guest(greeting, cx):
        words = f"Hello, {greeting['spec']['name']}!"
        cx.apply_child({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(greeting), "data": {"words": words}})

`Guest` is the name that the component exports. Unit tests run it on `nagaya.testing.Cluster`.
"""

from ._context import Context, kind_of, meta, named
from ._errors import ApiError, Invalid, Retry, Terminal
from ._guest import compose, controller
from ._manifest import manifest
from ._quantity import quantity

__all__ = [
    "ApiError", "Context", "Invalid", "Retry", "Terminal",
    "compose", "controller", "kind_of", "manifest", "meta", "named", "quantity",
]
