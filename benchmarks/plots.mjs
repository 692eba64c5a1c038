// Draws the curves as SVG. Text and lines follow the light or dark mode of the viewer. A contender
// has the same colour and the same mark in all plots.

import { median } from './measure.mjs';

const FONT_PX = 13;
const LABEL_PX = 17;
const MARKS = {
  circle: (x, y) => `<circle cx="${x}" cy="${y}" r="4"/>`,
  square: (x, y) => `<rect x="${x - 3.5}" y="${y - 3.5}" width="7" height="7"/>`,
  triangle: (x, y) => `<path d="M${x} ${y - 5}l5 8.5h-10z"/>`,
  diamond: (x, y) => `<path d="M${x} ${y - 5.5}l5 5.5l-5 5.5l-5-5.5z"/>`,
};
/**
 * Colours of medium lightness, which are visible on white and on black. Contenders that are not
 * listed are grey.
 */
const LOOKS = {
  ours: ['#e8590c', 'circle'],
  'ours-zstd': ['#d6950b', 'circle'],
  gzip: ['#868e96', 'square'],
  pigz: ['#3b82c4', 'square'],
  zstd: ['#12a594', 'square'],
  'node-tar': ['#9065d9', 'triangle'],
  restic: ['#d6409f', 'diamond'],
  borg: ['#5c9a38', 'diamond'],
};
const STYLE = `
  text { font: ${FONT_PX}px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 }
  .minor { fill: #59636e }
  .page { fill: #ffffff }
  .grid { stroke: #d1d9e0; stroke-width: 1 }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round }
  .own { stroke-width: 3 }
  .dashed { stroke-dasharray: 6 4 }
  .leader { fill: none; stroke-width: 1; opacity: 0.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .minor { fill: #9198a1 }
    .page { fill: #0d1117 }
    .grid { stroke: #3d444d }
  }
`;

const escape = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
const round = (number) => Math.round(number * 10) / 10;

function text(x, y, content, { anchor = 'start', kind = '' } = {}) {
  return `<text x="${round(x)}" y="${round(y)}" text-anchor="${anchor}" class="${kind}">${escape(content)}</text>`;
}

/**
 * Returns a linear scale from 0. A scale maps a value to 0…1 and has ticks, each a value and its
 * text.
 */
function linear(most, unit = '') {
  const step = [1, 2, 2.5, 5, 10]
    .map((n) => n * 10 ** Math.floor(Math.log10(most / 4)))
    .find((n) => most / n <= 5);
  const count = Math.ceil(most / step);
  const ticks = Array.from({ length: count + 1 }, (_, n) => [
    n * step,
    `${Math.round(n * step * 100) / 100}${unit}`,
  ]);
  return { at: (value) => value / (count * step), ticks };
}

/** Returns a logarithmic scale. Values below the first tick are drawn at that tick. */
function logarithmic(ticks) {
  const [from, to] = [ticks[0][0], ticks.at(-1)[0]].map(Math.log);
  return {
    at: (value) =>
      to === from ? 0.5 : (Math.log(Math.max(value, ticks[0][0])) - from) / (to - from),
    ticks,
  };
}

/** Returns a scale with all ticks at equal distances, whatever their values. */
function even(ticks) {
  return {
    at: (value) => ticks.findIndex(([tick]) => tick === value) / Math.max(1, ticks.length - 1),
    ticks,
  };
}

/** Moves positions that are closer together than `distance` apart, and keeps their order. */
function apart(ys, distance, lowest) {
  const order = ys.map((y, index) => [y, index]).sort(([a], [b]) => a - b);
  for (let n = 1; n < order.length; n += 1)
    order[n][0] = Math.max(order[n][0], order[n - 1][0] + distance);
  for (let n = order.length - 1; n >= 0; n -= 1) {
    const limit = n === order.length - 1 ? lowest : order[n + 1][0] - distance;
    order[n][0] = Math.min(order[n][0], limit);
  }
  const moved = [];
  for (const [y, index] of order) moved[index] = y;
  return moved;
}

/**
 * Draws one panel. A series is `{ key, label, isDashed, points: [[x, y]] }`. Its label is at its
 * end.
 */
