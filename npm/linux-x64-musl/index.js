'use strict';

// Where the native parts are. Bundlers recognise these expressions and bring the files along.

const path = require('node:path');

module.exports = {
  addonPath: path.join(__dirname, 'knowledge-graph-agent.node'),
  kgPath: path.join(__dirname, 'kg'),
};
