// A full disk causes a clear error, loses no backup and leaves its free space as before. The small
// disk is a tmpfs in a separate mount namespace.

import { expect, test } from 'vitest';

import { kgPath, run } from './support/processes.mjs';
import { makeProject } from './support/project.mjs';

const isRoot = process.getuid() === 0;

/** Runs a shell script with an empty disk of 3 MB at $disk, and `kg` as a function. */
function onSmallDisk(root, script) {
  const prelude = `
    disk=$(mktemp -d); mount -t tmpfs -o size=3m tmpfs "$disk"; trap 'umount "$disk"; rmdir "$disk"' EXIT
    kg() { timeout 60 "${kgPath}" "$@"; }
    used() { df --output=used "$disk" | tail -1; }`;
  return run('unshare', [isRoot ? '-m' : '-rm', 'sh', '-ec', `${prelude}\n${script}`], {
    cwd: root,
  })
    .trim()
    .split('\n');
}

test('a backup that does not fit leaves the earlier ones and frees its space', () => {
  const { root } = makeProject({ nodes: 3000 });
  const output = onSmallDisk(
    root,
    `made=0
     while kg diag backup --quiet --compression none --output "$disk/b" 2> "$disk/said"; do made=$((made + 1)); before=$(used); done
     echo "made $made"
     grep -o KG_NO_SPACE "$disk/said"
     test "$(used)" -le "$((before + 8))" && echo 'space given back'
     kg diag verify "$disk/b/latest.tar" | grep -o 'as it was written'
     ls -A "$disk/b" | grep -c -e partial -e snapshot || true`,
  );
  expect(output).toEqual([
    expect.stringMatching(/^made [1-9]/),
    'KG_NO_SPACE',
    'space given back',
    'as it was written',
    '0',
  ]);
});

test('a restore that does not fit leaves the target as it was', () => {
  const { root } = makeProject({ nodes: 8000 });
  const output = onSmallDisk(
    root,
    `kg diag backup --quiet --output ../backups
     kg diag restore --file ../backups/latest.tar.gz --target "$disk/new" 2>&1 | grep -o KG_NO_SPACE
     ls -A "$disk"`,
  );
  expect(output).toEqual(['KG_NO_SPACE']);
});
