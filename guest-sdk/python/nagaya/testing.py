"""Unit tests of a controller without host and without WebAssembly: a cluster in memory.

It keeps objects as an API server does, enforces the manifest and the rules of owners, and forgets the fields that an apply
leaves out. It knows no schemas, no defaults, no other field managers, no field selectors and no garbage collection.
"""

import copy
import json
import re

from ._context import Context, dumps, kind_of
from ._errors import ApiError

#: Small, so that the paging of lists is tested too.
_PAGE = 10
#: 2026-01-01T00:00:00Z
_BEGIN = 1_767_225_600_000


class Cluster:
    """A cluster in memory. A test plays the user with `put` and `delete`, and the host with `run`."""

    def __init__(self):
        self._objects, self._applied = {}, ({}, {})
        self._manifest, self._primary, self._uid = None, None, None
        self._config, self._now = None, _BEGIN
        #: How many writes have changed something: a second run of a good controller adds none.
        self.writes = 0
        #: The Events and the lines of the log so far.
        self.events, self.lines = [], []

    def set_config(self, config):
        """Sets `spec.config` of the controller."""
        self._config = config

    def advance(self, seconds):
        """Moves the clock on."""
        self._now += int(seconds * 1000)

    def run(self, guest, name, namespace=""):
        """Runs the controller once on the primary of that name, as the host does; what it ended in, and the value of that."""
        self.declare(json.loads(guest.describe(self)))
        primary = self._manifest["primary"]
        self.begin(f"{primary['apiVersion']}/{primary['kind']}", name, namespace)
        finalizer, obj = self._manifest.get("finalizer"), self._objects.get(self._primary)
        if finalizer and obj and "deletionTimestamp" not in obj["metadata"]:
            if finalizer not in obj["metadata"].get("finalizers", []):
                obj = copy.deepcopy(obj)
                obj["metadata"].setdefault("finalizers", []).append(finalizer)
                self._store(self._primary, obj)
        return guest.reconcile(self, namespace, name)

    def begin(self, kind, name, namespace=""):
        """A run of that primary begins, without a guest."""
        self._primary = _key(kind_of(kind), namespace, name)
        self._uid = self._objects.get(self._primary, {"metadata": {}})["metadata"].get("uid")

    def declare(self, manifest):
        """What a controller may do from now on, as `describe` says it."""
        self._manifest = manifest

    def context(self):
        """What a controller would do its work with."""
        return Context(self)

    def put(self, obj):
        """Creates an object or replaces it, as a user. A status and finalizers that it does not have stay."""
        body = copy.deepcopy(obj)
        before = self._objects.get(_key_in(body), {"metadata": {}})
        if "status" in before:
            body.setdefault("status", before["status"])
        for field in ("finalizers", "deletionTimestamp"):
            if field in before["metadata"]:
                body["metadata"].setdefault(field, before["metadata"][field])
        return copy.deepcopy(self._store(_key_in(body), body))

    def object(self, kind, name, namespace=""):
        """Reads an object, declared or not; `None`: there is none."""
        return copy.deepcopy(self._objects.get(_key(kind_of(kind), namespace, name)))

    def objects(self, kind):
        """Reads all objects of a kind, in the order of namespace and name."""
        return [copy.deepcopy(obj) for obj in self._of(kind_of(kind))]

    def delete(self, kind, name, namespace=""):
        """Deletes an object, as a user: while it has finalizers it is only marked."""
        self._delete(_key(kind_of(kind), namespace, name))

    # The contract, as this cluster answers it.

    def get(self, kind, namespace, name):
        self._watches(kind)
        obj = self._objects.get(_key(kind, namespace, name))
        seen = obj and self._cached(kind, obj)
        return dumps(seen or _fail("not-found"))

    def get_live(self, kind, namespace, name):
        if not any(_is_kind(live, kind) for live in self._declared().get("readsLive", [])):
            self._watches(kind)
        return dumps(self._objects.get(_key(kind, namespace, name)) or _fail("not-found"))

    def find(self, kind, namespace, labels, index, value, limit, after):
        self._watches(kind)
        path = self._index(kind, index) if index else None
        items = []
        for obj in self._of(kind):
            is_there = not namespace or obj["metadata"].get("namespace", "") == namespace
            if is_there and _selects(labels, obj) and (path is None or _is_indexed(obj, path, value)):
                seen = self._cached(kind, obj)
                items += [dumps(seen)] if seen else []
        start, limit = int(after or 0), limit or _PAGE
        return items[start:start + limit], str(start + limit) if len(items) > start + limit else ""

    def apply(self, text, ownership):
        body = self._body(text, "apply")
        if ownership in ("child", "adopt"):
            self._as_child(body)
        key = _key_in(body)
        self._check_owners(key, body, ownership == "adopt")
        return dumps(self._merge(key, body, 0))

    def apply_status(self, text):
        body = self._body(text, "applyStatus")
        key = _key_in(body)
        if key not in self._objects:
            _fail("not-found")
        self._check_owners(key, body, False)
        return dumps(self._merge(key, body, 1))

    def create(self, text, child):
        body = self._body(text, "create")
        if child:
            self._as_child(body)
        head = body["metadata"]
        if "name" not in head and "generateName" in head:
            head["name"] = f"{head['generateName']}{self.writes:05}"
        key = _key_in(body)
        if key in self._objects:
            _fail("already-exists", f"{body['kind']} {head['name']} exists")
        self._check_owners(key, body, False)
        return dumps(self._store(key, body))

    def patch(self, kind, namespace, name, way, text):
        self._may_write(kind, "patch")
        key = _key(kind, namespace, name)
        obj = copy.deepcopy(self._objects.get(key) or _fail("not-found"))
        patch = _read(text)
        left = _merged(obj, patch) if way == "merge" else _patched(obj, patch)
        self._check_owners(key, left, False)
        return dumps(self._store(key, left))

    def remove(self, kind, namespace, name, uid, version, propagation):
        self._may_write(kind, "delete")
        key = _key(kind, namespace, name)
        if key not in self._objects:
            _fail("not-found")
        self._current(key, {"uid": uid or None, "resourceVersion": version or None})
        self._delete(key)

    def emit_event(self, kind, namespace, name, severity, reason, action, note):
        known = self._declared().get("writes", []) + self._declared().get("readsLive", [])
        if not any(_is_kind(one, kind) for one in known):
            self._watches(kind)
        self.events.append({"name": name, "severity": severity, "reason": reason, "action": action, "note": note})

    def now(self):
        return float(self._now)

    def random(self, length):
        return bytes(at % 256 for at in range(length))

    def config(self):
        return dumps(self._config)

    def log(self, level, message, fields):
        self.lines.append(" ".join([level, message, *(f"{key}={value}" for key, value in fields)]))

    def _declared(self):
        return self._manifest or _fail("not-declared", "no controller runs")

    def _of(self, kind):
        group, name = kind[0], kind[2]
        return [obj for key, obj in sorted(self._objects.items()) if key[:2] == (group, name)]

    def _watches(self, kind):
        declared = self._declared()
        watches = [
            {"projection": "full", **declared["primary"]},
            *({"projection": "metadata", **one} for one in declared.get("owns", [])),
            *({"projection": "full", **one} for one in declared.get("watches", [])),
        ]
        return [one for one in watches if _is_kind(one, kind)] or _fail("not-declared", f"no watch of {kind[2]}")

    def _cached(self, kind, obj):
        watches = self._watches(kind)
        if not any(_selects(one.get("labelSelector", ""), obj) for one in watches):
            return None
        if any(one["projection"] == "full" for one in watches):
            return obj
        return {field: obj[field] for field in ("apiVersion", "kind", "metadata")}

    def _may_write(self, kind, verb):
        writes = self._declared().get("writes", [])
        if not any(_is_kind(one, kind) and verb in one["verbs"] for one in writes):
            _fail("not-declared", f"no write {verb} of {kind[2]}")

    def _body(self, text, verb):
        body = _read(text)
        if not isinstance(body, dict) or not isinstance(body.get("metadata"), dict) or not body.get("kind"):
            _fail("invalid", "not an object with apiVersion, kind and metadata")
        self._may_write(kind_of(f"{body.get('apiVersion')}/{body['kind']}"), verb)
        return body

    def _index(self, kind, name):
        found = [one for one in self._declared().get("indexes", []) if one["name"] == name and _is_kind(one, kind)]
        return found[0]["path"] if found else _fail("not-declared", f"no index {name}")

    def _current(self, key, metadata):
        """The present object, whose uid and resourceVersion must be those that are named."""
        obj = copy.deepcopy(self._objects.get(key, {}))
        for field in ("uid", "resourceVersion"):
            if metadata.get(field) and metadata[field] != obj.get("metadata", {}).get(field):
                _fail("conflict", f"{field} is not {metadata[field]}: {key[3]} has changed")
        return obj

    def _merge(self, key, body, part):
        """Merges the body into the object and takes out what the last body had and this one does not."""
        obj = self._current(key, body["metadata"])
        if key in self._applied[part]:
            _prune(obj, self._applied[part][key], body)
        self._applied[part][key] = copy.deepcopy(body)
        return self._store(key, _overlaid(obj, body))

    def _store(self, key, obj):
        """Puts an object in the place of the present one, with what a server sets."""
        before = self._objects.get(key)
        obj, head = copy.deepcopy(obj), (before or {"metadata": {}})["metadata"]
        deletes = lambda one: "deletionTimestamp" in (one or {"metadata": {}})["metadata"]
        is_changed = _content(obj) != _content(before or {}) or deletes(obj) != deletes(before)
        metadata = obj["metadata"]
        metadata["creationTimestamp"] = head.get("creationTimestamp") or Context(self).timestamp()
        metadata["uid"] = head.get("uid") or f"uid-{self.writes + 1}"
        metadata.pop("resourceVersion", None)
        if before:
            metadata["resourceVersion"] = head["resourceVersion"]
        if "spec" in obj:
            metadata["generation"] = head.get("generation", 0) + is_changed
        if obj == before:
            return obj
        self.writes += 1
        metadata["resourceVersion"] = str(self.writes)
        if deletes(obj) and not metadata.get("finalizers"):
            self._objects.pop(key, None)
            for applied in self._applied:
                applied.pop(key, None)
        else:
            self._objects[key] = obj
        return obj

    def _delete(self, key):
        obj = copy.deepcopy(self._objects.get(key) or _fail("not-found"))
        if "deletionTimestamp" not in obj["metadata"]:
            obj["metadata"]["deletionTimestamp"] = Context(self).timestamp()
            self._store(key, obj)

    def _as_child(self, body):
        owners = body["metadata"].get("ownerReferences") or []
        if self._uid and any(owner["uid"] == self._uid for owner in owners):
            return
        primary = self._objects.get(self._primary)
        head = primary["metadata"] if primary else {}
        if not self._uid or head.get("uid") != self._uid or "deletionTimestamp" in head:
            _fail("conflict", "it cannot become a child of the primary, which is gone or being deleted")
        owner = {"apiVersion": primary["apiVersion"], "kind": primary["kind"], "name": head["name"], "uid": self._uid}
        body["metadata"]["ownerReferences"] = [*owners, {**owner, "controller": True}]

    def _check_owners(self, key, left, adopts):
        """Refuses owners that the garbage collector would not find, and new ones of somebody else's object."""
        owners = left.get("metadata", {}).get("ownerReferences") or []
        group, kind, namespace, name = self._primary or ("", "", "", "")
        here = key[2]

        def is_ours(owner):
            return self._uid is not None and owner["uid"] == self._uid

        for owner in owners:
            at = kind_of(f"{owner['apiVersion']}/{owner['kind']}")
            is_named = (at[0], at[2], owner["name"]) == (group, kind, name)
            whose = f"the owner reference of {key[1]} {key[3]}"
            if is_ours(owner) and not is_named:
                _fail("invalid", f"{whose} has another object's name")
            if is_ours(owner) and namespace and here != namespace:
                crosses = "it crosses namespaces" if here else "a cluster-scoped object cannot have an owner in a namespace"
                _fail("invalid", f"{whose}: {crosses}")
            if not is_ours(owner) and is_named and (not namespace or here == namespace):
                _fail("conflict", f"{whose} has the uid of another object than the one of this run")
        before = self._objects.get(key)
        if not before:
            return
        has = before["metadata"].get("ownerReferences") or []
        rivals = [owner for owner in has if owner.get("controller") and not is_ours(owner)]
        if rivals and any(owner.get("controller") and owner["uid"] != rivals[0]["uid"] for owner in owners):
            _fail("conflict", f"{key[1]} {key[3]} is controlled by {rivals[0]['kind']} {rivals[0]['name']}")
        known = {owner["uid"] for owner in has}
        if not adopts and not any(map(is_ours, has)) and any(owner["uid"] not in known for owner in owners):
            _fail("conflict", f"{key[1]} {key[3]} exists and is not this primary's; to take it over, use adopt")


