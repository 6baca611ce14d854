// What a controller may do while it runs.

import type { Ownership } from "nagaya:controller/cluster@0.2.0";
import type { Level } from "nagaya:controller/runtime@0.2.0";
import { type Api, type KindName, kindOf } from "./api.ts";
import { ApiError, call } from "./errors.ts";
import { parse, stringify } from "./json.ts";

/** metadata of an object. */
export interface Meta {
  name?: string;
  generateName?: string;
  namespace?: string;
  uid?: string;
  resourceVersion?: string;
  generation?: number;
  creationTimestamp?: string;
  deletionTimestamp?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  finalizers?: string[];
  ownerReferences?: OwnerReference[];
}

/** An owner of an object. */
export interface OwnerReference {
  apiVersion: string;
  kind: string;
  name: string;
  uid: string;
  controller?: boolean;
  blockOwnerDeletion?: boolean;
}

/** Any object. */
export interface Resource {
  apiVersion: string;
  kind: string;
  metadata: Meta;
}

/** A condition of a status. */
export interface Condition {
  type: string;
  status: "True" | "False" | "Unknown";
  reason: string;
  message: string;
  lastTransitionTime: string;
  observedGeneration?: number;
}

/** Which of the cached objects of a kind are wanted. */
export interface Find {
  namespace?: string;
  labels?: string;
  /** Name of an index of the manifest, and the value that is looked up. */
  index?: [name: string, value: string];
}

/** The cluster as the controller's ServiceAccount, and the runtime. */
export class Context {
  readonly #api: Api;

  constructor(api: Api) {
    this.#api = api;
  }

