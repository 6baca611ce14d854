// Unit tests of a controller without host and without WebAssembly: a cluster in memory.
//
// It keeps objects as an API server does, enforces the manifest and the rules of owners, and forgets the fields that an apply
// leaves out. It knows no schemas, no defaults, no other field managers, no field selectors and no garbage collection.

import type { Error as CallError, Event } from "nagaya:controller/cluster@0.2.0";
import type { Action, Kind } from "nagaya:controller/common@0.2.0";
import { type Api, type KindName, kindOf } from "./api.ts";
import type { Meta, Resource } from "./context.ts";
import type { Guest } from "./index.ts";
import { parse, stringify } from "./json.ts";
import { matches } from "./selector.ts";

/** Small, so that the paging of lists is tested too. */
const PAGE = 10;
const BEGIN = Date.UTC(2026, 0, 1);

type Fields = { [field: string]: any };
interface Declared {
  primary: Fields;
  owns?: Fields[];
  watches?: Fields[];
  readsLive?: Fields[];
  writes?: Fields[];
  indexes?: Fields[];
  finalizer?: string;
}

/** What a run ended in. */
export type Outcome = Action | { tag: "retry"; val: string };

/** A cluster in memory. A test plays the user with `put` and `delete`, and the host with `run`. */
export class Cluster {
  readonly #objects = new Map<string, Fields>();
  readonly #applied = [new Map<string, Fields>(), new Map<string, Fields>()] as const;
  #declared: Declared | undefined;
  #primary: { key: string; uid: string | undefined } | undefined;
  #config: unknown = null;
  #now = BEGIN;
  #writes = 0;

  /** The Events so far. */
  readonly events: Event[] = [];
  /** The lines of the log so far. */
  readonly log: string[] = [];

  /** How many writes have changed something: a second run of a good controller adds none. */
  get writes(): number {
    return this.#writes;
  }

  /** Sets `spec.config` of the controller. */
  setConfig(config: unknown): this {
    this.#config = config;
    return this;
  }

  /** Moves the clock on. */
  advance(seconds: number): this {
    this.#now += seconds * 1000;
    return this;
  }

  /** Runs the controller once on the primary of that name, as the host does. */
  run(guest: Guest, name: string, namespace = ""): Outcome {
    const here = guest.on(this.api);
    this.#declared = undefined;
    this.declare(parse(here.describe()) as Declared);
    const declared = this.#declared!;
    const { apiVersion, kind } = declared.primary;
    this.begin(`${apiVersion}/${kind}`, name, namespace);
    const object = this.#objects.get(this.#primary!.key);
    if (declared.finalizer !== undefined && object !== undefined && object.metadata.deletionTimestamp === undefined) {
      const finalizers: string[] = object.metadata.finalizers ?? [];
      if (!finalizers.includes(declared.finalizer)) {
        const metadata = { ...object.metadata, finalizers: [...finalizers, declared.finalizer] };
        this.#store(this.#primary!.key, { ...object, metadata });
      }
    }
    try {
      return here.reconcile({ namespace, name });
    } catch (error) {
      if (typeof error !== "string") {
        throw error;
      }
      return { tag: "retry", val: error };
    }
  }

  /** A run of that primary begins, without a guest. */
  begin(kind: KindName, name: string, namespace = ""): this {
    const key = keyOf(kindOf(kind), namespace, name);
    this.#primary = { key, uid: this.#objects.get(key)?.metadata.uid };
    return this;
  }

  /** What a controller may do from now on, as `describe` says it. */
  declare(manifest: object): this {
    this.#declared = manifest as Declared;
    return this;
  }

