// manager.guard: a backup before a function, and a way back if the function fails.

import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { GuardError, KgError, createBackupManager } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test, vi } from 'vitest';

import { once, repository, run, spawn, until } from './support/processes.mjs';
import { contents, makeProject, withDatabase } from './support/project.mjs';

function setUp(config = {}) {
  const project = makeProject();
  const manager = createBackupManager({
    projectRoot: project.root,
    backupDir: project.backups,
    ...config,
  });
  const plugin = path.join(project.root, '.kg/plugins/glossary/terms.json');
  return {
    ...project,
    manager,
    plugin,
    /** What a migration that goes wrong leaves behind. */
    ruin() {
      withDatabase(project.database, (db) => db.exec('DELETE FROM edges; DELETE FROM nodes'));
      writeFileSync(plugin, '[]\n');
    },
    rows: () =>
      withDatabase(project.database, (db) =>
        db.prepare('SELECT count(*) FROM nodes').pluck().get(),
      ),
    pins: async () => (await manager.listBackups()).filter((one) => one.pinned).map(({ id }) => id),
  };
}

const failing = (error) => () => {
  throw error;
};

/** Runs a guard that must fail, and returns its error. */
async function failure(guarded) {
  const error = await guarded.then(
    (value) => expect.unreachable(`resolved to ${value}`),
    (reason) => reason,
  );
  expect(error).toBeInstanceOf(GuardError);
  return error;
}

describe('a function that succeeds', () => {
  test('gets the backup, and the call resolves to its result', async () => {
    const { manager, pins } = setUp();
    const seen = [];
    const result = await manager.guard(async (backup) => {
      seen.push(await manager.getBackup(backup), await pins());
      return 'migrated';
    });
    expect(result).toBe('migrated');
    const [backup, pinned] = seen;
    expect(backup.description).toBe('Before a guarded function');
    expect(backup.pinned.reason).toBe(
      `guard() of process ${process.pid} runs a function that can need this backup`,
    );
    expect(pinned).toEqual([backup.id]);
    const [kept, ...others] = await manager.listBackups();
    expect(others).toEqual([]);
    expect(kept).toEqual({ ...backup, pinned: undefined });
  });

  test('may be synchronous, and may return nothing', async () => {
    const { manager } = setUp();
    expect(await manager.guard(() => 7)).toBe(7);
    expect(await manager.guard(() => {}, { onError: 'restore' })).toBeUndefined();
  });

  test('keeps what it did, and the options of the backup apply', async () => {
    const { manager, rows, ruin } = setUp();
    const phases = new Set();
    const backup = await manager.guard(
      (made) => {
        ruin();
        return made;
      },
      {
        type: 'snapshot',
        description: 'before v2',
        compression: false,
        onError: 'restore',
        onProgress: ({ phase }) => phases.add(phase),
      },
    );
    expect(backup).toMatchObject({ type: 'snapshot', description: 'before v2' });
    expect(backup.path).toMatch(/\.tar$/);
    expect(rows()).toBe(0);
    expect([...phases]).toEqual(expect.arrayContaining(['saving', 'unpacking']));
  });
});