  /** Reads one object of a watched kind from the host's cache; `undefined`: there is none. */
  get<T extends Resource>(kind: KindName, name: string, namespace = ""): T | undefined {
    return found(() => this.#api.get(kindOf(kind), namespace, name)) as T | undefined;
  }

  /** Reads one object from the API server. Secrets are read in no other way. */
  getLive<T extends Resource>(kind: KindName, name: string, namespace = ""): T | undefined {
    return found(() => this.#api.getLive(kindOf(kind), namespace, name)) as T | undefined;
  }

  /** Reads objects of a watched kind from the host's cache, in the order of namespace and name. */
  list<T extends Resource>(kind: KindName, find: Find = {}): T[] {
    const [index, value] = find.index ?? ["", ""];
    const options = {
      namespace: find.namespace ?? "", labelSelector: find.labels ?? "", index, value, limit: 0, after: "",
    };
    const all: T[] = [];
    do {
      const page = call(() => this.#api.find(kindOf(kind), options));
      all.push(...page.items.map((text) => parse(text) as T));
      options.after = page.next;
    } while (options.after !== "");
    return all;
  }

  /**
   * Server-side apply: the object will have these fields, and those of the last apply that are missing here go away. A field of
   * another manager's is taken over in the primary's children, elsewhere it is a conflict.
   */
  apply<T extends Resource>(object: T): T {
    return this.#apply(object, "standard");
  }

  /** As `apply`, and the object becomes the primary's child: the host adds the owner reference. */
  applyChild<T extends Resource>(object: T): T {
    return this.#apply(object, "child");
  }

  /** As `apply`, and fields of others are taken over in any case. */
  applyForced<T extends Resource>(object: T): T {
    return this.#apply(object, "force");
  }

  /** As `applyChild` and `applyForced`, and an object that is nobody's becomes the primary's child. */
  adopt<T extends Resource>(object: T): T {
    return this.#apply(object, "adopt");
  }

  #apply<T extends Resource>(object: T, ownership: Ownership): T {
    return parse(call(() => this.#api.apply(stringify(sent(object)), ownership))) as T;
  }

  /** Server-side apply of the status of `object`, mostly the primary: state it whole and anew in each run. */
  applyStatus<T extends Resource>(object: T, status: object): T {
    const { apiVersion, kind, metadata: { name, namespace, uid } } = object;
    const body = { apiVersion, kind, metadata: { name, namespace, uid }, status };
    return parse(call(() => this.#api.applyStatus(stringify(body)))) as T;
  }

  /** Creates an object; `metadata.generateName` is allowed. */
  create<T extends Resource>(object: T, options: { child?: boolean } = {}): T {
    return parse(call(() => this.#api.create(stringify(object), options.child ?? false))) as T;
  }

  /** Patches an object: a list of operations is a JSON patch, anything else a merge patch. */
  patch<T extends Resource>(kind: KindName, name: string, namespace: string, body: object): T {
    const tag = Array.isArray(body) ? "json" : "merge";
    const patch = { tag, val: stringify(body) } as const;
    return parse(call(() => this.#api.patch(kindOf(kind), namespace, name, patch))) as T;
  }

  /**
   * Deletes an object; one that is gone already is no error. If it was read and is another by now, it is a conflict.
   */
  delete(object: Resource, propagation: "background" | "foreground" | "orphan" = "background"): void {
    const { name = "", namespace = "", uid = "", resourceVersion = "" } = object.metadata;
    try {
      call(() => this.#api.remove(kindOf(nameOf(object)), namespace, name, { uid, resourceVersion, propagation }));
    } catch (error) {
      if (!isNotFound(error)) {
        throw error;
      }
    }
  }

  /** Takes a finalizer away: the cleanup is done. Nothing happens if it is not there. */
  removeFinalizer(object: Resource, finalizer: string): void {
    const { name = "", namespace = "", uid, finalizers = [] } = object.metadata;
    const at = finalizers.indexOf(finalizer);
    if (at < 0) {
      return;
    }
    const path = `/metadata/finalizers/${at}`;
    const body = [
      { op: "test", path: "/metadata/uid", value: uid },
      { op: "test", path, value: finalizer },
      { op: "remove", path },
    ];
    try {
      this.patch(nameOf(object), name, namespace, body);
    } catch (error) {
      if (!isNotFound(error)) {
        throw error;
      }
    }
  }

  /**
   * A condition for the status of `object`: its generation, and the date of the one of its type among `before` unless the status
   * has changed.
   */
  condition(
    object: Resource,
    before: Condition[] | undefined,
    { type, status, reason, message = "" }: Pick<Condition, "type" | "status" | "reason"> & { message?: string },
  ): Condition {
    const old = before?.find((one) => one.type === type && one.status === status);
    const lastTransitionTime = old?.lastTransitionTime ?? this.now().toISOString().replace(/\.\d+Z$/, "Z");
    return { type, status, reason, message, lastTransitionTime, observedGeneration: object.metadata.generation };
  }

  /** Tells people about an object of a declared kind; `reason` and `action` are one CamelCase word each. */
  event(object: Resource, reason: string, note: string, options: { action?: string; warning?: boolean } = {}): void {
    const { name = "", namespace = "" } = object.metadata;
    const regarding = { kind: kindOf(nameOf(object)), namespace, name };
    const severity = options.warning === true ? "warning" : "normal";
    call(() => this.#api.emitEvent({ regarding, severity, reason, action: options.action ?? reason, note }));
  }

  /** The time, in whole milliseconds. */
  now(): Date {
    return new Date(this.#api.now());
  }

  /** Random bytes. */
  random(length: number): Uint8Array {
    return this.#api.random(length);
  }

  /** `spec.config` of the WasmController; `{}` if there is none. */
  config<T = Record<string, unknown>>(): T {
    return (parse(this.#api.config()) ?? {}) as T;
  }

  /** Writes a line to the log, with controller, revision, object and run added by the host. */
  log(message: string, fields: Record<string, unknown> = {}, level: Level = "info"): void {
    const word = (value: unknown) => (typeof value === "string" ? value : stringify(value) ?? "undefined");
    this.#api.log(level, message, Object.entries(fields).map(([key, value]) => ({ key, value: word(value) })));
  }
}

/** apiVersion and kind of an object in one word. */
export function nameOf(object: Resource): KindName {
  return `${object.apiVersion}/${object.kind}`;
}

/** What an apply sends: without the status, and without what only the server writes. */
function sent(object: Resource): Resource {
  const { status: _, ...rest } = object as Resource & { status?: unknown };
  const {
    creationTimestamp: _1, deletionTimestamp: _2, generation: _3, managedFields: _4, selfLink: _5, ...metadata
  } = object.metadata as Meta & { managedFields?: unknown; selfLink?: unknown };
  return { ...rest, metadata } as Resource;
}

function found(read: () => string): unknown {
  try {
    return parse(call(read));
  } catch (error) {
    if (isNotFound(error)) {
      return undefined;
    }
    throw error;
  }
}

function isNotFound(error: unknown): boolean {
  return error instanceof ApiError && error.reason === "not-found";
}
