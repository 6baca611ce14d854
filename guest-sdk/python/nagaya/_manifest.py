"""What a controller needs, as `wit/manifest.schema.json` says it."""

from ._context import named


def manifest(primary, *, owns=(), watches=(), reads_live=(), writes=None, indexes=(), status=False, finalizer=None):
    """The manifest as `describe` answers it.

    `primary` and the entries of `owns` are kinds (`apps/v1/Deployment`) or dicts with `kind` and what the schema has besides
    (`projection`, `labelSelector`, `fieldSelector`, `when`); those of `watches` are dicts with `wakes` too. `writes` is a dict
    from kinds to lists of verbs; what `owns` names may be applied without a word. `indexes` are tuples of name, kind and path.
    """
    verbs = {kind: list(these) for kind, these in (writes or {}).items()}

    def may(kind, verb):
        if verb not in verbs.setdefault(kind, []):
            verbs[kind].append(verb)

    for one in owns:
        may(_kind(one), "apply")
    if status:
        may(_kind(primary), "applyStatus")
    if finalizer:
        may(_kind(primary), "patch")
    whole = {
        "primary": _watch(primary),
        "owns": [_watch(one) for one in owns],
        "watches": [_watch(one) for one in watches],
        "readsLive": [named(kind) for kind in reads_live],
        "writes": [{**named(kind), "verbs": these} for kind, these in verbs.items()],
        "indexes": [{"name": name, **named(kind), "path": path} for name, kind, path in indexes],
        "finalizer": finalizer,
    }
    return {field: value for field, value in whole.items() if value}


def _kind(one):
    return one if isinstance(one, str) else one["kind"]


def _watch(one):
    rest = {} if isinstance(one, str) else {field: value for field, value in one.items() if field != "kind"}
    return {**named(_kind(one)), **rest}