  /** Creates an object or replaces it, as a user. A status and finalizers that it does not have stay. */
  put<T extends Resource>(object: T): T {
    const body = copy(object) as Fields;
    const key = keyIn(body);
    const before = this.#objects.get(key);
    if (before?.status !== undefined) {
      body.status ??= before.status;
    }
    for (const field of ["finalizers", "deletionTimestamp"]) {
      if (before?.metadata[field] !== undefined) {
        body.metadata[field] ??= before.metadata[field];
      }
    }
    return copy(this.#store(key, body)) as T;
  }

  /** Reads an object, declared or not. */
  get<T extends Resource = any>(kind: KindName, name: string, namespace = ""): T | undefined {
    const object = this.#objects.get(keyOf(kindOf(kind), namespace, name));
    return object === undefined ? undefined : (copy(object) as T);
  }

  /** Reads all objects of a kind, in the order of namespace and name. */
  list<T extends Resource = any>(kind: KindName): T[] {
    return this.#of(kindOf(kind)).map(([, object]) => copy(object) as T);
  }

  /** Deletes an object, as a user: while it has finalizers it is only marked. */
  delete(kind: KindName, name: string, namespace = ""): void {
    this.#delete(keyOf(kindOf(kind), namespace, name));
  }

  /** The contract, as this cluster answers it. */
  readonly api: Api = {
    get: (kind, namespace, name) => {
      this.#watches(kind);
      const object = this.#objects.get(keyOf(kind, namespace, name));
      const seen = object === undefined ? undefined : this.#cached(kind, object);
      return stringify(seen ?? fail("not-found"));
    },
    find: (kind, options) => {
      this.#watches(kind);
      const path = options.index === "" ? undefined : this.#index(kind, options.index);
      const items: string[] = [];
      for (const [, object] of this.#of(kind)) {
        const isThere = options.namespace === "" || options.namespace === (object.metadata.namespace ?? "");
        if (isThere && selects(options.labelSelector, object) && (path === undefined || isIndexed(object, path, options.value))) {
          const seen = this.#cached(kind, object);
          if (seen !== undefined) {
            items.push(stringify(seen));
          }
        }
      }
      const from = options.after === "" ? 0 : Number(options.after);
      const limit = options.limit === 0 ? PAGE : options.limit;
      return { items: items.slice(from, from + limit), next: items.length > from + limit ? String(from + limit) : "" };
    },
    getLive: (kind, namespace, name) => {
      if (!this.#manifest().readsLive?.some((live) => isKind(live, kind))) {
        this.#watches(kind);
      }
      return stringify(this.#objects.get(keyOf(kind, namespace, name)) ?? fail("not-found"));
    },
    apply: (text, ownership) => {
      const body = this.#body(text, "apply");
      if (ownership === "child" || ownership === "adopt") {
        this.#asChild(body);
      }
      const key = keyIn(body);
      this.#checkOwners(key, body, ownership === "adopt");
      return stringify(this.#apply(key, body, 0));
    },
    applyStatus: (text) => {
      const body = this.#body(text, "applyStatus");
      const key = keyIn(body);
      if (!this.#objects.has(key)) {
        fail("not-found");
      }
      this.#checkOwners(key, body, false);
      return stringify(this.#apply(key, body, 1));
    },
    create: (text, child) => {
      const body = this.#body(text, "create");
      if (child) {
        this.#asChild(body);
      }
      const { name, generateName } = body.metadata;
      if (name === undefined && generateName !== undefined) {
        body.metadata.name = `${generateName}${String(this.#writes).padStart(5, "0")}`;
      }
      const key = keyIn(body);
      if (this.#objects.has(key)) {
        fail("already-exists", `${body.kind} ${body.metadata.name} exists`);
      }
      this.#checkOwners(key, body, false);
      return stringify(this.#store(key, body));
    },
    patch: (kind, namespace, name, body) => {
      this.#mayWrite(kind, "patch");
      const key = keyOf(kind, namespace, name);
      const object = copy(this.#objects.get(key) ?? fail("not-found"));
      const patch = read(body.val);
      const left = body.tag === "merge" ? merged(object, patch) : patched(object, patch as Fields[]);
      this.#checkOwners(key, left, false);
      return stringify(this.#store(key, left));
    },
    remove: (kind, namespace, name, { uid, resourceVersion }) => {
      this.#mayWrite(kind, "delete");
      const key = keyOf(kind, namespace, name);
      if (!this.#objects.has(key)) {
        fail("not-found");
      }
      this.#current(key, { uid: uid || undefined, resourceVersion: resourceVersion || undefined });
      this.#delete(key);
    },
    emitEvent: (event) => {
      const { kind } = event.regarding;
      const { writes = [], readsLive = [] } = this.#manifest();
      if (![...writes, ...readsLive].some((one) => isKind(one, kind))) {
        this.#watches(kind);
      }
      this.events.push(event);
    },
    now: () => this.#now,
    random: (length) => Uint8Array.from({ length }, (_, at) => at % 256),
    config: () => stringify(this.#config),
    log: (level, message, fields) => {
      this.log.push([level, message, ...fields.map(({ key, value }) => `${key}=${value}`)].join(" "));
    },
  };

  #manifest(): Declared {
    return this.#declared ?? fail("not-declared", "no controller runs");
  }

  #of(kind: Kind): [string, Fields][] {
    const prefix = keyOf(kind, "", "").slice(0, -1);
    return [...this.#objects].filter(([key]) => key.startsWith(prefix)).sort(([a], [b]) => (a < b ? -1 : 1));
  }

  #watches(kind: Kind): Fields[] {
    const { primary, owns = [], watches = [] } = this.#manifest();
    const all = [
      { projection: "full", ...primary },
      ...owns.map((one) => ({ projection: "metadata", ...one })),
      ...watches.map((one) => ({ projection: "full", ...one })),
    ].filter((one) => isKind(one, kind));
    return all.length === 0 ? fail("not-declared", `no watch of ${kind.name}`) : all;
  }

  #cached(kind: Kind, object: Fields): Fields | undefined {
    const watches = this.#watches(kind);
    if (!watches.some((watch) => selects(watch.labelSelector ?? "", object))) {
      return undefined;
    }
    const { apiVersion, kind: name, metadata } = object;
    return watches.some((watch) => watch.projection === "full") ? object : { apiVersion, kind: name, metadata };
  }

  #mayWrite(kind: Kind, verb: string): void {
    const written = this.#manifest().writes?.some((one) => isKind(one, kind) && one.verbs.includes(verb));
    if (written !== true) {
      fail("not-declared", `no write ${verb} of ${kind.name}`);
    }
  }

  #body(text: string, verb: string): Fields {
    const body = read(text) as Fields;
    if (typeof body?.apiVersion !== "string" || typeof body.kind !== "string" || typeof body.metadata !== "object") {
      fail("invalid", "not an object with apiVersion, kind and metadata");
    }
    this.#mayWrite(kindOf(`${body.apiVersion}/${body.kind}`), verb);
    return body;
  }

  #index(kind: Kind, name: string): string {
    const index = this.#manifest().indexes?.find((one) => one.name === name && isKind(one, kind));
    return index?.path ?? fail("not-declared", `no index ${name}`);
  }

  /** The present object, whose uid and resourceVersion must be those that are named. */
  #current(key: string, metadata: Meta): Fields {
    const object = copy(this.#objects.get(key) ?? {});
    for (const field of ["uid", "resourceVersion"] as const) {
      if (metadata[field] !== undefined && metadata[field] !== object.metadata?.[field]) {
        fail("conflict", `${field} is not ${metadata[field]}: ${key} has changed`);
      }
    }
    return object;
  }

  /** Merges the body into the object and takes out what the last body had and this one does not. */
  #apply(key: string, body: Fields, part: 0 | 1): Fields {
    const object = this.#current(key, body.metadata);
    const last = this.#applied[part].get(key);
    if (last !== undefined) {
      prune(object, last, body);
    }
    this.#applied[part].set(key, copy(body));
    return this.#store(key, overlaid(object, body) as Fields);
  }

  /** Puts an object in the place of the present one, with what a server sets. */
  #store(key: string, given: Fields): Fields {
    const before = this.#objects.get(key);
    const object = copy(given);
    const isChanged =
      stringify(content(object)) !== stringify(content(before ?? {})) ||
      (object.metadata.deletionTimestamp === undefined) !== (before?.metadata.deletionTimestamp === undefined);
    object.metadata.creationTimestamp = before?.metadata.creationTimestamp ?? time(this.#now);
    object.metadata.uid = before?.metadata.uid ?? `uid-${this.#writes + 1}`;
    object.metadata.resourceVersion = before?.metadata.resourceVersion;
    if (object.spec !== undefined) {
      object.metadata.generation = (before?.metadata.generation ?? 0) + (isChanged ? 1 : 0);
    }
    if (before !== undefined && same(object, before)) {
      return object;
    }
    this.#writes += 1;
    object.metadata.resourceVersion = String(this.#writes);
    if (object.metadata.deletionTimestamp !== undefined && (object.metadata.finalizers ?? []).length === 0) {
      this.#objects.delete(key);
      this.#applied.forEach((applied) => applied.delete(key));
    } else {
      this.#objects.set(key, object);
    }
    return object;
  }

  #delete(key: string): void {
    const object = copy(this.#objects.get(key) ?? fail("not-found"));
    if (object.metadata.deletionTimestamp === undefined) {
      object.metadata.deletionTimestamp = time(this.#now);
      this.#store(key, object);
    }
  }

  #asChild(body: Fields): void {
    const owners: Fields[] = body.metadata.ownerReferences ?? [];
    const { key = "", uid } = this.#primary ?? {};
    if (uid !== undefined && owners.some((owner) => owner.uid === uid)) {
      return;
    }
    const primary = this.#objects.get(key);
    if (uid === undefined || primary?.metadata.uid !== uid || primary.metadata.deletionTimestamp !== undefined) {
      fail("conflict", "it cannot become a child of the primary, which is gone or being deleted");
    }
    const { apiVersion, kind, metadata: { name } } = primary!;
    body.metadata.ownerReferences = [...owners, { apiVersion, kind, name, uid, controller: true }];
  }

  /** Refuses owners that the garbage collector would not find, and new ones of somebody else's object. */
  #checkOwners(key: string, left: Fields, adopts: boolean): void {
    const owners: Fields[] = left.metadata?.ownerReferences ?? [];
    const { key: primary = "", uid } = this.#primary ?? {};
    const is = (owner: Fields) => uid !== undefined && owner.uid === uid;
    const [kind = "", namespace = "", name = ""] = primary.split(" ");
    const [, here = ""] = key.split(" ");
    for (const owner of owners) {
      const isNamed = kindWord(kindOf(`${owner.apiVersion}/${owner.kind}`)) === kind && owner.name === name;
      if (is(owner) && !isNamed) {
        fail("invalid", `the owner reference of ${key} has another object's name`);
      }
      if (is(owner) && namespace !== "" && here !== namespace) {
        const why = here === "" ? "a cluster-scoped object cannot have an owner in a namespace" : "it crosses namespaces";
        fail("invalid", `the owner reference of ${key}: ${why}`);
      }
      if (!is(owner) && isNamed && (namespace === "" || here === namespace)) {
        fail("conflict", `the owner reference of ${key} has the uid of another object than the one of this run`);
      }
    }
    const before = this.#objects.get(key);
    if (before === undefined) {
      return;
    }
    const has: Fields[] = before.metadata.ownerReferences ?? [];
    const rival = has.find((owner) => owner.controller === true && !is(owner));
    if (rival !== undefined && owners.some((owner) => owner.controller === true && owner.uid !== rival.uid)) {
      fail("conflict", `${key} is controlled by ${rival.kind} ${rival.name}`);
    }
    const isNew = (owner: Fields) => !has.some((known) => known.uid === owner.uid);
    if (!adopts && !has.some(is) && owners.some(isNew)) {
      fail("conflict", `${key} exists and is not this primary's; to take it over, use adopt`);
    }
  }
}

function fail(tag: CallError["tag"], val = ""): never {
  const payload = tag === "not-found" ? { tag } : { tag, val };
  throw Object.assign(new Error(`${tag}: ${val}`), { payload });
}

function read(text: string): unknown {
  try {
    return parse(text);
  } catch (error) {
    return fail("invalid", String(error));
  }
}

function kindWord({ group, name }: Kind): string {
  return `${group}/${name}`;
}

function keyOf(kind: Kind, namespace: string, name: string): string {
  return `${kindWord(kind)} ${namespace} ${name}`;
}

function keyIn(body: Fields): string {
  const { name, namespace = "" } = body.metadata;
  return keyOf(kindOf(`${body.apiVersion}/${body.kind}`), namespace, name ?? fail("invalid", "no metadata.name"));
}

function isKind(one: Fields, kind: Kind): boolean {
  return kindWord(kindOf(`${one.apiVersion}/${one.kind}`)) === kindWord(kind);
}

function selects(selector: string, object: Fields): boolean {
  try {
    return matches(selector, object.metadata.labels ?? {});
  } catch (error) {
    return fail("invalid", String(error));
  }
}

function time(at: number): string {
  return new Date(at).toISOString().replace(/\.\d+Z$/, "Z");
}

/** What counts for the generation. */
function content({ metadata: _1, status: _2, ...rest }: Fields): Fields {
  return sorted(rest) as Fields;
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) {
    return value.map(sorted);
  }
  if (typeof value === "object" && value !== null) {
    const fields = Object.entries(value).filter(([, inner]) => inner !== undefined);
    return Object.fromEntries(fields.sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, inner]) => [key, sorted(inner)]));
  }
  return value;
}

