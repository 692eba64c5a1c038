// The global of dom and of node that the guide's blocks use.

declare const console: { log(...values: unknown[]): void };
