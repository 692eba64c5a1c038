// A clock that a test sets.

/** Its timers run when `advance` reaches them; work in between (promises, native calls) is the test's to wait for. */
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

  /** Lets time pass: each timer runs at its time, later ones that it sets too. */
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

  /** As when the machine sleeps or its clock is set: timers that are due run, at the new time. */
  jump(ms) {
    this.time += ms;
    this.advance(0);
  }
}