function same(a: unknown, b: unknown): boolean {
  return stringify(sorted(a)) === stringify(sorted(b));
}

function copy<V>(value: V): V {
  return parse(stringify(value)) as V;
}

function isMap(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isIndexed(object: Fields, path: string, value: string): boolean {
  const found = path.split(".").reduce<any>((inner, segment) => inner?.[segment], object);
  return Array.isArray(found) ? found.includes(value) : found === value;
}

/** The fields of `body` over those of `target`; a null is a value. */
function overlaid(target: unknown, body: unknown): unknown {
  if (!isMap(target) || !isMap(body)) {
    return copy(body);
  }
  const left: Fields = { ...target };
  for (const [key, value] of Object.entries(body)) {
    left[key] = key in left ? overlaid(left[key], value) : copy(value);
  }
  return left;
}

/** Takes out of `target` what `last` has and `next` does not. */
function prune(target: unknown, last: unknown, next: unknown): void {
  if (!isMap(target) || !isMap(last)) {
    return;
  }
  for (const [key, old] of Object.entries(last)) {
    const now = isMap(next) ? next[key] : undefined;
    if (isMap(target[key]) && isMap(old)) {
      prune(target[key], old, now);
      if (now === undefined && Object.keys(target[key]).length === 0) {
        delete target[key];
      }
    } else if (now === undefined) {
      delete target[key];
    }
  }
}

/** RFC 7386. */
function merged(target: unknown, patch: unknown): any {
  if (!isMap(patch)) {
    return patch;
  }
  const left: Fields = isMap(target) ? { ...target } : {};
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) {
      delete left[key];
    } else {
      left[key] = merged(left[key], value);
    }
  }
  return left;
}

