// Why a run fails, and what the host does about it.

import type { Error as CallError } from "nagaya:controller/cluster@0.2.0";

/** Whatever else is thrown is a retry too, with its words; the stack goes to the log. */
export class Retry extends Error {
  override readonly name = "Retry";
}

/** Do not run the object again until something changes. */
export class Terminal extends Error {
  override readonly name = "Terminal";
}

/** As `Terminal`, and the object itself is at fault: the message becomes its condition `Accepted: False`. */
export class Invalid extends Error {
  override readonly name = "Invalid";
}

/** A call of the cluster did not do what was asked. */
export class ApiError extends Error {
  override readonly name = "ApiError";
  readonly reason: CallError["tag"];

  constructor(reason: CallError["tag"], message: string) {
    super(message === "" ? reason : `${reason}: ${message}`);
    this.reason = reason;
  }
}

/** Makes a call of the contract, whose errors are objects with a payload, one that throws `ApiError`. */
export function call<T>(run: () => T): T {
  try {
    return run();
  } catch (error) {
    const payload = (error as { payload?: CallError } | undefined)?.payload;
    if (payload === undefined) {
      throw error;
    }
    throw new ApiError(payload.tag, "val" in payload ? payload.val : "");
  }
}
