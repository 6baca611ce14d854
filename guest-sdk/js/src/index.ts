// The SDK: makes a function the guest of a component.

import type { Action, Request } from "nagaya:controller/common@0.2.0";
import { host } from "#host";
import type { Api } from "./api.ts";
import { Context, type Resource } from "./context.ts";
import { ApiError, Invalid, Terminal } from "./errors.ts";
import { type Needs, manifest } from "./manifest.ts";
import { stringify } from "./json.ts";

export type { KindName } from "./api.ts";
export { type Composer, type Composed, compose } from "./compose.ts";
export { type Condition, Context, type Find, type Meta, type OwnerReference, type Resource } from "./context.ts";
export { ApiError, Invalid, Retry, Terminal } from "./errors.ts";
export type { Json } from "./json.ts";
export type { Needs, Place, Verb, Wakes, Watch, When } from "./manifest.ts";
export { quantity } from "./quantity.ts";

/** A controller of one kind of object. Nothing that it keeps in memory outlives a call. */
export interface Controller<T extends Resource> extends Needs {
  /** Refuses a config by throwing, before the revision runs. */
  configure?(config: Record<string, unknown>): void;
  /**
   * Brings the world in line with `object`, which exists and is not being deleted. It must end in the same state however often it is
   * called. Returns the seconds after which it runs again, or nothing.
   */
  reconcile(object: T, cx: Context): number | void;
  /** The object is being deleted: cleans up, then takes the finalizer away. */
  deleting?(object: T, cx: Context): number | void;
  /** The object is gone. */
  gone?(request: { namespace: string; name: string }, cx: Context): number | void;
}

/** What a component exports as `guest`, and what `nagaya-sdk/testing` runs. */
export interface Guest {
  describe(): string;
  reconcile(request: Request): Action;
  /** The same on another host, for tests. */
  on(api: Api): Guest;
}

/** Makes the guest: `export const guest = controller({ … })`. */
export function controller<T extends Resource>(of: Controller<T>, api: Api = host): Guest {
  const primary = typeof of.primary === "string" ? of.primary : of.primary.kind;
  const run = ({ namespace, name }: Request, cx: Context): number | void => {
    const object = cx.get<T>(primary, name, namespace);
    if (object === undefined) {
      return of.gone?.({ namespace, name }, cx);
    }
    if (object.metadata.deletionTimestamp !== undefined) {
      return of.deleting?.(object, cx);
    }
    return of.reconcile(object, cx);
  };
  return {
    describe() {
      try {
        of.configure?.(new Context(api).config());
        return stringify(manifest(of));
      } catch (error) {
        // A text is the error of a result of the contract.
        throw words(error);
      }
    },
    reconcile(request) {
      const cx = new Context(api);
      try {
        const after = run(request, cx);
        return typeof after === "number"
          ? { tag: "requeue-after", val: Math.min(Math.ceil(after * 1000), 0xffff_ffff) }
          : { tag: "await-change" };
      } catch (error) {
        const tag = way(error);
        if (tag !== undefined) {
          return { tag, val: words(error) };
        }
        if (error instanceof Error && !(error instanceof ApiError)) {
          cx.log(`${words(error)}\n${error.stack ?? ""}`, {}, "error");
        }
        throw words(error);
      }
    },
    on: (other) => controller(of, other),
  };
}

/** Which errors are decisions and no retry: the same call would be refused again. */
function way(error: unknown): "terminal" | "invalid" | undefined {
  if (error instanceof Invalid) {
    return "invalid";
  }
  const refused = error instanceof ApiError && (error.reason === "invalid" || error.reason === "not-declared");
  return refused || error instanceof Terminal ? "terminal" : undefined;
}

function words(error: unknown): string {
  if (!(error instanceof Error)) {
    return String(error);
  }
  return error instanceof Invalid || error instanceof Terminal || error.name === "Retry"
    ? error.message
    : `${error.name}: ${error.message}`;
}