describe('a function that fails', () => {
  test('leaves the project as it is by default; the error tells the way back', async () => {
    const { manager, rows, ruin, root, pins } = setUp();
    const before = contents(root);
    const cause = new TypeError('no such column');
    const error = await failure(
      manager.guard(async () => {
        ruin();
        throw cause;
      }),
    );
    expect(error).toMatchObject({ name: 'GuardError', code: 'KG_GUARD_FAILED' });
    expect(error).toBeInstanceOf(KgError);
    expect(error.cause).toBe(cause);
    expect(error.restored).toBeUndefined();
    expect(error.restoreError).toBeUndefined();
    expect(error.message).toBe(
      'The guarded function failed: no such column. The project is as the function left it. ' +
        `To go back, call restore({ backupId: '${error.backup.id}', overwrite: true }).`,
    );
    expect(rows()).toBe(0);
    expect(await pins()).toEqual([error.backup.id]);
    await manager.restore({ backupId: error.backup, overwrite: true });
    expect(contents(root)).toEqual(before);
  });

  test('can have the backup restored, under connections that are open; an undo reverses it', async () => {
    const { manager, rows, ruin, root, database, pins } = setUp();
    const before = contents(root);
    const open = new Database(database);
    onTestFinished(() => open.close());
    const count = open.prepare('SELECT count(*) FROM nodes').pluck();
    const cause = new Error('halfway.');
    const error = await failure(
      manager.guard(
        async () => {
          ruin();
          expect(count.get()).toBe(0);
          throw cause;
        },
        { onError: 'restore' },
      ),
    );
    expect(error.cause).toBe(cause);
    expect(error.restored).toMatchObject({ id: error.backup.id, targetDir: root, dryRun: false });
    expect(error.message).toBe(
      `The guarded function failed: halfway. The project was restored from ${error.backup.id}. ` +
        'Mend the cause and try again; undoRestore() brings back what the function left.',
    );
    expect(count.get()).toBe(200);
    expect(contents(root)).toEqual(before);
    expect(await pins()).toEqual([]);
    await manager.undoRestore();
    expect(rows()).toBe(0);
  });

  test('can throw anything', async () => {
    const { manager } = setUp();
    for (const thrown of ['a text', undefined, null, Object.freeze({ reason: 5 })]) {
      const error = await failure(manager.guard(failing(thrown), { type: 'snapshot' }));
      expect(error.cause).toBe(thrown);
      expect('cause' in error).toBe(true);
      expect(error.message).toMatch(/^The guarded function failed: .+\. The project is/);
    }
  });

  test.each(['keep', 'restore'])('asks a function, which says "%s"', async (decision) => {
    const { manager, rows, ruin } = setUp();
    const onError = vi.fn(async () => decision);
    const cause = new Error('boom');
    const error = await failure(
      manager.guard(
        () => {
          ruin();
          throw cause;
        },
        { onError },
      ),
    );
    expect(onError).toHaveBeenCalledExactlyOnceWith(cause, error.backup);
    expect(error.restored !== undefined).toBe(decision === 'restore');
    expect(rows()).toBe(decision === 'restore' ? 200 : 0);
  });

  test('keeps the project if the decision fails or is none', async () => {
    const { manager, rows, ruin, pins } = setUp();
    const cause = new Error('boom');
    const run = (onError) => {
      const fn = () => {
        ruin();
        throw cause;
      };
      return failure(manager.guard(fn, { onError }));
    };
    const silent = await run(() => {});
    expect(silent.restoreError).toMatchObject({
      code: 'KG_INVALID_OPTION',
      message: expect.stringContaining('`onError` returned undefined'),
    });
    const fault = new Error('no terminal');
    const thrown = await run(failing(fault));
    expect(thrown.restoreError).toBe(fault);
    expect(thrown.message).toContain('boom');
    expect(thrown.message).toContain('no terminal');
    for (const error of [silent, thrown]) {
      expect(error.cause).toBe(cause);
      expect(error.restored).toBeUndefined();
    }
    expect(rows()).toBe(0);
    expect((await pins()).sort()).toEqual([silent.backup.id, thrown.backup.id].sort());
  });

  test('reports both errors if the restore fails too', async () => {
    const { manager, rows, ruin } = setUp();
    const cause = new Error('boom');
    const warnings = [];
    const listen = (warning) => warnings.push(warning);
    process.on('warning', listen);
    onTestFinished(() => process.off('warning', listen));
    const error = await failure(
      manager.guard(
        (backup) => {
          ruin();
          rmSync(backup.path);
          throw cause;
        },
        { onError: 'restore' },
      ),
    );
    expect(error.cause).toBe(cause);
    expect(error.restored).toBeUndefined();
    expect(error.restoreError).toMatchObject({ code: 'KG_BACKUP_NOT_FOUND' });
    expect(error.message).toContain('boom');
    expect(error.message).toContain(`The project could not be restored from ${error.backup.id}`);
    expect(error.message).toContain(error.restoreError.message);
    expect(error.toJSON()).toMatchObject({
      restored: false,
      backupId: error.backup.id,
      cause: { name: 'Error', message: 'boom' },
      restoreError: { name: 'KgError', code: 'KG_BACKUP_NOT_FOUND' },
    });
    expect(rows()).toBe(0);
  });
});

