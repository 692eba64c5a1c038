// Archives that this tool would not write, with the seal that it would write.

import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { crc32 } from './crc32.mjs';
import { deflateRawSync, gunzipSync } from 'node:zlib';

const MEMBER_START = Buffer.from([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 8, 0, 0x4b, 0x47, 4, 0]);
const SEAL_START = Buffer.from([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 36, 0, 0x4b, 0x53, 32, 0]);
const SEAL_END = Buffer.from([3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
const PLAIN_SEAL_START = Buffer.from('kg-backup seal 1');

export const BLOCK = 512;
/** The maximum content of one gzip member. */
export const MAX_MEMBER = 16 * 1024 * 1024;

const sha256 = (content) => createHash('sha256').update(content).digest();

// ---- The gzip stream ----

/**
 * Returns a gzip member. `length` and `crc` are its declared values, and `deflated` replaces its
 * compressed content.
 */
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

/** Splits a tar into members of the size that this tool uses. */
export function membersOf(tar) {
  const members = [];
  for (let at = 0; at < tar.length; at += BLOCK * 1024)
    members.push(member(tar.subarray(at, at + BLOCK * 1024)));
  return members;
}

/**
 * Returns members that contain `piece` `times` times. Equal members share one buffer, so tens of
 * gigabytes need little memory.
 */
export function repeated(piece, times) {
  const most = Math.max(1, Math.floor(MAX_MEMBER / piece.length));
  const full = Math.floor(times / most);
  const rest = times % most;
  const of = (count) => member(Buffer.alloc(piece.length * count, piece));
  return [...(full > 0 ? new Array(full).fill(of(most)) : []), ...(rest > 0 ? [of(rest)] : [])];
}

/** Returns members that contain `bytes` zeros. */
export function zeros(bytes) {
  return [
    ...repeated(Buffer.alloc(BLOCK), Math.floor(bytes / BLOCK)),
    ...membersOf(Buffer.alloc(bytes % BLOCK)),
  ];
}

/** Returns a sealed archive of these members. */
export function sealMembers(members) {
  const content = Buffer.concat(members);
  return Buffer.concat([content, SEAL_START, sha256(content), SEAL_END]);
}

/** Returns a sealed archive of any tar. */
export function seal(tar) {
  return sealMembers(membersOf(tar));
}

/** Returns a sealed archive of any tar, without compression. */
export function sealPlain(tar) {
  const start = Buffer.concat([PLAIN_SEAL_START, sha256(tar)]);
  return Buffer.concat([tar, start, Buffer.alloc(BLOCK - start.length)]);
}

/** Rewrites the archive `from` to `to` as a later release would. */
export function newerFormat(from, to) {
  const tar = gunzipSync(readFileSync(from));
  const version = tar.indexOf('"version": "1.0.0"');
  tar.write('"version": "2.0.0"', version);
  writeFileSync(to, seal(tar));
}

// ---- The tar ----

/** Returns the entries of a tar with short names, as { name, type, link, content }. */
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

/**
 * Encodes the size field of a header: octal, or base 256 for large or negative numbers. Bytes are
 * used unchanged.
 */
function sizeField(size) {
  if (Buffer.isBuffer(size)) return size;
  if (size >= 0 && size < 8 ** 11) return Buffer.from(`${size.toString(8).padStart(11, '0')}\0`);
  const field = Buffer.alloc(12, size < 0 ? 255 : 0);
  field.writeBigInt64BE(BigInt.asIntN(64, BigInt(size)), 4);
  field[0] = size < 0 ? 255 : 128;
  return field;
}

/**
 * Returns the header of an entry. A caller can set any field: `name` and `link` as text or bytes,
 * `size` as a number, a bigint or the bytes of the field. `damage` changes the header after its
 * checksum was computed.
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

/** Returns the blocks of an entry, or `raw` if it is given. */
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

/**
 * Returns the entry that GNU tar puts before one with a name (`L`) or link (`K`) that is too long
 * for a header.
 */
export function longName(name, type = 'L') {
  return {
    name: '././@LongLink',
    type,
    content: Buffer.concat([Buffer.from(name), Buffer.alloc(1)]),
  };
}

/** Returns a tar of entries. A caller can set any field of a header. */
export function tarOf(entries) {
  return Buffer.concat([...entries.map(blocksOf), Buffer.alloc(2 * BLOCK)]);
}

// ---- The backup ----

const isFile = ({ type = '0', raw }) => type === '0' && !raw;

/** Returns the line of an entry in `checksums.sha256`, with the name escaped as sha256sum does. */
function checksumLine({ name, content }) {
  const escaped = name.replaceAll('\\', '\\\\').replaceAll('\n', '\\n').replaceAll('\r', '\\r');
  return `${escaped === name ? '' : '\\'}${sha256(content).toString('hex')}  ${escaped}\n`;
}

/** Compares the places of two records in a list of files: by component, then by path. */
function order(one, other) {
  const components = ['database', 'config', 'vectors', 'plugins', 'files'];
  const place = ({ component }) => components.indexOf(component);
  const path = (record) => Buffer.from(String(record.path).replaceAll('/', '\0'));
  return place(one) - place(other) || Buffer.compare(path(one), path(other));
}

/**
 * Returns the manifest with two more fields, which the archive has elsewhere: `files` is the list
 * of files, and `checksums` has the digest of every file that is stored whole.
 */
function withFiles(manifest, list) {
  const files = list
    .toString()
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line));
  const digests = files
    .filter(({ stored, sha256 }) => sha256 && !stored)
    .map(({ entry, sha256 }) => [entry, `sha256:${sha256}`]);
  for (const record of files) if (!record.stored) delete record.sha256;
  return {
    ...manifest,
    files,
    checksums: { ...manifest.checksums, ...Object.fromEntries(digests) },
  };
}

