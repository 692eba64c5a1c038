// docs/guide/monitor.md and the files next to it use only existing metrics.

import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { expect, test } from 'vitest';

import { kg, repository, run, until } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const at = (name) => path.join(repository, 'docs/guide', name);
const read = (name) => readFileSync(at(name), 'utf8');
const names = (text) => [...new Set(text.match(/\bkg_backup_\w+/g))].sort();
const { panels, templating } = JSON.parse(read('monitoring/grafana-dashboard.json'));
const targets = panels.flatMap((panel) => panel.targets);

test('the document lists every metric of a service, and document, alerts and dashboard use no other', async () => {
  const { root, database } = makeProject();
  const ofProject = (...args) => kg(args, { cwd: root });
  // One failed run sets the metric with the time of the last failure.
  renameSync(database, `${database}.away`);
  expect((await ofProject('diag', 'backup', '--quiet')).status).toBe(3);
  renameSync(`${database}.away`, database);
  await ofProject('config', 'set', 'backup.copyTo', '../copies');
  await ofProject('config', 'set', 'backup.enabled', 'true');
  await ofProject('config', 'set', 'backup.schedule', '* * * * * *');
  try {
    const { listen } = resultOf(
      (await ofProject('serve', '--all', '--listen', '0', '--json')).stdout,
    );
    const scrape = async () => (await fetch(`http://${listen.address}/metrics`)).text();
    const text = await until(async () => {
      const text = await scrape();
      return text.includes('copy_last_timestamp_seconds{') ? text : undefined;
    }, 'a backup and its copy');
    const exported = names(text);
    expect(names(read('monitor.md'))).toEqual(exported);
    expect(exported).toEqual(expect.arrayContaining(names(read('monitoring/alerts.yml'))));
    expect(exported).toEqual(
      expect.arrayContaining(names(JSON.stringify({ targets, templating }))),
    );
  } finally {
    await ofProject('serve', '--stop');
  }
});

test('the alert rules are valid, and each alert has tests that fire and do not fire', () => {
  run('promtool', ['check', 'rules', '--lint=all', '--lint-fatal', at('monitoring/alerts.yml')]);
  run('promtool', ['test', 'rules', at('monitoring/alerts.test.yml')]);
  const alerts = [...read('monitoring/alerts.yml').matchAll(/- alert: (\w+)/g)].map(
    ([, name]) => name,
  );
  const shown = [
    ...read('monitoring/alerts.test.yml').matchAll(/alertname: (\w+)\n\s+exp_alerts:( \[\])?/g),
  ];
  const withResult = (isQuiet) =>
    new Set(shown.filter(([, , quiet]) => Boolean(quiet) === isQuiet).map(([, name]) => name));
  expect([...withResult(false)].sort()).toEqual([...alerts].sort());
  expect([...withResult(true)].sort()).toEqual([...alerts].sort());
  const documented = [...read('monitor.md').matchAll(/^\| `(Kg\w+)`/gm)].map(([, name]) => name);
  expect(documented).toEqual(alerts);
});

test('the dashboard has valid Prometheus queries for the selected data source, in panels that do not overlap', () => {
  const rules = targets.map(({ expr }, number) => ({
    record: `panel:${number}`,
    expr: expr.replaceAll('$project', '.*'),
  }));
  const file = path.join(temporaryDirectory(), 'panels.yml');
  writeFileSync(file, JSON.stringify({ groups: [{ name: 'panels', rules }] }));
  run('promtool', ['check', 'rules', file]);
  const chosen = { type: 'prometheus', uid: '${datasource}' };
  for (const { datasource } of [...panels, ...targets]) expect(datasource).toEqual(chosen);
  expect(templating.list.map(({ name, type }) => [name, type])).toEqual([
    ['datasource', 'datasource'],
    ['project', 'query'],
  ]);
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
  const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
    Array.from({ length: w * h }, (_, n) => `${x + (n % w)} ${y + Math.floor(n / w)}`),
  );
  expect(new Set(cells).size).toBe(cells.length);
  expect(Math.max(...panels.map(({ gridPos: { x, w } }) => x + w))).toBeLessThanOrEqual(24);
});
