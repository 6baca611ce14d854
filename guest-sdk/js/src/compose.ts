// Composer mode: from a parent to the children that there should be. The SDK applies them and takes away what is no longer
// wanted.

import { type KindName, named } from "./api.ts";
import type { Context, Resource } from "./context.ts";
import type { Controller } from "./index.ts";
import type { Needs, Verb } from "./manifest.ts";

/** What there should be of a parent. */
export interface Composed {
  /** The children, each with apiVersion, kind and a name; those without namespace get the parent's. */
  children: Resource[];
  /** The parent's status, if it has one. */
  status?: object;
  /** Run again after so many seconds. */
  after?: number;
}

/** From a parent and its children as they are to what there should be. It orders nothing and writes nothing. */
export interface Composer<T extends Resource> {
  primary: Needs["primary"];
  /** The kinds of the children. */
  children: KindName[];
  /** Other things that the composer reads. */
  watches?: Needs["watches"];
  readsLive?: Needs["readsLive"];
  indexes?: Needs["indexes"];
  /** Whether it states a status. */
  status?: boolean;
  sync(parent: T, children: Resource[], cx: Context): Composed;
}

/** A controller that applies what `sync` wants and deletes children that it no longer wants. */
export function compose<T extends Resource>(of: Composer<T>): Controller<T> {
  const { children: kinds, sync, ...needs } = of;
  const writes: Record<KindName, Verb[]> = Object.fromEntries(kinds.map((kind) => [kind, ["apply", "delete"]]));
  return {
    ...needs,
    owns: kinds.map((kind) => ({ kind, projection: "full" as const })),
    writes,
    reconcile(parent, cx) {
      const { uid, namespace } = parent.metadata;
      const all = kinds.flatMap((kind) => cx.list(kind, namespace === undefined ? {} : { namespace }));
      const is = (child: Resource) =>
        child.metadata.ownerReferences?.some((owner) => owner.uid === uid && owner.controller === true);
      const present = all.filter(is);
      const { children, status, after } = sync(parent, structured(present), cx);
      const wanted = children.map((child) => ({
        ...child,
        // Empty: the child is cluster-scoped.
        metadata: { ...child.metadata, namespace: (child.metadata.namespace ?? namespace) || undefined },
      }));
      const twice = duplicate(wanted.map(key));
      if (twice !== undefined) {
        throw new TypeError(`sync wants two children ${twice}`);
      }
      const strange = wanted.find((child) => !kinds.some((kind) => isOf(child, kind)));
      if (strange !== undefined) {
        throw new TypeError(`sync wants a ${strange.apiVersion}/${strange.kind}, which \`children\` does not name`);
      }
      wanted.forEach((child) => cx.applyChild(child));
      const keep = new Set(wanted.map(key));
      present
        .filter((child) => !keep.has(key(child)) && child.metadata.deletionTimestamp === undefined)
        .forEach((child) => cx.delete(child));
      if (status !== undefined) {
        cx.applyStatus(parent, status);
      }
      return after;
    },
  };
}

function isOf(child: Resource, kind: KindName): boolean {
  const { apiVersion, kind: name } = named(kind);
  return child.apiVersion === apiVersion && child.kind === name;
}

function key(child: Resource): string {
  const { namespace = "", name = "" } = child.metadata;
  return `${child.apiVersion}/${child.kind} ${namespace}/${name}`;
}

function duplicate(keys: string[]): string | undefined {
  return keys.find((one, at) => keys.indexOf(one) !== at);
}

/** What `sync` changes of the children as they are changes nothing. */
function structured<V>(value: V): V {
  if (Array.isArray(value)) {
    return value.map(structured) as V;
  }
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([field, inner]) => [field, structured(inner)])) as V;
  }
  return value;
}
