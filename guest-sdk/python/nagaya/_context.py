"""What a controller may do while it runs."""

import json

from ._errors import ApiError

#: Metadata that only the server writes.
_SERVER = ("creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "managedFields", "selfLink")


def kind_of(name):
    """Group, version and kind of `apps/v1/Deployment`, or of `v1/ConfigMap` in the core group."""
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"{name!r} is no kind: write group/version/Kind, or v1/Kind for the core group")
    return (parts[0] if len(parts) == 3 else "", parts[-2], parts[-1])


def named(name):
    """apiVersion and kind, as an object names them."""
    group, version, kind = kind_of(name)
    return {"apiVersion": f"{group}/{version}" if group else version, "kind": kind}


def name_of(obj):
    """apiVersion and kind of an object in one word."""
    return f"{obj['apiVersion']}/{obj['kind']}"


def meta(owner, name=None):
    """The metadata of an object that belongs to `owner`: its name, or another, and its namespace."""
    metadata = owner["metadata"]
    head = {"name": name or metadata["name"]}
    if metadata.get("namespace"):
        head["namespace"] = metadata["namespace"]
    return head


def dumps(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Context:
    """The cluster as the controller's ServiceAccount, and the runtime. `api` is the host, or a cluster in memory."""

    def __init__(self, api):
        self._api = api

    def get(self, kind, name, namespace=""):
        """Reads one object of a watched kind from the host's cache; `None`: there is none."""
        return self._found(self._api.get, kind, name, namespace)

    def get_live(self, kind, name, namespace=""):
        """Reads one object from the API server. Secrets are read in no other way."""
        return self._found(self._api.get_live, kind, name, namespace)

    @staticmethod
    def _found(read, kind, name, namespace):
        try:
            return json.loads(read(kind_of(kind), namespace or "", name))
        except ApiError as error:
            if error.reason == "not-found":
                return None
            raise

    def list(self, kind, namespace="", labels="", index=None):
        """Reads objects of a watched kind from the host's cache, in the order of namespace and name.

        `index` is the name of an index of the manifest and the value that is looked up.
        """
        at, value = index or ("", "")
        found, after = [], ""
        while True:
            items, after = self._api.find(kind_of(kind), namespace or "", labels, at, value, 0, after)
            found += [json.loads(item) for item in items]
            if not after:
                return found

    def apply(self, obj):
        """Server-side apply: the object will have these fields, and those of the last apply that are missing here go away.

        A field of another manager's is taken over in the primary's children, elsewhere it is a conflict.
        """
        return self._apply(obj, "standard")

    def apply_child(self, obj):
        """As `apply`, and the object becomes the primary's child: the host adds the owner reference."""
        return self._apply(obj, "child")

    def apply_forced(self, obj):
        """As `apply`, and fields of others are taken over in any case."""
        return self._apply(obj, "force")

    def adopt(self, obj):
        """As `apply_child` and `apply_forced`, and an object that is nobody's becomes the primary's child."""
        return self._apply(obj, "adopt")

    def _apply(self, obj, ownership):
        body = {field: value for field, value in obj.items() if field != "status"}
        body["metadata"] = {field: value for field, value in obj["metadata"].items() if field not in _SERVER}
        return json.loads(self._api.apply(dumps(body), ownership))

    def apply_status(self, obj, status):
        """Server-side apply of the status of `obj`, mostly the primary: state it whole and anew in each run."""
        head = {field: obj["metadata"][field] for field in ("name", "namespace", "uid") if obj["metadata"].get(field)}
        body = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": head, "status": status}
        return json.loads(self._api.apply_status(dumps(body)))

    def create(self, obj, child=False):
        """Creates an object; `metadata.generateName` is allowed."""
        return json.loads(self._api.create(dumps(obj), child))

    def patch(self, kind, name, namespace, body):
        """Patches an object: a list of operations is a JSON patch, a dict a merge patch."""
        way = "json" if isinstance(body, list) else "merge"
        return json.loads(self._api.patch(kind_of(kind), namespace or "", name, way, dumps(body)))

    def delete(self, obj, propagation="background"):
        """Deletes an object; one that is gone already is no error. If it was read and is another by now, it is a conflict."""
        head = obj["metadata"]
        uid, version = head.get("uid", ""), head.get("resourceVersion", "")
        try:
            self._api.remove(kind_of(name_of(obj)), head.get("namespace", ""), head["name"], uid, version, propagation)
        except ApiError as error:
            if error.reason != "not-found":
                raise

    def remove_finalizer(self, obj, finalizer):
        """Takes a finalizer away: the cleanup is done. Nothing happens if it is not there."""
        head = obj["metadata"]
        finalizers = head.get("finalizers", [])
        if finalizer not in finalizers:
            return
        path = f"/metadata/finalizers/{finalizers.index(finalizer)}"
        body = [
            {"op": "test", "path": "/metadata/uid", "value": head["uid"]},
            {"op": "test", "path": path, "value": finalizer},
            {"op": "remove", "path": path},
        ]
        try:
            self.patch(name_of(obj), head["name"], head.get("namespace", ""), body)
        except ApiError as error:
            if error.reason != "not-found":
                raise

    def condition(self, obj, before, type, status, reason, message=""):
        """A condition for the status of `obj`: its generation, and the date of the one of its type in `before` (the conditions
        that were read, or None) unless the status has changed. `status` is a bool or None for `Unknown`."""
        word = {True: "True", False: "False", None: "Unknown"}[status]
        old = [one for one in before or [] if one["type"] == type and one["status"] == word]
        since = old[0]["lastTransitionTime"] if old else self.timestamp()
        condition = {"type": type, "status": word, "reason": reason, "message": message, "lastTransitionTime": since}
        if "generation" in obj["metadata"]:
            condition["observedGeneration"] = obj["metadata"]["generation"]
        return condition

    def event(self, obj, reason, note, action=None, warning=False):
        """Tells people about an object of a declared kind; `reason` and `action` are one CamelCase word each."""
        head = obj["metadata"]
        at = (kind_of(name_of(obj)), head.get("namespace", ""), head["name"])
        self._api.emit_event(*at, "warning" if warning else "normal", reason, action or reason, note)

    def now(self):
        """The time in seconds since 1970, to whole milliseconds."""
        return self._api.now() / 1000

    def timestamp(self):
        """The time as Kubernetes writes it."""
        days, seconds = divmod(int(self._api.now()) // 1000, 86_400)
        # Days since 0000-03-01, so that a leap day is a year's last. `datetime` would cost half a megabyte.
        era, day = divmod(days + 719_468, 146_097)
        year_of = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
        day -= 365 * year_of + year_of // 4 - year_of // 100
        month = (5 * day + 2) // 153
        date = day - (153 * month + 2) // 5 + 1
        month = month + 3 if month < 10 else month - 9
        year = year_of + era * 400 + (month <= 2)
        hour, minute, second = seconds // 3600, seconds // 60 % 60, seconds % 60
        return f"{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z"

    def random(self, length):
        """Random bytes."""
        return self._api.random(length)

    def config(self):
        """`spec.config` of the WasmController; `{}` if there is none."""
        return json.loads(self._api.config()) or {}

    def log(self, message, level="info", **fields):
        """Writes a line to the log, with controller, revision, object and run added by the host."""
        word = lambda value: value if isinstance(value, str) else dumps(value)
        self._api.log(level, message, [(key, word(value)) for key, value in fields.items()])
