// `npm run check:windows`: checks that the Rust code compiles for Windows. It makes no program.

import { cargoFor } from './zig.mjs';

cargoFor('x86_64-pc-windows-gnu', 'check', []);