function panel({ left, top, width, height, title, xTitle, yTitle, x, y, series }) {
  const toX = (value) => round(left + x.at(value) * width);
  const toY = (value) => round(top + height - y.at(value) * height);
  const bottom = top + height;
  const parts = [
    text(left, top - 34, title, { kind: 'title' }),
    text(left, top - 14, yTitle, { kind: 'minor' }),
  ];
  for (const [value, name] of y.ticks) {
    parts.push(`<path class="grid" d="M${left} ${toY(value)}h${width}"/>`);
    parts.push(text(left - 8, toY(value) + 4, name, { anchor: 'end', kind: 'minor' }));
  }
  for (const [value, name] of x.ticks) {
    parts.push(`<path class="grid" d="M${toX(value)} ${bottom}v5"/>`);
    parts.push(text(toX(value), bottom + 20, name, { anchor: 'middle', kind: 'minor' }));
  }
  parts.push(text(left + width / 2, bottom + 42, xTitle, { anchor: 'middle', kind: 'minor' }));
  const ends = apart(
    series.map(({ points }) => toY(points.at(-1)[1])),
    LABEL_PX,
    bottom,
  );
  // The first series is drawn last, above the others.
  for (const [index, { key, label, isDashed, points }] of [...series.entries()].reverse()) {
    const [colour, mark] = LOOKS[key] ?? ['#868e96', 'circle'];
    const places = points.map(([px, py]) => [toX(px), toY(py)]);
    const kind = `line${key === 'ours' && !isDashed ? ' own' : ''}${isDashed ? ' dashed' : ''}`;
    parts.push(
      `<path class="${kind}" stroke="${colour}" d="M${places.map((place) => place.join(' ')).join('L')}"/>`,
    );
    parts.push(`<g fill="${colour}">${places.map((place) => MARKS[mark](...place)).join('')}</g>`);
    const [endX, endY] = places.at(-1);
    const labelY = round(ends[index]);
    parts.push(
      `<path class="leader" stroke="${colour}" d="M${endX + 6} ${endY}L${endX + 20} ${labelY}"/>`,
    );
    parts.push(`<path class="${kind}" stroke="${colour}" d="M${endX + 20} ${labelY}h28"/>`);
    parts.push(`<g fill="${colour}">${MARKS[mark](endX + 34, labelY)}</g>`);
    parts.push(text(endX + 55, labelY + 4, label));
  }
  return parts.join('\n');
}

function document(width, height, label, content) {
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${escape(label)}">
<style>${STYLE}</style>
<rect class="page" width="${width}" height="${height}" rx="6"/>
${content}
</svg>
`;
}

/** Plots a figure of a backup into an empty store over the size of the database. */
function overSize({ bySize }, title, yTitle, figure) {
  const series = bySize[0].contenders.map(({ key, name }) => {
    const points = bySize.map(({ databaseBytes, contenders }) => {
      const { steps } = contenders.find((contender) => contender.key === key);
      return [databaseBytes / 1e6, figure(steps.backup, databaseBytes)];
    });
    return { key, label: name, points };
  });
  const content = panel({
    left: 60,
    top: 66,
    width: 520,
    height: 340,
    title,
    xTitle: 'size of the database, MB (logarithmic)',
    yTitle,
    x: logarithmic(
      bySize.map(({ databaseBytes, megabytes }) => [databaseBytes / 1e6, String(megabytes)]),
    ),
    y: linear(Math.max(...series.flatMap(({ points }) => points.map(([, value]) => value)))),
    series,
  });
  return document(870, 470, title, content);
}

const throughput = (sweep) =>
  overSize(
    sweep,
    'Backup into an empty store',
    'MB of the database per second; more is faster',
    ({ seconds }, bytes) => bytes / 1e6 / median(seconds),
  );

const memory = (sweep) =>
  overSize(
    sweep,
    'Peak memory of a backup',
    'MiB of all processes together; less is better',
    ({ memory: { peakBytes } }) => peakBytes / 2 ** 20,
  );

/**
 * Plots the time and bytes of the next backup over the share of changed pages. Both are percentages
 * of the contender's own first backup.
 */
function nextBackup({ byChange: { points } }) {
  const shares = points.map(({ changedPercent }) => [changedPercent, `${changedPercent} %`]);
  const seriesOf = (field) => {
    const line = ({ key, name }, step, label) => ({
      key,
      label: label ?? name.replace(/^sqlite3 .backup, /, ''),
      isDashed: step === 'fullChanged',
      points: points.map(({ changedPercent, contenders }) => {
        const { steps } = contenders.find((contender) => contender.key === key);
        return [changedPercent, (100 * median(steps[step][field])) / median(steps.backup[field])];
      }),
    });
    const measured = points[0].contenders;
    const isOwn = ({ key }) => key.startsWith('ours');
    return [
      ...measured
        .filter(isOwn)
        .map((own) => line(own, 'incrementalChanged', `${own.name}, incremental`)),
      ...measured.filter(isOwn).map((own) => line(own, 'fullChanged', `${own.name}, full again`)),
      ...measured.filter((one) => !isOwn(one)).map((other) => line(other, 'incrementalChanged')),
    ];
  };
  const [times, bytes] = [seriesOf('seconds'), seriesOf('keptBytes')];
  const most = Math.max(...times.flatMap(({ points: line }) => line.map(([, value]) => value)));
  const common = {
    left: 74,
    width: 430,
    height: 280,
    xTitle: 'changed pages of the database',
    x: even(shares),
  };
  const panels = [
    {
      ...common,
      top: 66,
      title: 'Time of the next backup',
      yTitle: 'of the time of the first one; less is faster',
      y: linear(most, ' %'),
      series: times,
    },
    {
      ...common,
      top: 466,
      title: 'Bytes that the next backup keeps',
      yTitle: 'of the bytes of the first one (logarithmic)',
      y: logarithmic([0.001, 0.01, 0.1, 1, 10, 100].map((value) => [value, `${value} %`])),
      series: bytes,
    },
  ];
  return document(800, 810, 'Time and bytes of the next backup', panels.map(panel).join('\n'));
}

/** Returns the content of each plot by its file name. */
export function plotsOf(sweep) {
  return {
    'backup-throughput.svg': throughput(sweep),
    'backup-memory.svg': memory(sweep),
    ...(sweep.byChange.points[0].contenders.length > 0 && { 'next-backup.svg': nextBackup(sweep) }),
  };
}