describe('before the function', () => {
  test('a failed backup means that the function is not called', async () => {
    const { manager, root } = setUp();
    rmSync(path.join(root, '.kg'), { recursive: true });
    const fn = vi.fn();
    const rejected = expect(manager.guard(fn, { onError: 'restore' })).rejects;
    await rejected.toMatchObject({ name: 'KgError', code: 'KG_NO_PROJECT' });
    expect(fn).not.toHaveBeenCalled();
  });

  test('so does a backup that could not be restored here, if it may have to be', async () => {
    const { manager: owner, root, backups, pins } = setUp();
    await owner.createBackup();
    const identity = path.join(path.dirname(root), 'identity');
    run('age-keygen', ['-o', identity]);
    const recipients = [run('age-keygen', ['-y', identity]).trim()];
    const manager = createBackupManager({
      projectRoot: root,
      backupDir: backups,
      encryption: { recipients },
    });
    const fn = vi.fn(() => 'done');
    for (const onError of ['restore', () => 'restore']) {
      await expect(manager.guard(fn, { onError })).rejects.toMatchObject({ code: 'KG_KEY_NEEDED' });
    }
    expect(fn).not.toHaveBeenCalled();
    expect(await pins()).toEqual([]);
    expect(await manager.guard(fn)).toBe('done');
  });

  test('refuses what is not a function, a decision or a boolean, and makes no backup', async () => {
    const { manager, backups } = setUp();
    const fn = vi.fn();
    for (const [given, options, message] of [
      [undefined, {}, /guard takes a function, not undefined/],
      [Promise.resolve(), {}, /guard takes a function/],
      [fn, { onError: 'rollback' }, /`onError` is rollback/],
      [fn, { onError: true }, /`onError` is true/],
      [fn, { pin: 'yes' }, /`pin` is neither true nor false/],
      [fn, { onFailure: 'restore' }, /onFailure/],
      [fn, 'restore', /guard takes an object of options/],
    ]) {
      await expect(manager.guard(given, options)).rejects.toMatchObject({
        code: 'KG_INVALID_OPTION',
        message: expect.stringMatching(message),
      });
    }
    expect(fn).not.toHaveBeenCalled();
    expect(existsSync(backups)).toBe(false);
  });
});

describe('the pin', () => {
  test('keeps the backup while retention removes others, and no longer', async () => {
    const { manager } = setUp({ maxBackups: 1 });
    const guarded = await manager.guard(async (backup) => {
      for (let n = 0; n < 2; n += 1) await manager.createBackup({ type: 'snapshot' });
      await manager.createBackup();
      expect((await manager.listBackups()).map(({ id }) => id)).toContain(backup.id);
      await expect(manager.deleteBackup(backup)).rejects.toMatchObject({
        code: 'KG_BACKUP_PINNED',
      });
      return backup;
    });
    await manager.createBackup();
    expect((await manager.listBackups()).map(({ id }) => id)).not.toContain(guarded.id);
  });

  test('stays or goes as `pin` says', async () => {
    const { manager, pins } = setUp();
    const kept = await manager.guard((backup) => backup.id, { pin: true });
    expect(await pins()).toEqual([kept]);
    await failure(manager.guard(failing(new Error('boom')), { pin: false }));
    expect(await pins()).toEqual([kept]);
    const restored = await failure(
      manager.guard(failing(new Error('boom')), { pin: true, onError: 'restore' }),
    );
    expect((await pins()).sort()).toEqual([kept, restored.backup.id].sort());
  });

  test('of someone else stays', async () => {
    const { manager } = setUp();
    const id = await manager.guard(async (backup) => {
      await manager.pin(backup, 'for the audit');
      return backup.id;
    });
    expect((await manager.getBackup(id)).pinned.reason).toBe('for the audit');
  });

  test('stays if the process is killed, and tells which one that was', async () => {
    const { manager, root, backups } = setUp();
    const program = `
      import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
      const manager = createBackupManager(${JSON.stringify({ projectRoot: root, backupDir: backups })});
      await manager.guard(() => process.kill(process.pid, 'SIGKILL'));`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      cwd: repository,
      stdio: 'inherit',
    });
    expect(await once(child, 'exit')).toEqual([null, 'SIGKILL']);
    const [backup] = await manager.listBackups();
    expect(backup.pinned.reason).toContain(`process ${child.pid} `);
    await manager.restore({ backupId: backup, overwrite: true });
    expect((await manager.unpin(backup)).pinned).toBeUndefined();
  });

  test('that cannot be removed is a warning of the process, not a failure', async () => {
    const { manager, backups } = setUp();
    const warnings = [];
    const listen = (warning) => warnings.push(warning);
    process.on('warning', listen);
    onTestFinished(() => process.off('warning', listen));
    const result = await manager.guard(() => {
      rmSync(backups, { recursive: true });
      return 'done';
    });
    expect(result).toBe('done');
    const warning = await until(() => warnings.find(({ code }) => code === 'KG_GUARD_PIN'));
    expect(warning.message).toMatch(/^guard\(\) could not unpin backup-.*does not exist/);
  });
});

