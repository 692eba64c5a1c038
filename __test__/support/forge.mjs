// Archives that this tool would not write, sealed as it seals its own.

import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { crc32 } from './crc32.mjs';
import { deflateRawSync, gunzipSync } from 'node:zlib';

const MEMBER_START = Buffer.from([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 8, 0, 0x4b, 0x47, 4, 0]);
const SEAL_START = Buffer.from([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 36, 0, 0x4b, 0x53, 32, 0]);
const SEAL_END = Buffer.from([3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
const PLAIN_SEAL_START = Buffer.from('kg-backup seal 1');

export const BLOCK = 512;
/** No member of an archive holds more. */
export const MAX_MEMBER = 16 * 1024 * 1024;

const sha256 = (content) => createHash('sha256').update(content).digest();

// ---- The gzip stream ----

/** A gzip member. `length` and `crc` are what it says that it holds, and `deflated` what it holds instead. */
export function member(
  content,
  { length = content.length, crc = crc32(content), deflated = deflateRawSync(content) } = {},
) {
  const size = Buffer.alloc(4);
  size.writeUInt32LE(MEMBER_START.length + 4 + deflated.length + 8);
  const trailer = Buffer.alloc(8);
  trailer.writeUInt32LE(crc, 0);
  trailer.writeUInt32LE(length, 4);
  return Buffer.concat([MEMBER_START, size, deflated, trailer]);
}

/** The members of a tar, as large as this tool makes them. */
export function membersOf(tar) {
  const members = [];
  for (let at = 0; at < tar.length; at += BLOCK * 1024)
    members.push(member(tar.subarray(at, at + BLOCK * 1024)));
  return members;
}

/** The members of `piece` so many times over, of which each is made once: tens of gigabytes cost nothing. */
export function repeated(piece, times) {
  const most = Math.max(1, Math.floor(MAX_MEMBER / piece.length));
  const full = Math.floor(times / most);
  const rest = times % most;
  const of = (count) => member(Buffer.alloc(piece.length * count, piece));
  return [...(full > 0 ? new Array(full).fill(of(most)) : []), ...(rest > 0 ? [of(rest)] : [])];
}

/** The members of so many zeros. */
export function zeros(bytes) {
  return [
    ...repeated(Buffer.alloc(BLOCK), Math.floor(bytes / BLOCK)),
    ...membersOf(Buffer.alloc(bytes % BLOCK)),
  ];
}

/** A sealed archive of these members. */
export function sealMembers(members) {
  const content = Buffer.concat(members);
  return Buffer.concat([content, SEAL_START, sha256(content), SEAL_END]);
}

/** A sealed archive around any tar. */
export function seal(tar) {
  return sealMembers(membersOf(tar));
}

/** A sealed archive around any tar, without compression. */
export function sealPlain(tar) {
  const start = Buffer.concat([PLAIN_SEAL_START, sha256(tar)]);
  return Buffer.concat([tar, start, Buffer.alloc(BLOCK - start.length)]);
}

/** The archive `from`, written to `to` as if by a later release. */
export function newerFormat(from, to) {
  const tar = gunzipSync(readFileSync(from));
  const version = tar.indexOf('"version": "1.0.0"');
  tar.write('"version": "2.0.0"', version);
  writeFileSync(to, seal(tar));
}

// ---- The tar ----

/** The entries of a tar with short names, as { name, type, link, content }. */
export function entriesOf(tar) {
  const entries = [];
  for (let at = 0; tar[at] !== 0;) {
    const name = tar.toString('utf8', at, tar.indexOf(0, at));
    const size = parseInt(tar.toString('latin1', at + 124, at + 135), 8);
    const link = tar.toString('utf8', at + 157, tar.indexOf(0, at + 157));
    const type = String.fromCharCode(tar[at + 156]);
    entries.push({ name, type, link, content: tar.subarray(at + BLOCK, at + BLOCK + size) });
    at += BLOCK + Math.ceil(size / BLOCK) * BLOCK;
  }
  return entries;
}

/** What a header's size field holds: octal, base 256 for what is larger or negative, or the bytes that were given. */
function sizeField(size) {
  if (Buffer.isBuffer(size)) return size;
  if (size >= 0 && size < 8 ** 11) return Buffer.from(`${size.toString(8).padStart(11, '0')}\0`);
  const field = Buffer.alloc(12, size < 0 ? 255 : 0);
  field.writeBigInt64BE(BigInt.asIntN(64, BigInt(size)), 4);
  field[0] = size < 0 ? 255 : 128;
  return field;
}

/**
 * The header of an entry. Any field can be given: `name` and `link` as text or bytes, `size` as a number, a bigint or the
 * bytes of the field. `damage` changes the header after its checksum was made.
 */
export function headerOf({
  name,
  content = Buffer.alloc(0),
  type = '0',
  link = '',
  size = content.length,
  damage = () => {},
}) {
  const header = Buffer.alloc(BLOCK);
  Buffer.from(name).copy(header, 0, 0, 100);
  header.write('0000644\0', 100);
  header.write('0000000\0', 108);
  header.write('0000000\0', 116);
  sizeField(size).copy(header, 124);
  header.write('00000000000\0', 136);
  header.write('        ', 148);
  header.write(type, 156, 'latin1');
  Buffer.from(link).copy(header, 157, 0, 100);
  header.write('ustar  \0', 257);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  damage(header);
  return header;
}

/** The blocks of an entry; `raw` stands for them. */
export function blocksOf(entry) {
  const { raw, content = Buffer.alloc(0) } = entry;
  return (
    raw ??
    Buffer.concat([
      headerOf(entry),
      content,
      Buffer.alloc((BLOCK - (content.length % BLOCK)) % BLOCK),
    ])
  );
}

/** The entry that GNU tar puts before one whose name (`L`) or link (`K`) is too long for a header. */
export function longName(name, type = 'L') {
  return {
    name: '././@LongLink',
    type,
    content: Buffer.concat([Buffer.from(name), Buffer.alloc(1)]),
  };
}

/** A tar of entries; any field of a header can be given. */
export function tarOf(entries) {
  return Buffer.concat([...entries.map(blocksOf), Buffer.alloc(2 * BLOCK)]);
}

// ---- The backup ----

const isFile = ({ type = '0', raw }) => type === '0' && !raw;

/** The line of an entry in `checksums.sha256`, with a name escaped as sha256sum does. */
function checksumLine({ name, content }) {
  const escaped = name.replaceAll('\\', '\\\\').replaceAll('\n', '\\n').replaceAll('\r', '\\r');
  return `${escaped === name ? '' : '\\'}${sha256(content).toString('hex')}  ${escaped}\n`;
}

/**
 * The entries of the tar of an archive, changed: `change` gets the manifest and the entries before it and changes both,
 * `text` makes another text of the manifest, `checksums` one of the checksums, which go with all that. What is wrong
 * afterwards is what was changed, and nothing else.
 */
export function changedEntries(
  tar,
  { change = () => {}, text = (json) => json, checksums = (lines) => lines },
) {
  const entries = entriesOf(tar).slice(0, -1);
  const { content } = entries.pop();
  const manifest = JSON.parse(content);
  change(manifest, entries);
  entries.push({ name: 'manifest.json', content: Buffer.from(text(JSON.stringify(manifest))) });
  const lines = entries.filter(isFile).map(checksumLine).join('');
  return [...entries, { name: 'checksums.sha256', content: Buffer.from(checksums(lines)) }];
}

/** The tar of an archive with another manifest and the checksums that go with it. */
export function rewriteManifest(tar, change) {
  return tarOf(changedEntries(tar, { change }));
}

/**
 * Adds an entry and its record, for use in a `change`: a file of `content`, or with `target` a link, or a directory. What
 * the record says can differ from what the tar has: see `tar`.
 */
export function addEntry(
  manifest,
  entries,
  { entry, content = Buffer.alloc(0), target, directory = false, tar = {}, ...record },
) {
  const type = target !== undefined ? 'link' : directory ? 'directory' : undefined;
  const [mode, mtime] = [0o644, '2024-01-01T00:00:00Z'];
  manifest.files.push({
    entry,
    component: 'files',
    type,
    target,
    size: content.length,
    mode,
    mtime,
    ...record,
  });
  entries.push({
    name: entry,
    type: { link: '2', directory: '5' }[type] ?? '0',
    link: target ?? '',
    content,
    ...tar,
  });
  if (type === undefined) manifest.checksums[entry] = digestOf(content);
}

/** A digest as manifests write it. */
export function digestOf(content) {
  return `sha256:${sha256(content).toString('hex')}`;
}

/** The text of the manifest beside an archive, made of the one inside it and changed. */
export function manifestBeside(archive, manifest, change = () => {}) {
  const beside = structuredClone(manifest);
  beside.stats.compressedSize = archive.length;
  beside.archive = {
    name: 'forged.tar.gz',
    size: archive.length,
    sha256: sha256(archive).toString('hex'),
  };
  change(beside);
  return JSON.stringify(beside);
}