/** Returns how a manifest identifies a list of files. */
const describe = (records, list) => ({ records, sha256: sha256(list).toString('hex') });

/** Returns how a manifest identifies the list of these files. */
export const describeFiles = (files) =>
  describe(files.length, files.map((file) => `${JSON.stringify(file)}\n`).join(''));

/** Puts the list of files in order, and the entries into the order of the list. */
function sortFiles({ files }, entries) {
  if (!Array.isArray(files)) return;
  files.sort(order);
  let last = -1;
  const ranked = entries.map((entry) => {
    const place = files.findIndex((record) => record.entry === entry.name);
    last = place < 0 ? last : place;
    return { entry, place: last };
  });
  const sorted = ranked.sort((one, other) => one.place - other.place);
  entries.splice(0, entries.length, ...sorted.map(({ entry }) => entry));
}

/** Reverses {@link withFiles}, and describes the list in the manifest of a full backup. */
function withoutFiles({ files, ...manifest }, listed) {
  const digestIn = ({ entry, type, stored }) =>
    stored || type ? undefined : manifest.checksums[entry]?.replace('sha256:', '');
  const line = (record) => `${JSON.stringify({ sha256: digestIn(record), ...record })}\n`;
  const lines = Array.isArray(files) ? files.map(line).join('') : JSON.stringify(files);
  const list = Buffer.from(listed(lines));
  const named = ['database.sqlite', 'config.json'].filter((name) => name in manifest.checksums);
  const checksums = Object.fromEntries(named.map((name) => [name, manifest.checksums[name]]));
  const described = describe(files.length ?? 0, list);
  const fileList = manifest.basedOn ? manifest.fileList : described;
  return { list, manifest: { ...manifest, checksums, fileList } };
}

/**
 * Returns changed entries of the tar of an archive. `change` modifies the manifest, with the fields
 * of {@link withFiles}, and the entries before the list of files. `listed` then replaces the text of
 * the list, `text` that of the manifest, and `checksums` that of the checksums. The rest of the archive is made to agree
 * with these changes, and `inOrder` keeps it in the order of a backup.
 */
export function changedEntries(
  tar,
  {
    change = () => {},
    listed = (lines) => lines,
    text = (json) => json,
    checksums = (lines) => lines,
    inOrder = true,
  },
) {
  const entries = entriesOf(tar).slice(0, -1);
  const { content } = entries.pop();
  const changed = withFiles(JSON.parse(content), entries.pop().content);
  change(changed, entries);
  if (inOrder) sortFiles(changed, entries);
  const { manifest, list } = withoutFiles(changed, listed);
  entries.push({ name: 'files.jsonl', content: list });
  entries.push({ name: 'manifest.json', content: Buffer.from(text(JSON.stringify(manifest))) });
  const lines = entries.filter(isFile).map(checksumLine).join('');
  return [...entries, { name: 'checksums.sha256', content: Buffer.from(checksums(lines)) }];
}

/** Returns the tar of an archive with a changed manifest and matching checksums. */
export function rewriteManifest(tar, change) {
  return tarOf(changedEntries(tar, { change }));
}

/**
 * Adds an entry and its record; call it in a `change`. The entry is a file with `content`, a link
 * to `target`, or a directory. `tar` overrides fields of the entry, so that it can differ from its
 * record.
 */
export function addEntry(
  manifest,
  entries,
  { entry, content = Buffer.alloc(0), target, directory = false, tar = {}, ...record },
) {
  const type = target !== undefined ? 'link' : directory ? 'directory' : undefined;
  const [mode, mtime] = [0o644, '2024-01-01T00:00:00Z'];
  const size = content.length;
  manifest.files.push({ entry, component: 'files', type, target, size, mode, mtime, ...record });
  entries.push({
    name: entry,
    type: { link: '2', directory: '5' }[type] ?? '0',
    link: target ?? '',
    content,
    ...tar,
  });
  if (type === undefined) manifest.checksums[entry] = digestOf(content);
}

/** Returns a digest in the form of a manifest. */
export function digestOf(content) {
  return `sha256:${sha256(content).toString('hex')}`;
}

/** Returns the text of a sidecar, made from the manifest of the archive and `change`. */
export function sidecarOf(archive, manifest, change = () => {}) {
  const sidecar = structuredClone(manifest);
  sidecar.stats.compressedSize = archive.length;
  sidecar.archive = {
    name: 'forged.tar.gz',
    size: archive.length,
    sha256: sha256(archive).toString('hex'),
  };
  change(sidecar);
  return JSON.stringify(sidecar);
}
