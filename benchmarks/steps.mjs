// What every contender is asked to do, in this order, on a copy of the project of its own. Each step builds on the ones before it.

/**
 * `call` is what a contender is asked for; `changePercent` of the rows are changed before it, spread out, another set each time.
 * A contender without that call has no figure for the step.
 */
export const STEPS = [
  { key: 'backup', label: 'backup', call: 'backup' },
  { key: 'verify', label: 'verify', call: 'verify' },
  { key: 'restore', label: 'restore', call: 'restore' },
  { key: 'fullUnchanged', label: 'full again, nothing changed', call: 'backup' },
  { key: 'fullChanged', label: 'full again, 1 % changed', call: 'backup', changePercent: 1 },
  { key: 'incrementalUnchanged', label: 'incremental, nothing changed', call: 'incremental' },
  {
    key: 'incrementalChanged',
    label: 'incremental, 1 % changed',
    call: 'incremental',
    changePercent: 1,
  },
];

/** For a curve over sizes. */
export const BACKUP_ALONE = STEPS.slice(0, 1);

/** For a curve over the share of changed pages: a full backup to compare with, then one of each kind after that much changed. */
export function changeSteps(changePercent) {
  return [
    { key: 'backup', call: 'backup' },
    { key: 'fullChanged', call: 'backup', changePercent },
    { key: 'incrementalChanged', call: 'incremental', changePercent },
  ];
}
