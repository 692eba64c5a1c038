// The operations that every contender runs, in this order, on its own copy of the project. Each
// step builds on the steps before it.

/**
 * `call` names the operation. `changePercent` of the rows are changed before it, spread over the
 * table, a different set each time. A contender without that operation has no figure for the step.
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

/** The steps for a curve over sizes. */
export const BACKUP_ALONE = STEPS.slice(0, 1);

/**
 * Returns the steps for a curve over the share of changed pages. They are a full backup to compare
 * with, then one of each kind after such a change.
 */
export function changeSteps(changePercent) {
  return [
    { key: 'backup', call: 'backup' },
    { key: 'fullChanged', call: 'backup', changePercent },
    { key: 'incrementalChanged', call: 'incremental', changePercent },
  ];
}
