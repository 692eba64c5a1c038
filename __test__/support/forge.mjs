// Archives that this tool would not write, sealed as it seals its own.

import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { crc32 } from './crc32.mjs';
import { deflateRawSync, gunzipSync } from 'node:zlib';

const MEMBER_START = Buffer.from([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 8, 0, 0x4b, 0x47, 4, 0]);
const SEAL_START = Buffer.from([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 36, 0, 0x4b, 0x53, 32, 0]);
const SEAL_END = Buffer.from([3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

/** A sealed archive around any tar. */
export function seal(tar) {
  const deflated = deflateRawSync(tar);
  const size = Buffer.alloc(4);
  size.writeUInt32LE(MEMBER_START.length + 4 + deflated.length + 8);
  const trailer = Buffer.alloc(8);
  trailer.writeUInt32LE(crc32(tar), 0);
  trailer.writeUInt32LE(tar.length, 4);
  const content = Buffer.concat([MEMBER_START, size, deflated, trailer]);
  return Buffer.concat([content, SEAL_START, createHash('sha256').update(content).digest(), SEAL_END]);
}

/** The archive `from`, written to `to` as if by a later release. */
export function newerFormat(from, to) {
  const tar = gunzipSync(readFileSync(from));
  const version = tar.indexOf('"version": "1.0.0"');
  tar.write('"version": "2.0.0"', version);
  writeFileSync(to, seal(tar));
}
