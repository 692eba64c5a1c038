// A freshness check serves the health monitor of the guide and that of the host.

import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { backupFreshnessCheck, createBackupManager } from '@weavelogic/knowledge-graph-agent';
import { describe, expect, onTestFinished, test, vi } from 'vitest';

import { makeProject } from './support/project.mjs';

/** The monitor of the guide: its checks resolve to a boolean. */
class GuideMonitor {
  #checks = [];

  addCheck(check) {
    this.#checks.push(check);
  }

  async run() {
    const results = this.#checks.map(async ({ name, check }) => [name, await check()]);
    return Object.fromEntries(await Promise.all(results));
  }
}

/** The monitor of the host: its functions resolve to the health of a component. */
class HostMonitor {
  #functions = new Map();

  register(name, fn) {
    this.#functions.set(name, fn);
  }

  async run() {
    const components = [];
    for (const [name, fn] of this.#functions) components.push({ ...(await fn()), name });
    const isHealthy = components.every(({ status }) => status === 'healthy');
    return { status: isHealthy ? 'healthy' : 'unhealthy', components };
  }
}

describe('a freshness check', () => {
  function setUp(options) {
    const project = makeProject({ nodes: 20 });
    const manager = createBackupManager({
      projectRoot: project.root,
      backupDir: project.backups,
    });
    const freshness = backupFreshnessCheck(manager, options);
    const [guide, host] = [new GuideMonitor(), new HostMonitor()];
    guide.addCheck(freshness);
    host.register(freshness.name, freshness.status);
    return { ...project, manager, guide, host, freshness };
  }

  test('serves the monitors of the guide and of the host', async () => {
    const { manager, guide, host } = setUp({ name: 'backups', maxAge: '1d' });
    expect(await guide.run()).toEqual({ backups: false });
    expect(await host.run()).toEqual({
      status: 'unhealthy',
      components: [
        {
          name: 'backups',
          status: 'unhealthy',
          message: 'There is no good backup',
          lastCheck: expect.any(Date),
          metrics: {},
        },
      ],
    });
    await manager.createBackup();
    expect(await guide.run()).toEqual({ backups: true });
    const { status, components } = await host.run();
    expect(status).toBe('healthy');
    expect(components[0]).toEqual({
      name: 'backups',
      status: 'healthy',
      message: expect.stringMatching(/^The newest good backup is \d+ (s|min) old$/),
      lastCheck: expect.any(Date),
      metrics: { ageMs: expect.any(Number), maxAgeMs: 86_400_000 },
    });
  });

  test('is not healthy anywhere if the newest backup is too old', async () => {
    const { manager, guide, host } = setUp({ maxAge: '24h' });
    const { timestamp } = await manager.createBackup();
    vi.useFakeTimers({ toFake: ['Date'], now: timestamp + 26 * 3_600_000 });
    onTestFinished(() => vi.useRealTimers());
    expect(await guide.run()).toEqual({ 'backup-freshness': false });
    const { status, components } = await host.run();
    expect(status).toBe('unhealthy');
    expect(components[0].message).toBe('The newest good backup is 26 h old, and 24 h are allowed');
    expect(components[0].metrics).toEqual({ ageMs: 26 * 3_600_000, maxAgeMs: 86_400_000 });
  });

  test('is not healthy and says why if the store cannot be read', async () => {
    const { manager, guide, host, freshness, backups, root } = setUp();
    await manager.createBackup();
    rmSync(backups, { recursive: true });
    writeFileSync(backups, 'a file');
    await expect(guide.run()).rejects.toMatchObject({ code: 'KG_BACKUP_DIR_INVALID' });
    const { status, components } = await host.run();
    expect(status).toBe('unhealthy');
    expect(components[0].message).toContain(backups);
    rmSync(backups);
    mkdirSync(backups);
    writeFileSync(path.join(root, '.kg/config.json'), '{"backup": {"dir": ');
    const own = backupFreshnessCheck(createBackupManager({ projectRoot: root }));
    const { status: alone } = own;
    expect(await alone()).toMatchObject({
      name: freshness.name,
      status: 'unhealthy',
      message: expect.stringContaining('.kg/config.json cannot be used'),
    });
  });
});
