/** client.d.ts says what client.js has: real.js is client.js where no client.d.ts stands beside it. */
import * as told from "./client.js";
import * as real from "./real.js";

export const all: typeof told = real;
export const untold: Exclude<keyof typeof real, keyof typeof told>[] = [];
export const nothing: never[] = untold;