describe('an abort', () => {
  test('before the function is that of the backup', async () => {
    const { manager } = setUp();
    const fn = vi.fn();
    const signal = AbortSignal.abort(new Error('stopped'));
    await expect(manager.guard(fn, { signal })).rejects.toMatchObject({ name: 'AbortError' });
    expect(fn).not.toHaveBeenCalled();
    expect(await manager.listBackups()).toEqual([]);
  });

  test('during the function waits for its end, and is a failure even if it succeeds', async () => {
    const { manager, ruin, rows } = setUp();
    const controller = new AbortController();
    const reason = new Error('stopped by the user');
    const steps = [];
    const error = await failure(
      manager.guard(
        async () => {
          controller.abort(reason);
          await manager.listBackups();
          ruin();
          steps.push('end of the function');
          return 'half';
        },
        {
          signal: controller.signal,
          onError: (cause) => {
            steps.push(cause.name);
            return 'restore';
          },
        },
      ),
    );
    expect(steps).toEqual(['end of the function', 'AbortError']);
    expect(error.cause).toMatchObject({ name: 'AbortError', code: 'ABORT_ERR', cause: reason });
    expect(error.restored).toBeDefined();
    expect(rows()).toBe(200);
  });

  test('does not hide what the function threw', async () => {
    const { manager } = setUp();
    const controller = new AbortController();
    const cause = new Error('boom');
    const fn = () => {
      controller.abort();
      throw cause;
    };
    expect((await failure(manager.guard(fn, { signal: controller.signal }))).cause).toBe(cause);
  });
});

describe('guards in guards', () => {
  test('restore their own backup, and the outer function can go on', async () => {
    const { manager, database, ruin, rows, plugin, pins } = setUp();
    const add = () =>
      withDatabase(database, (db) => db.exec("INSERT INTO nodes (id) VALUES ('added')"));
    await manager.guard(
      async () => {
        add();
        const fn = () => {
          ruin();
          throw new Error('inner');
        };
        await failure(manager.guard(fn, { onError: 'restore' }));
        expect(rows()).toBe(201);
      },
      { onError: 'restore' },
    );
    expect(rows()).toBe(201);
    expect(readFileSync(plugin, 'utf8')).toBe('["graph","node"]\n');
    expect(await pins()).toEqual([]);
  });

  test('fail the outer one with all causes if nobody catches', async () => {
    const { manager, database, ruin, rows } = setUp();
    const cause = new Error('inner');
    const outer = await failure(
      manager.guard(
        async () => {
          withDatabase(database, (db) => db.exec("INSERT INTO nodes (id) VALUES ('added')"));
          await manager.guard(
            () => {
              ruin();
              throw cause;
            },
            { onError: 'restore' },
          );
        },
        { onError: 'restore' },
      ),
    );
    expect(outer.cause).toBeInstanceOf(GuardError);
    expect(outer.cause.cause).toBe(cause);
    expect(rows()).toBe(200);
    expect(outer.toJSON().cause).toMatchObject({
      code: 'KG_GUARD_FAILED',
      cause: { message: 'inner' },
    });
  });
});
