// JSON without loss: an integer that a number cannot hold is a bigint, read and written.

/** What stands in JSON text; `bigint` for an integer beyond 2^53. */
export type Json = null | boolean | number | bigint | string | Json[] | { [field: string]: Json | undefined };

// Sixteen digits in a row are the least that a number may not hold. Inside of a string they cost a slower reading, no more.
const LARGE = /\d{16}/;
const MARK = "\u0000int:";

/** Reads JSON. */
export function parse(text: string): unknown {
  if (!LARGE.test(text)) {
    return JSON.parse(text);
  }
  const marked = text.replace(/"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g, (token) =>
    /^-?\d{16,}$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"\\u0000int:${token}"` : token,
  );
  return JSON.parse(marked, (_, value) =>
    typeof value === "string" && value.startsWith(MARK) ? BigInt(value.slice(MARK.length)) : value,
  );
}

/** Writes JSON; a field that is `undefined` is left out, a `null` is written. */
export function stringify(value: unknown): string {
  let has = false;
  const text = JSON.stringify(value, (_, inner) => {
    if (typeof inner !== "bigint") {
      return inner;
    }
    has = true;
    return MARK + inner;
  });
  return has ? text.replace(/"\\u0000int:(-?\d+)"/g, "$1") : text;
}
