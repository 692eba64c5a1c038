import { expect, test } from 'vitest';

import { startAzurite } from './support/azurite.mjs';
import { conformance } from './support/conformance.mjs';

const { store, setUp } = conformance('Azure Blob Storage, as Azurite has it', startAzurite, {
  pageSize: 5000,
});

test('a wrong key is reported as such', async () => {
  const accessKey = Buffer.from('wrong').toString('base64');
  const { managerWith } = setUp();
  const manager = managerWith({ storageOptions: { ...store().storageOptions, accessKey } });
  await expect(manager.createBackup()).rejects.toMatchObject({ code: 'KG_STORE_DENIED' });
});