def _fail(reason, message=""):
    raise ApiError(reason, message)


def _read(text):
    try:
        return json.loads(text)
    except ValueError as error:
        return _fail("invalid", str(error))


def _key(kind, namespace, name):
    return kind[0], kind[2], namespace or "", name


def _key_in(body):
    head = body["metadata"]
    kind = kind_of(f"{body['apiVersion']}/{body['kind']}")
    return _key(kind, head.get("namespace"), head.get("name") or _fail("invalid", "no metadata.name"))


def _is_kind(one, kind):
    group, _, name = kind_of(f"{one['apiVersion']}/{one['kind']}")
    return (group, name) == (kind[0], kind[2])


_REQUIREMENT = re.compile(
    r"\s*(!?)\s*([A-Za-z0-9](?:[-\w./]*[A-Za-z0-9])?)\s*(?:(==|=|!=)\s*([-\w.]*)|(in|notin)\s*\(([^()]*)\))?\s*", re.ASCII
)


def _selects(selector, obj):
    labels = obj["metadata"].get("labels") or {}
    requirements = re.split(r",(?![^(]*\))", selector) if selector.strip() else []
    return all([_is_met(one, labels) for one in requirements])


def _is_met(requirement, labels):
    match = _REQUIREMENT.fullmatch(requirement)
    if not match or (match[1] and (match[3] or match[5])):
        _fail("invalid", f"{requirement!r} is no requirement of a label selector")
    no, key, operator, value, group, values = match.groups()
    if operator:
        return (labels.get(key) == value) != (operator == "!=")
    if group:
        return (labels.get(key) in [one.strip() for one in values.split(",")]) == (group == "in")
    return (key in labels) != bool(no)