/** RFC 6902. */
function patched(object: Fields, operations: Fields[]): Fields {
  let root: any = object;
  const walk = (pointer: string): [any, string] => {
    const path = pointer.split("/").slice(1).map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
    const last = path.pop() ?? "";
    const parent = path.reduce((inner, part) => inner?.[part] ?? fail("conflict", `there is no ${pointer}`), root);
    return [parent, last];
  };
  const at = (pointer: string) => {
    const [parent, key] = pointer === "" ? [{ "": root }, ""] : walk(pointer);
    return Object.hasOwn(parent, key) ? parent[key] : fail("conflict", `there is no ${pointer}`);
  };
  const add = (pointer: string, value: unknown, replaces: boolean) => {
    if (pointer === "") {
      root = value;
      return;
    }
    const [parent, key] = walk(pointer);
    if (replaces) {
      at(pointer);
    }
    if (Array.isArray(parent) && !replaces) {
      parent.splice(key === "-" ? parent.length : Number(key), 0, value);
    } else {
      parent[key] = value;
    }
  };
  const remove = (pointer: string) => {
    at(pointer);
    const [parent, key] = walk(pointer);
    if (Array.isArray(parent)) {
      parent.splice(Number(key), 1);
    } else {
      delete parent[key];
    }
  };
  for (const { op, path, from, value } of operations) {
    if (op === "test") {
      if (!same(at(path), value)) {
        fail("conflict", `the test of ${path} failed`);
      }
    } else if (op === "remove") {
      remove(path);
    } else if (op === "add" || op === "replace") {
      add(path, value, op === "replace");
    } else if (op === "copy" || op === "move") {
      const moved = copy(at(from));
      if (op === "move") {
        remove(from);
      }
      add(path, moved, false);
    } else {
      fail("invalid", `no operation ${op}`);
    }
  }
  return root;
}
