"""The host, as a component imports it. Outside of a component there is none, and this module cannot be imported."""

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import cluster, common, runtime

from ._errors import ApiError

_REASONS = {
    "Error_NotFound": "not-found", "Error_AlreadyExists": "already-exists", "Error_Conflict": "conflict",
    "Error_Forbidden": "forbidden", "Error_Invalid": "invalid", "Error_NotDeclared": "not-declared",
    "Error_BudgetExceeded": "budget-exceeded", "Error_Unavailable": "unavailable",
}
_OWNERSHIP = {
    "standard": cluster.Ownership.STANDARD, "child": cluster.Ownership.CHILD, "adopt": cluster.Ownership.ADOPT,
    "force": cluster.Ownership.FORCE,
}
_PROPAGATION = {
    "background": cluster.Propagation.BACKGROUND, "foreground": cluster.Propagation.FOREGROUND,
    "orphan": cluster.Propagation.ORPHAN,
}
_SEVERITY = {"normal": cluster.Severity.NORMAL, "warning": cluster.Severity.WARNING}
_LEVEL = {
    "error": runtime.Level.ERROR, "warn": runtime.Level.WARN, "info": runtime.Level.INFO, "debug": runtime.Level.DEBUG,
}


def _call(function, *args):
    try:
        return function(*args)
    except Err as error:
        value = error.value
        raise ApiError(_REASONS[type(value).__name__], getattr(value, "value", "")) from None


class Host:
    """The imports of the contract, with errors as `ApiError`."""

    def get(self, kind, namespace, name):
        return _call(cluster.get, common.Kind(*kind), namespace, name)

    def get_live(self, kind, namespace, name):
        return _call(cluster.get_live, common.Kind(*kind), namespace, name)

    def find(self, kind, namespace, labels, index, value, limit, after):
        options = cluster.FindOptions(namespace, labels, index, value, limit, after)
        page = _call(cluster.find, common.Kind(*kind), options)
        return page.items, page.next

    def apply(self, text, ownership):
        return _call(cluster.apply, text, _OWNERSHIP[ownership])

    def apply_status(self, text):
        return _call(cluster.apply_status, text)

    def create(self, text, child):
        return _call(cluster.create, text, child)

    def patch(self, kind, namespace, name, way, text):
        body = cluster.PatchBody_Json(text) if way == "json" else cluster.PatchBody_Merge(text)
        return _call(cluster.patch, common.Kind(*kind), namespace, name, body)

    def remove(self, kind, namespace, name, uid, version, propagation):
        _call(cluster.remove, common.Kind(*kind), namespace, name, cluster.Removal(uid, version, _PROPAGATION[propagation]))

    def emit_event(self, kind, namespace, name, severity, reason, action, note):
        regarding = common.ObjectReference(common.Kind(*kind), namespace, name)
        _call(cluster.emit_event, cluster.Event(regarding, _SEVERITY[severity], reason, action, note))

    def now(self):
        return runtime.now()

    def random(self, length):
        return runtime.random(length)

    def config(self):
        return runtime.config()

    def log(self, level, message, fields):
        runtime.log(_LEVEL[level], message, [common.Field(key, value) for key, value in fields])


def export(guest):
    """The class that the component exports for a guest of this SDK."""

    class Guest(exports.Guest):
        def describe(self):
            try:
                return guest.describe(Host())
            except Exception as error:  # noqa: BLE001
                raise Err(f"{type(error).__name__}: {error}") from None

        def reconcile(self, request):
            way, value = guest.reconcile(Host(), request.namespace, request.name)
            if way == "retry":
                raise Err(value)
            if way == "await-change":
                return common.Action_AwaitChange()
            if way == "requeue-after":
                return common.Action_RequeueAfter(value)
            return common.Action_Terminal(value) if way == "terminal" else common.Action_Invalid(value)

    return Guest
