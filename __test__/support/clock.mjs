// A clock that a test controls.

/**
 * Runs its timers when `advance` reaches them. The test waits for other work, such as promises and
 * native calls.
 */
export class FakeClock {
  constructor(start = Date.now()) {
    this.time = start;
    this.timers = new Map();
    this.asked = [];
    this.last = 0;
  }

  now = () => this.time;

  setTimeout = (callback, ms) => {
    this.asked.push(ms);
    this.last += 1;
    this.timers.set(this.last, { callback, at: this.time + ms });
    return this.last;
  };

  clearTimeout = (timer) => {
    this.timers.delete(timer);
  };

  /**
   * Advances the time and runs each due timer at its time, including timers that others set
   * meanwhile.
   */
  advance(ms) {
    const end = this.time + ms;
    for (;;) {
      const [next] = [...this.timers].sort(([, a], [, b]) => a.at - b.at);
      if (!next || next[1].at > end) break;
      this.timers.delete(next[0]);
      this.time = Math.max(this.time, next[1].at);
      next[1].callback();
    }
    this.time = end;
  }

  /** Simulates sleep or a clock change: every due timer runs at the new time. */
  jump(ms) {
    this.time += ms;
    this.advance(0);
  }
}
