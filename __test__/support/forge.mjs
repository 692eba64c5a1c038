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

const BLOCK = 512;

/** The entries of a tar with short names, as { name, content }. */
function entriesOf(tar) {
  const entries = [];
  for (let at = 0; tar[at] !== 0; ) {
    const name = tar.toString('utf8', at, tar.indexOf(0, at));
    const size = parseInt(tar.toString('latin1', at + 124, at + 135), 8);
    entries.push({ name, content: tar.subarray(at + BLOCK, at + BLOCK + size) });
    at += BLOCK + Math.ceil(size / BLOCK) * BLOCK;
  }
  return entries;
}

/** A tar of entries; any field of a header can be given. */
export function tarOf(entries) {
  const blocks = entries.flatMap(({ name, content, type = '0', link = '', size = content.length }) => {
    const header = Buffer.alloc(BLOCK);
    header.write(name, 0, 100);
    header.write('0000644\0', 100);
    header.write('0000000\0', 108);
    header.write('0000000\0', 116);
    header.write(`${size.toString(8).padStart(11, '0')}\0`, 124);
    header.write('00000000000\0', 136);
    header.write('        ', 148);
    header.write(type, 156);
    header.write(link, 157, 100);
    header.write('ustar  \0', 257);
    const sum = header.reduce((total, byte) => total + byte, 0);
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
    return [header, content, Buffer.alloc((BLOCK - (content.length % BLOCK)) % BLOCK)];
  });
  return Buffer.concat([...blocks, Buffer.alloc(2 * BLOCK)]);
}

/** The tar of an archive with another manifest and the checksums that go with it. */
export function rewriteManifest(tar, change) {
  const entries = entriesOf(tar).slice(0, -1);
  const manifest = JSON.parse(entries.at(-1).content);
  change(manifest, entries);
  entries.at(-1).content = Buffer.from(JSON.stringify(manifest));
  const digest = (content) => createHash('sha256').update(content).digest('hex');
  const checksums = entries.map(({ name, content }) => `${digest(content)}  ${name}\n`).join('');
  return tarOf([...entries, { name: 'checksums.sha256', content: Buffer.from(checksums) }]);
}
