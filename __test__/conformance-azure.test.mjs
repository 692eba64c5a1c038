import { expect, test } from 'vitest';

import { startAzurite } from './support/azurite.mjs';
import { conformance } from './support/conformance.mjs';
import { kg } from './support/processes.mjs';
import { temporaryDirectory } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const { store, setUp } = conformance('Azure Blob Storage, as Azurite has it', startAzurite, {
  pageSize: 5000,
});

test('a wrong key is reported as such', async () => {
  const accessKey = Buffer.from('wrong').toString('base64');
  const { managerWith } = setUp();
  const manager = managerWith({ storageOptions: { ...store().storageOptions, accessKey } });
  await expect(manager.createBackup()).rejects.toMatchObject({ code: 'KG_STORE_DENIED' });
});

test('a check of the store proves what Azure can, and leaves nothing', async () => {
  const check = async (env) => {
    const { status, stdout } = await kg(
      ['diag', 'store', '--check', store().url('stores/check'), '--json'],
      { cwd: temporaryDirectory(), env: { ...process.env, ...store().env, ...env } },
    );
    const report = resultOf(stdout);
    const other = report.operations?.filter(({ outcome }) => outcome !== 'works');
    return { status, report, other: other?.map(({ name, outcome }) => `${name}: ${outcome}`) };
  };
  const { status, report, other } = await check();
  // kg has no way to ask Azure for these.
  expect(other).toEqual([
    'list-uploads: cannot-tell',
    'abort: cannot-tell',
    'versioning: cannot-tell',
    'object-lock: cannot-tell',
  ]);
  expect(report).toMatchObject({
    backups: 'works',
    retention: 'works',
    remaining: [],
    tried: { credentials: 'AZURE_STORAGE_ACCOUNT_KEY of the environment' },
  });
  expect(status).toBe(0);
  const without = await check({ AZURE_STORAGE_ACCOUNT_NAME: undefined });
  expect(without.report.error.remedy).toContain('AZURE_STORAGE_ACCOUNT_NAME');
  expect(without.status).toBe(2);
});
