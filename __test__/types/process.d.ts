// The global of node that the guide's blocks use.

declare const process: { env: Record<string, string | undefined> };