def _is_indexed(obj, path, value):
    for segment in path.split("."):
        obj = obj.get(segment) if isinstance(obj, dict) else None
    return value in obj if isinstance(obj, list) else obj == value


def _content(obj):
    return {field: value for field, value in obj.items() if field not in ("metadata", "status")}


def _overlaid(target, body):
    """The fields of `body` over those of `target`; a null is a value."""
    if not isinstance(target, dict) or not isinstance(body, dict):
        return copy.deepcopy(body)
    return {**target, **{key: _overlaid(target.get(key), value) for key, value in body.items()}}


def _prune(target, last, following):
    """Takes out of `target` what `last` has and `following` does not."""
    if not isinstance(target, dict) or not isinstance(last, dict):
        return
    for key, old in last.items():
        is_kept = isinstance(following, dict) and key in following
        if isinstance(target.get(key), dict) and isinstance(old, dict):
            _prune(target[key], old, following[key] if is_kept else None)
            if not is_kept and not target[key]:
                del target[key]
        elif not is_kept:
            target.pop(key, None)


def _merged(target, patch):
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    left = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            left.pop(key, None)
        else:
            left[key] = _merged(left.get(key), value)
    return left


def _patched(obj, operations):
    """RFC 6902."""
    root = {"": obj}

    def walk(pointer):
        path = ["", *(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])]
        at = root
        for part in path[:-1]:
            at = at[int(part)] if isinstance(at, list) else at[part]
        return at, int(path[-1]) if isinstance(at, list) and path[-1] != "-" else path[-1]

    def take(pointer):
        at, key = walk(pointer)
        return at[key]

    def put(pointer, value):
        at, key = walk(pointer)
        if isinstance(at, list):
            at.insert(len(at) if key == "-" else key, value)
        else:
            at[key] = value

    def drop(pointer):
        at, key = walk(pointer)
        del at[key]

    for one in operations:
        try:
            operation, path = one["op"], one["path"]
            if operation == "test":
                if take(path) != one["value"]:
                    _fail("conflict", f"the test of {path} failed")
            elif operation == "remove":
                drop(path)
            elif operation == "add":
                put(path, one["value"])
            elif operation == "replace":
                take(path)
                at, key = walk(path)
                at[key] = one["value"]
            elif operation in ("copy", "move"):
                value = copy.deepcopy(take(one["from"]))
                if operation == "move":
                    drop(one["from"])
                put(path, value)
            else:
                _fail("invalid", f"no operation {operation}")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            _fail("conflict", f"the patch does not fit the object as it is: {error}")
    return root[""]
