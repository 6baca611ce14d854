"""Makes a function the guest of a component."""

import sys

from ._context import Context, dumps, kind_of, name_of, named
from ._errors import ApiError, Invalid, Retry, Terminal
from ._manifest import manifest

try:
    from . import _host
except ImportError:
    _host = None


class Guest:
    """A controller; `nagaya.testing.Cluster` runs it."""

    def __init__(self, needs, reconcile, deleting=None, gone=None, configure=None):
        self._primary = needs["primary"] if isinstance(needs["primary"], str) else needs["primary"]["kind"]
        self._needs, self._reconcile = needs, reconcile
        self._deleting, self._gone, self._configure = deleting, gone, configure
        kind_of(self._primary)

    def describe(self, api):
        if self._configure:
            self._configure(Context(api).config())
        return dumps(manifest(**self._needs))

    def reconcile(self, api, namespace, name):
        """What the run ended in: a word of the contract's actions, or `retry`, and its value."""
        cx = Context(api)
        try:
            after = self._run(cx, namespace, name)
        except Invalid as error:
            return "invalid", str(error)
        except Terminal as error:
            return "terminal", str(error)
        except ApiError as error:
            # The same call would be refused again.
            return "terminal" if error.reason in ("invalid", "not-declared") else "retry", f"ApiError: {error}"
        except Retry as error:
            return "retry", str(error)
        except Exception as error:  # noqa: BLE001
            words = f"{type(error).__name__}: {error}"
            cx.log("\n".join([words, *_stack(sys.exc_info()[2])]), level="error")
            return "retry", words
        if after is None:
            return "await-change", None
        return "requeue-after", min(-int(-after * 1000 // 1), 0xFFFF_FFFF)

    def _run(self, cx, namespace, name):
        obj = cx.get(self._primary, name, namespace)
        if obj is None:
            return self._gone and self._gone(namespace, name, cx)
        if "deletionTimestamp" in obj["metadata"]:
            return self._deleting and self._deleting(obj, cx)
        return self._reconcile(obj, cx)


def _stack(trace):
    """The module `traceback` would cost a megabyte."""
    while trace is not None:
        code = trace.tb_frame.f_code
        yield f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}'
        trace = trace.tb_next


def controller(primary, *, deleting=None, gone=None, configure=None, **needs):
    """Decorates `reconcile(object, cx)`, which brings the world in line with one object that exists and is not being deleted.

    It must end in the same state however often it is called, and returns the seconds after which it runs again, or None.
    `needs` are the arguments of `manifest`. `deleting(object, cx)` cleans up and takes the finalizer away; `gone(namespace,
    name, cx)` is called when the object is gone; `configure(config)` refuses a config by raising, before the revision runs.
    """

    def decorate(reconcile):
        guest = Guest({"primary": primary, **needs}, reconcile, deleting, gone, configure)
        return guest if _host is None else _host.export(guest)

    return decorate


def compose(primary, *, children, **needs):
    """Decorates `sync(parent, children, cx)`, which says what there should be: a list of children, and optionally, as a tuple
    with it, the parent's status.

    The SDK applies the children, deletes those that are no longer wanted, and applies the status (with `status=True`). A child
    without namespace gets the parent's; with an empty one it is cluster-scoped.
    """
    needs["writes"] = {**needs.get("writes", {}), **{kind: ["apply", "delete"] for kind in children}}
    owns = [{"kind": kind, "projection": "full"} for kind in children]

    def decorate(sync):
        return controller(primary, owns=owns, **needs)(lambda parent, cx: _composed(parent, cx, children, sync))

    return decorate


def _composed(parent, cx, kinds, sync):
    uid, namespace = parent["metadata"]["uid"], parent["metadata"].get("namespace", "")
    present = [
        child for kind in kinds for child in cx.list(kind, namespace)
        if any(owner["uid"] == uid and owner.get("controller") for owner in child["metadata"].get("ownerReferences", []))
    ]
    keys = {_key(child): child for child in present}
    wanted = sync(parent, present, cx)
    wanted, status = wanted if isinstance(wanted, tuple) else (wanted, None)
    wanted = [_placed(child, namespace) for child in wanted]
    seen = set()
    for child in wanted:
        if not any(named(kind) == {"apiVersion": child["apiVersion"], "kind": child["kind"]} for kind in kinds):
            raise TypeError(f"sync wants a {name_of(child)}, which `children` does not name")
        if _key(child) in seen:
            raise TypeError(f"sync wants two children {_key(child)}")
        seen.add(_key(child))
    for child in wanted:
        cx.apply_child(child)
    for key, child in keys.items():
        if key not in seen and "deletionTimestamp" not in child["metadata"]:
            cx.delete(child)
    if status is not None:
        cx.apply_status(parent, status)


def _placed(child, namespace):
    """The child with a namespace, unless it says by an empty one that it is cluster-scoped."""
    head = {"namespace": namespace, **child["metadata"]}
    return {**child, "metadata": {field: value for field, value in head.items() if value != ""}}


def _key(child):
    head = child["metadata"]
    return f"{name_of(child)} {head.get('namespace', '')}/{head['name']}"
