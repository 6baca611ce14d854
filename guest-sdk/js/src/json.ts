// JSON without loss: an integer that a number cannot hold is a bigint, read and written.

/** What stands in JSON text; `bigint` for an integer beyond 2^53. */
export type Json = null | boolean | number | bigint | string | Json[] | { [field: string]: Json | undefined };

// Sixteen digits in a row are the least that a number may not hold. Inside of a string they cost a slower reading, no more.
const LARGE = /\d{16}/;
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/** What stands before an integer that travels as a string: something that is nowhere in `text`. */
function mark(text: string): string {
  let word = "int:";
  while (text.includes(word)) {
    word = `_${word}`;
  }
  return word;
}

/** Reads JSON. */
export function parse(text: string): unknown {
  if (!LARGE.test(text)) {
    return JSON.parse(text);
  }
  const word = mark(text);
  const marked = text.replace(TOKEN, (token) =>
    /^-?\d{16,}$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"${word}${token}"` : token,
  );
  return JSON.parse(marked, (_, value) =>
    typeof value === "string" && value.startsWith(word) ? BigInt(value.slice(word.length)) : value,
  );
}

/** Writes JSON; a field that is `undefined` is left out, a `null` is written. */
export function stringify(value: unknown): string {
  let has = false;
  const plain = JSON.stringify(value, (_, inner) => {
    has ||= typeof inner === "bigint";
    return typeof inner === "bigint" ? null : inner;
  });
  if (!has) {
    return plain;
  }
  const word = mark(plain);
  const text = JSON.stringify(value, (_, inner) => (typeof inner === "bigint" ? word + inner : inner));
  return text.replace(new RegExp(`"${word}(-?\\d+)"`, "g"), "$1");
}
