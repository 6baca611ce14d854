// What a controller needs, as `wit/manifest.schema.json` says it.

import { type KindName, named } from "./api.ts";

/** Which changes of an object count. */
export type When =
  | "generationChanged"
  | "resourceVersionChanged"
  | "labelsChanged"
  | "annotationsChanged"
  | { matchesLabels: string }
  | { all: When[] }
  | { any: When[] }
  | { not: When };

/** Where in a changed object the primary's name stands. */
export interface Place {
  name: string;
  namespace?: string;
}

/** Which primaries a change of a watched object wakes. */
export type Wakes =
  | "same"
  | "owner"
  | "controller"
  | "every"
  | { label: Place }
  | { annotation: Place }
  | { field: Place }
  | { index: string };

/** What is done to objects of a kind. */
export type Verb = "create" | "apply" | "applyStatus" | "patch" | "delete";

/** How a kind is watched. */
export interface Watch {
  kind: KindName;
  /** Whole objects, or apiVersion, kind and metadata only. */
  projection?: "full" | "metadata";
  labelSelector?: string;
  fieldSelector?: string;
  when?: When;
}

/** What a controller needs. */
export interface Needs {
  /** The reconciled kind. */
  primary: KindName | Omit<Watch, "projection">;
  /** Kinds that the controller makes and applies, with the primary as their controller. */
  owns?: (KindName | Watch)[];
  /** Other kinds whose changes wake primaries, or that are read from the cache. */
  watches?: (Watch & { wakes: Wakes })[];
  /** Kinds that are only read by `getLive`. */
  readsLive?: KindName[];
  /** Kinds that are written besides, and how. What `owns` names may be applied without a word. */
  writes?: Record<KindName, Verb[]>;
  /** Named indexes over a field of a watched kind. */
  indexes?: { name: string; kind: KindName; path: string }[];
  /** Whether the primary's status is applied. */
  status?: boolean;
  /** The host adds it before the first run of an object; the controller takes it away when its cleanup is done. */
  finalizer?: string;
}

/** The manifest as `describe` answers it. */
export function manifest(needs: Needs): object {
  const watch = (one: KindName | Watch) => {
    const { kind, ...rest } = typeof one === "string" ? { kind: one } : one;
    return { ...named(kind), ...rest };
  };
  const verbs = new Map<KindName, Set<Verb>>();
  const may = (kind: KindName, verb: Verb) => {
    verbs.set(kind, (verbs.get(kind) ?? new Set()).add(verb));
  };
  const kind = (one: KindName | Watch) => (typeof one === "string" ? one : one.kind);
  for (const [name, all] of Object.entries(needs.writes ?? {})) {
    all.forEach((verb) => may(name, verb));
  }
  needs.owns?.forEach((one) => may(kind(one), "apply"));
  if (needs.status === true) {
    may(kind(needs.primary), "applyStatus");
  }
  if (needs.finalizer !== undefined) {
    may(kind(needs.primary), "patch");
  }
  return {
    primary: watch(needs.primary),
    owns: needs.owns?.map(watch),
    watches: needs.watches?.map(({ wakes, ...one }) => ({ ...watch(one), wakes })),
    readsLive: needs.readsLive?.map(named),
    writes: verbs.size === 0 ? undefined : [...verbs].map(([name, all]) => ({ ...named(name), verbs: [...all] })),
    indexes: needs.indexes?.map((one) => ({ name: one.name, ...named(one.kind), path: one.path })),
    finalizer: needs.finalizer,
  };
}
